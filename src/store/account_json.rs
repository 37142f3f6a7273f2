//! A stored account as the JSON of the contract, without an [`Account`](wattspan_client::account::Account) in between.
//!
//! Invariant: the bytes are those that `serde_json` writes for the decoded account.

use rusqlite::types::ValueRef;

use super::account_record::{
    FORMAT_VERSION, decode_grade, decode_state, skip_texts, skip_varints, stored_text, take_byte, take_bytes,
    take_option, take_varint,
};
use super::account_table::{AccountRow, append_hex};

/// The figures of a domain before its process share.
#[derive(Debug, Clone, Copy)]
struct ShareFigures<'a> {
    domain: &'a str,
    grade: &'static str,
    window_uj: Option<u64>,
    share_uj: Option<u64>,
    idle_uj: Option<u64>,
    error_uj: Option<u64>,
    unknown_ns: u64,
    process_uj: Option<u64>,
}

/// Appends the account of a row with this number; `None` if the row's bytes are not valid, after some output.
pub(super) fn append_account(row: &AccountRow<'_>, number: Option<u64>, out: &mut Vec<u8>) -> Option<()> {
    let columns = &row.columns;
    let mut figures = columns.figures;
    let from = &mut figures;
    if take_byte(from)? != FORMAT_VERSION {
        return None;
    }
    let (state, simulated, at_least) = decode_state(take_byte(from)?)?;
    let grade = decode_grade(take_byte(from)?)?;
    let opened_ns = take_varint(from)?;
    let closed_ns = take_option(from)?.map(|length| opened_ns.saturating_add(length));
    let (moved_ns, opened_unix_ns) = (take_varint(from)?, take_varint(from)?);
    let weight = match take_byte(from)? {
        0 => 1.0,
        _ => f64::from_le_bytes(take_bytes(from, 8)?.try_into().ok()?),
    };
    let [share_uj, window_uj, idle_uj, error_uj] = take_options(from)?;
    let mean_power_mw = take_option(from)?;
    let peak_concurrency = u32::try_from(take_varint(from)?).ok()?;
    let mut shares = take_shares(columns.layout, from)?;
    let process = take_process(&mut shares, from)?;
    let phases = take_phases(from)?;

    out.extend_from_slice(b"{\"span\":");
    append_span(columns.span, out)?;
    out.extend_from_slice(b",\"name\":");
    append_text(columns.name, out);
    out.extend_from_slice(b",\"attributes\":{");
    append_attributes(from, out)?;
    out.extend_from_slice(b"},\"state\":\"");
    out.extend_from_slice(state.as_str().as_bytes());
    append_number(b"\",\"uid\":", u64::from(columns.uid), out);
    append_number(b",\"opened_ns\":", opened_ns, out);
    append_option(b",\"closed_ns\":", closed_ns, out);
    append_number(b",\"moved_ns\":", moved_ns, out);
    append_number(b",\"opened_unix_ns\":", opened_unix_ns, out);
    out.extend_from_slice(b",\"weight\":");
    serde_json::to_writer(&mut *out, &weight).ok()?;
    append_option(b",\"share_uj\":", share_uj, out);
    append_option(b",\"window_uj\":", window_uj, out);
    append_option(b",\"idle_uj\":", idle_uj, out);
    append_option(b",\"error_uj\":", error_uj, out);
    append_option(b",\"process\":", process.process, out);
    append_optional_text(b",\"cgroup\":", process.cgroup, out);
    append_option(b",\"process_uj\":", process.process_uj, out);
    append_optional_text(b",\"process_reason\":", process.reason, out);
    append_optional_text(b",\"grade\":", grade.map(|grade| grade.as_str()), out);
    append_flag(b",\"simulated\":true", simulated, out);
    append_option(b",\"mean_power_mw\":", mean_power_mw, out);
    append_number(b",\"peak_concurrency\":", u64::from(peak_concurrency), out);
    append_shares(&shares, out);
    append_phases(opened_ns, phases, out)?;
    append_flag(b",\"at_least\":true", at_least, out);
    out.extend_from_slice(b",\"durable\":true");
    append_option(b",\"number\":", number, out);
    out.push(b'}');
    Some(())
}

fn take_options(from: &mut &[u8]) -> Option<[Option<u64>; 4]> {
    Some([take_option(from)?, take_option(from)?, take_option(from)?, take_option(from)?])
}

fn take_str<'a>(from: &mut &'a [u8]) -> Option<&'a str> {
    let text = stored_text(from)?;
    skip_texts(from, 1)?;
    str::from_utf8(text).ok()
}

fn take_shares<'a>(mut layout: &'a [u8], from: &mut &[u8]) -> Option<Vec<ShareFigures<'a>>> {
    let mut shares = Vec::with_capacity(4);
    while !layout.is_empty() {
        let domain = take_str(&mut layout)?;
        // In a layout, unlike in an account, no grade is unknown.
        let grade = decode_grade(take_byte(&mut layout)?.checked_add(1)?)??.as_str();
        let [window_uj, share_uj, idle_uj, error_uj] = take_options(from)?;
        let (unknown_ns, process_uj) = (take_varint(from)?, None);
        shares.push(ShareFigures {
            domain,
            grade,
            window_uj,
            share_uj,
            idle_uj,
            error_uj,
            unknown_ns,
            process_uj,
        });
    }
    Some(shares)
}

#[derive(Debug, Default)]
struct ProcessFigures<'a> {
    process: Option<u64>,
    cgroup: Option<&'a str>,
    reason: Option<&'a str>,
    process_uj: Option<u64>,
}

fn take_process<'a>(shares: &mut [ShareFigures<'_>], from: &mut &'a [u8]) -> Option<ProcessFigures<'a>> {
    let mut figures = ProcessFigures::default();
    if take_byte(from)? == 0 {
        return Some(figures);
    }
    figures.process = take_option(from)?;
    if figures.process.is_some_and(|process| u32::try_from(process).is_err()) {
        return None;
    }
    for text in [&mut figures.cgroup, &mut figures.reason] {
        *text = match take_byte(from)? {
            0 => None,
            _ => Some(take_str(from)?),
        };
    }
    figures.process_uj = take_option(from)?;
    for share in shares {
        share.process_uj = take_option(from)?;
    }
    Some(figures)
}

/// The bytes of the phases, with their count.
fn take_phases<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let all = *from;
    for _ in 0..take_varint(from)? {
        skip_texts(from, 1)?;
        skip_varints(from, 4)?;
    }
    all.get(..all.len() - from.len())
}

fn append_shares(shares: &[ShareFigures<'_>], out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"domains\":[");
    for (at, share) in shares.iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"{\"domain\":" } else { b",{\"domain\":" });
        append_text(share.domain, out);
        append_optional_text(b",\"grade\":", Some(share.grade), out);
        append_option(b",\"window_uj\":", share.window_uj, out);
        append_option(b",\"share_uj\":", share.share_uj, out);
        append_option(b",\"idle_uj\":", share.idle_uj, out);
        append_option(b",\"process_uj\":", share.process_uj, out);
        append_option(b",\"error_uj\":", share.error_uj, out);
        append_number(b",\"unknown_ns\":", share.unknown_ns, out);
        out.push(b'}');
    }
    out.push(b']');
}

fn append_phases(span_opened_ns: u64, mut phases: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let from = &mut phases;
    out.extend_from_slice(b",\"phases\":[");
    for at in 0..take_varint(from)? {
        out.extend_from_slice(if at == 0 { b"{\"name\":" } else { b",{\"name\":" });
        append_text(take_str(from)?, out);
        let opened_ns = span_opened_ns.wrapping_add(take_varint(from)?);
        append_number(b",\"opened_ns\":", opened_ns, out);
        let closed_ns = take_option(from)?.map(|length| opened_ns.saturating_add(length));
        append_option(b",\"closed_ns\":", closed_ns, out);
        append_option(b",\"share_uj\":", take_option(from)?, out);
        append_option(b",\"error_uj\":", take_option(from)?, out);
        out.push(b'}');
    }
    out.push(b']');
    Some(())
}

/// Appends the attributes. They are stored in the order of their keys, each once.
fn append_attributes(from: &mut &[u8], out: &mut Vec<u8>) -> Option<()> {
    for at in 0..take_varint(from)? {
        if at > 0 {
            out.push(b',');
        }
        append_text(take_str(from)?, out);
        out.push(b':');
        append_text(take_str(from)?, out);
    }
    Some(())
}

fn append_span(span: ValueRef<'_>, out: &mut Vec<u8>) -> Option<()> {
    match span {
        ValueRef::Text(bytes) => append_text(str::from_utf8(bytes).ok()?, out),
        ValueRef::Blob(bytes) => {
            out.push(b'"');
            append_hex(bytes, out);
            out.push(b'"');
        }
        _ => return None,
    }
    Some(())
}

fn append_text(text: &str, out: &mut Vec<u8>) {
    // Without a branch for each byte, so that the loop is vectorised.
    let needs_escape = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    if text.bytes().fold(false, |found, byte| found | needs_escape(byte)) {
        serde_json::to_writer(&mut *out, text).expect("a text is a JSON string");
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

fn append_optional_text(name: &[u8], text: Option<&str>, out: &mut Vec<u8>) {
    if let Some(text) = text {
        out.extend_from_slice(name);
        append_text(text, out);
    }
}

fn append_number(name: &[u8], number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    serde_json::to_writer(&mut *out, &number).expect("an integer is a JSON number");
}

fn append_option(name: &[u8], number: Option<u64>, out: &mut Vec<u8>) {
    if let Some(number) = number {
        append_number(name, number, out);
    }
}

fn append_flag(field: &[u8], flag: Option<bool>, out: &mut Vec<u8>) {
    if flag == Some(true) {
        out.extend_from_slice(field);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wattspan_client::account::{Account, Phase, SpanState};

    use super::super::account_read::decode_account;
    use super::super::account_record::{encode_figures, encode_layout, tests::account};
    use super::super::account_table::{AccountColumns, SpanName};
    use super::*;

    /// Passes the row of an account on.
    fn with_row<T>(account: &Account, figures: &[u8], read: impl FnOnce(&AccountRow<'_>) -> T) -> T {
        let mut layout = Vec::new();
        encode_layout(account, &mut layout);
        let span = SpanName::parse(&account.span);
        let columns = AccountColumns {
            uid: account.uid,
            layout: &layout,
            span: span.as_value(),
            name: &account.name,
            figures,
        };
        read(&AccountRow { id: 7, kept_s: 0, running_s: 0, previous: 0, columns })
    }

    fn figures(account: &Account) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_figures(account, &mut bytes);
        bytes
    }

    /// Accounts with and without each optional part, with texts that need an escape.
    fn accounts() -> Vec<Account> {
        let whole = account("a");
        let texts =
            ["", "\"quoted\" \\ \u{1}\n\u{7f}", "ünïcödé \u{1f525}", "00ff0123456789abcdef0123456789ab"];
        let attributes: BTreeMap<String, String> =
            texts.iter().map(|key| ((*key).to_owned(), format!("{key}{key}"))).collect();
        let mut all = vec![whole.clone()];
        for (text, state) in texts.into_iter().zip([
            SpanState::Settled,
            SpanState::Interrupted,
            SpanState::Open,
            SpanState::Abandoned,
        ]) {
            let phase = |closed_ns| Phase { name: text.into(), closed_ns, ..whole.phases[0].clone() };
            all.push(Account {
                span: text.into(),
                name: text.into(),
                state,
                attributes: attributes.clone(),
                cgroup: Some(text.into()),
                process_reason: (!text.is_empty()).then(|| text.into()),
                phases: vec![phase(None), phase(Some(5_020_000_000))],
                ..whole.clone()
            });
            all.push(Account {
                span: text.into(),
                attributes: BTreeMap::new(),
                closed_ns: None,
                weight: if text.is_empty() { 1.0 } else { 1e300 },
                grade: None,
                simulated: None,
                at_least: None,
                mean_power_mw: None,
                share_uj: None,
                process: None,
                process_uj: None,
                process_reason: None,
                domains: Vec::new(),
                phases: Vec::new(),
                ..whole.clone()
            });
        }
        all
    }

    #[test]
    fn the_bytes_are_those_of_the_decoded_account() {
        for account in accounts() {
            for number in [None, Some(7)] {
                with_row(&account, &figures(&account), |row| {
                    let mut written = b"before".to_vec();
                    append_account(row, number, &mut written).unwrap();
                    let decoded = Account { number, ..decode_account(row).unwrap() };
                    let expected = format!("before{}", serde_json::to_string(&decoded).unwrap());
                    assert_eq!(String::from_utf8(written).unwrap(), expected);
                });
            }
        }
    }

    #[test]
    fn bytes_that_cannot_be_decoded_are_no_account() {
        for account in accounts() {
            let whole = figures(&account);
            let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
            for at in 0..whole.len() {
                for flip in [1, 0x80, 0xff] {
                    let mut bytes = whole.clone();
                    bytes[at] ^= flip;
                    damaged.push(bytes);
                }
            }
            for bytes in damaged {
                with_row(&account, &bytes, |row| {
                    let mut written = Vec::new();
                    let is_written = append_account(row, None, &mut written).is_some();
                    let decoded = decode_account(row);
                    assert_eq!(is_written, decoded.is_some());
                    // A damaged key may be repeated or out of order; the row's checksum detects it before it is read.
                    let has_its_keys =
                        |decoded: &Account| decoded.attributes.keys().eq(account.attributes.keys());
                    if let Some(decoded) = decoded.filter(has_its_keys) {
                        let expected = serde_json::to_string(&decoded).unwrap();
                        assert_eq!(String::from_utf8(written).unwrap(), expected);
                    }
                });
            }
        }
    }
}
