//! The energy of one raw count: an exact fraction of a microjoule.
//!
//! Owns the conversion from counts to µJ. It applies integer arithmetic to the cumulative count, so the error stays
//! below one µJ for any run time. No floating point: the kernel's decimal scale strings and the powers of two of the
//! RAPL registers are both fractions.

/// Microjoules in one raw count, as a reduced fraction; neither part is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnergyUnit {
    numerator: u64,
    denominator: u64,
}

impl EnergyUnit {
    /// The unit of a counter of microjoules.
    pub const MICROJOULE: EnergyUnit = EnergyUnit { numerator: 1, denominator: 1 };

    /// The unit of a counter of millijoules.
    pub const MILLIJOULE: EnergyUnit = EnergyUnit { numerator: 1_000, denominator: 1 };

    /// 2^-14 J: the coarsest unit of RAPL's registers but a server's psys, and Intel GPUs.
    pub const TWO_TO_THE_MINUS_14_JOULES: EnergyUnit = EnergyUnit { numerator: 15_625, denominator: 256 };

    /// 2^-16 J: server memory, AMD processors and AMD GPUs.
    pub const TWO_TO_THE_MINUS_16_JOULES: EnergyUnit = EnergyUnit { numerator: 15_625, denominator: 1_024 };

    /// `numerator / denominator` µJ; `None` where either is 0.
    pub fn from_fraction(numerator: u64, denominator: u64) -> Option<EnergyUnit> {
        Self::from_reduced(u128::from(numerator), u128::from(denominator))
    }

    /// 2^-`shift` J: the energy status unit of RAPL (bits 12:8 of MSR 0x606, or of 0xC0010299 on AMD), and of the
    /// kernel's perf counts (`shift` 32). `None` above 57, which a field of five bits cannot encode.
    pub fn joules_over_power_of_two(shift: u32) -> Option<EnergyUnit> {
        (shift <= 57).then(|| Self::from_reduced(1_000_000, 1 << shift)).flatten()
    }

    /// Parses a decimal number of joules exactly, as in `events/energy-pkg.scale`:
    /// `2.3283064365386962890625e-10` becomes 15625/2^26 µJ, which is 2^-32 J.
    pub fn parse_joules(text: &str) -> Option<EnergyUnit> {
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{part}");
        if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let tens = exponent.checked_sub(i32::try_from(part.len()).ok()?)?.checked_add(6)?;
        let power = 10_u128.checked_pow(tens.unsigned_abs())?;
        let digits = digits.parse::<u128>().ok()?;
        if tens < 0 {
            Self::from_reduced(digits, power)
        } else {
            Self::from_reduced(digits.checked_mul(power)?, 1)
        }
    }

    /// Whole µJ in `counts`, rounded down.
    pub fn to_uj(self, counts: u128) -> u128 {
        let (numerator, denominator) = (u128::from(self.numerator), u128::from(self.denominator));
        match counts.checked_mul(numerator) {
            Some(product) => product / denominator,
            None => (counts / denominator) * numerator + (counts % denominator) * numerator / denominator,
        }
    }

    /// The smallest number of counts that have at least `uj`: the counts of a value that was rounded down.
    pub fn counts_for(self, uj: u64) -> u64 {
        let counts = (u128::from(uj) * u128::from(self.denominator)).div_ceil(u128::from(self.numerator));
        u64::try_from(counts).unwrap_or(u64::MAX)
    }

    /// The most by which the true energy exceeds a shown one, in µJ, rounded up: the unit that is not complete yet, and what a
    /// number of units loses when it is converted to whole µJ.
    pub const fn quantum_uj(self) -> u64 {
        let sum = self.numerator as u128 + (self.denominator - 1) as u128;
        // At most the numerator, which fits.
        sum.div_ceil(self.denominator as u128) as u64
    }

    fn from_reduced(numerator: u128, denominator: u128) -> Option<EnergyUnit> {
        if numerator == 0 || denominator == 0 {
            return None;
        }
        let divisor = greatest_common_divisor(numerator, denominator);
        Some(EnergyUnit {
            numerator: u64::try_from(numerator / divisor).ok()?,
            denominator: u64::try_from(denominator / divisor).ok()?,
        })
    }
}

fn greatest_common_divisor(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_scale_string_is_exactly_two_to_the_minus_32_joules() {
        let unit = EnergyUnit::parse_joules("2.3283064365386962890625e-10").unwrap();
        assert_eq!(unit, EnergyUnit::joules_over_power_of_two(32).unwrap());
        assert_eq!(unit.to_uj(1 << 32), 1_000_000);
        assert_eq!(unit.to_uj((1 << 32) - 1), 999_999);
    }

    #[test]
    fn the_constants_are_what_they_are_called() {
        assert_eq!(EnergyUnit::joules_over_power_of_two(14), Some(EnergyUnit::TWO_TO_THE_MINUS_14_JOULES));
        assert_eq!(EnergyUnit::joules_over_power_of_two(16), Some(EnergyUnit::TWO_TO_THE_MINUS_16_JOULES));
    }

    #[test]
    fn plain_decimals_and_whole_numbers_are_understood() {
        assert_eq!(EnergyUnit::parse_joules("0.000001"), Some(EnergyUnit::MICROJOULE));
        assert_eq!(EnergyUnit::parse_joules("1e-6"), Some(EnergyUnit::MICROJOULE));
        assert_eq!(EnergyUnit::parse_joules("1"), EnergyUnit::from_fraction(1_000_000, 1));
        assert_eq!(EnergyUnit::parse_joules("2.5E-3"), EnergyUnit::from_fraction(2_500, 1));
    }

    #[test]
    fn what_is_not_a_positive_number_is_no_unit() {
        for text in
            ["", "zero", "0", "0.0", "-1e-6", "1e", "e5", "1e-400", "1e400", "1.2.3", "+1", "1e99999999999"]
        {
            assert_eq!(EnergyUnit::parse_joules(text), None, "{text:?}");
        }
        assert_eq!(EnergyUnit::from_fraction(0, 1), None);
        assert_eq!(EnergyUnit::from_fraction(1, 0), None);
        assert_eq!(EnergyUnit::joules_over_power_of_two(64), None);
    }

    #[test]
    fn one_amd_gpu_second_is_converted_with_the_true_unit() {
        // 65 628 counts of 2^-16 J are 1 001 403.81 µJ; the vendor's library multiplies by 15.3 and returns 1 004
        // 108.4.
        assert_eq!(EnergyUnit::joules_over_power_of_two(16).unwrap().to_uj(65_628), 1_001_403);
    }

    #[test]
    fn counts_beyond_64_bits_are_converted_without_overflow() {
        let unit = EnergyUnit::from_fraction(u64::MAX - 1, 3).unwrap();
        let counts = u128::from(u64::MAX) * 2 + 1;
        let expected = (counts / 3) * u128::from(u64::MAX - 1) + (counts % 3) * u128::from(u64::MAX - 1) / 3;
        assert_eq!(unit.to_uj(counts), expected);
    }

    #[test]
    fn the_true_energy_is_within_a_quantum_of_the_shown_one() {
        for (power, quantum_uj) in [(14, 63), (16, 17), (32, 2)] {
            let unit = EnergyUnit::joules_over_power_of_two(power).unwrap();
            assert_eq!(unit.quantum_uj(), quantum_uj);
            for counts in 0..5000_u128 {
                // Just before the next count, in parts of the denominator.
                let truth = (counts + 1) * u128::from(unit.numerator);
                let shown = unit.to_uj(counts) * u128::from(unit.denominator);
                assert!(truth - shown <= u128::from(quantum_uj) * u128::from(unit.denominator), "{counts}");
            }
        }
    }
}
