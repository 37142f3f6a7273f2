//! Who may read the metrics: where the server listens, the bearer token, and the names in the Host header.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, StatusCode};
use subtle::ConstantTimeEq;

/// A shorter token can be guessed.
const MIN_TOKEN_BYTES: usize = 16;

/// A longer token does not fit into the head of a request.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// Address and port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// The text is no address of the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an address to listen on; use a form like unix:/run/user/1000/metrics.sock, 127.0.0.1:9774 or [::1]:9774"
)]
pub struct ParseMetricsAddressError(String);

impl FromStr for MetricsAddress {
    type Err = ParseMetricsAddressError;

    fn from_str(text: &str) -> Result<Self, ParseMetricsAddressError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(ParseMetricsAddressError(text.to_owned())),
            Some(path) => Ok(MetricsAddress::Unix(path.into())),
            None if text.starts_with(['/', '.']) => Ok(MetricsAddress::Unix(text.into())),
            None => {
                let numbers = text.replace("localhost:", "127.0.0.1:");
                let address = numbers.parse().map(MetricsAddress::Tcp);
                address.map_err(|_| ParseMetricsAddressError(text.to_owned()))
            }
        }
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsAddress::Tcp(address) => write!(f, "{address}"),
            MetricsAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bearer token (RFC 6750). Its text is never shown.
#[derive(Clone)]
pub struct Token(Vec<u8>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// Reads a token from a file that other users cannot read.
    ///
    /// # Errors
    /// The file cannot be read, other users can read it, or its text is no token.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        if file.metadata()?.mode() & 0o007 != 0 {
            return Err(io::Error::other("all users can read it; run chmod 600 on it"));
        }
        let mut text = String::new();
        file.by_ref().take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text)?;
        let token = text.trim_end_matches(['\r', '\n']);
        let is_valid = (MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES as usize).contains(&token.len());
        if !is_valid || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(io::Error::other(
                "a token has 16 to 4096 characters without spaces; make one with: openssl rand -hex 32",
            ));
        }
        Ok(Token(token.as_bytes().to_vec()))
    }
}

/// What a request must have.
#[derive(Debug, Clone, Default)]
pub struct HttpAccess {
    /// The token, unless a TLS certificate identifies the client or the socket's permissions do.
    pub token: Option<Token>,
    /// Names in the Host header besides the address of the connection.
    pub host_names: Vec<String>,
}

impl HttpAccess {
    /// Checks the head of a request. `local` is the address that the client connected to; `None` for a Unix socket.
    ///
    /// # Errors
    /// The status of the refusal.
    pub fn check(&self, headers: &HeaderMap, local: Option<SocketAddr>) -> Result<(), StatusCode> {
        if let Some(local) = local {
            // A page in a browser can make its own name point here (DNS rebinding); its requests carry that name.
            let host =
                headers.get(HOST).and_then(|value| value.to_str().ok()).ok_or(StatusCode::BAD_REQUEST)?;
            if !self.is_own_host(host, local.ip()) {
                return Err(StatusCode::MISDIRECTED_REQUEST);
            }
        }
        let Some(Token(token)) = &self.token else { return Ok(()) };
        let value = headers.get(AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        let (scheme, given) = value.split_at_checked(7).unwrap_or((&[], &[]));
        // The comparison takes the same time for each token of this length.
        let is_equal: bool = given.ct_eq(token).into();
        if scheme.eq_ignore_ascii_case(b"Bearer ") && is_equal {
            Ok(())
        } else {
            Err(StatusCode::UNAUTHORIZED)
        }
    }

    /// Whether a Host header names this server: its address, `localhost` on loopback, or a listed name.
    fn is_own_host(&self, host: &str, local: IpAddr) -> bool {
        let without_port = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => {
                name
            }
            _ => host,
        };
        let name =
            without_port.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(without_port);
        let is_address =
            name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical() == local.to_canonical());
        let is_localhost = local.to_canonical().is_loopback() && name.eq_ignore_ascii_case("localhost");
        is_address || is_localhost || self.host_names.iter().any(|listed| listed.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn headers(host: Option<&str>, authorization: Option<&str>) -> HeaderMap {
        let given = [(HOST, host), (AUTHORIZATION, authorization)];
        given.into_iter().filter_map(|(name, value)| Some((name, value?.parse().unwrap()))).collect()
    }

    fn local(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_host_is_the_address_or_a_listed_name() {
        let access = HttpAccess { token: None, host_names: vec!["node-7.example".into()] };
        let status = |host, at| access.check(&headers(host, None), local(at)).err();
        let here = "127.0.0.1:9774";
        for own in ["127.0.0.1:9774", "127.0.0.1", "localhost:9774", "LOCALHOST", "node-7.example:80"] {
            assert_eq!(status(Some(own), here), None, "{own}");
        }
        assert_eq!(status(Some("[::1]:9774"), "[::1]:9774"), None);
        assert_eq!(status(Some("::1"), "[::1]:9774"), None);
        assert_eq!(status(Some("10.0.0.7:9774"), "[::ffff:10.0.0.7]:9774"), None);
        let refused = Some(StatusCode::MISDIRECTED_REQUEST);
        for other in
            ["evil.example", "127.0.0.1.evil.example", "10.0.0.7", "", "localhost.", ":9774", "[localhost"]
        {
            assert_eq!(status(Some(other), here), refused, "{other}");
        }
        assert_eq!(status(Some("localhost"), "10.0.0.7:9774"), refused, "not on loopback");
        assert_eq!(status(None, here), Some(StatusCode::BAD_REQUEST));
        assert!(
            access.check(&headers(Some("anything"), None), None).is_ok(),
            "no browser opens a Unix socket"
        );
    }

    #[test]
    fn only_the_whole_token_opens() {
        let access = HttpAccess { token: Some(Token(b"0123456789abcdef".to_vec())), host_names: Vec::new() };
        let status = |value| access.check(&headers(None, value), None).err();
        assert_eq!(status(Some("Bearer 0123456789abcdef")), None);
        assert_eq!(status(Some("bearer 0123456789abcdef")), None, "the scheme has no case");
        for wrong in [
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer ",
            "Bearer",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert_eq!(status(Some(wrong)), Some(StatusCode::UNAUTHORIZED), "{wrong}");
        }
        assert_eq!(status(None), Some(StatusCode::UNAUTHORIZED));
        assert!(!format!("{access:?}").contains("0123"));
    }

    #[test]
    fn a_token_is_read_from_a_private_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Token::read(&path).map(|token| token.0)
        };
        assert_eq!(read("0123456789abcdef\n", 0o640).unwrap(), b"0123456789abcdef");
        assert!(read("0123456789abcdef", 0o644).unwrap_err().to_string().contains("chmod 600"));
        for wrong in ["", "\n", "short", "0123456789 abcdef", "0123456789abcdef\nsecond", &"x".repeat(4097)] {
            assert!(read(wrong, 0o600).is_err(), "{wrong}");
        }
        assert!(Token::read(&dir.path().join("none")).is_err());
    }

    #[test]
    fn an_address_is_numeric_or_a_path() {
        let parse = |text: &str| text.parse::<MetricsAddress>();
        assert_eq!(parse("127.0.0.1:9774"), Ok(MetricsAddress::Tcp("127.0.0.1:9774".parse().unwrap())));
        assert_eq!(parse("localhost:80"), Ok(MetricsAddress::Tcp("127.0.0.1:80".parse().unwrap())));
        assert_eq!(parse("unix:a/b"), Ok(MetricsAddress::Unix("a/b".into())));
        assert_eq!(parse("/run/m"), Ok(MetricsAddress::Unix("/run/m".into())));
        for wrong in ["", "unix:", "9774", ":9774", "host:80", "127.0.0.1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
