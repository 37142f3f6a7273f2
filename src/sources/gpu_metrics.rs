//! AMD's `gpu_metrics`: a binary table in many versions, of which three fields are read.
//!
//! Owns the layouts (linux drivers/gpu/drm/amd/include/kgd_pp_interface.h; little-endian, naturally aligned). The energy
//! accumulator counts 2^-16 J; AMD's own libraries multiply by 15.3 µJ and are 0.27 % high. Versions 2 and 3 are of
//! processors with graphics and have no accumulator. Pure.

/// The longest part of any version that has to be read.
pub const MAX_READ_BYTES: usize = 128;

/// What the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMetrics {
    /// Whether it is a processor with graphics: what it calls socket power includes the CPU.
    pub is_apu: bool,
    /// The accumulator's count; `None` where this version or this board has none.
    pub energy_count: Option<u64>,
    /// When the driver read the table, in CLOCK_BOOTTIME's nanoseconds.
    pub boot_ns: Option<u64>,
    /// The mean or momentary power, in whole watts.
    pub power_w: Option<u16>,
    /// The accumulator's width in bits.
    pub counter_bits: u32,
}

/// Where a version has its fields.
struct GpuMetricsLayout {
    energy_offset: usize,
    clock_offset: usize,
    power_offset: usize,
    counter_bits: u32,
}

impl GpuMetrics {
    /// Reads the beginning of a table; `None` where it is too short or of no known version.
    pub fn parse(table: &[u8]) -> Option<GpuMetrics> {
        let size = usize::from(u16_at(table, 0)?);
        let (format, content) = (*table.get(2)?, *table.get(3)?);
        if size < 16 {
            return None;
        }
        if matches!(format, 2 | 3) {
            return Some(GpuMetrics {
                is_apu: true,
                energy_count: None,
                boot_ns: None,
                power_w: None,
                counter_bits: 64,
            });
        }
        let layout = layout_for(format, content)
            .filter(|layout| layout.clock_offset.max(layout.energy_offset) + 8 <= size)?;
        let energy = if layout.counter_bits == 32 {
            u32_at(table, layout.energy_offset).filter(|count| *count != u32::MAX).map(u64::from)
        } else {
            // A driver fills the fields that a board does not have with ones.
            u64_at(table, layout.energy_offset)
                .filter(|count| *count != u64::MAX && *count != u64::from(u32::MAX))
        };
        Some(GpuMetrics {
            is_apu: false,
            energy_count: energy,
            boot_ns: u64_at(table, layout.clock_offset).filter(|at| *at != u64::MAX && *at != 0),
            power_w: u16_at(table, layout.power_offset).filter(|watts| *watts != u16::MAX),
            counter_bits: layout.counter_bits,
        })
    }

    /// Neither energy nor power: the second die of a board whose first die counts for both.
    pub fn is_secondary_die(&self) -> bool {
        self.energy_count == Some(0) && self.power_w.unwrap_or(0) == 0
    }
}

fn layout_for(format: u8, content: u8) -> Option<GpuMetricsLayout> {
    match (format, content) {
        (1, 0) => {
            Some(GpuMetricsLayout { clock_offset: 8, power_offset: 34, energy_offset: 36, counter_bits: 32 })
        }
        (1, 1..=3) => {
            Some(GpuMetricsLayout { power_offset: 22, energy_offset: 24, clock_offset: 32, counter_bits: 64 })
        }
        (1, 4) => {
            Some(GpuMetricsLayout { power_offset: 10, energy_offset: 24, clock_offset: 32, counter_bits: 64 })
        }
        // Between them and the accumulator, versions 1.5 and 1.6 have 32 figures of decoders.
        (1, 5 | 6) => {
            Some(GpuMetricsLayout { power_offset: 10, energy_offset: 88, clock_offset: 96, counter_bits: 64 })
        }
        (1, 7 | 8) => {
            Some(GpuMetricsLayout { power_offset: 10, energy_offset: 24, clock_offset: 32, counter_bits: 64 })
        }
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
            let metrics = GpuMetrics::parse(&table(content, 200, &fields)).unwrap();
            assert_eq!(
                (metrics.energy_count, metrics.boot_ns, metrics.power_w),
                (Some(65_628), Some(77), Some(250)),
                "version 1.{content}"
            );
        }
        let narrow = GpuMetrics::parse(&table(0, 80, &[(36, &[1, 2, 0, 0]), (8, &clock)])).unwrap();
        assert_eq!((narrow.energy_count, narrow.boot_ns, narrow.counter_bits), (Some(513), Some(77), 32));
    }

    #[test]
    fn what_a_board_does_not_have_is_absent_and_not_all_ones() {
        let metrics = GpuMetrics::parse(&table(3, 120, &[(22, &[0xFF; 2]), (24, &[0xFF; 16])])).unwrap();
        assert_eq!((metrics.energy_count, metrics.boot_ns, metrics.power_w), (None, None, None));
        let mut apu = table(2, 120, &[]);
        apu[2] = 2;
        assert!(GpuMetrics::parse(&apu).unwrap().is_apu);
        apu[2] = 9;
        assert_eq!(GpuMetrics::parse(&apu), None);
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(table in proptest::collection::vec(any::<u8>(), 0..160)) {
            let _ = GpuMetrics::parse(&table);
        }
    }
}
