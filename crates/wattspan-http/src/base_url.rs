//! The base URL of a server: scheme, authority, and a prefix for the path of every request.
//!
//! Invariant: it has no query, fragment, or user name and password, which would appear in logs.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};

/// The text is no base URL. Its text here is that of [`redact_url`].
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

/// The text of a URL for a message: without user name, password, query and fragment, which may be secret. The text need not be
/// valid: a password may contain any character, so that everything before the last `@` is left out.
pub fn redact_url(text: &str) -> String {
    const LEFT_OUT: &str = "***";
    let starts_with =
        |scheme: &&str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let scheme = ["http://", "https://"].into_iter().find(starts_with).unwrap_or_default();
    let without_query = |text: &str| match text.find(['?', '#']).and_then(|at| text.get(..=at)) {
        Some(start) => format!("{start}{LEFT_OUT}"),
        None => text.to_owned(),
    };
    match text.rsplit_once('@') {
        None => without_query(text),
        // The @ may be that of a query.
        Some((before, _)) if before.contains(['?', '#']) => format!("{scheme}{LEFT_OUT}"),
        Some((_, host)) => format!("{scheme}{LEFT_OUT}@{}", without_query(host)),
    }
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
        let invalid = || ParseBaseUrlError::Invalid(redact_url(text));
        if text.contains(['#', '?', '@']) {
            return Err(ParseBaseUrlError::UnsupportedComponent(redact_url(text)));
        }
        let parts = text.parse::<Uri>().map_err(|_| invalid())?.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(invalid());
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(ParseBaseUrlError::UnsupportedScheme(redact_url(text)));
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
    fn no_error_has_a_password_or_a_query() {
        for (text, expected) in [
            ("http://user:s3cret@host:1/a", "http://***@host:1/a"),
            ("HTTPS://s3cret@host", "https://***@host"),
            ("user:s3cret@host:1", "***@host:1"),
            ("ftp://user:s3cret@host", "***@host"),
            ("s3cret://x@host", "***@host"),
            // An @, slash, question mark or number sign of the password is not encoded.
            ("http://user:a@s3cret@host", "http://***@host"),
            ("http://user:a/s3cret@host", "http://***@host"),
            ("http://user:a?s3cret@host", "http://***"),
            ("http://user:a#s3cret@host", "http://***"),
            ("http://host/?key=s3cret", "http://host/?***"),
            ("http://host/#s3cret", "http://host/#***"),
            ("http://user:s3cret@host/a?key=s3cret", "http://***@host/a?***"),
            ("http://host/?mail=s3cret@host", "http://***"),
            ("ftp://host", "ftp://host"),
            ("localhost:8000", "localhost:8000"),
        ] {
            assert_eq!(redact_url(text), expected, "{text}");
            let error = text.parse::<BaseUrl>().unwrap_err();
            assert!(error.to_string().contains(&format!("{expected:?}")), "{error}");
            assert!(!format!("{error:?} {error}").contains("s3cret"), "{error:?}");
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
