//! The sums of accounts in groups, for one query.
//!
//! Invariants: each account is in one group or in `other`, so that they add up to the total; memory is bounded by [`MAX_GROUPS`]
//! and [`MAX_TEXT_BYTES`]. Integers only; a sum stops at [`MAX_SUM`], the largest integer of the protocol.

use std::collections::HashMap;

use wattspan_client::protocol::SpanSum;

use super::account_record::{decode_grade, encode_grade, put_varint, take_byte, take_varint};
use super::summed_account::{SummedAccount, SummedAttributes};
use super::time::format_utc;
use crate::domain::Grade;

/// The maximum number of groups of one query; the accounts of further groups are summed as one.
const MAX_GROUPS: usize = 2048;

/// The maximum bytes of the texts of the groups, so that a reply stays near a megabyte.
const MAX_TEXT_BYTES: usize = 128 * 1024;

/// The largest integer of the protocol.
const MAX_SUM: u64 = i64::MAX as u64;

/// A field by which accounts are grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SumField {
    /// The requested model.
    Model,
    /// The name of the span.
    Name,
    /// The owner of the span.
    User,
    /// The attribute `gen_ai.operation.name`.
    Operation,
    /// The date of the close.
    Day,
}

impl SumField {
    /// The field of this name in the contract.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "model" => Self::Model,
            "name" => Self::Name,
            "user" => Self::User,
            "operation" => Self::Operation,
            "day" => Self::Day,
            _ => return None,
        })
    }
}

/// The value of a field in a group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum GroupValue {
    Absent,
    Number(i64),
    Text(String),
}

/// A value of an account, before it is copied to a group.
#[derive(Clone, Copy)]
enum ValueRef<'a> {
    Number(i64),
    Text(Option<&'a str>),
}

impl ValueRef<'_> {
    fn to_value(self) -> GroupValue {
        match self {
            Self::Number(number) => GroupValue::Number(number),
            Self::Text(None) => GroupValue::Absent,
            Self::Text(Some(text)) => GroupValue::Text(text.to_owned()),
        }
    }

    /// Appends the value to a key: equal keys have equal values.
    fn encode(self, key: &mut Vec<u8>) {
        match self {
            Self::Number(number) => key.extend_from_slice(&number.to_le_bytes()),
            Self::Text(None) => key.push(0),
            Self::Text(Some(text)) => {
                key.push(1);
                key.extend_from_slice(&(text.len() as u64).to_le_bytes());
                key.extend_from_slice(text.as_bytes());
            }
        }
    }
}

/// The values by which an account is grouped, or those that several accounts have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupFields<'a> {
    pub uid: u32,
    pub name: &'a str,
    pub model: Option<&'a str>,
    pub operation: Option<&'a str>,
    /// The wall time of a close on their day.
    pub closed_unix_ns: u64,
}

impl<'a> GroupFields<'a> {
    fn of_account(account: &SummedAccount<'a>, attributes: &SummedAttributes<'a>) -> Self {
        let SummedAttributes { model, operation, .. } = *attributes;
        let (uid, name, closed_unix_ns) = (account.uid, account.name, account.closed_unix_ns());
        Self { uid, name, model, operation, closed_unix_ns }
    }
}

/// The number of a day since 1970 in a time zone.
pub(super) fn day_of(unix_ns: u64, utc_offset_s: i64) -> i64 {
    ((unix_ns / 1_000_000_000) as i64 + utc_offset_s).div_euclid(86_400)
}

/// The sum of some accounts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct AccountSum {
    accounts: u64,
    with_energy: u64,
    energy_uj: u64,
    with_error: u64,
    error_uj: u64,
    with_idle: u64,
    idle_uj: u64,
    with_input_tokens: u64,
    input_tokens: u64,
    with_output_tokens: u64,
    output_tokens: u64,
    token_energy_uj: u64,
    duration_ns: u64,
    closed_unix_ns: Option<(u64, u64)>,
    grade: Option<Grade>,
    is_simulated: bool,
    is_lower_bound: bool,
}

fn add(sum: &mut u64, value: u64) {
    *sum = sum.saturating_add(value).min(MAX_SUM);
}

/// Adds a value if it is known, and counts it.
fn add_known(sum: &mut u64, count: &mut u64, value: Option<u64>) {
    if let Some(value) = value {
        add(sum, value);
        *count += 1;
    }
}

/// The flags of the stored form.
const SIMULATED_FLAG: u8 = 1;
const LOWER_BOUND_FLAG: u8 = 2;

impl AccountSum {
    pub fn add_account(&mut self, account: &SummedAccount<'_>, attributes: &SummedAttributes<'_>) {
        self.accounts += 1;
        let closed_unix_ns = account.closed_unix_ns();
        let (first, last) = self.closed_unix_ns.unwrap_or((closed_unix_ns, closed_unix_ns));
        self.closed_unix_ns = Some((first.min(closed_unix_ns), last.max(closed_unix_ns)));
        self.grade = self.grade.max(account.grade);
        self.is_simulated |= account.is_simulated;
        self.is_lower_bound |= account.is_lower_bound;
        let Some(share_uj) = account.share_uj else { return };
        add_known(&mut self.energy_uj, &mut self.with_energy, Some(share_uj));
        add_known(&mut self.error_uj, &mut self.with_error, account.error_uj);
        add_known(&mut self.idle_uj, &mut self.with_idle, account.idle_uj);
        add_known(&mut self.input_tokens, &mut self.with_input_tokens, attributes.input_tokens);
        add_known(&mut self.output_tokens, &mut self.with_output_tokens, attributes.output_tokens);
        if attributes.output_tokens.is_some() {
            add(&mut self.token_energy_uj, share_uj);
        }
        add(&mut self.duration_ns, account.duration_ns.unwrap_or(0));
    }

    /// The integers that add.
    fn numbers_mut(&mut self) -> [&mut u64; 13] {
        [
            &mut self.accounts,
            &mut self.with_energy,
            &mut self.energy_uj,
            &mut self.with_error,
            &mut self.error_uj,
            &mut self.with_idle,
            &mut self.idle_uj,
            &mut self.with_input_tokens,
            &mut self.input_tokens,
            &mut self.with_output_tokens,
            &mut self.output_tokens,
            &mut self.token_energy_uj,
            &mut self.duration_ns,
        ]
    }

    /// The first and the last close, on the wall clock; zero without accounts.
    pub fn closed_range(&self) -> (u64, u64) {
        self.closed_unix_ns.unwrap_or_default()
    }

    /// Appends the stored form of a sum that has accounts.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.clone().numbers_mut().iter().for_each(|number| put_varint(out, **number));
        let (first, last) = self.closed_range();
        put_varint(out, first);
        put_varint(out, last - first);
        let simulated = if self.is_simulated { SIMULATED_FLAG } else { 0 };
        let lower_bound = if self.is_lower_bound { LOWER_BOUND_FLAG } else { 0 };
        out.extend([encode_grade(self.grade), simulated | lower_bound]);
    }

    /// Reads the stored form; `None` if it is not valid.
    pub fn decode(from: &mut &[u8]) -> Option<Self> {
        let mut sum = Self::default();
        for number in sum.numbers_mut() {
            *number = take_varint(from)?;
        }
        let terms = [sum.with_error, sum.with_idle, sum.with_output_tokens];
        if sum.with_energy > sum.accounts || terms.into_iter().any(|count| count > sum.with_energy) {
            return None;
        }
        let first = take_varint(from)?;
        sum.closed_unix_ns = Some((first, first.checked_add(take_varint(from)?)?));
        sum.grade = decode_grade(take_byte(from)?)?;
        let flags = take_byte(from)?;
        (sum.is_simulated, sum.is_lower_bound) = (flags & SIMULATED_FLAG != 0, flags & LOWER_BOUND_FLAG != 0);
        Some(sum)
    }

    /// Adds the accounts of another sum.
    pub fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        for (sum, value) in self.numbers_mut().into_iter().zip(other.numbers_mut()) {
            add(sum, *value);
        }
        let closed = [self.closed_unix_ns, other.closed_unix_ns].into_iter().flatten();
        self.closed_unix_ns = closed.reduce(|one, two| (one.0.min(two.0), one.1.max(two.1)));
        self.grade = self.grade.max(other.grade);
        self.is_simulated |= other.is_simulated;
        self.is_lower_bound |= other.is_lower_bound;
    }

    /// The sum in the contract. An unknown value is absent, and a sum with an unknown term is unknown.
    fn to_reply(&self) -> SpanSum {
        let has_energy = self.with_energy > 0;
        let complete = |sum: u64, count: u64| (has_energy && count == self.with_energy).then_some(sum);
        SpanSum {
            accounts: self.accounts,
            without_energy: self.accounts - self.with_energy,
            energy_uj: has_energy.then_some(self.energy_uj),
            error_uj: complete(self.error_uj, self.with_error),
            idle_uj: complete(self.idle_uj, self.with_idle),
            input_tokens: (self.with_input_tokens > 0).then_some(self.input_tokens),
            output_tokens: (self.with_output_tokens > 0).then_some(self.output_tokens),
            token_energy_uj: (self.with_output_tokens > 0).then_some(self.token_energy_uj),
            duration_ns: self.duration_ns,
            first_closed_unix_ns: self.closed_unix_ns.map(|(first, _)| first),
            last_closed_unix_ns: self.closed_unix_ns.map(|(_, last)| last),
            grade: self.grade,
            simulated: self.is_simulated.then_some(true),
            at_least: self.is_lower_bound.then_some(true),
            ..SpanSum::default()
        }
    }
}

/// The place of a group in [`AccountSums::groups`]; `None` for `other`.
type GroupIndex = Option<usize>;

/// The sums of a query.
#[derive(Debug)]
pub(super) struct AccountSums {
    by: Vec<SumField>,
    utc_offset_s: i64,
    groups: Vec<(Vec<GroupValue>, AccountSum)>,
    by_key: HashMap<Box<[u8]>, usize>,
    text_bytes: usize,
    /// A group found no room: there will be no further ones.
    is_full: bool,
    other: AccountSum,
    /// The key of the account that is being added, and that of the last one with its group: neighbours are often of one group.
    key: Vec<u8>,
    last_key: Vec<u8>,
    last_group: Option<GroupIndex>,
}

/// The result of [`AccountSums::finish`].
#[derive(Debug, PartialEq)]
pub(super) struct GroupedSums {
    pub sums: Vec<SpanSum>,
    pub other: Option<SpanSum>,
    pub total: SpanSum,
}

impl AccountSums {
    /// Without accounts. `utc_offset_s`: the time zone of the days.
    pub fn new(by: Vec<SumField>, utc_offset_s: i64) -> Self {
        Self {
            by,
            utc_offset_s,
            groups: Vec::new(),
            by_key: HashMap::new(),
            text_bytes: 0,
            is_full: false,
            other: AccountSum::default(),
            key: Vec::new(),
            last_key: Vec::new(),
            last_group: None,
        }
    }

    /// Adds an account to its group.
    pub fn add(&mut self, account: &SummedAccount<'_>, attributes: &SummedAttributes<'_>) {
        self.sum_of(&GroupFields::of_account(account, attributes)).add_account(account, attributes);
    }

    /// Adds the sum of accounts that are in one group.
    pub fn add_sum(&mut self, fields: &GroupFields<'_>, sum: &AccountSum) {
        self.sum_of(fields).merge(sum);
    }

    /// Adds the sum of accounts of further groups. Only if [`Self::is_full`].
    pub fn add_other(&mut self, sum: &AccountSum) {
        self.other.merge(sum);
    }

    /// Whether accounts of further groups are in `other`.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// The names of the groups.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let at = self.by.iter().position(|field| *field == SumField::Name);
        self.groups.iter().filter_map(move |(values, _)| match values.get(at?)? {
            GroupValue::Text(name) => Some(&name[..]),
            _ => None,
        })
    }

    /// The sum to which accounts with these values are added.
    fn sum_of(&mut self, fields: &GroupFields<'_>) -> &mut AccountSum {
        self.key.clear();
        for field in &self.by {
            self.value(*field, fields).encode(&mut self.key);
        }
        let group = match self.last_group.filter(|_| self.key == self.last_key) {
            Some(group) => group,
            None => self.find_group(fields),
        };
        match group {
            Some(index) => &mut self.groups[index].1,
            None => &mut self.other,
        }
    }

    fn value<'a>(&self, field: SumField, fields: &GroupFields<'a>) -> ValueRef<'a> {
        match field {
            SumField::Model => ValueRef::Text(fields.model),
            SumField::Name => ValueRef::Text(Some(fields.name)),
            SumField::User => ValueRef::Number(i64::from(fields.uid)),
            SumField::Operation => ValueRef::Text(fields.operation),
            SumField::Day => ValueRef::Number(day_of(fields.closed_unix_ns, self.utc_offset_s)),
        }
    }

    /// The group of the present key, which is created if there is room.
    fn find_group(&mut self, fields: &GroupFields<'_>) -> GroupIndex {
        let has_room = self.groups.len() < MAX_GROUPS && self.text_bytes + self.key.len() <= MAX_TEXT_BYTES;
        let group = match self.by_key.get(&self.key[..]) {
            Some(index) => Some(*index),
            None if self.is_full || !has_room => {
                self.is_full = true;
                None
            }
            None => {
                let values = self.by.iter().map(|field| self.value(*field, fields).to_value()).collect();
                self.text_bytes += self.key.len();
                self.by_key.insert(self.key[..].into(), self.groups.len());
                self.groups.push((values, AccountSum::default()));
                Some(self.groups.len() - 1)
            }
        };
        self.last_key.clone_from(&self.key);
        self.last_group = Some(group);
        group
    }

    /// The groups in the order of their values, the rest, and the total.
    pub fn finish(mut self) -> GroupedSums {
        let mut total = self.other.clone();
        self.groups.iter().for_each(|(_, sum)| total.merge(sum));
        self.groups.sort_by(|(one, _), (other, _)| one.cmp(other));
        let is_grouped = !self.by.is_empty();
        let groups = self.groups.iter().filter(|_| is_grouped);
        GroupedSums {
            sums: groups.map(|(values, sum)| self.named_sum(values, sum)).collect(),
            other: (self.other.accounts > 0).then(|| self.other.to_reply()),
            total: total.to_reply(),
        }
    }

    /// The sum of a group, with its values.
    fn named_sum(&self, values: &[GroupValue], sum: &AccountSum) -> SpanSum {
        let mut named = sum.to_reply();
        for (field, value) in self.by.iter().zip(values) {
            match (field, value) {
                (SumField::Model, GroupValue::Text(model)) => named.model = Some(model.clone()),
                (SumField::Name, GroupValue::Text(name)) => named.name = Some(name.clone()),
                (SumField::Operation, GroupValue::Text(operation)) => {
                    named.operation = Some(operation.clone());
                }
                (SumField::User, GroupValue::Number(uid)) => named.uid = u32::try_from(*uid).ok(),
                (SumField::Day, GroupValue::Number(days)) => named.day = Some(format_day(*days)),
                _ => {}
            }
        }
        named
    }
}

/// The date of a day since 1970.
fn format_day(days: i64) -> String {
    let mut text = format_utc(days * 86_400);
    text.truncate(text.find('T').unwrap_or(text.len()));
    text
}

#[cfg(test)]
mod tests {
    use wattspan_client::account::{Account, MODEL_ATTRIBUTE, OUTPUT_TOKENS_ATTRIBUTE};

    use super::super::account_record::tests::account;
    use super::super::account_record::{encode_figures, encode_layout};
    use super::*;

    const START_NS: u64 = 1_763_000_000_000_000_000;

    fn plain(name: &str, share_uj: Option<u64>) -> Account {
        Account {
            name: name.into(),
            share_uj,
            idle_uj: share_uj.map(|uj| uj / 4),
            error_uj: share_uj.map(|_| 10),
            opened_unix_ns: START_NS,
            attributes: [(MODEL_ATTRIBUTE.to_owned(), "m".to_owned())].into(),
            ..account("a")
        }
    }

    fn sums(by: &[SumField], utc_offset_s: i64, accounts: &[Account]) -> GroupedSums {
        let mut sums = AccountSums::new(by.to_vec(), utc_offset_s);
        for account in accounts {
            let (mut layout, mut figures) = (Vec::new(), Vec::new());
            encode_layout(account, &mut layout);
            encode_figures(account, &mut figures);
            let summed = SummedAccount::read(account.uid, &account.name, &layout, &figures).unwrap();
            sums.add(&summed, &summed.attributes().unwrap());
        }
        sums.finish()
    }

    #[test]
    fn groups_are_ordered_by_their_values_and_add_up_to_the_total() {
        let accounts = [
            plain("b", Some(5)),
            plain("a", Some(7)),
            Account { uid: 7, ..plain("b", Some(11)) },
            plain("b", None),
        ];
        let grouped = sums(&[SumField::Name, SumField::User], 0, &accounts);
        let row = |sum: &SpanSum| {
            (sum.name.clone().unwrap(), sum.uid.unwrap(), sum.accounts, sum.without_energy, sum.energy_uj)
        };
        let expected = [
            ("a".to_owned(), 1000, 1, 0, Some(7)),
            ("b".to_owned(), 7, 1, 0, Some(11)),
            ("b".to_owned(), 1000, 2, 1, Some(5)),
        ];
        assert_eq!(grouped.sums.iter().map(row).collect::<Vec<_>>(), expected);
        let SpanSum { accounts, without_energy, energy_uj, error_uj, idle_uj, .. } = grouped.total;
        assert_eq!((accounts, without_energy), (4, 1));
        assert_eq!((energy_uj, error_uj, idle_uj), (Some(23), Some(30), Some(1 + 1 + 2)));
        assert_eq!((grouped.total.model, grouped.total.name, grouped.other), (None, None, None));
    }

    #[test]
    fn a_sum_with_an_unknown_term_is_absent_and_one_without_accounts_too() {
        let unknown = Account { error_uj: None, idle_uj: None, ..plain("a", Some(1)) };
        let total = sums(&[], 0, &[plain("a", Some(2)), unknown]).total;
        assert_eq!((total.energy_uj, total.error_uj, total.idle_uj), (Some(3), None, None));
        assert_eq!((total.output_tokens, total.token_energy_uj), (None, None));
        let total = sums(&[], 0, &[]).total;
        assert_eq!(total, SpanSum::default());
        let total = sums(&[], 0, &[plain("a", None)]).total;
        assert_eq!((total.accounts, total.without_energy, total.energy_uj), (1, 1, None));
    }

    #[test]
    fn energy_per_token_is_of_the_accounts_that_have_both() {
        let with_tokens = |account: Account, tokens: &str| {
            let attributes = [(OUTPUT_TOKENS_ATTRIBUTE.to_owned(), tokens.to_owned())].into();
            Account { attributes, ..account }
        };
        let accounts = [
            plain("a", Some(1000)),
            with_tokens(plain("a", Some(30)), "3"),
            with_tokens(plain("a", Some(12)), "4"),
            with_tokens(plain("a", None), "1000"),
            with_tokens(plain("a", Some(9000)), "many"),
        ];
        let total = sums(&[], 0, &accounts).total;
        assert_eq!((total.output_tokens, total.token_energy_uj), (Some(7), Some(42)));
    }

    #[test]
    fn a_day_is_that_of_the_close_in_the_time_zone_of_the_call() {
        // 2025-11-13T02:13:20Z, and 40 ms later.
        let day = |utc_offset_s: i64, opened_unix_ns: u64| {
            let account = Account { opened_unix_ns, ..plain("a", Some(1)) };
            sums(&[SumField::Day], utc_offset_s, &[account]).sums[0].day.clone().unwrap()
        };
        assert_eq!(day(0, START_NS), "2025-11-13");
        assert_eq!(day(-3 * 3600, START_NS), "2025-11-12");
        assert_eq!(day(22 * 3600, START_NS), "2025-11-14");
        let midnight_ns = (START_NS / 86_400_000_000_000 + 1) * 86_400_000_000_000;
        assert_eq!(day(0, midnight_ns - 40_000_000), "2025-11-14", "it closes 40 ms after its opening");
        assert_eq!(day(0, midnight_ns - 40_000_001), "2025-11-13");
        assert_eq!(day(-60, 0), "1969-12-31");
    }

    #[test]
    fn a_sum_stops_at_the_largest_integer_of_the_protocol() {
        let huge = || Account { idle_uj: Some(3), ..plain("a", Some(u64::MAX - 1)) };
        let total = sums(&[], 0, &[huge(), huge(), huge()]).total;
        assert_eq!((total.energy_uj, total.idle_uj), (Some(MAX_SUM), Some(9)));
        let grouped = sums(&[SumField::Name], 0, &[huge(), Account { name: "b".into(), ..huge() }]);
        assert_eq!((grouped.sums.len(), grouped.total.energy_uj), (2, Some(MAX_SUM)));
    }

    #[test]
    fn groups_beyond_the_maximum_are_one_sum() {
        let accounts: Vec<Account> =
            (0..MAX_GROUPS as u64 + 100).map(|at| plain(&format!("n{at}"), Some(at))).collect();
        let all_uj = accounts.iter().map(|account| account.share_uj.unwrap()).sum::<u64>();
        let grouped = sums(&[SumField::Name], 0, &[&accounts[..], &accounts[..]].concat());
        assert_eq!(grouped.sums.len(), MAX_GROUPS);
        let other = grouped.other.unwrap();
        let groups_uj = grouped.sums.iter().map(|sum| sum.energy_uj.unwrap()).sum::<u64>();
        assert_eq!((other.accounts, groups_uj + other.energy_uj.unwrap()), (200, 2 * all_uj));
        assert_eq!(grouped.total.energy_uj, Some(2 * all_uj));
        let long: Vec<Account> =
            (0..100).map(|at| plain(&format!("{at}{}", "x".repeat(4096)), Some(1))).collect();
        let grouped = sums(&[SumField::Name], 0, &long);
        assert!((20..40).contains(&grouped.sums.len()), "{}", grouped.sums.len());
        assert_eq!(grouped.total.energy_uj, Some(100));
    }
}
