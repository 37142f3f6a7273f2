//! The table that every bench prints: what was measured, its target, and whether it was met.
//!
//! A bench that misses a target prints `over` and still exits with 0, because a loaded machine is not a defect.
//! Absolute figures are meaningful only on a quiet machine.

pub struct Table {
    over: usize,
}

impl Table {
    /// Prints the title and the column heads.
    pub fn new(title: &str) -> Self {
        println!("{title}\n{:<52} {:>12} {:>12}  verdict", "what", "value", "target");
        Self { over: 0 }
    }

    /// Prints a value that must not exceed its target; `None`: not measured.
    pub fn at_most(&mut self, what: &str, value: Option<f64>, target: f64, unit: &str) {
        let verdict = match value {
            Some(value) if value <= target => "pass",
            Some(_) => "over",
            None => "not measured",
        };
        self.over += usize::from(verdict != "pass");
        println!("{what:<52} {:>12} {:>12}  {verdict}", figure(value, unit), figure(Some(target), unit));
    }

    /// Prints a value without a target.
    pub fn note(&mut self, what: &str, value: Option<f64>, unit: &str) {
        println!("{what:<52} {:>12} {:>12}", figure(value, unit), "");
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        match self.over {
            0 => println!("all targets met\n"),
            over => println!("{over} over the target\n"),
        }
    }
}

fn figure(value: Option<f64>, unit: &str) -> String {
    match value {
        Some(value) if value != 0.0 && value.abs() < 10.0 => format!("{value:.3} {unit}"),
        Some(value) => format!("{value:.1} {unit}"),
        None => "-".into(),
    }
}
