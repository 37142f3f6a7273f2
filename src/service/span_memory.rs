//! Quotas of the memory that spans take, per user and in total.
//!
//! Each user has a guaranteed part of a 512th of the total. What users take beyond it is limited to three quarters of the
//! total, so that the guaranteed parts of other users stay free.

use wattspan_client::protocol::MethodError;

use super::access::Peer;
use crate::config::Limits;

/// The size of a span, or of an addition to one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpanSize {
    /// Bytes of names, attributes and phases.
    pub text_bytes: usize,
    pub attribute_count: usize,
    /// Estimated memory, in bytes.
    pub memory_bytes: usize,
}

/// What the spans of one user take.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct UserMemory {
    text_bytes: usize,
    memory_bytes: usize,
}

/// What the spans of all users take.
#[derive(Debug, Default)]
pub(crate) struct SpanMemory {
    memory_bytes: usize,
    /// The part of `memory_bytes` beyond each user's guaranteed part.
    pub(super) shared_bytes: usize,
}

impl SpanSize {
    pub(crate) fn plus(self, growth: Self) -> Self {
        Self {
            text_bytes: self.text_bytes + growth.text_bytes,
            attribute_count: self.attribute_count + growth.attribute_count,
            memory_bytes: self.memory_bytes + growth.memory_bytes,
        }
    }
}

impl UserMemory {
    fn unguaranteed_bytes(self, limits: &Limits) -> usize {
        self.memory_bytes.saturating_sub(guaranteed_bytes(limits))
    }
}

impl SpanMemory {
    pub(crate) fn total_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Checks that the spans of `peer`, which take `user` so far, may grow by `size`.
    ///
    /// # Errors
    /// `QuotaExceeded` for the user's texts, the user's memory or the total memory.
    pub(crate) fn check_growth(
        &self,
        limits: &Limits,
        peer: &Peer,
        user: UserMemory,
        size: SpanSize,
    ) -> Result<(), MethodError> {
        if !peer.unlimited && user.text_bytes + size.text_bytes > limits.notes_bytes_per_user {
            return Err(quota_exceeded("bytes of notes on spans", limits.notes_bytes_per_user));
        }
        if !peer.unlimited && user.memory_bytes + size.memory_bytes > limits.span_memory_bytes_per_user {
            return Err(quota_exceeded(
                "bytes of memory of one user's spans",
                limits.span_memory_bytes_per_user,
            ));
        }
        let unguaranteed = (user.memory_bytes + size.memory_bytes)
            .saturating_sub(guaranteed_bytes(limits).max(user.memory_bytes));
        let total = limits.span_memory_bytes;
        if self.memory_bytes + size.memory_bytes > total
            || (unguaranteed > 0 && self.shared_bytes + unguaranteed > total / 4 * 3)
        {
            return Err(quota_exceeded("bytes of memory of all spans", total));
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, limits: &Limits, user: &mut UserMemory, size: SpanSize) {
        let unguaranteed_before = user.unguaranteed_bytes(limits);
        user.text_bytes += size.text_bytes;
        user.memory_bytes += size.memory_bytes;
        self.memory_bytes += size.memory_bytes;
        self.shared_bytes += user.unguaranteed_bytes(limits) - unguaranteed_before;
    }

    pub(crate) fn subtract(&mut self, limits: &Limits, user: &mut UserMemory, size: SpanSize) {
        let unguaranteed_before = user.unguaranteed_bytes(limits);
        user.text_bytes -= size.text_bytes;
        user.memory_bytes -= size.memory_bytes;
        self.memory_bytes -= size.memory_bytes;
        self.shared_bytes -= unguaranteed_before - user.unguaranteed_bytes(limits);
    }

    /// Recomputes the shared part for new limits.
    pub(crate) fn set_limits(&mut self, limits: &Limits, users: impl Iterator<Item = UserMemory>) {
        self.shared_bytes = users.map(|user| user.unguaranteed_bytes(limits)).sum();
    }
}

fn guaranteed_bytes(limits: &Limits) -> usize {
    limits.span_memory_bytes / 512
}

pub(crate) fn quota_exceeded(quota: &str, limit: usize) -> MethodError {
    MethodError::QuotaExceeded { quota: quota.to_owned(), limit: limit as u64 }
}
