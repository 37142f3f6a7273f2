//! Process shares: with the rest they add up, they follow the power, and they are absent where no sample was taken.

use std::collections::BTreeMap;

use crate::ground_truth::{GroundTruth, TestRng, domain};
use proptest::prelude::*;
use wattspan::attribution::{
    AttributionSettings, Attributor, BasisUsageSample, CPU_TIME, NewSpan, SpanKey, Subject, SubjectUsage,
};
use wattspan::domain::DomainKind;
use wattspan_client::account::{Account, Share};

const MS: u64 = 1_000_000;

/// An attributor over a machine, its processes, and the time.
struct AttributionFixture {
    attributor: Attributor,
    truths: Vec<GroundTruth>,
    now_ns: u64,
    busy: u64,
    used: Vec<u64>,
    subjects: Vec<u32>,
    settled: Vec<(SpanKey, Account)>,
}

impl AttributionFixture {
    fn new(truths: Vec<GroundTruth>, processes: usize) -> Self {
        let domains = vec![
            domain("package-0", DomainKind::Package, 61, Some(500_000)),
            domain("core-0", DomainKind::Core, 61, Some(500_000)),
            domain("gpu-0", DomainKind::Gpu, 1000, None),
        ];
        let mut attributor = Attributor::new(domains, AttributionSettings::default());
        let admit = |pid| attributor.add_subject(Subject { process: Some(pid), ..Subject::default() });
        let subjects = (1..=processes as u32).map(admit).collect();
        let used = vec![0; processes];
        let mut fixture =
            Self { attributor, truths, now_ns: 100 * MS, busy: 0, used, subjects, settled: Vec::new() };
        fixture.advance_ms(1);
        fixture
    }

    /// Advances the clock, with a reading every millisecond.
    fn advance_ms(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now_ns += MS;
            for (index, truth) in self.truths.iter().enumerate() {
                self.attributor.add_reading(
                    index,
                    self.now_ns - 500,
                    self.now_ns,
                    &truth.reading(self.now_ns),
                );
            }
            self.attributor.settle(self.now_ns, &mut self.settled);
        }
    }

    /// Adds a usage sample: the CPU time of each process since the previous sample, and that of other processes.
    fn sample(&mut self, rises: &[u64], others: u64) {
        self.busy += rises.iter().sum::<u64>() + others;
        for (used, rise) in self.used.iter_mut().zip(rises) {
            *used += rise;
        }
        let counts = self.subjects.iter().zip(&self.used);
        let used: Vec<SubjectUsage> = counts
            .map(|(subject, used)| SubjectUsage { subject: *subject, amount: Some(*used), disjoint: true })
            .collect();
        self.attributor.record_usage(&BasisUsageSample {
            at_ns: self.now_ns,
            basis: CPU_TIME,
            total: Some(self.busy),
            subjects: &used,
        });
    }

    fn open(&mut self, process: usize, weight: f64) -> SpanKey {
        let plain = NewSpan::new(process.to_string(), self.now_ns);
        let opening = NewSpan { subject: self.subjects[process], weight, ..plain };
        self.attributor.open(self.now_ns, opening).unwrap()
    }

    fn close(&mut self, key: SpanKey) {
        self.attributor.close(self.now_ns, key, self.now_ns, BTreeMap::new(), false).unwrap();
    }

    fn account(&self, key: SpanKey) -> Account {
        self.settled.iter().find(|(settled, _)| *settled == key).expect("settled").1.clone()
    }
}

fn steady() -> Vec<GroundTruth> {
    [100_000, 60_000, 50_000].map(|mw| GroundTruth::new(&[(1, mw)], MS, 0, 1)).to_vec()
}

fn share<'a>(account: &'a Account, name: &str) -> &'a Share {
    account.domains.iter().find(|share| share.domain == name).unwrap()
}

fn process_share_of(account: &Account, name: &str) -> f64 {
    let share = share(account, name);
    share.process_uj.unwrap() as f64 / share.share_uj.unwrap() as f64
}

fn random_truths(rng: &mut TestRng) -> Vec<GroundTruth> {
    let mut truth = || {
        let steps: Vec<(u64, u64)> =
            (0..300).map(|_| (rng.range(MS / 10, 20 * MS), rng.range(1_000, 400_000))).collect();
        GroundTruth::new(&steps, rng.range(MS / 2, 20 * MS), rng.range(0, MS), 61)
    };
    vec![truth(), truth(), truth()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// All processes have spans over the same time. In every domain their shares together never exceed the spans'
    /// share, and where no other process uses the CPU only the rounding is left.
    #[test]
    fn the_process_shares_and_the_rest_add_up(seed in any::<u64>(), alone in any::<bool>()) {
        let mut rng = TestRng(seed | 1);
        let mut fixture = AttributionFixture::new(random_truths(&mut rng), 4);
        fixture.sample(&[0; 4], 0);
        let rounds = rng.range(1, 8);
        for _ in 0..rounds {
            // Another span, so that a share is not the whole.
            let other = fixture.open(0, 2.5);
            let keys: Vec<SpanKey> = (0..4).map(|process| fixture.open(process, 1.0)).collect();
            for _ in 0..rng.range(1, 20) {
                fixture.advance_ms(rng.range(1, 40));
                // At least one process is active, because otherwise the energy would belong to the rest.
                let rises = [u64::from(alone), 0, 0, 0].map(|least| rng.range(least, 9) * MS);
                let others = if alone { 0 } else { rng.range(0, 9) * MS };
                fixture.sample(&rises, others);
            }
            keys.iter().for_each(|key| fixture.close(*key));
            fixture.close(other);
            fixture.advance_ms(3);
            // Usage after the close affects the last interval only.
            fixture.sample(&[MS; 4], if alone { 0 } else { MS });
            fixture.advance_ms(60);
            for domain in ["package-0", "core-0"] {
                let accounts: Vec<Account> = keys.iter().map(|key| fixture.account(*key)).collect();
                let shares: Vec<u64> = accounts.iter().map(|a| share(a, domain).share_uj.unwrap()).collect();
                prop_assert!(shares.iter().all(|uj| *uj == shares[0]));
                let parts: u64 = accounts.iter().map(|a| share(a, domain).process_uj.unwrap()).sum();
                prop_assert!(parts <= shares[0], "{parts} of {} in {domain}", shares[0]);
                prop_assert!(!alone || parts + 5 >= shares[0], "{parts} of {} in {domain}", shares[0]);
            }
        }
    }
}

#[test]
fn two_processes_that_alone_keep_the_machine_busy_share_everything() {
    let mut fixture = AttributionFixture::new(steady(), 2);
    fixture.sample(&[0, 0], 0);
    let keys = [fixture.open(0, 1.0), fixture.open(1, 1.0)];
    for _ in 0..20 {
        fixture.advance_ms(50);
        fixture.sample(&[30 * MS, 10 * MS], 0);
    }
    keys.iter().for_each(|key| fixture.close(*key));
    fixture.advance_ms(5);
    fixture.sample(&[0, 0], 0);
    fixture.advance_ms(50);
    let accounts = keys.map(|key| fixture.account(key));
    let parts: Vec<u64> = accounts.iter().map(|a| share(a, "package-0").process_uj.unwrap()).collect();
    let whole = share(&accounts[0], "package-0").share_uj.unwrap();
    assert!(parts[0] + parts[1] <= whole && parts[0] + parts[1] + 2 >= whole, "{parts:?} of {whole}");
    assert!((process_share_of(&accounts[0], "core-0") - 0.75).abs() < 1e-6);
    assert_eq!(accounts[0].process, Some(1));
    assert_eq!(share(&accounts[0], "gpu-0").process_uj, None, "a GPU is not split by CPU time");
}

#[test]
fn the_process_share_follows_the_power_and_not_only_the_mean_use() {
    // 100 ms of 10 W, then 100 ms of 190 W; the process runs alone in the second half.
    let truth = GroundTruth::new(&[(300 * MS, 10_000), (1, 190_000)], MS, 0, 1);
    let mut fixture = AttributionFixture::new(vec![truth.clone(), truth.clone(), truth], 1);
    fixture.advance_ms(99);
    fixture.sample(&[0], 0);
    let key = fixture.open(0, 1.0);
    for turn in 0..10 {
        fixture.advance_ms(20);
        fixture.sample(&[if turn < 5 { 0 } else { 20 * MS }], if turn < 5 { 20 * MS } else { 0 });
    }
    fixture.close(key);
    fixture.advance_ms(40);
    let part = process_share_of(&fixture.account(key), "package-0");
    assert!((part - 0.95).abs() < 0.02, "{part}");
}

#[test]
fn a_weight_change_counts_for_the_time_in_which_it_holds() {
    // The process runs alone in the first half; there its span has 1 % of the domain, afterwards half.
    let mut fixture = AttributionFixture::new(steady(), 1);
    fixture.sample(&[0], 0);
    let other = fixture.open(0, 1.0);
    let key = fixture.open(0, 0.01);
    for turn in 0..10 {
        fixture.advance_ms(20);
        fixture.sample(&[if turn < 5 { 20 * MS } else { 0 }], if turn < 5 { 0 } else { 20 * MS });
        if turn == 4 {
            let now_ns = fixture.now_ns;
            fixture.attributor.set_weight(now_ns, key, 1.0, now_ns).unwrap();
        }
    }
    fixture.close(key);
    fixture.close(other);
    fixture.advance_ms(40);
    let part = process_share_of(&fixture.account(key), "package-0");
    assert!((part - (0.01 / 1.01) / (0.01 / 1.01 + 0.5)).abs() < 0.005, "{part}");
}

#[test]
fn a_span_longer_than_the_kept_rows_gets_the_same_process_share() {
    let mut fixture = AttributionFixture::new(steady(), 1);
    fixture.sample(&[0], 0);
    let long = fixture.open(0, 1.0);
    for _ in 0..400 {
        fixture.advance_ms(50);
        fixture.sample(&[10 * MS], 30 * MS);
    }
    fixture.close(long);
    fixture.advance_ms(20);
    fixture.sample(&[10 * MS], 30 * MS);
    fixture.advance_ms(40);
    let account = fixture.account(long);
    assert!(
        (process_share_of(&account, "package-0") - 0.25).abs() < 1e-3,
        "{}",
        process_share_of(&account, "package-0")
    );
    let share_uj = share(&account, "package-0").share_uj.unwrap();
    assert!(share_uj.abs_diff(2_000_000_000) < 200_000, "{share_uj}");
}

#[test]
fn an_unsampled_process_share_is_absent_with_a_reason() {
    let mut fixture = AttributionFixture::new(steady(), 2);
    // No sample at all.
    let unseen = fixture.open(0, 1.0);
    fixture.advance_ms(100);
    fixture.close(unseen);
    fixture.advance_ms(20);
    let account = fixture.account(unseen);
    assert_eq!((account.process_uj, share(&account, "package-0").process_uj), (None, None));
    assert!(account.process_reason.is_some());
    // The first sample comes long after the opening.
    let late = fixture.open(0, 1.0);
    fixture.advance_ms(200);
    fixture.sample(&[0, 0], 0);
    fixture.advance_ms(50);
    fixture.sample(&[MS, 0], 0);
    fixture.close(late);
    fixture.advance_ms(20);
    assert_eq!(fixture.account(late).process_uj, None);
    // A process that can no longer be sampled.
    let lost = fixture.open(1, 1.0);
    fixture.advance_ms(30);
    let used = [SubjectUsage { subject: fixture.subjects[1], amount: None, disjoint: true }];
    fixture.busy += MS;
    fixture.attributor.record_usage(&BasisUsageSample {
        at_ns: fixture.now_ns,
        basis: CPU_TIME,
        total: Some(fixture.busy),
        subjects: &used,
    });
    fixture.attributor.set_unknown_reason(fixture.subjects[1], Some("it went away".into()));
    fixture.close(lost);
    fixture.advance_ms(20);
    let account = fixture.account(lost);
    assert_eq!((account.process_uj, account.process_reason.as_deref()), (None, Some("it went away")));
}

#[test]
fn a_process_that_used_nothing_gets_0() {
    let mut fixture = AttributionFixture::new(steady(), 1);
    fixture.sample(&[0], 0);
    let key = fixture.open(0, 1.0);
    fixture.advance_ms(50);
    fixture.sample(&[0], 40 * MS);
    fixture.close(key);
    fixture.advance_ms(20);
    assert_eq!(share(&fixture.account(key), "package-0").process_uj, Some(0));
}

#[test]
fn a_subject_stays_as_long_as_a_span_refers_to_it() {
    let mut fixture = AttributionFixture::new(steady(), 1);
    let subject = fixture.subjects[0];
    let key = fixture.open(0, 1.0);
    assert!(fixture.attributor.has_spans_of(subject) && !fixture.attributor.remove_subject(subject));
    fixture.attributor.cancel(fixture.now_ns, key, fixture.now_ns).unwrap();
    fixture.advance_ms(50);
    assert!(!fixture.attributor.has_spans_of(subject) && fixture.attributor.remove_subject(subject));
    assert!(!fixture.attributor.has_subjects());
}

#[test]
fn weight_changes_older_than_the_kept_rows_still_count() {
    // The process repeatedly runs alone while its span has 1 % of the domain, and does not run while it has half.
    let mut fixture = AttributionFixture::new(steady(), 1);
    fixture.sample(&[0], 0);
    let other = fixture.open(0, 1.0);
    let key = fixture.open(0, 0.01);
    for turn in 0..200 {
        let runs = turn % 2 == 0;
        for _ in 0..2 {
            fixture.advance_ms(50);
            fixture.sample(&[if runs { 50 * MS } else { 0 }], if runs { 0 } else { 50 * MS });
        }
        let now_ns = fixture.now_ns;
        fixture.attributor.set_weight(now_ns, key, if runs { 1.0 } else { 0.01 }, now_ns).unwrap();
    }
    fixture.close(key);
    fixture.close(other);
    fixture.advance_ms(40);
    let part = process_share_of(&fixture.account(key), "package-0");
    assert!((part - (0.01 / 1.01) / (0.01 / 1.01 + 0.5)).abs() < 0.005, "{part}");
}

#[test]
fn merged_weight_changes_split_by_their_mean_weight() {
    // The weight alternates every millisecond; the process uses a quarter of the machine throughout.
    let mut fixture = AttributionFixture::new(steady(), 1);
    fixture.sample(&[0], 0);
    let key = fixture.open(0, 1.0);
    let other = fixture.open(0, 1.0);
    for turn in 0..8000_u64 {
        fixture.advance_ms(1);
        if turn % 100 == 99 {
            fixture.sample(&[10 * MS], 30 * MS);
        }
        let now_ns = fixture.now_ns;
        fixture.attributor.set_weight(now_ns, key, if turn % 2 == 0 { 3.0 } else { 1.0 }, now_ns).unwrap();
    }
    fixture.close(key);
    fixture.close(other);
    fixture.advance_ms(20);
    fixture.sample(&[10 * MS], 30 * MS);
    fixture.advance_ms(40);
    let part = process_share_of(&fixture.account(key), "package-0");
    assert!((part - 0.25).abs() < 1e-3, "{part}");
}
