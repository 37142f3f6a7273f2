//! The server that requests go to, as a user writes it.
//!
//! Owns the base URL: scheme, authority, and a path that is put before every request's own. Never holds a query, a
//! fragment, or a name and password, which are refused: they would end up in logs.

use std::fmt;
use std::str::FromStr;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};

/// Why a text is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotATarget {
    /// It is no URL at all.
    #[error("{0:?} is not a URL; write one like http://127.0.0.1:8000 or https://host/base")]
    Unreadable(String),
    /// Its scheme is another.
    #[error("{0:?}: only http:// and https:// are spoken")]
    Scheme(String),
    /// It has a query, a fragment, or a name and password.
    #[error("{0:?}: a query, a fragment, or a name and password has no place here; send keys as headers")]
    TooMuch(String),
}

/// A server's base URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    scheme: Scheme,
    authority: Authority,
    /// Without its last slash; empty for the root.
    base: String,
}

impl Target {
    /// Whether TLS is spoken.
    pub fn is_tls(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// What the `Host` header says.
    pub fn host(&self) -> HeaderValue {
        HeaderValue::from_str(self.authority.as_str()).expect("an authority has only characters of a header")
    }

    /// The URL of a request for `path` there, as it came: nothing is decoded or normalised.
    ///
    /// # Errors
    /// The two together are no URL.
    pub fn url(&self, path: Option<&PathAndQuery>) -> Result<Uri, http::Error> {
        let path = path.map_or("/", PathAndQuery::as_str);
        let builder = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone());
        match (self.base.as_str(), path) {
            ("", path) => builder.path_and_query(path).build(),
            (base, path) => builder.path_and_query(format!("{base}{path}")).build(),
        }
    }
}

impl FromStr for Target {
    type Err = NotATarget;

    fn from_str(text: &str) -> Result<Self, NotATarget> {
        let unreadable = || NotATarget::Unreadable(text.to_owned());
        if text.contains(['#', '?', '@']) {
            return Err(NotATarget::TooMuch(text.to_owned()));
        }
        let parts = text.parse::<Uri>().map_err(|_| unreadable())?.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(unreadable());
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(NotATarget::Scheme(text.to_owned()));
        }
        if authority.host().is_empty() {
            return Err(unreadable());
        }
        let base =
            parts.path_and_query.map_or(String::new(), |path| path.path().trim_end_matches('/').to_owned());
        Ok(Target { scheme, authority, base })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_put_behind_the_base_as_it_came() {
        let url = |base: &str, path: &'static str| {
            let target: Target = base.parse().unwrap();
            target.url(Some(&PathAndQuery::from_static(path))).unwrap().to_string()
        };
        assert_eq!(
            url("http://h:8000", "/v1/chat/completions?a=%2F"),
            "http://h:8000/v1/chat/completions?a=%2F"
        );
        assert_eq!(url("https://h/base/", "/v1//x/../y"), "https://h/base/v1//x/../y");
        assert_eq!(url("http://[::1]:1", "/"), "http://[::1]:1/");
    }

    #[test]
    fn what_would_leak_or_cannot_be_spoken_is_refused() {
        for text in ["http://u:p@h", "http://h/?key=1", "http://h/#x"] {
            assert!(matches!(text.parse::<Target>(), Err(NotATarget::TooMuch(_))), "{text}");
        }
        assert!(matches!("ftp://h".parse::<Target>(), Err(NotATarget::Scheme(_))));
        for text in ["localhost:8000", "", "http://", "/v1"] {
            assert!("".parse::<Target>().is_err() && text.parse::<Target>().is_err(), "{text}");
        }
    }
}
