//! Random span names, for clients that choose none.
//!
//! Owns the reserve of random bytes: 128 bits for each name, so that no name can be guessed and none comes twice.
//! From the kernel's own generator, many at a time, because a system call for each name would cost more than the rest
//! of an open.

use std::fs::File;
use std::io::{self, Read};

const SPAN_ID_BYTES: usize = 16;

/// The reserve.
pub struct SpanIdGenerator {
    // Kept open: under a flood of connections there may be no descriptor left to open it with.
    device: File,
    random_bytes: Vec<u8>,
}

impl SpanIdGenerator {
    /// An empty reserve, and the device that fills it.
    pub fn new() -> io::Result<Self> {
        Ok(Self { device: File::open("/dev/urandom")?, random_bytes: Vec::new() })
    }

    /// A name nobody had before: 32 hexadecimal digits.
    pub fn generate(&mut self) -> String {
        if self.random_bytes.len() < SPAN_ID_BYTES {
            self.random_bytes.resize(64 * SPAN_ID_BYTES, 0);
            // Without randomness another user could guess names: better no daemon than that.
            self.device
                .read_exact(&mut self.random_bytes)
                .expect("the kernel's generator never ends nor fails");
        }
        let rest = self.random_bytes.split_off(self.random_bytes.len() - SPAN_ID_BYTES);
        let mut name = String::with_capacity(2 * SPAN_ID_BYTES);
        for byte in rest {
            for digit in [byte >> 4, byte & 15] {
                name.push(
                    char::from_digit(u32::from(digit), 16).expect("four bits are one hexadecimal digit"),
                );
            }
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_ids_have_128_bits_and_are_unique() {
        let mut tokens = SpanIdGenerator::new().unwrap();
        let names: std::collections::HashSet<String> = (0..1000).map(|_| tokens.generate()).collect();
        assert_eq!(names.len(), 1000);
        assert!(
            names.iter().all(|name| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
    }
}
