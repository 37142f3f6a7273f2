//! The `gpu_metrics` table of AMD's driver.

use wattspan::sources::fuzz_entry;

/// A table is at least as long as its own header states, and a longer buffer shows the same values.
pub fn check(table: &[u8]) {
    let fields = fuzz_entry::gpu_metrics(table);
    let mut longer = table.to_vec();
    longer.extend([0; 128]);
    let Some((energy, boot_ns, power_w)) = fields else { return };
    let again = fuzz_entry::gpu_metrics(&longer).expect("the same header");
    assert!(energy.is_none() || again.0 == energy);
    assert!(boot_ns.is_none() || again.1 == boot_ns);
    assert!(power_w.is_none() || again.2 == power_w);
    // The header: size, format and content revision.
    let size = usize::from(u16::from_le_bytes([table[0], table[1]]));
    assert!(size >= 16);
    // Each value stands in the table as the kernel writes it, and all ones mean that the board has none.
    let is_in = |bytes: &[u8]| table.windows(bytes.len()).any(|window| window == bytes);
    for value in [energy, boot_ns].into_iter().flatten() {
        let is_narrow = u32::try_from(value).is_ok_and(|value| is_in(&value.to_le_bytes()));
        assert!((is_in(&value.to_le_bytes()) || is_narrow) && value != u64::MAX);
    }
    assert!(power_w.is_none_or(|power_w| is_in(&power_w.to_le_bytes()) && power_w != u16::MAX));
}
