//! Random span identifiers, for clients that choose none.
//!
//! An identifier has 128 bits from the kernel's generator, so it can be neither guessed nor repeated. The bytes are read in
//! batches: a system call per identifier would cost more than the rest of an open.

use std::fs::File;
use std::io::{self, Read};

const SPAN_ID_BYTES: usize = 16;

/// A buffer of random bytes, refilled from the kernel.
pub struct SpanIdGenerator {
    // Kept open: with many connections no descriptor may be left.
    device: File,
    random_bytes: Vec<u8>,
}

impl SpanIdGenerator {
    /// # Errors
    /// The device cannot be opened.
    pub fn new() -> io::Result<Self> {
        Ok(Self { device: File::open("/dev/urandom")?, random_bytes: Vec::new() })
    }

    /// A new identifier: 32 hexadecimal digits.
    pub fn generate(&mut self) -> String {
        if self.random_bytes.len() < SPAN_ID_BYTES {
            self.random_bytes.resize(64 * SPAN_ID_BYTES, 0);
            // Without random bytes identifiers could be guessed, so the daemon must not continue.
            self.device.read_exact(&mut self.random_bytes).expect("the kernel's generator never fails");
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
