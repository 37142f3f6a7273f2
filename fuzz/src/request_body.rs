//! The body of a client's request: the hash of its prompt, and the values that the proxy looks for.

use std::fmt;
use std::hash::Hasher;

use fnv::FnvHasher;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use wattspan_http::prompt_hash::PromptHasher;
use wattspan_proxy::fuzz_entry;

use super::{first_byte, in_chunks};

const KEYS: &[&str] = &["model", "usage", "stream"];

/// Hash and values do not depend on chunks, and are those of a parser that has the whole body.
pub fn check(bytes: &[u8]) {
    let (seed, body) = first_byte(bytes);
    let chunks = in_chunks(body, seed);
    let hash = |chunks: &[&[u8]]| {
        let mut hasher = PromptHasher::default();
        chunks.iter().for_each(|chunk| hasher.feed(chunk));
        hasher.finish()
    };
    let (found, whole_hash) = (fuzz_entry::scan(KEYS, [body]), hash(&[body]));
    assert_eq!(found, fuzz_entry::scan(KEYS, chunks.iter().copied()));
    assert_eq!(whole_hash, hash(&chunks));
    let Ok(fields) = serde_json::from_slice::<OrderedFields<'_>>(body) else { return };
    let has_escape = fields.0.iter().any(|(key, _)| !is_written_plainly(body, key));
    for (key, found) in KEYS.iter().zip(&found).filter(|_| !has_escape) {
        let expected = fields.0.iter().rfind(|(name, _)| name == key).map(|(_, value)| value.get());
        match (found, expected) {
            (None, None) => {}
            (Some((text, offset)), Some(expected)) => {
                assert!(body[*offset..].starts_with(expected.as_bytes()), "{key} at {offset}");
                let fits = expected.len() <= 4096;
                assert_eq!(text, if fits { expected.as_bytes() } else { b"" }, "{key}");
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    if let Some(expected) = slow_hash(&fields) {
        assert_eq!(whole_hash, expected);
    }
}

/// The fields of an object in their order, with their text.
struct OrderedFields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for OrderedFields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for FieldsVisitor<'a> {
            type Value = OrderedFields<'a>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OrderedFields<'a>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(OrderedFields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor(std::marker::PhantomData))
    }
}

/// The scanner compares keys as they are written: one with escapes is another key.
fn is_written_plainly(body: &[u8], key: &str) -> bool {
    let quoted = format!("\"{key}\"");
    body.windows(quoted.len()).any(|window| window == quoted.as_bytes())
}

/// The hash; `Some(None)` without a prompt or with one that is nested too deeply, `None` with text that is no Unicode.
fn slow_hash(fields: &OrderedFields<'_>) -> Option<Option<String>> {
    let (mut hasher, mut has_prompt) = (FnvHasher::default(), false);
    let mut is_too_deep = false;
    for (key, value) in &fields.0 {
        let is_prompt = key == "messages" || key == "prompt";
        has_prompt |= is_prompt;
        let mut ignored = FnvHasher::default();
        let hasher = if is_prompt { &mut hasher } else { &mut ignored };
        is_too_deep |= hash_value(value.get(), 1, hasher)?;
    }
    Some((has_prompt && !is_too_deep).then(|| format!("{:016x}", hasher.finish())))
}

/// Whether the value is nested too deeply; `None`: a text that is no Unicode.
fn hash_value(text: &str, depth: usize, hasher: &mut FnvHasher) -> Option<bool> {
    const MAX_DEPTH: usize = 64;
    let is_container = text.starts_with(['{', '[']);
    if is_container && depth >= MAX_DEPTH {
        return Some(true);
    }
    let inner: Vec<&RawValue> = match text.as_bytes().first() {
        Some(b'{') => {
            let fields: OrderedFields<'_> = serde_json::from_str(text).ok()?;
            fields.0.into_iter().map(|(_, value)| value).collect()
        }
        Some(b'[') => serde_json::from_str(text).ok()?,
        Some(b'"') => {
            hasher.write(serde_json::from_str::<String>(text).ok()?.as_bytes());
            hasher.write(&[0xFF]);
            return Some(false);
        }
        _ => {
            hasher.write(text.as_bytes());
            hasher.write(&[0xFF]);
            return Some(false);
        }
    };
    let mut is_too_deep = false;
    for value in inner {
        is_too_deep |= hash_value(value.get(), depth + 1, hasher)?;
    }
    Some(is_too_deep)
}
