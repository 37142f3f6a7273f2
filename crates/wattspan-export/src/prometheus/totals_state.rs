//! All totals, and the number of the last account in them: what the state file holds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wattspan_client::account::{Account, Gap, GapReason};

use super::machine_totals::MachineTotals;
use super::model_labels::ModelLabels;
use super::model_totals::ModelTotals;
use super::span_group::SpanGroup;

/// What the state file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TotalsState {
    /// The UUID of the database that `after` belongs to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub database: Option<String>,
    /// The position after the last account in the totals.
    pub after: u64,
    /// Whether the accounts are those of all users; positions of the two kinds differ.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub all_users: Option<bool>,
    pub machine: MachineTotals,
    /// By the label of the model.
    pub models: BTreeMap<String, ModelTotals>,
    /// Numbers without an account, by reason; where the daemon names no numbers, only in `gaps`.
    pub lost: BTreeMap<String, u64>,
    /// Runs of such numbers, by reason.
    pub gaps: BTreeMap<String, u64>,
    /// How often the daemon had another database; its accounts are added from the first one on.
    pub new_databases: u64,
}

impl TotalsState {
    pub fn add(&mut self, account: &Account, labels: &ModelLabels, group: &mut SpanGroup) {
        let known = self.models.keys().map(String::as_str);
        let label = labels.label(account, known, |uid| group.has_user(uid)).to_owned();
        self.models.entry(label).or_default().add(account);
    }

    pub fn add_gap(&mut self, gap: &Gap) {
        let reason = match gap.reason {
            GapReason::Deleted => "deleted",
            GapReason::Lost => "lost",
            GapReason::Damaged => "damaged",
        };
        let gaps = self.gaps.entry(reason.into()).or_default();
        *gaps = gaps.saturating_add(1);
        if let (Some(first), Some(last)) = (gap.first, gap.last) {
            let lost = self.lost.entry(reason.into()).or_default();
            *lost = lost.saturating_add(last.saturating_sub(first).saturating_add(1));
        }
    }

    /// Continues with the first account of another database.
    pub fn begin_database(&mut self) {
        (self.database, self.after) = (None, 0);
        self.new_databases = self.new_databases.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_back() {
        let mut state = TotalsState {
            database: Some("uuid".into()),
            after: 7,
            all_users: Some(true),
            ..TotalsState::default()
        };
        let account: Account = serde_json::from_str(include_str!("../test_account.json")).unwrap();
        state.add(&account, &ModelLabels::First, &mut SpanGroup::lookup(""));
        state.add_gap(&Gap { first: Some(3), last: Some(5), reason: GapReason::Lost });
        state.add_gap(&Gap { first: None, last: None, reason: GapReason::Damaged });
        assert_eq!((state.lost["lost"], state.gaps["lost"], state.gaps["damaged"]), (3, 1, 1));
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<TotalsState>(&text).unwrap(), state);
        assert!(serde_json::from_str::<TotalsState>(&text.replace("\"after\"", "\"later\"")).is_err());
    }

    #[test]
    fn a_counter_stops_at_the_largest_number() {
        let mut state = TotalsState { new_databases: u64::MAX, ..TotalsState::default() };
        state.gaps.insert("lost".into(), u64::MAX);
        state.lost.insert("lost".into(), u64::MAX - 1);
        state.begin_database();
        state.add_gap(&Gap { first: Some(3), last: Some(5), reason: GapReason::Lost });
        assert_eq!(
            (state.new_databases, state.gaps["lost"], state.lost["lost"]),
            (u64::MAX, u64::MAX, u64::MAX)
        );
    }
}
