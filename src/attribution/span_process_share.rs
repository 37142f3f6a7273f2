//! The process share of one span: computed and written into its account.
//!
//! Owns no state. Invariant: a part is between 0 and the share it is a part of; where a sample is missing it is absent.

use super::account::Account;
use super::account_builder;
use super::domain_timeline::DomainTimeline;
use super::process_share::{CPU_TIME, ProcessPoint, ProcessShare, ProcessShares, subject_index};
use super::request::SpanKey;
use super::span::Span;

/// How much of a span may lie before the first sample of its subject or after the last one: so long, or one part in so
/// many. What is not sampled is taken to be as the rest is.
const MAX_UNSAMPLED_NS: u64 = 50_000_000;
const MAX_UNSAMPLED_DIVISOR: u64 = 8;

impl ProcessShare {
    /// Up to this point the span weighed `weight`.
    fn add(&mut self, weight: u64, point: ProcessPoint) {
        let last = self.point;
        let rise = point.process_g.saturating_sub(last.process_g).saturating_sub(last.roundings + 1);
        self.numerator += u128::from(weight) * rise.min(point.g.saturating_sub(last.g));
        self.denominator += u128::from(weight) * point.g.saturating_sub(last.g);
        self.point = point;
    }
}

impl ProcessShares {
    /// Notes where a long span opened, before that row is dropped.
    pub(crate) fn record_opening_point(
        &mut self,
        domain: usize,
        key: SpanKey,
        span: &Span,
        timelines: &[DomainTimeline],
    ) {
        let known = self.opening_points.get(&key).and_then(|points| points.get(domain).copied().flatten());
        if known.is_some() || !self.has_spans_of(span.subject) {
            return;
        }
        let point = self.point_at(domain, span.subject, span.opened_ns, &timelines[domain]);
        let points = self.opening_points.entry(key).or_insert_with(|| vec![None; self.split_domains.len()]);
        points[domain] = point;
    }

    /// Of what one domain gave a span, the part of its subject, as a numerator and a denominator.
    fn process_fraction(
        &self,
        domain: usize,
        span: &Span,
        key: SpanKey,
        timeline: &DomainTimeline,
        end_ns: u64,
    ) -> Option<(u128, u128)> {
        let entry = self.subjects.get(subject_index(span.subject))?.as_ref()?;
        let basis = self.split_domains[domain].basis?;
        let (from_ns, to_ns) =
            (span.opened_ns, end_ns.min(timeline.interpolator.position_ns()).max(span.opened_ns));
        let usage = entry.usage.get(basis)?;
        let (first_ns, last_ns) =
            (usage.known_since_ns(from_ns, to_ns)?, self.bases[basis].last_sample_ns()?);
        let lead_ns = MAX_UNSAMPLED_NS.max((to_ns - from_ns) / MAX_UNSAMPLED_DIVISOR);
        let tail_ns = lead_ns.max(self.bases[basis].sampling_tolerance_ns());
        if first_ns > from_ns.saturating_add(lead_ns) || to_ns > last_ns.saturating_add(tail_ns) {
            return None;
        }
        let (begin_ns, end_ns) = (from_ns.max(first_ns), to_ns.min(last_ns));
        if begin_ns >= end_ns {
            // All of it lies outside the samples: the nearest one is used.
            return self.bases[basis].nearest_fraction(usage, from_ns);
        }
        let mut process_share = match span.folded_share(domain) {
            Some(folded) => folded,
            None => ProcessShare {
                point: self.opening_point(domain, span, key, timeline, begin_ns)?,
                numerator: 0,
                denominator: 0,
            },
        };
        for (weight, until_ns) in span.weights(end_ns) {
            let until_ns = until_ns.clamp(begin_ns, end_ns);
            process_share.add(weight, self.point_at(domain, span.subject, until_ns, timeline)?);
        }
        let ProcessShare { numerator, denominator, .. } = process_share;
        if denominator == 0 {
            self.bases[basis].nearest_fraction(usage, from_ns)
        } else {
            Some((numerator, denominator))
        }
    }

    /// Where the clocks stood when the span's part begins to count.
    fn opening_point(
        &self,
        domain: usize,
        span: &Span,
        key: SpanKey,
        timeline: &DomainTimeline,
        begin_ns: u64,
    ) -> Option<ProcessPoint> {
        let point = self.opening_points.get(&key).and_then(|points| points.get(domain).copied().flatten());
        let point = point.filter(|_| begin_ns == span.opened_ns);
        point.or_else(|| self.point_at(domain, span.subject, begin_ns, timeline))
    }

    /// Folds the span's weights up to where its subject's clock is final in every domain that splits it. Does nothing
    /// where the subject's use is not known: then its part is absent, and the intervals stay few.
    pub(crate) fn fold_weights(&self, span: &mut Span, key: SpanKey, timelines: &[DomainTimeline]) {
        let split = |timeline: &&DomainTimeline| {
            (span.scope >> timeline.index()) & 1 == 1 && self.split_domains[timeline.index()].basis.is_some()
        };
        let split: Vec<&DomainTimeline> = timelines.iter().filter(split).collect();
        let final_ns = split.iter().map(|timeline| self.settled_ns(timeline.index())).min().unwrap_or(0);
        let (count, folded_to_ns) = span.weight_intervals_until(final_ns);
        if count == 0 {
            return;
        }
        let process_share = |timeline: &&DomainTimeline| {
            let (domain, timeline) = (timeline.index(), *timeline);
            let entry = self.subjects.get(subject_index(span.subject))?.as_ref()?;
            let usage = entry.usage.get(self.split_domains[domain].basis?)?;
            let known_ns = usage.known_since_ns(span.opened_ns, folded_to_ns)?;
            let begin_ns = span.opened_ns.max(known_ns);
            let mut process_share = match span.folded_share(domain) {
                Some(folded) => folded,
                None => ProcessShare {
                    point: self.opening_point(domain, span, key, timeline, begin_ns)?,
                    numerator: 0,
                    denominator: 0,
                },
            };
            for (weight, until_ns) in span.weights(folded_to_ns).take(count) {
                let until_ns = until_ns.max(begin_ns);
                process_share.add(weight, self.point_at(domain, span.subject, until_ns, timeline)?);
            }
            Some((domain, process_share))
        };
        let Some(process_shares) = split.iter().map(process_share).collect::<Option<Vec<_>>>() else {
            return;
        };
        span.fold(count, process_shares, timelines.len());
    }

    /// Adds the process share of the span's subject to an account.
    pub(crate) fn add_to_account(
        &self,
        account: &mut Account,
        span: &Span,
        key: SpanKey,
        timelines: &[DomainTimeline],
    ) {
        let Some(Some(entry)) = self.subjects.get(subject_index(span.subject)) else { return };
        account.process = entry.subject.process;
        account.cgroup = entry.subject.cgroup.clone();
        let end_ns = account.closed_ns.unwrap_or(u64::MAX);
        let mut sum = Some(0_u64);
        let mut any = false;
        for (timeline, share) in account_builder::used_timelines(span, timelines).zip(&mut account.domains) {
            let domain = timeline.index();
            if self.split_domains[domain].basis.is_some() {
                let fraction = self.process_fraction(domain, span, key, timeline, end_ns);
                share.process_uj = share
                    .share_uj
                    .zip(fraction)
                    .map(|(uj, (numerator, denominator))| mul_fraction(uj, numerator, denominator));
            }
            if self.is_outermost_split(domain, span) {
                any = true;
                sum = sum.zip(share.process_uj).map(|(sum, uj)| sum + uj);
            }
        }
        account.process_uj = sum.filter(|_| any);
        if account.process_uj.is_none() {
            let default_reason = if any { NO_COVERING_SAMPLE } else { NO_SPLIT_DOMAIN };
            account.process_reason =
                Some(entry.subject.reason.clone().unwrap_or_else(|| default_reason.to_owned()));
        }
    }

    /// Whether the domain takes part in the sum: split by CPU time, in the host's total by itself or inside another
    /// one, and inside no other domain that is split so.
    fn is_outermost_split(&self, domain: usize, span: &Span) -> bool {
        let used = |at: usize| (span.scope >> at) & 1 == 1;
        let split = |at: usize| self.split_domains[at].basis == Some(CPU_TIME) && used(at);
        let counted = |at: usize| (span.counted >> at) & 1 == 1;
        let mut ancestors = self.domain_tree.ancestors(domain);
        split(domain) && (counted(domain) || ancestors.clone().any(counted)) && !ancestors.any(split)
    }
}

const NO_COVERING_SAMPLE: &str = "no look at its use covers the span";
const NO_SPLIT_DOMAIN: &str = "no domain of the total is split by CPU time here";

/// `uj × part / whole`, rounded down.
fn mul_fraction(uj: u64, numerator: u128, denominator: u128) -> u64 {
    let shift = (128 - denominator.leading_zeros()).saturating_sub(63);
    let (numerator, denominator) = (numerator >> shift, (denominator >> shift).max(1));
    u64::try_from(u128::from(uj) * numerator / denominator).unwrap_or(u64::MAX).min(uj)
}
