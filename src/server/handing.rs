//! What the door hands out: final accounts, the disk's answers, the streams' next ones.
//!
//! Owns the way from the service to those who wait or watch. Nobody is waited for: who does not take what it is told is
//! let go by its connection's own limits.

use super::door::Door;
use super::told;
use crate::attribution::account::Account;
use crate::service::coarse_grid;
use crate::service::reply_to::ReplyTo;
use crate::service::service::FinalAccount;

impl Door {
    /// Takes in readings and hands out what became final.
    pub(crate) fn pump(&mut self) {
        let mut finals = std::mem::take(&mut self.finals);
        self.service.poll(&mut finals);
        for FinalAccount { account, reply_to: ticket } in finals.drain(..) {
            self.tell_span(&account);
            if let Some(ticket) = ticket {
                self.answer(ticket, &account);
            }
        }
        self.hand_replies();
        for place in self.audience.of_spans() {
            self.progress(place);
        }
        finals.shrink_to(1024);
        self.finals = finals;
        self.pump_at_ns = self.service.next_poll_ns(self.service.now_ns());
    }

    /// Whoever still waits gets what there is.
    pub(crate) fn give_up_waiting(&mut self) {
        for (ticket, account) in self.service.take_waiting_replies() {
            self.answer(ticket, &account);
        }
        self.hand_replies();
    }

    fn hand_replies(&mut self) {
        for (ticket, answer) in self.service.take_store_replies() {
            self.fill(ticket, &answer, true);
        }
    }

    fn progress(&mut self, place: usize) {
        let Some(connection) = self.seats.at(place) else { return };
        let watched = connection.stream().is_some();
        let fate = connection.progress(&mut self.service);
        self.after_turn(place, watched, fate);
    }

    fn answer(&mut self, ticket: ReplyTo, account: &Account) {
        self.fill(ticket, &told::once(account), false);
    }

    fn fill(&mut self, ticket: ReplyTo, answer: &[u8], asked: bool) {
        let Some(place) = self.seats.place_of(ticket.connection) else { return };
        let Some(connection) = self.seats.at(place) else { return };
        connection.fill(ticket.slot, answer, asked);
        self.progress(place);
    }

    fn tell_span(&mut self, account: &Account) {
        let places = self.audience.of_span(account.uid, coarse_grid::is_coarse(account));
        if !places.is_empty() {
            self.tell(&told::again(account), &places);
        }
    }

    pub(crate) fn tell_domains(&mut self, now_ns: u64) {
        let places = self.audience.take_due(now_ns);
        if !places.is_empty() {
            let tick = told::domains(&self.service.domain_tick());
            self.tell(&tick, &places);
            places.into_iter().for_each(|place| self.progress(place));
        }
    }

    /// One more answer for those who watch; sent with the next progress.
    fn tell(&mut self, answer: &[u8], places: &[usize]) {
        let most_unread = self.service.limits().unread_bytes;
        for &place in places {
            let Some(connection) = self.seats.at(place) else { continue };
            let fate = connection.push(answer, most_unread);
            self.conclude(place, fate);
        }
    }
}
