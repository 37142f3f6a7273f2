//! The protocol of the System Management Controller, and the decoding of its values.
//!
//! Owns the 80 bytes of a request and a reply (`SMCParamStruct` of Apple's PowerManagement sources), whose layout is
//! asserted at compile time, and the decoding of power from the controller's types. A value that is no finite power
//! from 0 to `MAX_POWER_MW` is rejected.

/// The selector of the controller's function (`kSMCHandleYPCEvent`).
pub const SELECTOR: u32 = 2;

/// The command that reads a key's value.
pub const READ_KEY: u8 = 5;
/// The command that reads a key's size and type.
pub const GET_KEY_INFO: u8 = 9;

/// The status for a missing key (`kSMCKeyNotFound`).
pub const KEY_NOT_FOUND: u8 = 0x84;

/// Upper bound of a Mac's power: the largest supply, of the Mac Pro of 2019, has 1,280 W and delivers at most 1,400 W.
pub const MAX_POWER_MW: u64 = 1_400_000;

/// The controller's version; unused, part of the layout.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SmcVersion {
    /// Major, minor, build and a reserved byte.
    pub parts: [u8; 4],
    pub release: u16,
}

/// Power limits; unused, part of the layout.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SmcPowerLimit {
    /// The version of this struct.
    pub version: u16,
    /// The length of this struct.
    pub length: u16,
    /// The limits of processor, graphics and memory.
    pub limits: [u32; 3],
}

/// A key's size and type.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct KeyInfo {
    /// The size of the value, in bytes.
    pub size: u32,
    /// The value's type, as a four-character code.
    pub type_code: u32,
    pub attributes: u8,
}

/// A request to the controller, and its reply.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SmcParam {
    /// The key, as a four-character code.
    pub key: u32,
    /// Not used.
    pub version: SmcVersion,
    /// Not used.
    pub limit: SmcPowerLimit,
    /// The reply to [`GET_KEY_INFO`]; an argument of [`READ_KEY`].
    pub key_info: KeyInfo,
    /// The status; 0 means success.
    pub result: u8,
    /// Not used.
    pub status: u8,
    pub command: u8,
    /// Not used.
    pub index: u32,
    pub bytes: [u8; 32],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<SmcParam>() == 80);
    assert!(size_of::<SmcVersion>() == 6 && size_of::<SmcPowerLimit>() == 16 && size_of::<KeyInfo>() == 12);
    assert!(offset_of!(SmcParam, version) == 4 && offset_of!(SmcParam, limit) == 12);
    assert!(offset_of!(SmcParam, key_info) == 28 && offset_of!(SmcParam, result) == 40);
    assert!(offset_of!(SmcParam, status) == 41 && offset_of!(SmcParam, command) == 42);
    assert!(offset_of!(SmcParam, index) == 44 && offset_of!(SmcParam, bytes) == 48);
};

/// Encodes four letters in the controller's byte order.
pub const fn four_char_code(text: &[u8; 4]) -> u32 {
    u32::from_be_bytes(*text)
}

/// The power in a value of this description; `None` if the type is unknown, the size does not match the type, or the
/// value is no plausible power.
pub fn power_mw(description: &KeyInfo, bytes: &[u8; 32]) -> Option<u64> {
    let watts = match (&description.type_code.to_be_bytes(), description.size) {
        (b"flt ", 4) => f64::from(f32::from_le_bytes(*bytes.first_chunk()?)),
        (&[b's', b'p', whole, part], 2) => {
            parse_fixed_point(i32::from(i16::from_be_bytes(*bytes.first_chunk()?)), whole, part, 15)?
        }
        (&[b'f', b'p', whole, part], 2) => {
            parse_fixed_point(i32::from(u16::from_be_bytes(*bytes.first_chunk()?)), whole, part, 16)?
        }
        _ => return None,
    };
    let milliwatts = (watts * 1e3).round();
    // Idle sensors of a supply show small negative values.
    const OFFSET_MW: f64 = -1_000.0;
    (milliwatts.is_finite() && (OFFSET_MW..=MAX_POWER_MW as f64).contains(&milliwatts))
        .then_some(milliwatts.max(0.0) as u64)
}

/// A fixed-point number: `sp78` has 7 integer and 8 fraction bits, `fp2e` has 2 and 14.
fn parse_fixed_point(raw: i32, whole: u8, part: u8, bits: u32) -> Option<f64> {
    let (whole, part) = (char::from(whole).to_digit(16)?, char::from(part).to_digit(16)?);
    (whole + part == bits).then(|| f64::from(raw) / f64::from(1_u32 << part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn power(kind: &[u8; 4], bytes: &[u8]) -> Option<u64> {
        let mut all = [0; 32];
        all[..bytes.len()].copy_from_slice(bytes);
        power_mw(&KeyInfo { size: bytes.len() as u32, type_code: four_char_code(kind), attributes: 0 }, &all)
    }

    #[test]
    fn floats_are_little_endian_watts() {
        assert_eq!(power(b"flt ", &12.5_f32.to_le_bytes()), Some(12_500));
        assert_eq!(power(b"flt ", &0.0004_f32.to_le_bytes()), Some(0));
        assert_eq!(power(b"flt ", &(-0.3_f32).to_le_bytes()), Some(0));
    }

    #[test]
    fn fixed_points_are_big_endian_with_the_point_where_the_type_says() {
        assert_eq!(power(b"sp78", &[0x1A, 0x80]), Some(26_500));
        assert_eq!(power(b"sp96", &[0x01, 0xA0]), Some(6_500));
        assert_eq!(power(b"fp2e", &[0x60, 0x00]), Some(1_500));
        assert_eq!(power(b"fpe2", &[0x00, 0x66]), Some(25_500));
        assert_eq!(power(b"sp78", &[0xFF, 0x80]), Some(0));
        assert_eq!(power(b"sp78", &[0x80, 0x00]), None, "-128 W");
    }

    #[test]
    fn what_is_no_power_is_none() {
        for watts in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -5.0, 1_401.0, 1e30] {
            assert_eq!(power(b"flt ", &watts.to_le_bytes()), None, "{watts}");
        }
    }

    #[test]
    fn a_type_that_is_unknown_or_has_another_size_is_none() {
        assert_eq!(power(b"ui32", &[0, 0, 0, 9]), None);
        assert_eq!(power(b"flt ", &[0, 0]), None);
        assert_eq!(power(b"sp78", &[0, 0, 0, 0]), None);
        assert_eq!(power(b"sp99", &[0, 1]), None);
        assert_eq!(power(b"spz8", &[0, 1]), None);
        assert_eq!(power(b"fp1e", &[0, 1]), None);
    }

    #[test]
    fn a_key_is_a_big_endian_number() {
        assert_eq!(four_char_code(b"PSTR"), 0x5053_5452);
    }
}
