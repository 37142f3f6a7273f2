//! Which requests are answered: those for a name of this machine, from the page itself, and over TCP with the token.
//!
//! A browser sends a request of any page to any address. The name in Host stops pages whose own name leads here (DNS
//! rebinding), Origin and Sec-Fetch-Site stop other origins, also other ports of this machine. The token is in no cookie:
//! cookies of all ports of a host are one jar, which a server of another local user could read.

use std::net::IpAddr;

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Method, StatusCode};
use subtle::ConstantTimeEq;

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

/// A random secret, as 64 hexadecimal digits.
pub struct Token(String);

/// The operating system gives no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers for the token")]
pub struct RandomError;

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn random() -> Result<Self, RandomError> {
        random_hex::<TOKEN_BYTES>().map(Token)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Compares in a time that does not depend on the content.
    fn matches(&self, presented: &str) -> bool {
        self.0.as_bytes().ct_eq(presented.as_bytes()).into()
    }
}

/// Random bytes as hexadecimal digits.
///
/// # Errors
/// The system gives no random numbers.
pub fn random_hex<const BYTES: usize>() -> Result<String, RandomError> {
    use ring::rand::SecureRandom;
    let mut bytes = [0; BYTES];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| RandomError)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestRefusal {
    pub status: StatusCode,
    pub reason: &'static str,
}

const fn refusal(status: StatusCode, reason: &'static str) -> RequestRefusal {
    RequestRefusal { status, reason }
}

/// What the listener requires.
pub struct RequestGuard {
    /// `None`: the permissions of a Unix socket decide.
    token: Option<Token>,
    /// Further names for Host, in lower case.
    allowed_hosts: Vec<String>,
}

/// The parts of a request that decide.
#[derive(Clone, Copy)]
pub struct RequestParts<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    /// The address at which the connection arrived; `None` on a Unix socket.
    pub local_ip: Option<IpAddr>,
}

/// The value of a parameter in a query. Values here are names and hexadecimal digits, which need no decoding.
pub fn query_value<'a>(query: Option<&'a str>, key: &str) -> Option<&'a str> {
    query?
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == key))
        .map(|(_, value)| value)
}

/// Where the page is; the only path that takes the token from the URL.
pub const PAGE_PATH: &str = "/";

impl RequestGuard {
    pub fn new(token: Option<Token>, allowed_hosts: &[String]) -> Self {
        let allowed_hosts = allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        RequestGuard { token, allowed_hosts }
    }

    /// # Errors
    /// The request is refused.
    pub fn check(&self, request: RequestParts) -> Result<(), RequestRefusal> {
        self.check_host(request)?;
        check_origin(request)?;
        if !matches!(*request.method, Method::GET | Method::HEAD) {
            return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed"));
        }
        self.check_token(request)
    }

    fn check_host(&self, request: RequestParts) -> Result<(), RequestRefusal> {
        let mut hosts = request.headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(refusal(StatusCode::BAD_REQUEST, "a request needs one Host"));
        };
        let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        let is_plain = |authority: &Authority| {
            let has_port = authority.as_str() != authority.host();
            !authority.as_str().contains('@') && has_port == authority.port_u16().is_some()
        };
        let Some(authority) = authority.filter(is_plain) else {
            return Err(refusal(StatusCode::BAD_REQUEST, "Host is invalid"));
        };
        match self.is_own_name(authority.host(), request.local_ip) {
            true => Ok(()),
            false => Err(refusal(
                StatusCode::MISDIRECTED_REQUEST,
                "Host is no name of this server; use localhost or the address, or start it with --allow-host NAME",
            )),
        }
    }

    /// An address cannot be the name of another page, so that only names need a list.
    fn is_own_name(&self, host: &str, local_ip: Option<IpAddr>) -> bool {
        let host = host.to_ascii_lowercase();
        if self.allowed_hosts.contains(&host) {
            return true;
        }
        // A Unix socket is reached through a forwarded port of the user's own machine.
        let is_loopback = local_ip.is_none_or(|ip| ip.to_canonical().is_loopback());
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        match literal.parse::<IpAddr>() {
            Ok(ip) if is_loopback => ip.to_canonical().is_loopback(),
            Ok(ip) => local_ip.is_some_and(|local| local.to_canonical() == ip.to_canonical()),
            Err(_) => is_loopback && host == "localhost",
        }
    }

    fn check_token(&self, request: RequestParts) -> Result<(), RequestRefusal> {
        let Some(token) = &self.token else { return Ok(()) };
        let header = request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let in_header = header.and_then(|value| value.strip_prefix("Bearer "));
        // The URL that is printed at the start; the page moves the token to the header.
        let in_url = query_value(request.query, "token").filter(|_| request.path == PAGE_PATH);
        match in_header.or(in_url) {
            Some(presented) if token.matches(presented) => Ok(()),
            _ => Err(refusal(StatusCode::UNAUTHORIZED, "open the URL that wattspan serve printed")),
        }
    }
}

fn check_origin(request: RequestParts) -> Result<(), RequestRefusal> {
    let text = |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let other = refusal(StatusCode::FORBIDDEN, "requests of other pages are refused");
    if let Some(origin) = request.headers.get(ORIGIN) {
        let host = request.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
        let origin = origin.to_str().unwrap_or("");
        let of = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if !of.is_some_and(|of| of.eq_ignore_ascii_case(host)) {
            return Err(other);
        }
    }
    // A link of another page may lead to this one, which shows nothing without the token.
    let is_link = request.path == PAGE_PATH && text("sec-fetch-mode") == Some("navigate");
    match text("sec-fetch-site") {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) if is_link => Ok(()),
        Some(_) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const LOOPBACK: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));

    fn guard() -> RequestGuard {
        RequestGuard::new(Some(Token("a".repeat(64))), &["Meter.example".into()])
    }

    fn status_of(
        guard: &RequestGuard,
        local_ip: Option<IpAddr>,
        (method, uri): (&Method, &str),
        headers: &[(&str, &str)],
    ) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let (path, query) = uri.split_once('?').map_or((uri, None), |(path, query)| (path, Some(query)));
        let request = RequestParts { method, path, query, headers: &map, local_ip };
        guard.check(request).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_names_of_this_machine_are_hosts() {
        let unix = RequestGuard::new(None, &[]);
        let status = |guard: &RequestGuard, ip, host: &str| {
            let bearer = format!("Bearer {}", "a".repeat(64));
            status_of(guard, ip, (&Method::GET, "/events"), &[("host", host), ("authorization", &bearer)])
        };
        for host in
            ["localhost", "LOCALHOST:80", "127.0.0.1:8090", "[::1]:1", "127.9.9.9", "meter.example:81"]
        {
            assert_eq!(status(&guard(), LOOPBACK, host), 200, "{host}");
        }
        let named = Some("192.0.2.1".parse().unwrap());
        for (ip, host) in [
            (LOOPBACK, "evil.example"),
            (LOOPBACK, "localhost.evil.example"),
            (LOOPBACK, "192.0.2.1"),
            (LOOPBACK, "0.0.0.0:8090"),
            (named, "localhost"),
            (named, "127.0.0.1"),
            (named, "192.0.2.2"),
            (None, "evil.example"),
        ] {
            assert_eq!(status(&guard(), ip, host), 421, "{host}");
        }
        assert_eq!(status(&guard(), named, "192.0.2.1:80"), 200);
        let mapped = Some(IpAddr::V6(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped()));
        assert_eq!(status(&guard(), mapped, "192.0.2.1:80"), 200);
        assert_eq!(status(&guard(), Some(Ipv6Addr::LOCALHOST.into()), "[::1]:9"), 200);
        assert_eq!(status(&unix, None, "localhost:8080"), 200);
        for host in ["", "a b", "user@localhost", "localhost:99999999"] {
            assert_ne!(status(&guard(), LOOPBACK, host), 200, "{host}");
        }
        let none = status_of(&unix, None, (&Method::GET, "/"), &[]);
        let two =
            status_of(&unix, None, (&Method::GET, "/"), &[("host", "localhost"), ("host", "localhost")]);
        assert_eq!((none, two), (400, 400));
    }

    #[test]
    fn the_token_is_needed_on_every_path() {
        let (right, wrong) = ("a".repeat(64), "b".repeat(64));
        let status = |uri: &str, header: Option<String>| {
            let mut headers = vec![("host", "localhost:1")];
            headers.extend(header.as_deref().map(|header| ("authorization", header)));
            status_of(&guard(), LOOPBACK, (&Method::GET, uri), &headers)
        };
        assert_eq!(status(&format!("/?token={right}"), None), 200);
        assert_eq!(status(&format!("/?x=1&token={right}"), None), 200);
        assert_eq!(status("/events?range=1h", Some(format!("Bearer {right}"))), 200);
        for (uri, header) in [
            ("/".to_owned(), None),
            ("/nothing".to_owned(), None),
            (format!("/?token={wrong}"), None),
            (format!("/?token={}", &right[1..]), None),
            (format!("/?token={right}a"), None),
            ("/?token=".to_owned(), None),
            // Only the page takes it from the URL.
            (format!("/events?token={right}"), None),
            ("/events".to_owned(), Some(format!("Bearer {wrong}"))),
            ("/events".to_owned(), Some(format!("Basic {right}"))),
            ("/events".to_owned(), Some("Bearer ".to_owned())),
        ] {
            assert_eq!(status(&uri, header), 401, "{uri}");
        }
        assert_eq!(
            status_of(&RequestGuard::new(None, &[]), None, (&Method::GET, "/"), &[("host", "localhost")]),
            200
        );
    }

    #[test]
    fn other_origins_and_methods_are_refused_even_with_the_token() {
        let bearer = format!("Bearer {}", "a".repeat(64));
        let status = |method: &Method, path: &str, headers: &[(&str, &str)]| {
            let common = [("host", "localhost:8090"), ("authorization", bearer.as_str())];
            status_of(&guard(), LOOPBACK, (method, path), &[&common, headers].concat())
        };
        for headers in [
            [("origin", "http://localhost:8090")].as_slice(),
            &[("origin", "https://LOCALHOST:8090")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")],
            &[("sec-fetch-site", "none")],
        ] {
            assert_eq!(status(&Method::GET, "/events", headers), 200, "{headers:?}");
        }
        for headers in [
            [("origin", "http://localhost:8091")].as_slice(),
            &[("origin", "http://evil.example")],
            &[("origin", "null")],
            &[("origin", "file://localhost:8090")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
            &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")],
        ] {
            assert_eq!(status(&Method::GET, "/events", headers), 403, "{headers:?}");
        }
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(status(&Method::GET, "/", &link), 200);
        assert_eq!(status(&Method::GET, "/", &link[..1]), 403);
        for method in
            [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::CONNECT, Method::TRACE]
        {
            assert_eq!(status(&method, "/events", &[]), 405, "{method}");
        }
        assert_eq!(status(&Method::HEAD, "/", &[]), 200);
    }

    #[test]
    fn tokens_are_random_and_long() {
        let (one, two) = (Token::random().unwrap(), Token::random().unwrap());
        assert!(one.as_str().len() == 64 && one.as_str() != two.as_str());
        assert!(one.matches(one.as_str()) && !one.matches(two.as_str()) && !one.matches(""));
    }
}
