//! The columns of an exported account, the same in all tabular formats. Integers in the units of the contract; an unknown
//! value is absent.

use serde_json::{Map, Value};
use wattspan_client::account::{Account, MODEL_ATTRIBUTE, Share};
use wattspan_client::domain::Grade;

/// What the cells of a column hold, where they hold a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    Integer,
    Number,
    Flag,
    Text,
}

/// A value, or none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    Absent,
    Integer(u64),
    Number(f64),
    Flag(bool),
    Text(&'a str),
}

impl Cell<'_> {
    pub fn to_json(self) -> Value {
        match self {
            Cell::Absent => Value::Null,
            Cell::Integer(value) => value.into(),
            Cell::Number(value) => value.into(),
            Cell::Flag(value) => value.into(),
            Cell::Text(value) => value.into(),
        }
    }
}

impl From<Option<u64>> for Cell<'_> {
    fn from(value: Option<u64>) -> Self {
        value.map_or(Cell::Absent, Cell::Integer)
    }
}

impl<'a> From<Option<&'a str>> for Cell<'a> {
    fn from(value: Option<&'a str>) -> Self {
        value.map_or(Cell::Absent, Cell::Text)
    }
}

/// A column of `T`: its name, its type, and its value.
pub type Column<T> = (&'static str, ColumnType, for<'a> fn(&'a T) -> Cell<'a>);

/// The wall time of the closing; that of the opening for a span without one.
pub fn closed_unix_ns(account: &Account) -> u64 {
    account.opened_unix_ns.saturating_add(duration_ns(account).unwrap_or(0))
}

fn duration_ns(account: &Account) -> Option<u64> {
    account.closed_ns.map(|closed_ns| closed_ns.saturating_sub(account.opened_ns))
}

/// The columns before the attributes.
pub const ACCOUNT_COLUMNS: &[Column<Account>] = &[
    ("number", ColumnType::Integer, |account| account.number.into()),
    ("span", ColumnType::Text, |account| Some(account.span.as_str()).into()),
    ("name", ColumnType::Text, |account| Some(account.name.as_str()).into()),
    ("uid", ColumnType::Integer, |account| Some(u64::from(account.uid)).into()),
    ("state", ColumnType::Text, |account| Cell::Text(account.state.as_str())),
    ("grade", ColumnType::Text, |account| account.grade.map(Grade::as_str).into()),
    ("simulated", ColumnType::Flag, |account| Cell::Flag(account.simulated == Some(true))),
    ("at_least", ColumnType::Flag, |account| Cell::Flag(account.at_least == Some(true))),
    ("opened_unix_ns", ColumnType::Integer, |account| Some(account.opened_unix_ns).into()),
    ("closed_unix_ns", ColumnType::Integer, |account| {
        account.closed_ns.map(|_| closed_unix_ns(account)).into()
    }),
    ("duration_ns", ColumnType::Integer, |account| duration_ns(account).into()),
    ("moved_ns", ColumnType::Integer, |account| Some(account.moved_ns).into()),
    ("weight", ColumnType::Number, |account| Cell::Number(account.weight)),
    ("peak_concurrency", ColumnType::Integer, |account| Some(u64::from(account.peak_concurrency)).into()),
    ("share_uj", ColumnType::Integer, |account| account.share_uj.into()),
    ("error_uj", ColumnType::Integer, |account| account.error_uj.into()),
    ("window_uj", ColumnType::Integer, |account| account.window_uj.into()),
    ("idle_uj", ColumnType::Integer, |account| account.idle_uj.into()),
    ("process_uj", ColumnType::Integer, |account| account.process_uj.into()),
    ("mean_power_mw", ColumnType::Integer, |account| account.mean_power_mw.into()),
];

/// The columns of a domain's share.
pub const SHARE_COLUMNS: &[Column<Share>] = &[
    ("domain", ColumnType::Text, |share| Some(&*share.domain).into()),
    ("grade", ColumnType::Text, |share| Cell::Text(share.grade.as_str())),
    ("share_uj", ColumnType::Integer, |share| share.share_uj.into()),
    ("error_uj", ColumnType::Integer, |share| share.error_uj.into()),
    ("window_uj", ColumnType::Integer, |share| share.window_uj.into()),
    ("idle_uj", ColumnType::Integer, |share| share.idle_uj.into()),
    ("process_uj", ColumnType::Integer, |share| share.process_uj.into()),
    ("unknown_ns", ColumnType::Integer, |share| Some(share.unknown_ns).into()),
];

/// An attribute; the model also under its old name.
pub fn attribute<'a>(account: &'a Account, key: &str) -> Option<&'a str> {
    match key {
        MODEL_ATTRIBUTE => account.model(),
        _ => account.attributes.get(key).map(String::as_str),
    }
}

/// An account without the attributes that no format writes. Its model stays, which names a span without a name.
pub fn without_others(mut account: Account, attributes: &[String]) -> Account {
    if !account.attributes.contains_key(MODEL_ATTRIBUTE)
        && let Some(model) = account.model().map(str::to_owned)
    {
        account.attributes.insert(MODEL_ATTRIBUTE.into(), model);
    }
    account.attributes.retain(|key, _| key == MODEL_ATTRIBUTE || attributes.contains(key));
    account
}

/// The shares of an account as JSON.
pub fn shares_json(account: &Account) -> Value {
    let share = |share: &Share| Value::Object(row_json(SHARE_COLUMNS, share));
    Value::Array(account.domains.iter().map(share).collect())
}

/// A row as a JSON object, without absent values.
pub fn row_json<T>(columns: &[Column<T>], row: &T) -> Map<String, Value> {
    let cells = columns.iter().map(|(name, _, value)| ((*name).to_owned(), value(row).to_json()));
    cells.filter(|(_, value)| !value.is_null()).collect()
}

/// An account as a JSON object, without absent values.
pub fn account_json(account: &Account, attributes: &[String]) -> Map<String, Value> {
    let mut object = row_json(ACCOUNT_COLUMNS, account);
    let named = attributes.iter().filter_map(|key| Some((key.clone(), attribute(account, key)?.into())));
    object.insert("attributes".into(), Value::Object(named.collect()));
    object.insert("domains".into(), shares_json(account));
    let phases = serde_json::to_value(&account.phases).unwrap_or_default();
    object.insert("phases".into(), phases);
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_are_not_exported_are_not_kept_in_memory_but_the_model_is() {
        let mut long: Account = serde_json::from_str(include_str!("test_account.json")).unwrap();
        long.attributes.insert("kept".into(), "v".into());
        let account = without_others(long, &["kept".into()]);
        assert_eq!((account.model(), account.attributes.len()), (Some("llama"), 2));
        assert_eq!(account.attributes["kept"], "v");
    }
}
