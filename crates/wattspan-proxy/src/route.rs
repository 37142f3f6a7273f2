//! The paths of inference requests.
//!
//! A request is an inference request if its method is POST and its path ends with one of these paths at a slash:
//! servers are often mounted under a prefix. Servers decode paths, so that the comparison is of the decoded ones (RFC 3986,
//! section 6.2.2.2); the request is forwarded as it came.

use std::borrow::Cow;

use http::{Method, Uri};

/// The kind of an inference request, a value of OpenTelemetry's `gen_ai.operation.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Chat,
    TextCompletion,
    Embeddings,
    /// A path of the user, of unknown kind.
    Inference,
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Operation::Chat => "chat",
            Operation::TextCompletion => "text_completion",
            Operation::Embeddings => "embeddings",
            Operation::Inference => "inference",
        }
    }
}

/// The paths of OpenAI, Anthropic, Ollama and llama.cpp.
const KNOWN_PATHS: [(&str, Operation); 13] = [
    ("/chat/completions", Operation::Chat),
    ("/v1/responses", Operation::Chat),
    ("/v1/messages", Operation::Chat),
    ("/v1/completions", Operation::TextCompletion),
    ("/completions", Operation::TextCompletion),
    ("/embeddings", Operation::Embeddings),
    ("/api/chat", Operation::Chat),
    ("/api/generate", Operation::TextCompletion),
    ("/api/embed", Operation::Embeddings),
    ("/completion", Operation::TextCompletion),
    ("/infill", Operation::TextCompletion),
    ("/embedding", Operation::Embeddings),
    ("/responses", Operation::Chat),
];

/// The known and the custom inference paths.
#[derive(Debug, Clone)]
pub struct Routes {
    use_known_paths: bool,
    custom_paths: Vec<String>,
}

impl Routes {
    pub fn new(use_known_paths: bool, custom_paths: Vec<String>) -> Self {
        let custom_paths = custom_paths.iter().map(|path| decode_unreserved(path).into_owned()).collect();
        Routes { use_known_paths, custom_paths }
    }

    /// The operation of a request, if it is an inference request.
    pub fn operation(&self, method: &Method, uri: &Uri) -> Option<Operation> {
        if method != Method::POST {
            return None;
        }
        let path = decode_unreserved(uri.path());
        let path = path.trim_end_matches('/');
        let has_suffix = |suffix: &str| {
            let suffix = suffix.trim_matches('/');
            let prefix = path.strip_suffix(suffix);
            !suffix.is_empty() && prefix.is_some_and(|prefix| prefix.ends_with('/'))
        };
        let known = KNOWN_PATHS.iter().filter(|_| self.use_known_paths).find(|(known, _)| has_suffix(known));
        let custom =
            || self.custom_paths.iter().find(|custom| has_suffix(custom)).map(|_| Operation::Inference);
        known.map(|(_, operation)| *operation).or_else(custom)
    }
}

/// Decodes the characters that mean the same encoded or not: letters, digits, `-`, `.`, `_` and `~`.
fn decode_unreserved(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return path.into();
    }
    let (mut decoded, mut rest) = (String::with_capacity(path.len()), path);
    while let Some((before, encoded)) = rest.split_once('%') {
        decoded.push_str(before);
        match encoded.get(..2).and_then(unreserved_character) {
            Some(character) => {
                decoded.push(character);
                rest = encoded.get(2..).unwrap_or_default();
            }
            None => {
                decoded.push('%');
                rest = encoded;
            }
        }
    }
    (decoded + rest).into()
}

/// The unreserved character of two hexadecimal digits.
fn unreserved_character(digits: &str) -> Option<char> {
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let character = char::from(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?);
    Some(character).filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(routes: &Routes, path: &'static str) -> Option<Operation> {
        routes.operation(&Method::POST, &Uri::from_static(path))
    }

    #[test]
    fn inference_paths_match_by_suffix() {
        let routes = Routes::new(true, vec!["/rank".into()]);
        for (path, expected) in [
            ("/v1/chat/completions", Operation::Chat),
            ("/openai/deployments/x/chat/completions?api-version=1", Operation::Chat),
            ("/v1/completions/", Operation::TextCompletion),
            ("/api/generate", Operation::TextCompletion),
            ("/api/embed", Operation::Embeddings),
            ("/completion", Operation::TextCompletion),
            ("/v2/rank", Operation::Inference),
        ] {
            assert_eq!(operation(&routes, path), Some(expected), "{path}");
        }
        for path in ["/", "/v1/models", "/v1/chat/completionsx", "/xcompletion", "/frank", "/api/tags"] {
            assert_eq!(operation(&routes, path), None, "{path}");
        }
        assert_eq!(routes.operation(&Method::GET, &Uri::from_static("/v1/completions")), None);
    }

    #[test]
    fn characters_that_need_no_encoding_match_encoded_ones() {
        let routes = Routes::new(true, vec!["/ran%6b".into(), "/re-rank".into()]);
        for (path, expected) in [
            ("/v1/chat/complet%69ons", Operation::Chat),
            ("/%76%31/chat/%63ompletions", Operation::Chat),
            ("/x%/v1/chat/completions", Operation::Chat),
            ("/v2/rank", Operation::Inference),
            ("/v2/%72ank", Operation::Inference),
            ("/re%2drank", Operation::Inference),
            ("/re%2Drank", Operation::Inference),
        ] {
            assert_eq!(operation(&routes, path), Some(expected), "{path}");
        }
        // A reserved character differs from its encoded form (RFC 3986, section 2.2), and nothing is decoded twice.
        for path in [
            "/v1/chat%2Fcompletions",
            "/v1/chat%2fcompletions",
            "/v1/complet%2569ons",
            "/completion%",
            "/completion%6",
            "/completion%6g",
            "/complet%e9ions",
        ] {
            assert_eq!(operation(&routes, path), None, "{path}");
        }
    }

    #[test]
    fn known_paths_can_be_disabled() {
        let routes = Routes::new(false, vec!["mine".into()]);
        assert_eq!(operation(&routes, "/v1/completions"), None);
        assert_eq!(operation(&routes, "/mine"), Some(Operation::Inference));
    }
}
