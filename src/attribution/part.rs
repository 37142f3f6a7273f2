//! From clocks to words: the part of an account that fell to the span's subject.
//!
//! Owns no state. Invariant: a part is between 0 and the share it is a part of; where a look is missing it is absent.

use super::account::Account;
use super::portion::{CPU_TIME, Point, Portion, Portions, place};
use super::result;
use super::span::Span;
use super::terms::SpanKey;
use super::track::Track;

/// How much of a span may lie before the first look at its subject or behind the last one: so long, or such a part of it.
/// What is not looked at is taken to be as the rest is.
const TOLERANCE_NS: u64 = 50_000_000;
const TOLERATED: u64 = 8;

impl Portion {
    /// Up to this point the span weighed `weight`.
    fn add(&mut self, weight: u64, point: Point) {
        let last = self.point;
        let rise = point.h.saturating_sub(last.h).saturating_sub(last.rounded + 1);
        self.part += u128::from(weight) * rise.min(point.g.saturating_sub(last.g));
        self.whole += u128::from(weight) * point.g.saturating_sub(last.g);
        self.point = point;
    }
}

impl Portions {
    /// Notes where a long span opened, before the row is dropped that tells it.
    pub(crate) fn anchor(&mut self, domain: usize, key: SpanKey, span: &Span, tracks: &[Track]) {
        let known = self.anchors.get(&key).and_then(|anchors| anchors.get(domain).copied().flatten());
        if known.is_some() || !self.held(span.subject) {
            return;
        }
        let point = self.point(domain, span.subject, span.opened_ns, &tracks[domain]);
        let anchors = self.anchors.entry(key).or_insert_with(|| vec![None; self.fields.len()]);
        anchors[domain] = point;
    }

    /// Of what one domain gave a span, the part of its subject, as a numerator and a denominator.
    fn fraction(
        &self,
        domain: usize,
        span: &Span,
        key: SpanKey,
        track: &Track,
        end_ns: u64,
    ) -> Option<(u128, u128)> {
        let entry = self.entries.get(place(span.subject))?.as_ref()?;
        let basis = self.fields[domain].basis?;
        let (from_ns, to_ns) = (span.opened_ns, end_ns.min(track.course.pos_ns()).max(span.opened_ns));
        let uses = entry.uses.get(basis)?;
        let (first_ns, last_ns) = (uses.known_since_ns(from_ns, to_ns)?, self.bases[basis].last_ns()?);
        let lead_ns = TOLERANCE_NS.max((to_ns - from_ns) / TOLERATED);
        let tail_ns = lead_ns.max(self.bases[basis].longest_ns());
        if first_ns > from_ns.saturating_add(lead_ns) || to_ns > last_ns.saturating_add(tail_ns) {
            return None;
        }
        let (begin_ns, end_ns) = (from_ns.max(first_ns), to_ns.min(last_ns));
        if begin_ns >= end_ns {
            // All of it lies outside the looks: the nearest one tells what was going on.
            return self.bases[basis].nearest(uses, from_ns);
        }
        let mut portion = match span.folded(domain) {
            Some(folded) => folded,
            None => Portion { point: self.begin(domain, span, key, track, begin_ns)?, part: 0, whole: 0 },
        };
        for (weight, until_ns) in span.weights(end_ns) {
            let until_ns = until_ns.clamp(begin_ns, end_ns);
            portion.add(weight, self.point(domain, span.subject, until_ns, track)?);
        }
        let Portion { part, whole, .. } = portion;
        if whole == 0 { self.bases[basis].nearest(uses, from_ns) } else { Some((part, whole)) }
    }

    /// Where the clocks stood when the span's part begins to count.
    fn begin(&self, domain: usize, span: &Span, key: SpanKey, track: &Track, begin_ns: u64) -> Option<Point> {
        let anchor = self.anchors.get(&key).and_then(|anchors| anchors.get(domain).copied().flatten());
        let anchor = anchor.filter(|_| begin_ns == span.opened_ns);
        anchor.or_else(|| self.point(domain, span.subject, begin_ns, track))
    }

    /// Folds the span's weights up to where its subject's clock is final in every domain that splits it. Does nothing
    /// where the subject's use is not known: then its part is absent, and the pieces stay few.
    pub(crate) fn fold(&self, span: &mut Span, key: SpanKey, tracks: &[Track]) {
        let split = |track: &&Track| {
            (span.scope >> track.index()) & 1 == 1 && self.fields[track.index()].basis.is_some()
        };
        let split: Vec<&Track> = tracks.iter().filter(split).collect();
        let final_ns = split.iter().map(|track| self.final_ns(track.index())).min().unwrap_or(0);
        let (count, folded_to_ns) = span.pieces_until(final_ns);
        if count == 0 {
            return;
        }
        let portion = |track: &&Track| {
            let (domain, track) = (track.index(), *track);
            let entry = self.entries.get(place(span.subject))?.as_ref()?;
            let uses = entry.uses.get(self.fields[domain].basis?)?;
            let known_ns = uses.known_since_ns(span.opened_ns, folded_to_ns)?;
            let begin_ns = span.opened_ns.max(known_ns);
            let mut portion = match span.folded(domain) {
                Some(folded) => folded,
                None => Portion { point: self.begin(domain, span, key, track, begin_ns)?, part: 0, whole: 0 },
            };
            for (weight, until_ns) in span.weights(folded_to_ns).take(count) {
                let until_ns = until_ns.max(begin_ns);
                portion.add(weight, self.point(domain, span.subject, until_ns, track)?);
            }
            Some((domain, portion))
        };
        let Some(portions) = split.iter().map(portion).collect::<Option<Vec<_>>>() else { return };
        span.fold(count, portions, tracks.len());
    }

    /// Tells an account which part of it fell to the span's subject.
    pub(crate) fn tell(&self, account: &mut Account, span: &Span, key: SpanKey, tracks: &[Track]) {
        let Some(Some(entry)) = self.entries.get(place(span.subject)) else { return };
        account.process = entry.subject.process;
        account.cgroup = entry.subject.cgroup.clone();
        let end_ns = account.closed_ns.unwrap_or(u64::MAX);
        let mut sum = Some(0_u64);
        let mut any = false;
        for (track, share) in result::scope_of(span, tracks).zip(&mut account.domains) {
            let domain = track.index();
            if self.fields[domain].basis.is_some() {
                let fraction = self.fraction(domain, span, key, track, end_ns);
                share.process_uj =
                    share.share_uj.zip(fraction).map(|(uj, (part, whole))| times(uj, part, whole));
            }
            if self.is_on_top(domain, span) {
                any = true;
                sum = sum.zip(share.process_uj).map(|(sum, uj)| sum + uj);
            }
        }
        account.process_uj = sum.filter(|_| any);
        if account.process_uj.is_none() {
            let silent = if any { UNLOOKED } else { UNSPLIT };
            account.process_reason = Some(entry.subject.reason.clone().unwrap_or_else(|| silent.to_owned()));
        }
    }

    /// Whether the domain takes part in the sum: split by CPU time, in the host's total by itself or inside another one,
    /// and inside no other domain that is split so.
    fn is_on_top(&self, domain: usize, span: &Span) -> bool {
        let used = |at: usize| (span.scope >> at) & 1 == 1;
        let split = |at: usize| self.fields[at].basis == Some(CPU_TIME) && used(at);
        let counted = |at: usize| (span.counted >> at) & 1 == 1;
        let mut above = self.lineage.above(domain);
        split(domain) && (counted(domain) || above.clone().any(counted)) && !above.any(split)
    }
}

const UNLOOKED: &str = "no look at its use covers the span";
const UNSPLIT: &str = "no domain of the total is split by CPU time here";

/// `uj × part / whole`, rounded down.
fn times(uj: u64, part: u128, whole: u128) -> u64 {
    let shift = (128 - whole.leading_zeros()).saturating_sub(63);
    let (part, whole) = (part >> shift, (whole >> shift).max(1));
    u64::try_from(u128::from(uj) * part / whole).unwrap_or(u64::MAX).min(uj)
}
