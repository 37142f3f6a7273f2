//! The description of a simulated machine, and the counters that it simulates.

use wattspan::sources::replay::script::Script;

/// The longest time that a description can have, ten years.
const MAX_NS: u64 = 315_360_000_000_000_000;

/// The true energy never falls, and a counter shows less than it by a part of a quantum and what its lag hides.
pub fn check(bytes: &[u8]) {
    let Some(script) = std::str::from_utf8(bytes).ok().and_then(|text| Script::parse(text).ok()) else {
        return;
    };
    for (index, domain) in script.domains.iter().enumerate().take(8) {
        let (mut last_nj, mut last_raw) = (0, 0);
        let steps = (0..40).map(|step| step * domain.update_ns / 2);
        let far = (0..58).map(|bits| 1_u64 << bits).filter(|at_ns| *at_ns > 20 * domain.update_ns);
        for at_ns in steps.chain(far).chain([MAX_NS, u64::MAX]) {
            let true_nj = script.true_energy_nj(index, at_ns);
            assert!(true_nj >= last_nj, "the true energy falls");
            last_nj = true_nj;
            let Some(count) = domain.count_at(at_ns) else { continue };
            let shown_nj = u128::from(count.raw) * u128::from(domain.domain.quantum_uj) * 1_000;
            assert!(shown_nj <= true_nj, "the counter shows more than the energy");
            assert!(domain.wrap_counts.is_none_or(|wrap_counts| count.raw < wrap_counts));
            assert!(count.stamp_ns.is_none_or(|stamp_ns| stamp_ns <= at_ns), "a stamp of the future");
            if domain.wrap_counts.is_none() && domain.reset_ns.is_none() {
                assert!(count.raw >= last_raw, "the counter falls");
                last_raw = count.raw;
            }
        }
    }
}
