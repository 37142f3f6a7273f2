//! A source with a subset of its domains.
//!
//! Owns the scratch readings of the whole source. Keeps the order of the domains.

use crate::domain::EnergyReading;
use crate::sources::{OpenedSource, Source};

/// Keeps the domains of `opened` for which `kept` is true; `None` if there are none.
pub fn select_domains(opened: OpenedSource, kept: &[bool]) -> Option<OpenedSource> {
    if kept.iter().all(|kept| *kept) {
        return (!kept.is_empty()).then_some(opened);
    }
    let columns: Vec<usize> = (0..opened.domains.len()).filter(|&column| kept[column]).collect();
    if columns.is_empty() {
        return None;
    }
    Some(OpenedSource {
        domains: columns.iter().map(|&column| opened.domains[column].clone()).collect(),
        advanced: columns.iter().map(|&column| opened.advanced[column]).collect(),
        source: Box::new(DomainSelection {
            scratch: vec![EnergyReading::default(); opened.domains.len()],
            inner: opened.source,
            columns,
        }),
        ..opened
    })
}

struct DomainSelection {
    inner: Box<dyn Source>,
    /// One reading for each domain of the inner source.
    scratch: Vec<EnergyReading>,
    /// Indices into `scratch`, ascending.
    columns: Vec<usize>,
}

impl Source for DomainSelection {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let window = self.inner.read(&mut self.scratch);
        for (reading, &column) in into.iter_mut().zip(&self.columns) {
            *reading = self.scratch[column];
        }
        window
    }

    fn can_block(&self) -> bool {
        self.inner.can_block()
    }
}
