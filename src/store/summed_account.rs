//! The fields of an account that sums need, read from its row without an allocation.
//!
//! Invariant: each field equals that of the account that `account_record::decode` returns for the same bytes.

use wattspan_client::account::{
    INPUT_TOKENS_ATTRIBUTE, MODEL_ATTRIBUTE, OLD_MODEL_ATTRIBUTE, OPERATION_ATTRIBUTE,
    OUTPUT_TOKENS_ATTRIBUTE, SpanState,
};

use super::account_record::{
    FORMAT_VERSION, decode_grade, decode_state, skip_texts, skip_varints, take_byte, take_bytes, take_option,
    take_text_bytes, take_varint,
};
use crate::domain::Grade;

/// An account, as far as sums need it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SummedAccount<'a> {
    pub uid: u32,
    pub name: &'a str,
    pub state: SpanState,
    pub is_simulated: bool,
    pub is_lower_bound: bool,
    pub grade: Option<Grade>,
    pub opened_unix_ns: u64,
    pub duration_ns: Option<u64>,
    pub share_uj: Option<u64>,
    pub idle_uj: Option<u64>,
    pub error_uj: Option<u64>,
    attribute_count: u64,
    attributes: &'a [u8],
}

/// The attributes that sums need.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct SummedAttributes<'a> {
    pub model: Option<&'a str>,
    pub operation: Option<&'a str>,
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
}

impl<'a> SummedAccount<'a> {
    /// Reads the columns of a row; `None` if they are not valid.
    pub fn read(uid: u32, name: &'a str, layout: &[u8], figures: &'a [u8]) -> Option<Self> {
        let mut rest = figures;
        let from = &mut rest;
        if take_byte(from)? != FORMAT_VERSION {
            return None;
        }
        let (state, simulated, at_least) = decode_state(take_byte(from)?)?;
        let grade = decode_grade(take_byte(from)?)?;
        // The opening on the monotonic clock.
        skip_varints(from, 1)?;
        let duration_ns = take_option(from)?;
        skip_varints(from, 1)?;
        let opened_unix_ns = take_varint(from)?;
        if take_byte(from)? != 0 {
            // The weight.
            take_bytes(from, 8)?;
        }
        let (share_uj, _window_uj) = (take_option(from)?, take_option(from)?);
        let (idle_uj, error_uj) = (take_option(from)?, take_option(from)?);
        // Mean power and peak concurrency, and the figures of each domain.
        let domains = count_domains(layout)?;
        skip_varints(from, 2 + 5 * domains)?;
        skip_process(from, domains)?;
        for _ in 0..take_varint(from)? {
            skip_texts(from, 1)?;
            skip_varints(from, 4)?;
        }
        let attribute_count = take_varint(from)?;
        Some(Self {
            uid,
            name,
            state,
            is_simulated: simulated.is_some(),
            is_lower_bound: at_least.is_some(),
            grade,
            opened_unix_ns,
            duration_ns,
            share_uj,
            idle_uj,
            error_uj,
            attribute_count,
            attributes: from,
        })
    }

    /// The wall time of the close.
    pub fn closed_unix_ns(&self) -> u64 {
        self.opened_unix_ns.saturating_add(self.duration_ns.unwrap_or(0))
    }

    /// Calls `show` with each attribute, in the order of the keys; `None` if they are not valid.
    fn for_each_attribute(&self, mut show: impl FnMut(&'a [u8], &'a [u8])) -> Option<()> {
        let mut from = self.attributes;
        for _ in 0..self.attribute_count {
            let (key, value) = (take_text_bytes(&mut from)?, take_text_bytes(&mut from)?);
            show(key, value);
        }
        Some(())
    }

    /// The attributes that sums need; `None` if they are not valid.
    pub fn attributes(&self) -> Option<SummedAttributes<'a>> {
        let (mut model, mut old_model, mut operation) = (None, None, None);
        let (mut input_tokens, mut output_tokens) = (None, None);
        self.for_each_attribute(|key, value| {
            let place = match key {
                _ if key == OLD_MODEL_ATTRIBUTE.as_bytes() => &mut old_model,
                _ if !key.starts_with(b"gen_ai.") => return,
                _ if key == MODEL_ATTRIBUTE.as_bytes() => &mut model,
                _ if key == OPERATION_ATTRIBUTE.as_bytes() => &mut operation,
                _ if key == INPUT_TOKENS_ATTRIBUTE.as_bytes() => &mut input_tokens,
                _ if key == OUTPUT_TOKENS_ATTRIBUTE.as_bytes() => &mut output_tokens,
                _ => return,
            };
            *place = Some(value);
        })?;
        Some(SummedAttributes {
            model: text(model.or(old_model))?,
            operation: text(operation)?,
            input_tokens: text(input_tokens)?.and_then(parse_count),
            output_tokens: text(output_tokens)?.and_then(parse_count),
        })
    }

    /// Whether it has an attribute with this value.
    pub fn has_attribute(&self, wanted_key: &str, wanted: &str) -> bool {
        let mut found = false;
        let shown = self.for_each_attribute(|key, value| {
            found |= key == wanted_key.as_bytes() && value == wanted.as_bytes();
        });
        shown.is_some() && found
    }
}

/// A number of tokens: digits only.
fn parse_count(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn text(bytes: Option<&[u8]>) -> Option<Option<&str>> {
    bytes.map(std::str::from_utf8).transpose().ok()
}

fn count_domains(mut layout: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !layout.is_empty() {
        skip_texts(&mut layout, 1)?;
        // The grade.
        take_byte(&mut layout)?;
        count += 1;
    }
    Some(count)
}

fn skip_process(from: &mut &[u8], domains: usize) -> Option<()> {
    if take_byte(from)? == 0 {
        return Some(());
    }
    skip_varints(from, 1)?;
    // The control group, and the reason.
    for _ in 0..2 {
        if take_byte(from)? != 0 {
            skip_texts(from, 1)?;
        }
    }
    skip_varints(from, 1 + domains)
}

#[cfg(test)]
mod tests {
    use wattspan_client::account::Account;

    use super::super::account_record::tests::account;
    use super::super::account_record::{encode_figures, encode_layout};
    use super::*;

    fn encode(account: &Account) -> (Vec<u8>, Vec<u8>) {
        let (mut layout, mut figures) = (Vec::new(), Vec::new());
        encode_layout(account, &mut layout);
        encode_figures(account, &mut figures);
        (layout, figures)
    }

    fn with_summed<T>(
        account: &Account,
        (layout, figures): (&[u8], &[u8]),
        show: impl FnOnce(Option<&SummedAccount<'_>>) -> T,
    ) -> T {
        show(SummedAccount::read(account.uid, &account.name, layout, figures).as_ref())
    }

    /// Accounts with and without each optional part of the format.
    fn samples() -> Vec<Account> {
        let whole = account("a");
        let without_process =
            Account { process: None, process_uj: None, process_reason: None, cgroup: None, ..whole.clone() };
        let mut bare = Account { weight: 1.0, grade: None, simulated: None, ..without_process.clone() };
        bare.domains.iter_mut().for_each(|share| share.process_uj = None);
        (bare.phases, bare.share_uj, bare.closed_ns, bare.at_least) = (Vec::new(), None, None, Some(true));
        let mut modelled = whole.clone();
        for (key, value) in [
            (MODEL_ATTRIBUTE, "new \u{1f525}"),
            (OPERATION_ATTRIBUTE, "chat"),
            (INPUT_TOKENS_ATTRIBUTE, "18446744073709551615"),
            (OUTPUT_TOKENS_ATTRIBUTE, "17"),
        ] {
            modelled.attributes.insert(key.into(), value.into());
        }
        let in_cgroup = Account { cgroup: Some("/a.slice".into()), process: None, ..whole.clone() };
        vec![whole, without_process, bare, modelled, in_cgroup]
    }

    #[test]
    fn its_fields_are_those_of_the_account() {
        for account in samples() {
            let (layout, figures) = encode(&account);
            with_summed(&account, (&layout, &figures), |summed| {
                let summed = summed.expect("valid bytes");
                assert_eq!(
                    (summed.uid, summed.name, summed.state),
                    (account.uid, &*account.name, account.state)
                );
                assert_eq!(summed.is_simulated, account.simulated == Some(true));
                assert_eq!(summed.is_lower_bound, account.at_least == Some(true));
                assert_eq!((summed.grade, summed.opened_unix_ns), (account.grade, account.opened_unix_ns));
                let duration_ns = account.closed_ns.map(|closed_ns| closed_ns - account.opened_ns);
                assert_eq!(summed.duration_ns, duration_ns);
                assert_eq!(
                    (summed.share_uj, summed.idle_uj, summed.error_uj),
                    (account.share_uj, account.idle_uj, account.error_uj)
                );
                let attributes = summed.attributes().unwrap();
                assert_eq!(attributes.model, account.model());
                let attribute = |key: &str| account.attributes.get(key).map(String::as_str);
                assert_eq!(attributes.operation, attribute(OPERATION_ATTRIBUTE));
                let count = |key: &str| attribute(key).map(|text| text.parse().unwrap());
                assert_eq!(attributes.input_tokens, count(INPUT_TOKENS_ATTRIBUTE));
                assert_eq!(attributes.output_tokens, count(OUTPUT_TOKENS_ATTRIBUTE));
                assert!(account.attributes.iter().all(|(key, value)| summed.has_attribute(key, value)));
                assert!(!summed.has_attribute("model", "other") && !summed.has_attribute("x", "a"));
            });
        }
    }

    #[test]
    fn damaged_bytes_read_as_none_or_as_other_fields_without_a_panic() {
        for account in samples() {
            let (layout, figures) = encode(&account);
            for length in 0..figures.len() {
                with_summed(&account, (&layout, &figures[..length]), |summed| {
                    assert!(summed.is_none_or(|summed| summed.attributes().is_none()), "cut at {length}");
                });
            }
            for at in 0..figures.len() {
                for flip in [1, 0x80, 0xff] {
                    let mut damaged = figures.clone();
                    damaged[at] ^= flip;
                    with_summed(&account, (&layout, &damaged), |summed| {
                        summed.map(|summed| (summed.attributes(), summed.has_attribute("a", "b")));
                    });
                }
            }
        }
    }

    #[test]
    fn a_number_of_tokens_is_digits_only() {
        assert_eq!(parse_count("17"), Some(17));
        for text in ["", "-1", "+1", "1.5", " 1", "18446744073709551616", "x"] {
            assert_eq!(parse_count(text), None, "{text}");
        }
    }
}
