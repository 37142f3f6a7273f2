//! What the door hands out: final accounts, the disk's answers, the streams' next ones.
//!
//! Owns the way from the service to those who wait or watch. Nobody is waited for: who does not take what it is told is
//! let go by its connection's own limits.

use super::encode;
use super::event_loop::SocketServer;
use crate::attribution::account::Account;
use crate::service::caller::ReplyTo;
use crate::service::coarse_grid;
use crate::service::durability::FinalAccount;

impl SocketServer {
    /// Takes in readings and hands out what became final.
    pub(crate) fn poll_service(&mut self) {
        let mut final_accounts = std::mem::take(&mut self.final_accounts);
        self.service.poll(&mut final_accounts);
        for FinalAccount { account, reply_to } in final_accounts.drain(..) {
            self.publish_account(&account);
            if let Some(reply_to) = reply_to {
                self.deliver_account(reply_to, &account);
            }
        }
        self.deliver_replies();
        for index in self.subscriptions.span_subscribers() {
            self.progress(index);
        }
        final_accounts.shrink_to(1024);
        self.final_accounts = final_accounts;
        self.next_poll_ns = self.service.next_poll_ns(self.service.now_ns());
    }

    /// Whoever still waits gets what there is.
    pub(crate) fn expire_waiting(&mut self) {
        for (reply_to, account) in self.service.take_waiting_replies() {
            self.deliver_account(reply_to, &account);
        }
        self.deliver_replies();
    }

    fn deliver_replies(&mut self) {
        for (reply_to, reply) in self.service.take_store_replies() {
            self.complete_reply(reply_to, &reply, true);
        }
    }

    fn progress(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let was_subscribed = connection.subscription().is_some();
        let flow = connection.progress(&mut self.service);
        self.after_slice(index, was_subscribed, flow);
    }

    fn deliver_account(&mut self, reply_to: ReplyTo, account: &Account) {
        self.complete_reply(reply_to, &encode::account_reply(account), false);
    }

    fn complete_reply(&mut self, reply_to: ReplyTo, reply: &[u8], is_query: bool) {
        let Some(index) = self.connections.index_of(reply_to.connection) else { return };
        let Some(connection) = self.connections.get_mut(index) else { return };
        connection.complete_reply(reply_to.slot, reply, is_query);
        self.progress(index);
    }

    fn publish_account(&mut self, account: &Account) {
        let indexes = self.subscriptions.account_subscribers(account.uid, coarse_grid::is_coarse(account));
        if !indexes.is_empty() {
            self.publish(&encode::account_stream_item(account), &indexes);
        }
    }

    pub(crate) fn publish_domains(&mut self, now_ns: u64) {
        let indexes = self.subscriptions.take_due(now_ns);
        if !indexes.is_empty() {
            let tick = encode::domain_stream_item(&self.service.domain_tick());
            self.publish(&tick, &indexes);
            indexes.into_iter().for_each(|index| self.progress(index));
        }
    }

    /// One more answer for those who watch; sent with the next progress.
    fn publish(&mut self, reply: &[u8], indexes: &[usize]) {
        let max_unread_bytes = self.service.limits().unread_bytes;
        for &index in indexes {
            let Some(connection) = self.connections.get_mut(index) else { continue };
            let flow = connection.push_stream_item(reply, max_unread_bytes);
            self.finish_slice(index, flow);
        }
    }
}
