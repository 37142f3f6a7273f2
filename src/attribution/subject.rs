//! Subjects: the process trees and control groups whose use of the domains is sampled.
//!
//! Owns nothing; the interface for the sampling of CPU and GPU times. Invariant: a subject stays as long as a span
//! refers to it.

use super::Attributor;
use super::request::{BasisUsageSample, Subject};

impl Attributor {
    /// Adds a subject; gives the number that a [`NewSpan`](super::NewSpan) refers to it by, never 0.
    pub fn add_subject(&mut self, subject: Subject) -> u32 {
        self.process_shares.add_subject(subject, &self.timelines)
    }

    /// Removes a subject; false while a span refers to it.
    pub fn remove_subject(&mut self, subject: u32) -> bool {
        self.process_shares.remove_subject(subject)
    }

    /// Sets why a subject's use is unknown; `None`: it is known.
    pub fn set_unknown_reason(&mut self, subject: u32, reason: Option<String>) {
        self.process_shares.set_unknown_reason(subject, reason);
    }

    /// Whether a span of this subject is open or unsettled.
    pub fn has_spans_of(&self, subject: u32) -> bool {
        self.process_shares.has_spans_of(subject)
    }

    /// Whether there is a subject of this number.
    pub fn has_subject(&self, subject: u32) -> bool {
        self.process_shares.has_subject(subject)
    }

    /// Whether there is any subject.
    pub fn has_subjects(&self) -> bool {
        !self.process_shares.is_empty()
    }

    /// Whether a span waits for its account, so that a sample that covers its end is wanted soon.
    pub fn has_closing_spans(&self) -> bool {
        self.oldest_close_ns.is_some()
    }

    /// What was used so far of a basis; the samples of a basis in the order of time.
    pub fn record_usage(&mut self, sample: &BasisUsageSample<'_>) {
        self.process_shares.record_usage(sample);
    }

    /// From now on this domain is split by another basis than its kind says; number them from 1.
    pub fn set_basis(&mut self, domain: usize, basis: usize) {
        self.process_shares.set_basis(domain, basis);
    }
}
