//! The latest requests, as text for the page and as bars for its picture. Memory is bounded, whatever names clients choose.

use std::collections::VecDeque;

use serde::Serialize;
use wattspan_client::account::{Account, SpanState};

use crate::quantity::{format_duration, format_energy_or_bound, format_power};
use crate::terminal::printable;
use crate::top::account_totals::output_tokens;
use crate::top::grouping::Grouping;

/// Requests that are kept.
pub const MAX_REQUESTS: usize = 300;

/// Characters of a name on the page.
const MAX_NAME_CHARS: usize = 80;

/// A name from a client, without control and format characters, cut to a length that the page can show.
pub fn shown_name(name: &str) -> String {
    let mut shown = printable(&name.chars().take(MAX_NAME_CHARS + 1).collect::<String>());
    if shown.chars().count() > MAX_NAME_CHARS {
        shown = shown.chars().take(MAX_NAME_CHARS - 1).chain(['…']).collect();
    }
    shown
}

/// The times of a request, on the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestTimes {
    pub opened_unix_ns: u64,
    /// `None` while it is open.
    pub closed_unix_ns: Option<u64>,
    /// When its phase `decode` began.
    pub first_token_unix_ns: Option<u64>,
}

/// A settled request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestRow {
    pub closed_unix_ms: u64,
    pub name: String,
    pub model: String,
    pub uid: u32,
    pub span: String,
    pub duration: String,
    pub energy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<String>,
    /// The state, if it did not end as it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'static str>,
    #[serde(skip)]
    pub times: RequestTimes,
}

impl RequestTimes {
    pub fn of(account: &Account) -> Self {
        let unix_ns =
            |at_ns: u64| account.opened_unix_ns.saturating_add(at_ns.saturating_sub(account.opened_ns));
        let decode = account.phases.iter().find(|phase| phase.name == "decode");
        RequestTimes {
            opened_unix_ns: account.opened_unix_ns,
            closed_unix_ns: account.closed_ns.map(unix_ns),
            first_token_unix_ns: decode.map(|phase| unix_ns(phase.opened_ns)),
        }
    }
}

impl RequestRow {
    fn of(account: &Account) -> Self {
        let times = RequestTimes::of(account);
        let closed_unix_ns = times.closed_unix_ns.unwrap_or(times.opened_unix_ns);
        let tokens = output_tokens(account);
        let unknown = || "unknown".to_owned();
        RequestRow {
            closed_unix_ms: closed_unix_ns / 1_000_000,
            name: shown_name(&account.name),
            model: shown_name(&Grouping::Model.key_of(account)),
            uid: account.uid,
            span: shown_name(&account.span),
            duration: format_duration(closed_unix_ns.saturating_sub(times.opened_unix_ns)),
            energy: account.share_uj.map_or_else(unknown, |uj| format_energy_or_bound(uj, account.error_uj)),
            per_token: account.share_uj.zip(tokens).map(|(uj, tokens)| {
                let error_uj = account.error_uj.map(|error_uj| error_uj.div_ceil(tokens));
                format_energy_or_bound((uj + tokens / 2) / tokens, error_uj)
            }),
            tokens,
            power: account.mean_power_mw.map(|mw| format_power(mw, None)),
            state: match account.state {
                SpanState::Abandoned => Some("abandoned"),
                SpanState::Interrupted => Some("interrupted"),
                SpanState::Open | SpanState::Provisional | SpanState::Settled => None,
            },
            times,
        }
    }
}

/// The latest requests, the oldest first.
#[derive(Debug, Default)]
pub struct RequestLog {
    rows: VecDeque<RequestRow>,
}

impl RequestLog {
    /// Adds accounts and returns the rows of those that are kept, the oldest first.
    pub fn add(&mut self, accounts: &[Account]) -> Vec<RequestRow> {
        let kept = &accounts[accounts.len().saturating_sub(MAX_REQUESTS)..];
        let rows: Vec<RequestRow> = kept.iter().map(RequestRow::of).collect();
        self.rows.extend(rows.iter().cloned());
        let surplus = self.rows.len().saturating_sub(MAX_REQUESTS);
        self.rows.drain(..surplus);
        rows
    }

    /// Removes all: a new connection lists the earlier accounts again.
    pub fn clear(&mut self) {
        self.rows.clear();
    }

    /// The oldest first.
    pub fn rows(&self) -> &VecDeque<RequestRow> {
        &self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::test_machine::account;

    #[test]
    fn names_are_cut_and_show_hidden_characters() {
        assert_eq!(shown_name("a\u{202e}b\n<b>"), "a\\u{202e}b\\n<b>");
        for name in ["x".repeat(1 << 20), "\u{202e}".repeat(1 << 20), "€".repeat(81)] {
            let shown = shown_name(&name);
            assert!(shown.chars().count() == MAX_NAME_CHARS && shown.ends_with('…'), "{shown}");
        }
        assert_eq!(shown_name(&"x".repeat(80)), "x".repeat(80));
    }

    #[test]
    fn the_latest_are_kept_with_their_figures() {
        let mut log = RequestLog::default();
        let accounts: Vec<Account> = (0..1_000)
            .map(|number| account(&format!("s{number}"), "small", &[("package-0", 2_000_000, 0)]))
            .collect();
        assert_eq!(log.add(&accounts).len(), MAX_REQUESTS);
        let mut last = account("last", "small", &[("package-0", 2_000_000, 0)]);
        last.attributes.insert("gen_ai.usage.output_tokens".into(), "4".into());
        last.opened_unix_ns = 5_000_000_000;
        last.phases = serde_json::from_value(serde_json::json!([
            {"name": "decode", "opened_ns": last.opened_ns + 250_000_000}
        ]))
        .unwrap();
        let added = log.add(&[last]);
        assert_eq!(log.rows().len(), MAX_REQUESTS);
        assert_eq!(log.rows().back(), added.first());
        assert_eq!(log.rows()[0].span, "s701");
        let row = &added[0];
        assert_eq!((row.energy.as_str(), row.duration.as_str()), ("2.000000 J ± 0.000010 J", "2.000 s"));
        assert_eq!((row.tokens, row.per_token.as_deref()), (Some(4), Some("500.000 mJ ± 0.003 mJ")));
        let times = RequestTimes {
            opened_unix_ns: 5_000_000_000,
            closed_unix_ns: Some(7_000_000_000),
            first_token_unix_ns: Some(5_250_000_000),
        };
        assert_eq!(row.times, times);
    }
}
