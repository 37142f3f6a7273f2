//! What the door hands out: final accounts, the disk's answers, the streams' next ones.
//!
//! Owns the way from the service to those who wait or watch. Nobody is waited for: who does not take what it is told is
//! let go by its connection's own limits.

use super::encode;
use super::event_loop::SocketServer;
use crate::attribution::account::Account;
use crate::service::coarse_grid;
use crate::service::reply_to::ReplyTo;
use crate::service::service::FinalAccount;

impl SocketServer {
    /// Takes in readings and hands out what became final.
    pub(crate) fn pump(&mut self) {
        let mut finals = std::mem::take(&mut self.finals);
        self.service.poll(&mut finals);
        for FinalAccount { account, reply_to: ticket } in finals.drain(..) {
            self.publish_account(&account);
            if let Some(ticket) = ticket {
                self.deliver_account(ticket, &account);
            }
        }
        self.deliver_replies();
        for place in self.subscriptions.span_subscribers() {
            self.progress(place);
        }
        finals.shrink_to(1024);
        self.finals = finals;
        self.next_pump_ns = self.service.next_poll_ns(self.service.now_ns());
    }

    /// Whoever still waits gets what there is.
    pub(crate) fn expire_waiting(&mut self) {
        for (ticket, account) in self.service.take_waiting_replies() {
            self.deliver_account(ticket, &account);
        }
        self.deliver_replies();
    }

    fn deliver_replies(&mut self) {
        for (ticket, answer) in self.service.take_store_replies() {
            self.complete_reply(ticket, &answer, true);
        }
    }

    fn progress(&mut self, place: usize) {
        let Some(connection) = self.connections.get_mut(place) else { return };
        let watched = connection.subscription().is_some();
        let fate = connection.progress(&mut self.service);
        self.after_slice(place, watched, fate);
    }

    fn deliver_account(&mut self, ticket: ReplyTo, account: &Account) {
        self.complete_reply(ticket, &encode::account_reply(account), false);
    }

    fn complete_reply(&mut self, ticket: ReplyTo, answer: &[u8], asked: bool) {
        let Some(place) = self.connections.index_of(ticket.connection) else { return };
        let Some(connection) = self.connections.get_mut(place) else { return };
        connection.complete_reply(ticket.slot, answer, asked);
        self.progress(place);
    }

    fn publish_account(&mut self, account: &Account) {
        let places = self.subscriptions.account_subscribers(account.uid, coarse_grid::is_coarse(account));
        if !places.is_empty() {
            self.publish(&encode::account_stream_item(account), &places);
        }
    }

    pub(crate) fn publish_domains(&mut self, now_ns: u64) {
        let places = self.subscriptions.take_due(now_ns);
        if !places.is_empty() {
            let tick = encode::domain_stream_item(&self.service.domain_tick());
            self.publish(&tick, &places);
            places.into_iter().for_each(|place| self.progress(place));
        }
    }

    /// One more answer for those who watch; sent with the next progress.
    fn publish(&mut self, answer: &[u8], places: &[usize]) {
        let most_unread = self.service.limits().unread_bytes;
        for &place in places {
            let Some(connection) = self.connections.get_mut(place) else { continue };
            let fate = connection.push_stream_item(answer, most_unread);
            self.finish_slice(place, fate);
        }
    }
}
