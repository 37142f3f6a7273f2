//! The live line of a run.
//!
//! Owns what it says and how often: on a terminal it rewrites itself, elsewhere a line comes every ten seconds.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use super::super::quantity::{energy, mean_mw, power};
use crate::ipw::run::Progress;

/// The line.
pub struct Live {
    rewrites: bool,
    next: Instant,
    shown: bool,
}

impl Live {
    /// One on standard error.
    pub fn new() -> Self {
        Self { rewrites: stderr().is_terminal(), next: Instant::now(), shown: false }
    }

    /// Tells how far it is, unless it told a moment ago.
    pub fn tell(&mut self, progress: &Progress) {
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

fn line(progress: &Progress) -> String {
    let mut line = format!("{}/{}", progress.ended, progress.of);
    if progress.scored > 0 {
        line += &format!("  {:.1} % right", 100.0 * progress.right / progress.scored as f64);
    }
    if progress.metered > 0 {
        line += &format!("  {}", energy(progress.energy_uj, None));
        if let Some(mean) = mean_mw(progress.energy_uj, progress.span_ns) {
            line += &format!("  {} a query", power(mean, None));
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
            span_ns: 1_000_000_000,
            ..progress
        };
        assert_eq!(line(&progress), "2/10  50.0 % right  2.000 J  2.000 W a query  1 failed");
    }
}
