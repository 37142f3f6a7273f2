//! The binary format of a stored account.
//!
//! The searchable fields (user, span, name) are columns of their own. The figures are one sequence of variable-length
//! integers. The domains' names, which nearly all accounts share, form a *layout* that is stored once. Invariant: a
//! decoded account equals the encoded one, with `durable` set; damaged bytes decode to `None` and never cause a
//! panic.

use std::collections::BTreeMap;

use wattspan_client::account::{Account, Phase, Share, SpanState};

use crate::domain::Grade;

/// A flag in the state byte: the account is simulated. Accounts from before the flag existed lack it.
const SIMULATED_FLAG: u8 = 0x80;

/// The format version, the first byte of the figures.
pub(super) const FORMAT_VERSION: u8 = 1;

/// A flag in the state byte: the sums are lower bounds.
const AT_LEAST_FLAG: u8 = 0x40;

const STATES: [SpanState; 5] = [
    SpanState::Open,
    SpanState::Provisional,
    SpanState::Settled,
    SpanState::Abandoned,
    SpanState::Interrupted,
];

const GRADES: [Grade; 4] = [Grade::Measured, Grade::Modelled, Grade::Integrated, Grade::Estimated];

/// The fields of an account that are stored as columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct AccountIdentity<'a> {
    pub uid: u32,
    pub span: &'a str,
    pub name: &'a str,
}

/// Appends the account's domains with their grades, in the order of the account.
pub(super) fn encode_layout(account: &Account, out: &mut Vec<u8>) {
    for share in &account.domains {
        put_text(out, &share.domain);
        out.push(index_in(&GRADES, &share.grade));
    }
}

/// Appends the fields that are neither columns nor in the layout.
pub(super) fn encode_figures(account: &Account, out: &mut Vec<u8>) {
    let simulated = if account.simulated == Some(true) { SIMULATED_FLAG } else { 0 };
    let at_least = if account.at_least == Some(true) { AT_LEAST_FLAG } else { 0 };
    out.extend([FORMAT_VERSION, encode_state(account.state) | simulated | at_least]);
    out.push(encode_grade(account.grade));
    put_varint(out, account.opened_ns);
    put_option(out, account.closed_ns.map(|closed| closed.saturating_sub(account.opened_ns)));
    put_varint(out, account.moved_ns);
    put_varint(out, account.opened_unix_ns);
    if account.weight == 1.0 {
        out.push(0);
    } else {
        out.push(1);
        out.extend(account.weight.to_le_bytes());
    }
    for figure in [account.share_uj, account.window_uj, account.idle_uj, account.error_uj] {
        put_option(out, figure);
    }
    put_option(out, account.mean_power_mw);
    put_varint(out, u64::from(account.peak_concurrency));
    for share in &account.domains {
        for figure in [share.window_uj, share.share_uj, share.idle_uj, share.error_uj] {
            put_option(out, figure);
        }
        put_varint(out, share.unknown_ns);
    }
    encode_process(account, out);
    put_varint(out, account.phases.len() as u64);
    for phase in &account.phases {
        put_text(out, &phase.name);
        put_varint(out, phase.opened_ns.wrapping_sub(account.opened_ns));
        put_option(out, phase.closed_ns.map(|closed| closed.saturating_sub(phase.opened_ns)));
        put_option(out, phase.share_uj);
        put_option(out, phase.error_uj);
    }
    put_varint(out, account.attributes.len() as u64);
    for (key, value) in &account.attributes {
        put_text(out, key);
        put_text(out, value);
    }
}

/// Appends the process or control group and its share; a single 0 byte if there is none.
fn encode_process(account: &Account, out: &mut Vec<u8>) {
    let shares = account.domains.iter().map(|share| share.process_uj);
    let has_share = account.process_uj.is_some() || shares.clone().any(|share| share.is_some());
    let has_process =
        account.process.is_some() || account.cgroup.is_some() || account.process_reason.is_some();
    if !has_share && !has_process {
        return out.push(0);
    }
    out.push(1);
    put_option(out, account.process.map(u64::from));
    for text in [&account.cgroup, &account.process_reason] {
        out.push(u8::from(text.is_some()));
        text.iter().for_each(|text| put_text(out, text));
    }
    put_option(out, account.process_uj);
    shares.for_each(|share| put_option(out, share));
}

/// Decodes an account; `None` if the bytes are not valid.
pub(super) fn decode(identity: AccountIdentity<'_>, layout: &[u8], figures: &[u8]) -> Option<Account> {
    decode_with_rest(identity, layout, figures).map(|(account, _)| account)
}

/// Decodes an account, and returns it with the bytes after its figures.
pub(super) fn decode_with_rest<'a>(
    identity: AccountIdentity<'_>,
    layout: &[u8],
    figures: &'a [u8],
) -> Option<(Account, &'a [u8])> {
    let mut from = figures;
    let from = &mut from;
    if take_byte(from)? != FORMAT_VERSION {
        return None;
    }
    let (state, simulated, at_least) = decode_state(take_byte(from)?)?;
    let grade = decode_grade(take_byte(from)?)?;
    let opened_ns = take_varint(from)?;
    // Fields are read from the bytes in the order in which they stand here.
    let mut account = Account {
        span: identity.span.to_owned(),
        name: identity.name.to_owned(),
        uid: identity.uid,
        state,
        simulated,
        at_least,
        grade,
        opened_ns,
        closed_ns: take_option(from)?.map(|length| opened_ns.saturating_add(length)),
        moved_ns: take_varint(from)?,
        opened_unix_ns: take_varint(from)?,
        weight: decode_weight(from)?,
        share_uj: take_option(from)?,
        window_uj: take_option(from)?,
        idle_uj: take_option(from)?,
        error_uj: take_option(from)?,
        mean_power_mw: take_option(from)?,
        peak_concurrency: u32::try_from(take_varint(from)?).ok()?,
        domains: decode_domains(layout, from)?,
        process: None,
        cgroup: None,
        process_uj: None,
        process_reason: None,
        phases: Vec::new(),
        attributes: BTreeMap::new(),
        durable: Some(true),
        number: None,
    };
    decode_process(&mut account, from)?;
    account.phases = decode_phases(opened_ns, from)?;
    account.attributes = decode_attributes(from)?;
    Some((account, from))
}

/// The state without its flags.
pub(super) fn encode_state(state: SpanState) -> u8 {
    index_in(&STATES, &state)
}

pub(super) fn encode_grade(grade: Option<Grade>) -> u8 {
    grade.map_or(0, |grade| index_in(&GRADES, &grade) + 1)
}

/// The state and its flags: simulated, and sums that are lower bounds.
pub(super) fn decode_state(byte: u8) -> Option<(SpanState, Option<bool>, Option<bool>)> {
    let flag = |flag: u8| (byte & flag != 0).then_some(true);
    let state = *STATES.get(usize::from(byte & !(SIMULATED_FLAG | AT_LEAST_FLAG)))?;
    Some((state, flag(SIMULATED_FLAG), flag(AT_LEAST_FLAG)))
}

pub(super) fn decode_grade(byte: u8) -> Option<Option<Grade>> {
    match byte {
        0 => Some(None),
        position => GRADES.get(usize::from(position - 1)).map(|grade| Some(*grade)),
    }
}

fn decode_weight(from: &mut &[u8]) -> Option<f64> {
    match take_byte(from)? {
        0 => Some(1.0),
        _ => Some(f64::from_le_bytes(take_bytes(from, 8)?.try_into().ok()?)),
    }
}

fn decode_domains(mut layout: &[u8], from: &mut &[u8]) -> Option<Vec<Share>> {
    let mut shares = Vec::new();
    while !layout.is_empty() {
        shares.push(Share {
            domain: take_text(&mut layout)?.into(),
            grade: *GRADES.get(usize::from(take_byte(&mut layout)?))?,
            window_uj: take_option(from)?,
            share_uj: take_option(from)?,
            idle_uj: take_option(from)?,
            error_uj: take_option(from)?,
            unknown_ns: take_varint(from)?,
            process_uj: None,
        });
    }
    Some(shares)
}

fn decode_process(account: &mut Account, from: &mut &[u8]) -> Option<()> {
    if take_byte(from)? == 0 {
        return Some(());
    }
    account.process = take_option(from)?.map(u32::try_from).transpose().ok()?;
    for text in [&mut account.cgroup, &mut account.process_reason] {
        *text = match take_byte(from)? {
            0 => None,
            _ => Some(take_text(from)?),
        };
    }
    account.process_uj = take_option(from)?;
    for share in &mut account.domains {
        share.process_uj = take_option(from)?;
    }
    Some(())
}

fn decode_phases(span_opened_ns: u64, from: &mut &[u8]) -> Option<Vec<Phase>> {
    let mut phases = Vec::new();
    for _ in 0..take_varint(from)? {
        let name = take_text(from)?;
        let opened_ns = span_opened_ns.wrapping_add(take_varint(from)?);
        let closed_ns = take_option(from)?.map(|length| opened_ns.saturating_add(length));
        let (share_uj, error_uj) = (take_option(from)?, take_option(from)?);
        phases.push(Phase { name, opened_ns, closed_ns, share_uj, error_uj });
    }
    Some(phases)
}

fn decode_attributes(from: &mut &[u8]) -> Option<BTreeMap<String, String>> {
    let mut attributes = BTreeMap::new();
    for _ in 0..take_varint(from)? {
        attributes.insert(take_text(from)?, take_text(from)?);
    }
    Some(attributes)
}

fn index_in<T: PartialEq>(all: &[T], one: &T) -> u8 {
    all.iter().position(|other| other == one).unwrap_or_default() as u8
}

/// LEB128: seven bits per byte, the low ones first; the top bit is set if more bytes follow.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// 0 for an unknown value, else the value plus 1; no counter reaches 2^64 - 1 µJ.
fn put_option(out: &mut Vec<u8>, value: Option<u64>) {
    put_varint(out, value.map_or(0, |value| value.min(u64::MAX - 1) + 1));
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn take_byte(from: &mut &[u8]) -> Option<u8> {
    let (first, rest) = from.split_first()?;
    *from = rest;
    Some(*first)
}

pub(super) fn take_bytes<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}

pub(super) fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut bytes = from.iter();
    let (mut value, mut shift) = (0, 0);
    while shift < 64 {
        let next = *bytes.next()?;
        value |= u64::from(next & 0x7f) << shift;
        if next < 0x80 {
            *from = bytes.as_slice();
            return Some(value);
        }
        shift += 7;
    }
    None
}

pub(super) fn take_option(from: &mut &[u8]) -> Option<Option<u64>> {
    take_varint(from).map(|value| value.checked_sub(1))
}

/// Skips integers.
pub(super) fn skip_varints(from: &mut &[u8], count: usize) -> Option<()> {
    const TOP_BITS: u64 = 0x8080_8080_8080_8080;
    let mut left = count;
    // Eight bytes at a time: the last byte of an integer has no top bit.
    while let Some((word, rest)) = from.split_first_chunk::<8>() {
        let ends = (!u64::from_le_bytes(*word) & TOP_BITS).count_ones() as usize;
        if ends >= left {
            break;
        }
        (left, *from) = (left - ends, rest);
    }
    let mut bytes = from.iter();
    while left > 0 {
        left -= usize::from(*bytes.next()? < 0x80);
    }
    *from = bytes.as_slice();
    Some(())
}

/// Skips texts with their lengths.
pub(super) fn skip_texts(from: &mut &[u8], count: usize) -> Option<()> {
    for _ in 0..count {
        let length = usize::try_from(take_varint(from)?).ok()?;
        take_bytes(from, length)?;
    }
    Some(())
}

/// The bytes of the text that begins here, with its length before it.
pub(super) fn stored_text(mut from: &[u8]) -> Option<&[u8]> {
    let length = usize::try_from(take_varint(&mut from)?).ok()?;
    take_bytes(&mut from, length)
}

/// Takes a text with its length before it.
pub(super) fn take_text_bytes<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(from)?).ok()?;
    take_bytes(from, length)
}

fn take_text(from: &mut &[u8]) -> Option<String> {
    String::from_utf8(take_text_bytes(from)?.to_vec()).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn account(span: &str) -> Account {
        let share = |domain: &str, grade, share_uj: Option<u64>| Share {
            domain: domain.into(),
            grade,
            window_uj: share_uj.map(|uj| uj * 2),
            share_uj,
            idle_uj: None,
            error_uj: Some(61),
            unknown_ns: 0,
            process_uj: share_uj.map(|uj| uj / 3),
        };
        Account {
            span: span.into(),
            name: "Frage 17 \u{1f525}".into(),
            attributes: BTreeMap::from([("model".into(), "a".into()), ("tokens".into(), "".into())]),
            state: SpanState::Abandoned,
            uid: 1000,
            opened_ns: 5_000_000_000,
            closed_ns: Some(5_040_000_000),
            moved_ns: 3,
            opened_unix_ns: 1_763_000_000_123_456_789,
            weight: 2.5,
            share_uj: Some(3_200_000),
            window_uj: None,
            idle_uj: Some(0),
            error_uj: Some(u64::MAX - 1),
            grade: Some(Grade::Estimated),
            simulated: Some(true),
            mean_power_mw: Some(80_000),
            peak_concurrency: 7,
            domains: vec![
                share("package-0", Grade::Measured, Some(3_000_000)),
                share("gpu-0", Grade::Estimated, None),
            ],
            phases: vec![Phase {
                name: "decode".into(),
                opened_ns: 5_010_000_000,
                closed_ns: None,
                share_uj: Some(1),
                error_uj: None,
            }],
            at_least: Some(true),
            durable: Some(true),
            number: None,
            process: Some(4711),
            cgroup: None,
            process_uj: Some(1_000_000),
            process_reason: Some("of a sort".into()),
        }
    }

    fn encode(account: &Account) -> (Vec<u8>, Vec<u8>) {
        let (mut layout, mut figures) = (Vec::new(), Vec::new());
        encode_layout(account, &mut layout);
        encode_figures(account, &mut figures);
        (layout, figures)
    }

    fn decode_account(account: &Account, layout: &[u8], figures: &[u8]) -> Option<Account> {
        let identity = AccountIdentity { uid: account.uid, span: &account.span, name: &account.name };
        decode(identity, layout, figures)
    }

    #[test]
    fn an_account_reads_back_as_it_was_written() {
        let whole = account("a");
        let (layout, figures) = encode(&whole);
        assert_eq!(decode_account(&whole, &layout, &figures), Some(whole.clone()));
        let bare = Account {
            attributes: BTreeMap::new(),
            closed_ns: None,
            weight: 1.0,
            grade: None,
            simulated: None,
            domains: Vec::new(),
            phases: Vec::new(),
            ..whole
        };
        let (layout, figures) = encode(&bare);
        assert_eq!(decode_account(&bare, &layout, &figures), Some(bare));
    }

    #[test]
    fn damaged_bytes_decode_to_none_without_a_panic() {
        let whole = account("a");
        let (layout, figures) = encode(&whole);
        for length in 0..figures.len() {
            assert_eq!(decode_account(&whole, &layout, &figures[..length]), None, "cut at {length}");
        }
        for at in 0..figures.len() {
            for flip in [1, 0x80, 0xff] {
                let mut damaged = figures.clone();
                damaged[at] ^= flip;
                let _ = decode_account(&whole, &layout, &damaged);
            }
        }
        assert_eq!(decode_account(&whole, &layout[..layout.len() - 1], &figures), None);
    }

    #[test]
    fn accounts_share_a_layout_and_encode_to_few_bytes() {
        let (process, process_uj, process_reason) = (None, None, None);
        let plain = Account { attributes: BTreeMap::new(), phases: Vec::new(), ..account("a") };
        let mut plain = Account { process, process_uj, process_reason, ..plain };
        plain.domains.iter_mut().for_each(|share| share.process_uj = None);
        let other = Account { share_uj: Some(9), opened_ns: 7, ..plain.clone() };
        assert_eq!(encode(&plain).0, encode(&other).0);
        assert!(encode(&plain).1.len() < 80, "{} bytes", encode(&plain).1.len());
    }
}
