//! A recorded trace, and the machine that it replays.

use wattspan::sources::replay::trace::RecordedTrace;

/// Energy and uncertainty decrease in no epoch of the replayed machine, at any speed of replay.
pub fn check(bytes: &[u8]) {
    let Ok(trace) = RecordedTrace::parse(bytes) else { return };
    let step_ns = trace.min_interval_ns();
    assert_eq!(trace.advancing_domains().len(), trace.domains.len());
    for domain in 0..trace.domains.len().min(8) {
        for stride in [1, 7] {
            let mut last = trace.reading(domain, 0);
            for step in 1..48_u64 {
                let reading = trace.reading(domain, step.saturating_mul(step_ns).saturating_mul(stride));
                if reading.valid && last.valid && reading.epoch == last.epoch {
                    assert!(reading.energy_uj >= last.energy_uj, "the energy decreases");
                    assert!(reading.uncertainty_uj >= last.uncertainty_uj, "the uncertainty decreases");
                }
                if reading.valid {
                    last = reading;
                }
            }
        }
        for far_ns in [u64::MAX / 2, u64::MAX] {
            let _ = trace.reading(domain, far_ns);
        }
    }
    assert!(!trace.reading(trace.domains.len(), 0).valid, "there is no such domain");
}
