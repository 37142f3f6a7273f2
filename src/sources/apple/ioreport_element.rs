//! The raw element of an IOReport channel, and the instant that it was published at.
//!
//! Owns the layout of xnu's `IOReportElement` (`iokit/IOKit/IOReportTypes.h`): provider, channel, type and time stamp, eight
//! bytes each, then four values; all little endian on every Mac. The stamp is `mach_absolute_time` of the moment in which
//! the driver published the value, so it is the reading's own time however late it is fetched; that it is on this clock
//! is what independent readers found, not what Apple says, and a stamp that cannot be on it is not believed. Pure.

/// Bytes of the element up to the end of its time stamp.
const HEADER_BYTES: usize = 32;

/// What sets an element apart, and when it was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawElement {
    /// Which driver and which of its channels; constant while both exist.
    pub id: (u64, u64),
    /// When it was published, in ticks of the machine's clock; 0: not said.
    pub ticks: u64,
}

impl RawElement {
    /// Reads the bytes of `RawElements`; `None` where they are too few to be one.
    pub fn parse(bytes: &[u8]) -> Option<RawElement> {
        let (words, _) = bytes.get(..HEADER_BYTES)?.as_chunks::<8>();
        let &[provider, channel, _kind, ticks] = words else { return None };
        let of = u64::from_le_bytes;
        Some(RawElement { id: (of(provider), of(channel)), ticks: of(ticks) })
    }
}

/// The length of a tick: `mach_timebase_info`'s numerator and denominator, nanoseconds for each tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timebase {
    numerator: u32,
    denominator: u32,
}

impl Timebase {
    /// From what the system says; `None` where either part is 0.
    pub fn new(numerator: u32, denominator: u32) -> Option<Timebase> {
        (numerator > 0 && denominator > 0).then_some(Timebase { numerator, denominator })
    }

    /// The instant of a stamp on the meter's clock, which is the same one in nanoseconds: the end of the tick, by which the
    /// value was surely reached, but no later than `now_ns`. `None` where the stamp cannot be: 0, or from the future.
    pub fn instant_ns(self, ticks: u64, now_ns: u64) -> Option<u64> {
        let ns = |ticks: u128| ticks * u128::from(self.numerator) / u128::from(self.denominator);
        let (begin_ns, end_ns) = (ns(u128::from(ticks)), ns(u128::from(ticks) + 1));
        let is_plausible = ticks > 0 && begin_ns <= u128::from(now_ns);
        is_plausible.then(|| u64::try_from(end_ns).map_or(now_ns, |end_ns| end_ns.min(now_ns)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(words: [u64; 8]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn the_stamp_is_the_fourth_word() {
        let bytes = element([7, 0x4350_555f_4e52_4700, 0x0001_0001, 24_000_000, 11, 22, 33, 44]);
        let parsed = RawElement { id: (7, 0x4350_555f_4e52_4700), ticks: 24_000_000 };
        assert_eq!(RawElement::parse(&bytes), Some(parsed));
        assert_eq!(RawElement::parse(&bytes[..32]), Some(parsed));
    }

    #[test]
    fn too_few_bytes_are_no_element() {
        let bytes = element([1; 8]);
        for length in 0..32 {
            assert_eq!(RawElement::parse(&bytes[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_tick_of_apple_silicon_is_125_thirds_of_a_nanosecond_and_one_of_intels_is_one() {
        let silicon = Timebase::new(125, 3).unwrap();
        assert_eq!(silicon.instant_ns(23_999_999, u64::MAX), Some(1_000_000_000));
        assert_eq!(silicon.instant_ns(1, u64::MAX), Some(83));
        assert_eq!(Timebase::new(1, 1).unwrap().instant_ns(5, 100), Some(6));
        // 584 years of ticks do not fit in nanoseconds, and do not overflow on the way.
        assert_eq!(silicon.instant_ns(u64::MAX, u64::MAX), None);
    }

    #[test]
    fn a_stamp_of_nought_or_from_the_future_is_not_believed_and_none_is_later_than_now() {
        let timebase = Timebase::new(1, 1).unwrap();
        assert_eq!(timebase.instant_ns(0, 1_000), None);
        assert_eq!(timebase.instant_ns(1_001, 1_000), None);
        assert_eq!(timebase.instant_ns(1_000, 1_000), Some(1_000));
        assert_eq!(timebase.instant_ns(999, 1_000), Some(1_000));
    }

    #[test]
    fn a_timebase_of_nought_is_none() {
        assert_eq!(Timebase::new(0, 3), None);
        assert_eq!(Timebase::new(125, 0), None);
    }
}
