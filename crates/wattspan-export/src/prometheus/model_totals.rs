//! The totals of the accounts of one model.
//!
//! Every field only grows. Errors are added: the sum of the true shares lies within the sum of the shares ± the sum of the
//! errors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wattspan_client::account::{Account, SpanState};
use wattspan_client::domain::Grade;

use super::model_histogram::{DURATION_US, ENERGY_UJ, ModelHistogram, TOKEN_NJ};
use super::model_labels::{NO_MODEL, OTHER};

/// OpenTelemetry's names of operations (`gen_ai.operation.name`), and that of the proxy for further paths; others are [`OTHER`].
const OPERATIONS: [&str; 10] = [
    "chat",
    "create_agent",
    "embeddings",
    "execute_tool",
    "generate_content",
    "inference",
    "invoke_agent",
    "invoke_workflow",
    "retrieval",
    "text_completion",
];

/// The energy of the accounts of one grade.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnergyTotals {
    pub share_uj: u64,
    pub error_uj: u64,
    pub idle_uj: u64,
}

/// The totals of one model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelTotals {
    /// By state and operation.
    pub spans: BTreeMap<String, BTreeMap<String, u64>>,
    /// By grade.
    pub energy: BTreeMap<String, EnergyTotals>,
    /// Spans whose energy is unknown.
    pub without_energy: u64,
    /// Spans with energy, but without a guaranteed error.
    pub without_error: u64,
    /// Tokens of spans with energy.
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Spans that failed, and their energy, which is also in `energy`.
    pub failed: u64,
    pub failed_uj: u64,
    pub span_energy: ModelHistogram,
    pub token_energy: ModelHistogram,
    pub duration: ModelHistogram,
}

impl ModelTotals {
    pub fn add(&mut self, account: &Account) {
        let operation = operation_label(account);
        let by_operation = self.spans.entry(account.state.as_str().into()).or_default();
        increase(by_operation.entry(operation.into()).or_default(), 1);
        if let Some(closed_ns) = account.closed_ns {
            self.duration.observe(DURATION_US, closed_ns.saturating_sub(account.opened_ns) / 1000);
        }
        let failed = has_failed(account);
        increase(&mut self.failed, failed.into());
        match account.share_uj {
            Some(share_uj) => self.add_energy(account, share_uj, failed),
            None => increase(&mut self.without_energy, 1),
        }
    }

    fn add_energy(&mut self, account: &Account, share_uj: u64, failed: bool) {
        let grade = account.grade.map_or("unknown", Grade::as_str);
        let energy = self.energy.entry(grade.into()).or_default();
        increase(&mut energy.share_uj, share_uj);
        increase(&mut energy.error_uj, account.error_uj.unwrap_or(0));
        increase(&mut energy.idle_uj, account.idle_uj.unwrap_or(0));
        increase(&mut self.without_error, account.error_uj.is_none().into());
        self.span_energy.observe(ENERGY_UJ, share_uj);
        if failed {
            increase(&mut self.failed_uj, share_uj);
        }
        let tokens = |key: &str| account.attributes.get(key).and_then(|text| text.parse::<u32>().ok());
        if let Some(input) = tokens("gen_ai.usage.input_tokens") {
            increase(&mut self.input_tokens, input.into());
        }
        if let Some(output) = tokens("gen_ai.usage.output_tokens") {
            increase(&mut self.output_tokens, output.into());
            if let Some(nj) = (u128::from(share_uj) * 1000).checked_div(output.into()) {
                self.token_energy.observe(TOKEN_NJ, u64::try_from(nj).unwrap_or(u64::MAX));
            }
        }
    }
}

/// A damaged state file may hold any count; one that went back would look like a restart.
fn increase(count: &mut u64, by: u64) {
    *count = count.saturating_add(by);
}

fn operation_label(account: &Account) -> &'static str {
    let Some(operation) = account.attributes.get("gen_ai.operation.name") else { return NO_MODEL };
    OPERATIONS.into_iter().find(|name| name == operation).unwrap_or(OTHER)
}

/// Whether the request of a span had an error: of HTTP, of the connection, or of the client or daemon that ended.
fn has_failed(account: &Account) -> bool {
    let status = account.attributes.get("http.response.status_code");
    matches!(account.state, SpanState::Abandoned | SpanState::Interrupted)
        || account.attributes.contains_key("error.type")
        || status.and_then(|text| text.parse::<u16>().ok()).is_some_and(|status| status >= 400)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(attributes: &[(&str, &str)]) -> Account {
        let account: Account = serde_json::from_str(include_str!("../test_account.json")).unwrap();
        let attributes =
            attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (share_uj, error_uj, idle_uj) = (Some(2_000_000), Some(500), Some(300));
        Account { attributes, share_uj, error_uj, idle_uj, grade: Some(Grade::Measured), ..account }
    }

    #[test]
    fn tokens_and_energies_are_added_and_unknown_energy_counts_apart() {
        let usage = [("gen_ai.usage.input_tokens", "7"), ("gen_ai.usage.output_tokens", "10")];
        let mut totals = ModelTotals::default();
        totals.add(&account(&usage));
        totals.add(&account(&[("gen_ai.operation.name", "chat"), ("gen_ai.usage.output_tokens", "0")]));
        totals.add(&Account {
            error_uj: None,
            idle_uj: None,
            ..account(&[("gen_ai.operation.name", "alice")])
        });
        totals.add(&Account { share_uj: None, ..account(&usage) });
        let energy = EnergyTotals { share_uj: 6_000_000, error_uj: 1000, idle_uj: 600 };
        assert_eq!(totals.energy, [("measured".to_owned(), energy)].into());
        assert_eq!((totals.without_energy, totals.without_error), (1, 1));
        assert_eq!((totals.input_tokens, totals.output_tokens), (7, 10), "only of spans with energy");
        assert_eq!((totals.token_energy.count(), totals.token_energy.sum(TOKEN_NJ)), (1, 0.2));
        assert_eq!((totals.span_energy.count(), totals.duration.count()), (3, 4));
        let operations: Vec<(&str, u64)> =
            totals.spans["settled"].iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(operations, [("_none", 2), ("_other", 1), ("chat", 1)]);
    }

    #[test]
    fn a_request_failed_by_its_status_its_error_or_its_end() {
        let mut totals = ModelTotals::default();
        for failed in [
            account(&[("http.response.status_code", "500")]),
            account(&[("http.response.status_code", "404")]),
            account(&[("error.type", "the client left")]),
            Account { state: SpanState::Abandoned, ..account(&[]) },
            Account { share_uj: None, state: SpanState::Interrupted, ..account(&[]) },
        ] {
            totals.add(&failed);
        }
        totals.add(&account(&[("http.response.status_code", "200")]));
        assert_eq!((totals.failed, totals.failed_uj), (5, 8_000_000));
    }
}
