//! The progress line of a run: rewritten in place on a terminal, otherwise one line every ten seconds.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use wattspan_ipw::row::{QueryEnergy, QueryRow};
use wattspan_ipw::run::RunProgress;
use wattspan_ipw::scope::RunDomain;

use super::super::output::eprint_message;
use super::super::quantity::{format_energy, format_power, mean_mw};

/// Writes the progress line to standard error.
pub struct ProgressLine {
    rewrites_line: bool,
    next_update: Instant,
    is_printed: bool,
    domains: Vec<RunDomain>,
    /// Domains whose change was already reported.
    reported_domains: BTreeSet<String>,
}

impl ProgressLine {
    pub fn new(domains: Vec<RunDomain>) -> Self {
        let (rewrites_line, reported_domains) = (stderr().is_terminal(), BTreeSet::new());
        Self { rewrites_line, next_update: Instant::now(), is_printed: false, domains, reported_domains }
    }

    /// Prints the progress, at a limited rate. Reports once for each domain that a row has no energy of it, or that it became
    /// live during the run.
    pub fn update(&mut self, progress: &RunProgress, row: &QueryRow) {
        for (name, change) in row.energy.iter().flat_map(|energy| domain_changes(energy, &self.domains)) {
            if self.reported_domains.insert(name.to_owned()) {
                self.finish();
                eprint_message(&format!("{name} {change}, first at query {}", row.id));
            }
        }
        self.print(progress);
    }

    fn print(&mut self, progress: &RunProgress) {
        let now = Instant::now();
        let is_last = progress.finished == progress.total;
        if now < self.next_update && !is_last {
            return;
        }
        self.next_update =
            now + if self.rewrites_line { Duration::from_millis(100) } else { Duration::from_secs(10) };
        self.is_printed = true;
        let text = format_progress(progress);
        // A closed standard error does not stop the run.
        let _ = match self.rewrites_line {
            true => write!(stderr().lock(), "\r\x1b[K{text}"),
            false => writeln!(stderr().lock(), "{text}"),
        };
    }

    /// Ends the current line.
    pub fn finish(&self) {
        if self.rewrites_line && self.is_printed {
            let _ = writeln!(stderr().lock());
        }
    }
}

/// The changes of the machine's domains since the run began, derived from a query's row.
fn domain_changes<'a>(
    energy: &'a QueryEnergy,
    domains: &'a [RunDomain],
) -> impl Iterator<Item = (&'a str, &'static str)> {
    const NO_ENERGY: &str = "gives no energy, since its counter stands still or is not read";
    const BECAME_LIVE: &str = "became live during the run and is no part of it";
    let parts = domains.iter().zip(&energy.domains).filter(|(_, part)| part.share_uj.is_none());
    let others = energy.other_domains.iter().map(|name| (name.as_str(), BECAME_LIVE));
    parts.map(|(domain, _)| (domain.name.as_str(), NO_ENERGY)).chain(others)
}

fn format_progress(progress: &RunProgress) -> String {
    let mut line = format!("{}/{}", progress.finished, progress.total);
    if progress.scored > 0 {
        line += &format!("  {:.1} % right", 100.0 * progress.score_sum / progress.scored as f64);
    }
    if progress.metered > 0 {
        line += &format!("  {}", format_energy(progress.energy_uj, None));
        if let Some(mean) = mean_mw(progress.window_uj, progress.window_ns) {
            line += &format!("  {}", format_power(mean, None));
        }
    }
    if progress.unmetered > 0 {
        line += &format!("  {} without energy", progress.unmetered);
    }
    if progress.failed > 0 {
        line += &format!("  {} failed", progress.failed);
    }
    line
}

#[cfg(test)]
mod tests {
    use wattspan_client::domain::{DomainKind, Grade};
    use wattspan_ipw::row::DomainEnergy;

    use super::*;

    #[test]
    fn domains_that_stop_or_become_live_late_are_reported() {
        let meter = |name: &str| RunDomain {
            name: name.into(),
            kind: DomainKind::Gpu,
            source: "replay".into(),
            device: None,
            parent: None,
            counted: true,
            grade: Grade::Measured,
            update_interval_ns: None,
        };
        let domains = [meter("gpu-0"), meter("gpu-1")];
        let live = DomainEnergy { share_uj: Some(1), ..DomainEnergy::default() };
        let energy = QueryEnergy {
            domains: vec![live, DomainEnergy::default()],
            other_domains: vec!["psys".into()],
            ..QueryEnergy::default()
        };
        let names: Vec<&str> = domain_changes(&energy, &domains).map(|(name, _)| name).collect();
        assert_eq!(names, ["gpu-1", "psys"]);
    }

    #[test]
    fn unknown_values_are_not_printed() {
        let mut progress = RunProgress { total: 10, finished: 1, failed: 1, ..RunProgress::default() };
        assert_eq!(format_progress(&progress), "1/10  1 failed");
        progress = RunProgress {
            finished: 2,
            scored: 2,
            score_sum: 1.0,
            metered: 1,
            energy_uj: 2_000_000,
            window_uj: 8_000_000,
            window_ns: 1_000_000_000,
            ..progress
        };
        assert_eq!(format_progress(&progress), "2/10  50.0 % right  2.000 J  8.000 W  1 failed");
    }
}
