//! Random span names, for clients that choose none.
//!
//! Owns the reserve of random bytes: 128 bits for each name, so that no name can be guessed and none comes twice.
//! From the kernel's own generator, many at a time, because a system call for each name would cost more than the rest
//! of an open.

use std::fs::File;
use std::io::{self, Read};

const TOKEN_BYTES: usize = 16;

/// The reserve.
pub struct Tokens {
    // Kept open: under a flood of connections there may be no descriptor left to open it with.
    device: File,
    reserve: Vec<u8>,
}

impl Tokens {
    /// An empty reserve, and the device that fills it.
    pub fn new() -> io::Result<Self> {
        Ok(Self { device: File::open("/dev/urandom")?, reserve: Vec::new() })
    }

    /// A name nobody had before: 32 hexadecimal digits.
    pub fn next(&mut self) -> String {
        if self.reserve.len() < TOKEN_BYTES {
            self.reserve.resize(64 * TOKEN_BYTES, 0);
            // Without randomness another user could guess names: better no daemon than that.
            self.device.read_exact(&mut self.reserve).expect("the kernel's generator never ends nor fails");
        }
        let rest = self.reserve.split_off(self.reserve.len() - TOKEN_BYTES);
        let mut name = String::with_capacity(2 * TOKEN_BYTES);
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
    fn names_have_128_bits_and_none_comes_twice() {
        let mut tokens = Tokens::new().unwrap();
        let names: std::collections::HashSet<String> = (0..1000).map(|_| tokens.next()).collect();
        assert_eq!(names.len(), 1000);
        assert!(
            names.iter().all(|name| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
    }
}
