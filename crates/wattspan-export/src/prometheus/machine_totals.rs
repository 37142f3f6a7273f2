//! The totals of the domains and of the health counters, over restarts of the daemon.
//!
//! The daemon counts from its start. Here its values are added to those of its earlier lives, and a value that is shown
//! never goes back: a cancelled span moves energy from the attributed to the unattributed part, and the shown parts follow
//! with later energy. In each state of a domain, attributed + unattributed is its energy.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wattspan_client::account::Balance;
use wattspan_client::protocol::{DaemonInfo, DomainStatus};

/// One run of a daemon: its counters count from its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonLife {
    pub boot_id: String,
    pub started_ns: u64,
}

/// The totals of a domain, and the labels that it had last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainTotals {
    pub attributed_uj: u64,
    pub unattributed_uj: u64,
    /// The totals when this life of the daemon began.
    base_attributed_uj: u64,
    base_unattributed_uj: u64,
    pub kind: String,
    pub source: String,
    pub grade: String,
    pub counted: bool,
}

impl DomainTotals {
    pub fn energy_uj(&self) -> u64 {
        self.attributed_uj.saturating_add(self.unattributed_uj)
    }

    fn begin_life(&mut self) {
        (self.base_attributed_uj, self.base_unattributed_uj) = (self.attributed_uj, self.unattributed_uj);
    }

    /// Takes a balance over; returns the energy since the last one.
    fn update(&mut self, balance: &Balance) -> u64 {
        let before_uj = self.energy_uj();
        let base_uj = self.base_attributed_uj.saturating_add(self.base_unattributed_uj);
        let energy_uj = base_uj.saturating_add(balance.measured_uj).max(before_uj);
        let attributed_uj = self.base_attributed_uj.saturating_add(balance.attributed_uj);
        // The parts of a damaged state may add to more than 64 bits.
        let most_uj = energy_uj.saturating_sub(self.unattributed_uj).max(self.attributed_uj);
        self.attributed_uj = attributed_uj.clamp(self.attributed_uj, most_uj);
        self.unattributed_uj = energy_uj - self.attributed_uj;
        energy_uj - before_uj
    }

    fn set_labels(&mut self, status: &DomainStatus) {
        // A word of the contract, such as "gpu-memory".
        let kind = serde_json::to_value(status.kind).ok();
        self.kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or_default().into();
        self.source.clone_from(&status.source);
        self.grade = status.grade.as_str().into();
        self.counted = status.counted;
    }
}

/// A counter of the daemon that begins again with each of its lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartingCounter {
    base: u64,
    last: u64,
}

impl RestartingCounter {
    pub fn total(&self) -> u64 {
        self.base.saturating_add(self.last)
    }
}

/// The reads of one sampler.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerTotals {
    pub ticks: RestartingCounter,
    pub late: RestartingCounter,
    pub missed: RestartingCounter,
}

/// What the state file holds of domains and health.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineTotals {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub life: Option<DaemonLife>,
    pub domains: BTreeMap<String, DomainTotals>,
    /// The energy of the counted domains.
    pub host_uj: u64,
    /// The same energy, by the grade that the host had when it was measured.
    #[serde(default)]
    host_grades_uj: BTreeMap<String, u64>,
    /// The worst grade of the counted domains, when there were any.
    pub host_grade: String,
    /// By source, and the sampler's place among those of the source.
    pub samplers: BTreeMap<String, Vec<SamplerTotals>>,
    /// Accounts that the daemon did not keep.
    pub not_kept: RestartingCounter,
}

impl MachineTotals {
    /// Takes over what one connection to a daemon has replied; returns each domain's energy since the last time.
    pub fn update(
        &mut self,
        life: DaemonLife,
        info: &DaemonInfo,
        balance: &[Balance],
    ) -> BTreeMap<String, u64> {
        if self.life.as_ref() != Some(&life) {
            self.begin_life(life);
        }
        self.divide_old_host_energy();
        // Without a live domain none is counted; the label stays as it was.
        let counted = info.domains.iter().filter(|status| status.counted);
        if let Some(grade) = counted.map(|status| status.grade).max() {
            self.host_grade = grade.as_str().into();
        }
        let mut gained = BTreeMap::new();
        for row in balance {
            let status = info.domains.iter().find(|status| status.name == row.domain);
            // A domain that stopped since the last instant was counted until then.
            let was_counted = self.domains.get(&row.domain).map(|totals| totals.counted);
            let totals = self.domains.entry(row.domain.clone()).or_default();
            if let Some(status) = status {
                totals.set_labels(status);
            }
            let gained_uj = totals.update(row);
            if was_counted.unwrap_or(totals.counted) {
                self.add_to_host(gained_uj);
            }
            gained.insert(row.domain.clone(), gained_uj);
        }
        self.update_health(info);
        gained
    }

    /// The energy of the host by its grade. A change of the grade moves no energy: sums of increases stay right.
    pub fn host_grades_uj(&self) -> &BTreeMap<String, u64> {
        &self.host_grades_uj
    }

    fn add_to_host(&mut self, gained_uj: u64) {
        self.host_uj = self.host_uj.saturating_add(gained_uj);
        let of_grade = self.host_grades_uj.entry(self.host_grade.clone()).or_default();
        *of_grade = of_grade.saturating_add(gained_uj);
    }

    /// A state file of an earlier version has one sum, which had the label of the last grade.
    fn divide_old_host_energy(&mut self) {
        if self.host_grades_uj.is_empty() && !self.host_grade.is_empty() {
            self.host_grades_uj.insert(self.host_grade.clone(), self.host_uj);
        }
    }

    fn update_health(&mut self, info: &DaemonInfo) {
        let grow = |counter: &mut RestartingCounter, value| counter.last = counter.last.max(value);
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for sampler in &info.samplers {
            let place = places.entry(&sampler.source).or_default();
            let of_source = self.samplers.entry(sampler.source.clone()).or_default();
            if of_source.len() <= *place {
                of_source.resize_with(*place + 1, SamplerTotals::default);
            }
            if let Some(totals) = of_source.get_mut(*place) {
                grow(&mut totals.ticks, sampler.ticks);
                grow(&mut totals.late, sampler.late);
                grow(&mut totals.missed, sampler.missed);
            }
            *place += 1;
        }
        if let Some(store) = &info.keeping {
            grow(&mut self.not_kept, store.not_kept);
        }
    }

    fn begin_life(&mut self, life: DaemonLife) {
        self.life = Some(life);
        self.domains.values_mut().for_each(DomainTotals::begin_life);
        let samplers = self.samplers.values_mut().flatten();
        let counters =
            samplers.flat_map(|sampler| [&mut sampler.ticks, &mut sampler.late, &mut sampler.missed]);
        for counter in counters.chain([&mut self.not_kept]) {
            *counter = RestartingCounter { base: counter.total(), last: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(counted: bool) -> DaemonInfo {
        let text = format!(
            r#"{{"version":"1","boot_id":"b","now_ns":1,"horizon_ns":2,"history_ns":3,"absent":[],"access":"telemetry",
            "domains":[{{"name":"a","kind":"gpu-memory","source":"nvml","counted":{counted},"grade":"measured","liveness":"live"}}],
            "samplers":[{{"source":"nvml","domains":["a"],"ticks":10,"late":2,"missed":1,"realtime":false,"pinned":false}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn life(started_ns: u64) -> DaemonLife {
        DaemonLife { boot_id: "b".into(), started_ns }
    }

    fn update(
        totals: &mut MachineTotals,
        life: DaemonLife,
        attributed_uj: u64,
        unattributed_uj: u64,
    ) -> (u64, u64) {
        let measured_uj = attributed_uj + unattributed_uj;
        let balance =
            Balance { domain: "a".into(), measured_uj, attributed_uj, unattributed_uj, ..Balance::default() };
        totals.update(life, &info(true), &[balance]);
        let domain = &totals.domains["a"];
        (domain.attributed_uj, domain.unattributed_uj)
    }

    #[test]
    fn a_cancelled_span_takes_nothing_back_and_the_parts_add_up() {
        let mut totals = MachineTotals::default();
        assert_eq!(update(&mut totals, life(1), 70, 30), (70, 30));
        // 50 of the 70 are cancelled, and 20 more are measured.
        assert_eq!(update(&mut totals, life(1), 20, 100), (70, 50), "120 in all");
        assert_eq!(update(&mut totals, life(1), 65, 105), (70, 100));
        assert_eq!(update(&mut totals, life(1), 75, 105), (75, 105), "the balance again");
    }

    #[test]
    fn the_totals_continue_over_a_restart_of_the_daemon() {
        let mut totals = MachineTotals::default();
        update(&mut totals, life(1), 70, 30);
        assert_eq!(update(&mut totals, life(2), 5, 1), (75, 31));
        assert_eq!(update(&mut totals, life(2), 6, 4), (76, 34));
        assert_eq!(totals.host_uj, 110);
        let sampler = &totals.samplers["nvml"][0];
        assert_eq!((sampler.ticks.total(), sampler.late.total(), sampler.missed.total()), (20, 4, 2));
        assert_eq!(totals.domains["a"].kind, "gpu-memory");
        // A machine that started again may give the same clock to its daemon.
        let other = DaemonLife { boot_id: "c".into(), ..life(2) };
        assert_eq!(update(&mut totals, other, 1, 1), (77, 35));
    }

    #[test]
    fn parts_of_a_damaged_state_that_add_to_more_than_64_bits_are_bounded() {
        let mut totals = MachineTotals::default();
        update(&mut totals, life(1), 70, 30);
        let damaged = totals.domains.get_mut("a").unwrap();
        (damaged.attributed_uj, damaged.unattributed_uj) = (u64::MAX, 5);
        assert_eq!(update(&mut totals, life(1), 80, 30), (u64::MAX, 0));
        assert_eq!(update(&mut totals, life(2), 80, 30), (u64::MAX, 0));
    }

    #[test]
    fn the_hosts_energy_stays_with_the_grade_that_it_was_measured_with() {
        let mut info = info(true);
        let mut totals = MachineTotals::default();
        let mut at = |totals: &mut MachineTotals, grade: &str, measured_uj: u64| {
            info.domains[0].grade = serde_json::from_value(grade.into()).unwrap();
            let unattributed_uj = measured_uj;
            let balance = Balance { domain: "a".into(), measured_uj, unattributed_uj, ..Balance::default() };
            totals.update(life(1), &info, &[balance]);
            assert_eq!(totals.host_uj, totals.host_grades_uj().values().sum::<u64>());
        };
        at(&mut totals, "measured", 100);
        at(&mut totals, "estimated", 130);
        at(&mut totals, "measured", 135);
        let expected = BTreeMap::from([("measured".to_owned(), 105), ("estimated".to_owned(), 30)]);
        assert_eq!(*totals.host_grades_uj(), expected);
        // The file of an earlier version.
        let mut file = serde_json::to_value(&totals).unwrap();
        file.as_object_mut().unwrap().remove("host_grades_uj").unwrap();
        let mut old: MachineTotals = serde_json::from_value(file).unwrap();
        at(&mut old, "estimated", 145);
        let expected = BTreeMap::from([("measured".to_owned(), 135), ("estimated".to_owned(), 10)]);
        assert_eq!(*old.host_grades_uj(), expected);
    }

    #[test]
    fn the_hosts_energy_does_not_go_back_when_a_domain_is_no_longer_counted() {
        let mut totals = MachineTotals::default();
        update(&mut totals, life(1), 70, 30);
        let balance = |measured_uj| {
            let unattributed_uj = measured_uj - 70;
            [Balance {
                domain: "a".into(),
                measured_uj,
                attributed_uj: 70,
                unattributed_uj,
                ..Balance::default()
            }]
        };
        let gained = totals.update(life(1), &info(false), &balance(150));
        assert_eq!((totals.host_uj, gained["a"]), (150, 50), "it was counted until it stopped");
        totals.update(life(1), &info(false), &balance(160));
        assert_eq!((totals.host_uj, &*totals.host_grade), (150, "measured"));
    }
}
