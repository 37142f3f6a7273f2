//! The transfer codings of a message (RFC 9112, section 6.1).
//!
//! hyper decodes chunks and no other coding. It reads a list whose last coding is `chunked` as chunks alone, so that
//! their content keeps codings that the forwarded headers no longer state. Invariant: a message that passes the check has
//! no coding, or `chunked` once.

use http::header::{self, HeaderMap, HeaderValue};

/// A message that cannot be forwarded for its transfer codings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransferEncodingError {
    /// `chunked` more than once, an empty list element, or no valid token: two readers could frame the message differently.
    #[error("Transfer-Encoding is malformed: chunked must be its only coding")]
    Malformed,
    /// A coding that this program does not implement.
    #[error("Transfer-Encoding has a coding other than chunked")]
    Unsupported,
}

/// Checks that a message has no transfer coding, or `chunked` alone.
///
/// # Errors
/// The message has other codings, or `chunked` more than once.
pub fn check(headers: &HeaderMap) -> Result<(), TransferEncodingError> {
    let mut has_chunked = false;
    let mut has_other = false;
    for coding in headers.get_all(header::TRANSFER_ENCODING).iter().flat_map(codings) {
        match coding {
            b"" => return Err(TransferEncodingError::Malformed),
            coding if !is_coding(coding) => return Err(TransferEncodingError::Malformed),
            coding if coding.eq_ignore_ascii_case(b"chunked") => {
                if has_chunked {
                    return Err(TransferEncodingError::Malformed);
                }
                has_chunked = true;
            }
            _ => has_other = true,
        }
    }
    if has_other { Err(TransferEncodingError::Unsupported) } else { Ok(()) }
}

/// The list elements of one header line, without the whitespace around them.
fn codings(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether the element begins with a token; parameters may follow (RFC 9112, section 7).
fn is_coding(element: &[u8]) -> bool {
    let name = element.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    // tchar of RFC 9110, section 5.6.2.
    let is_token_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(is_token_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_lines(lines: &[&[u8]]) -> Result<(), TransferEncodingError> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::TRANSFER_ENCODING, HeaderValue::from_bytes(line).unwrap());
        }
        check(&headers)
    }

    #[test]
    fn only_chunked_alone_passes() {
        let lists: [&[&[u8]]; 5] = [&[], &[b"chunked"], &[b"Chunked"], &[b"CHUNKED"], &[b" \tchunked\t "]];
        for lines in lists {
            assert_eq!(check_lines(lines), Ok(()), "{lines:?}");
        }
    }

    #[test]
    fn other_codings_are_unsupported_in_any_form() {
        let lists: [&[&[u8]]; 11] = [
            &[b"gzip"],
            &[b"gzip, chunked"],
            &[b"gzip,chunked"],
            &[b"GZip ,\tChunked"],
            &[b"gzip", b"chunked"],
            &[b"chunked", b"gzip"],
            &[b"identity"],
            &[b"chunked, identity"],
            &[b"identity, chunked"],
            &[b"chunked;q=1"],
            &[b"xchunked"],
        ];
        for lines in lists {
            assert_eq!(check_lines(lines), Err(TransferEncodingError::Unsupported), "{lines:?}");
        }
    }

    #[test]
    fn lists_that_readers_frame_differently_are_malformed() {
        let lists: [&[&[u8]]; 11] = [
            &[b"chunked, chunked"],
            &[b"chunked", b"Chunked"],
            &[b"chunked,gzip,chunked"],
            &[b"chunked,"],
            &[b",chunked"],
            &[b""],
            &[b"", b"chunked"],
            &[b"\"chunked\""],
            &[b"chunked chunked"],
            &[b"chunked\xa0"],
            &[b";chunked"],
        ];
        for lines in lists {
            assert_eq!(check_lines(lines), Err(TransferEncodingError::Malformed), "{lines:?}");
        }
    }
}
