//! AMD's `gpu_metrics`: a binary table in many versions, of which three fields are read.
//!
//! Owns the layouts (linux drivers/gpu/drm/amd/include/kgd_pp_interface.h; little-endian, naturally aligned). The energy
//! accumulator counts 2^-16 J; AMD's own libraries multiply by 15.3 µJ and are 0.27 % high. Versions 2 and 3 are of
//! processors with graphics and have no accumulator. Pure.

/// The longest part of any version that has to be read.
pub const PREFIX: usize = 128;

/// What the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// Whether it is a processor with graphics: what it calls socket power includes the CPU.
    pub apu: bool,
    /// The accumulator's count; `None` where this version or this board has none.
    pub energy: Option<u64>,
    /// When the driver read the table, in CLOCK_BOOTTIME's nanoseconds.
    pub boot_ns: Option<u64>,
    /// The mean or momentary power, in whole watts.
    pub power_w: Option<u16>,
    /// The accumulator's width in bits.
    pub bits: u32,
}

/// Where a version has its fields.
struct Layout {
    energy: usize,
    clock: usize,
    power: usize,
    bits: u32,
}

impl Metrics {
    /// Reads the beginning of a table; `None` where it is too short or of no known version.
    pub fn parse(table: &[u8]) -> Option<Metrics> {
        let size = usize::from(u16_at(table, 0)?);
        let (format, content) = (*table.get(2)?, *table.get(3)?);
        if size < 16 {
            return None;
        }
        if matches!(format, 2 | 3) {
            return Some(Metrics { apu: true, energy: None, boot_ns: None, power_w: None, bits: 64 });
        }
        let layout =
            layout_of(format, content).filter(|layout| layout.clock.max(layout.energy) + 8 <= size)?;
        let energy = if layout.bits == 32 {
            u32_at(table, layout.energy).filter(|count| *count != u32::MAX).map(u64::from)
        } else {
            // A driver fills the fields that a board does not have with ones.
            u64_at(table, layout.energy).filter(|count| *count != u64::MAX && *count != u64::from(u32::MAX))
        };
        Some(Metrics {
            apu: false,
            energy,
            boot_ns: u64_at(table, layout.clock).filter(|at| *at != u64::MAX && *at != 0),
            power_w: u16_at(table, layout.power).filter(|watts| *watts != u16::MAX),
            bits: layout.bits,
        })
    }

    /// Neither energy nor power: the second die of a board whose first die counts for both.
    pub fn is_secondary(&self) -> bool {
        self.energy == Some(0) && self.power_w.unwrap_or(0) == 0
    }
}

fn layout_of(format: u8, content: u8) -> Option<Layout> {
    match (format, content) {
        (1, 0) => Some(Layout { clock: 8, power: 34, energy: 36, bits: 32 }),
        (1, 1..=3) => Some(Layout { power: 22, energy: 24, clock: 32, bits: 64 }),
        (1, 4) => Some(Layout { power: 10, energy: 24, clock: 32, bits: 64 }),
        // Between them and the accumulator, versions 1.5 and 1.6 have 32 figures of decoders.
        (1, 5 | 6) => Some(Layout { power: 10, energy: 88, clock: 96, bits: 64 }),
        (1, 7 | 8) => Some(Layout { power: 10, energy: 24, clock: 32, bits: 64 }),
        _ => None,
    }
}

fn u16_at(table: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(table.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(table: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(table.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(table: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(table.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(content: u8, size: u16, fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut table = vec![0_u8; usize::from(size)];
        table[..2].copy_from_slice(&size.to_le_bytes());
        (table[2], table[3]) = (1, content);
        for (at, bytes) in fields {
            table[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        table
    }

    #[test]
    fn each_version_has_its_fields_where_the_kernels_header_puts_them() {
        let (energy, clock, power) = (65_628_u64.to_le_bytes(), 77_u64.to_le_bytes(), 250_u16.to_le_bytes());
        let versions = [(1, 22, 24, 32), (3, 22, 24, 32), (4, 10, 24, 32), (5, 10, 88, 96), (7, 10, 24, 32)];
        for (content, power_at, energy_at, clock_at) in versions {
            let fields: [(usize, &[u8]); 3] = [(power_at, &power), (energy_at, &energy), (clock_at, &clock)];
            let metrics = Metrics::parse(&table(content, 200, &fields)).unwrap();
            assert_eq!(
                (metrics.energy, metrics.boot_ns, metrics.power_w),
                (Some(65_628), Some(77), Some(250)),
                "version 1.{content}"
            );
        }
        let narrow = Metrics::parse(&table(0, 80, &[(36, &[1, 2, 0, 0]), (8, &clock)])).unwrap();
        assert_eq!((narrow.energy, narrow.boot_ns, narrow.bits), (Some(513), Some(77), 32));
    }

    #[test]
    fn what_a_board_does_not_have_is_absent_and_not_all_ones() {
        let metrics = Metrics::parse(&table(3, 120, &[(22, &[0xFF; 2]), (24, &[0xFF; 16])])).unwrap();
        assert_eq!((metrics.energy, metrics.boot_ns, metrics.power_w), (None, None, None));
        let mut apu = table(2, 120, &[]);
        apu[2] = 2;
        assert!(Metrics::parse(&apu).unwrap().apu);
        apu[2] = 9;
        assert_eq!(Metrics::parse(&apu), None);
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(table in proptest::collection::vec(any::<u8>(), 0..160)) {
            let _ = Metrics::parse(&table);
        }
    }
}
