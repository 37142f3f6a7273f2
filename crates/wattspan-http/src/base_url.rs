//! The base URL of a server: scheme, authority, and a prefix for the path of every request.
//!
//! Invariant: it has no query, fragment, or user name and password, which would appear in logs.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};

/// The text is no base URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseBaseUrlError {
    /// It is no absolute URL.
    #[error("{0:?} is not a URL; use a form like http://127.0.0.1:8000 or https://host/base")]
    Invalid(String),
    /// Its scheme is not HTTP or HTTPS.
    #[error("{0:?}: only http:// and https:// are supported")]
    UnsupportedScheme(String),
    /// It has a query, a fragment, or a user name and password.
    #[error("{0:?}: a query, a fragment, or a user name and password is not supported; send keys as headers")]
    UnsupportedComponent(String),
}

/// A server's base URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    scheme: Scheme,
    authority: Authority,
    /// Without a slash at its end; empty for the root.
    base_path: String,
}

impl BaseUrl {
    /// Whether the scheme is HTTPS.
    pub fn is_tls(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Whether the host is `localhost` or a loopback address. No other name is resolved.
    pub fn is_loopback(&self) -> bool {
        let host = self.authority.host();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host.eq_ignore_ascii_case("localhost")
            || address.is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// The value of the `Host` header.
    pub fn host_header(&self) -> HeaderValue {
        HeaderValue::from_str(self.authority.as_str())
            .expect("an authority has only characters that a header allows")
    }

    /// The base URL without a last `/v1`, below which engines have their other interfaces.
    #[must_use]
    pub fn above_version(&self) -> Self {
        let base_path = self.base_path.strip_suffix("/v1").unwrap_or(&self.base_path).to_owned();
        Self { base_path, ..self.clone() }
    }

    /// The URL of a request for `path`, which is neither decoded nor normalized.
    ///
    /// # Errors
    /// Base and path together are no valid URL.
    pub fn request_uri(&self, path: Option<&PathAndQuery>) -> Result<Uri, http::Error> {
        let path = path.map_or("/", PathAndQuery::as_str);
        let builder = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone());
        match (self.base_path.as_str(), path) {
            ("", path) => builder.path_and_query(path).build(),
            (base_path, path) => builder.path_and_query(format!("{base_path}{path}")).build(),
        }
    }
}

impl FromStr for BaseUrl {
    type Err = ParseBaseUrlError;

    fn from_str(text: &str) -> Result<Self, ParseBaseUrlError> {
        let invalid = || ParseBaseUrlError::Invalid(text.to_owned());
        if text.contains(['#', '?', '@']) {
            return Err(ParseBaseUrlError::UnsupportedComponent(text.to_owned()));
        }
        let parts = text.parse::<Uri>().map_err(|_| invalid())?.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(invalid());
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(ParseBaseUrlError::UnsupportedScheme(text.to_owned()));
        }
        if authority.host().is_empty() {
            return Err(invalid());
        }
        let base_path =
            parts.path_and_query.map_or(String::new(), |path| path.path().trim_end_matches('/').to_owned());
        Ok(BaseUrl { scheme, authority, base_path })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.base_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_path_is_appended_to_the_base_path_unchanged() {
        let url = |base_path: &str, path: &'static str| {
            let base_url: BaseUrl = base_path.parse().unwrap();
            base_url.request_uri(Some(&PathAndQuery::from_static(path))).unwrap().to_string()
        };
        assert_eq!(
            url("http://h:8000", "/v1/chat/completions?a=%2F"),
            "http://h:8000/v1/chat/completions?a=%2F"
        );
        assert_eq!(url("https://h/base/", "/v1//x/../y"), "https://h/base/v1//x/../y");
        assert_eq!(url("http://[::1]:1", "/"), "http://[::1]:1/");
    }

    #[test]
    fn the_version_is_the_last_part_of_the_path() {
        let above = |text: &str| text.parse::<BaseUrl>().unwrap().above_version().to_string();
        assert_eq!(above("http://h:8000/v1/"), "http://h:8000");
        assert_eq!(above("http://h/openai/v1"), "http://h/openai");
        assert_eq!(above("http://h/v1/x"), "http://h/v1/x");
        assert_eq!(above("http://h"), "http://h");
    }

    #[test]
    fn the_host_is_loopback_by_its_address_or_name_and_not_by_its_beginning() {
        let is_loopback = |text: &str| text.parse::<BaseUrl>().unwrap().is_loopback();
        for own in [
            "http://127.0.0.1:4318",
            "http://127.9.9.9/v1",
            "http://[::1]:1",
            "http://[::ffff:127.0.0.1]",
            "http://LOCALHOST:80/a",
        ] {
            assert!(is_loopback(own), "{own}");
        }
        for other in [
            "http://127.0.0.1.evil.example",
            "http://127.evil.example:4318",
            "http://localhost.example:4318",
            "http://10.0.0.1/localhost",
            "http://[2001:db8::1]",
        ] {
            assert!(!is_loopback(other), "{other}");
        }
    }

    #[test]
    fn unsupported_urls_are_rejected() {
        for text in ["http://u:p@h", "http://h/?key=1", "http://h/#x"] {
            assert!(
                matches!(text.parse::<BaseUrl>(), Err(ParseBaseUrlError::UnsupportedComponent(_))),
                "{text}"
            );
        }
        assert!(matches!("ftp://h".parse::<BaseUrl>(), Err(ParseBaseUrlError::UnsupportedScheme(_))));
        for text in ["localhost:8000", "", "http://", "/v1"] {
            assert!("".parse::<BaseUrl>().is_err() && text.parse::<BaseUrl>().is_err(), "{text}");
        }
    }
}
