//! The live line of a run.
//!
//! Owns what it says and how often: on a terminal it rewrites itself, elsewhere a line comes every ten seconds.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use super::super::quantity::{energy, mean_mw, power};
use super::super::say;
use crate::ipw::row::{Energy, Row};
use crate::ipw::run::Progress;
use crate::ipw::scope::Meter;

/// The line.
pub struct Live {
    rewrites: bool,
    next: Instant,
    shown: bool,
    /// The run's domains.
    domains: Vec<Meter>,
    /// Those that were told of.
    noted: BTreeSet<String>,
}

impl Live {
    /// One on standard error.
    pub fn new(domains: Vec<Meter>) -> Self {
        let (rewrites, noted) = (stderr().is_terminal(), BTreeSet::new());
        Self { rewrites, next: Instant::now(), shown: false, domains, noted }
    }

    /// Tells how far it is, unless it told a moment ago; and, once for each domain, that the row has no energy of it, or that it
    /// became live only now.
    pub fn tell(&mut self, progress: &Progress, row: &Row) {
        for (name, what) in row.energy.iter().flat_map(|energy| changes(energy, &self.domains)) {
            if self.noted.insert(name.to_owned()) {
                self.end();
                say(&format!("{name} {what}, first at query {}", row.id));
            }
        }
        self.show(progress);
    }

    fn show(&mut self, progress: &Progress) {
        let now = Instant::now();
        let last = progress.ended == progress.of;
        if now < self.next && !last {
            return;
        }
        self.next = now + if self.rewrites { Duration::from_millis(100) } else { Duration::from_secs(10) };
        self.shown = true;
        let text = line(progress);
        // Where nobody can be told, the run goes on.
        let _ = match self.rewrites {
            true => write!(stderr().lock(), "\r\x1b[K{text}"),
            false => writeln!(stderr().lock(), "{text}"),
        };
    }

    /// Leaves the last line standing.
    pub fn end(&self) {
        if self.rewrites && self.shown {
            let _ = writeln!(stderr().lock());
        }
    }
}

/// What changed with the machine's domains since the run began, as a query's row shows it.
fn changes<'a>(energy: &'a Energy, domains: &'a [Meter]) -> impl Iterator<Item = (&'a str, &'static str)> {
    const GONE: &str = "gives no energy, since its counter stands still or is not read";
    const NEW: &str = "became live during the run and is no part of it";
    let parts = domains.iter().zip(&energy.domains).filter(|(_, part)| part.share_uj.is_none());
    let others = energy.other_domains.iter().map(|name| (name.as_str(), NEW));
    parts.map(|(domain, _)| (domain.name.as_str(), GONE)).chain(others)
}

fn line(progress: &Progress) -> String {
    let mut line = format!("{}/{}", progress.ended, progress.of);
    if progress.scored > 0 {
        line += &format!("  {:.1} % right", 100.0 * progress.right / progress.scored as f64);
    }
    if progress.metered > 0 {
        line += &format!("  {}", energy(progress.energy_uj, None));
        if let Some(mean) = mean_mw(progress.window_uj, progress.window_ns) {
            line += &format!("  {}", power(mean, None));
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
    use super::*;
    use crate::domain::{Grade, Kind};
    use crate::ipw::row::Part;

    #[test]
    fn a_domain_that_stops_or_comes_late_is_named() {
        let meter = |name: &str| Meter {
            name: name.into(),
            kind: Kind::Gpu,
            source: "replay".into(),
            device: None,
            parent: None,
            counted: true,
            grade: Grade::Measured,
            update_interval_ns: None,
        };
        let domains = [meter("gpu-0"), meter("gpu-1")];
        let live = Part { share_uj: Some(1), ..Part::default() };
        let energy = Energy {
            domains: vec![live, Part::default()],
            other_domains: vec!["psys".into()],
            ..Energy::default()
        };
        let names: Vec<&str> = changes(&energy, &domains).map(|(name, _)| name).collect();
        assert_eq!(names, ["gpu-1", "psys"]);
    }

    #[test]
    fn what_is_not_known_yet_is_not_told() {
        let mut progress = Progress { of: 10, ended: 1, failed: 1, ..Progress::default() };
        assert_eq!(line(&progress), "1/10  1 failed");
        progress = Progress {
            ended: 2,
            scored: 2,
            right: 1.0,
            metered: 1,
            energy_uj: 2_000_000,
            window_uj: 8_000_000,
            window_ns: 1_000_000_000,
            ..progress
        };
        assert_eq!(line(&progress), "2/10  50.0 % right  2.000 J  8.000 W  1 failed");
    }
}
