//! Units in which figures per watt and per joule are legible.
//!
//! A table has one unit for each column, so that its rows compare. Invariant: the smallest figure of a column is at least 1
//! in its unit, and below 1000 unless it is so per watt or per joule; a figure of 0 chooses no unit.

/// What counts as 1: a figure that is 1 but for the meter's noise stays in its unit.
const ONE: f64 = 0.995;

/// A unit of figures per watt or per joule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InverseUnit {
    /// Figures per watt or joule are multiplied by it.
    pub factor: f64,
    /// The prefix of the watt or joule: "", "k", "M", "G".
    prefix: &'static str,
}

impl InverseUnit {
    const ALL: [Self; 4] = [
        Self { factor: 1.0, prefix: "" },
        Self { factor: 1e3, prefix: "k" },
        Self { factor: 1e6, prefix: "M" },
        Self { factor: 1e9, prefix: "G" },
    ];

    /// Returns the unit for a column of figures per watt or per joule.
    pub fn of(figures: impl Iterator<Item = f64>) -> Self {
        let sizes = figures.map(f64::abs).filter(|size| *size > 0.0 && size.is_finite());
        let smallest = sizes.fold(f64::INFINITY, f64::min);
        let [.., last] = Self::ALL;
        Self::ALL.into_iter().find(|unit| smallest * unit.factor >= ONE).unwrap_or(last)
    }

    /// The name of the unit of a count per watt or joule: "1/kW".
    pub fn name(self, numerator: &str, base: &str) -> String {
        format!("{numerator}/{}{base}", self.prefix)
    }

    /// Chooses among the names of the units, in the order W, kW, MW, GW.
    pub fn choose<T>(self, [base, kilo, mega, giga]: [T; 4]) -> T {
        match self.prefix {
            "" => base,
            "k" => kilo,
            "M" => mega,
            _ => giga,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_figure_of_a_column_is_from_1_to_1000() {
        for (figures, factor, name) in [
            (&[0.000_039_96][..], 1e6, "1/MJ"),
            (&[0.005, 0.2, 0.0], 1e3, "1/kJ"),
            (&[0.005, 0.000_2], 1e6, "1/MJ"),
            (&[1.0], 1.0, "1/J"),
            (&[0.000_999_8], 1e3, "1/kJ"),
            (&[0.000_99], 1e6, "1/MJ"),
            (&[2e4], 1.0, "1/J"),
            (&[1e-12], 1e9, "1/GJ"),
            (&[0.0], 1.0, "1/J"),
            (&[f64::NAN, -0.05], 1e3, "1/kJ"),
            (&[], 1.0, "1/J"),
        ] {
            let unit = InverseUnit::of(figures.iter().copied());
            assert_eq!((unit.factor, unit.name("1", "J").as_str()), (factor, name), "{figures:?}");
            assert_eq!(unit.choose(["1/J", "1/kJ", "1/MJ", "1/GJ"]), name);
        }
    }
}
