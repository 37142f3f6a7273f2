//! Usage errors of the command line, which repeat the argument that is refused.
//!
//! Invariant: no user name and password of a URL is in their text, wherever the URL stands in the command line.

use std::error::Error;

use clap::error::{ContextKind, ContextValue};
use wattspan_http::{ParseBaseUrlError, redact_url};

/// The text of an error without colours: it repeats the argument unescaped.
pub fn render_usage_error(mut error: clap::Error) -> String {
    let is_url = error.source().is_some_and(|source| source.is::<ParseBaseUrlError>());
    let redacted: Vec<(ContextKind, ContextValue)> =
        error.context().filter_map(|(kind, value)| Some((kind, redact_value(value, is_url)?))).collect();
    if !redacted.is_empty() {
        // May repeat the argument in another form.
        error.remove(ContextKind::Suggested);
    }
    let mut refused = Vec::new();
    for (kind, value) in redacted {
        if let Some(ContextValue::String(text)) = error.insert(kind, value) {
            refused.push(text);
        }
    }
    // The reason, which an option's parser states, may repeat the argument too, as it is or escaped.
    refused.iter().fold(error.render().to_string(), |rendered, text| {
        let redacted = redact_url(text);
        rendered.replace(text.as_str(), &redacted).replace(&format!("{text:?}"), &format!("{redacted:?}"))
    })
}

/// A value without secrets of URLs; `None` where it has none. `is_url`: the refused value is one, also without a scheme.
fn redact_value(value: &ContextValue, is_url: bool) -> Option<ContextValue> {
    let redact = |text: &String| {
        let is_url = is_url || text.contains("://");
        Some(redact_url(text)).filter(|redacted| is_url && redacted != text)
    };
    match value {
        ContextValue::String(text) => redact(text).map(ContextValue::String),
        ContextValue::Strings(texts) if texts.iter().any(|text| redact(text).is_some()) => {
            let redacted = texts.iter().map(|text| redact(text).unwrap_or_else(|| text.clone()));
            Some(ContextValue::Strings(redacted.collect()))
        }
        _ => None,
    }
}
