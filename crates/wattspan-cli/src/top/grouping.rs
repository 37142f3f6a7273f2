//! The ways to group spans: by model, name, user or operation.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use wattspan_client::account::Account;

/// What the rows of the group table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grouping {
    /// The model that the response or the request names
    #[default]
    Model,
    /// The name of the span
    Name,
    /// The user who opened the span
    User,
    /// The operation: chat, text_completion, embeddings
    Operation,
}

impl Grouping {
    pub const ALL: [Grouping; 4] = [Grouping::Model, Grouping::Name, Grouping::User, Grouping::Operation];

    /// The heading of the first column.
    pub fn title(self) -> &'static str {
        match self {
            Grouping::Model => "MODEL",
            Grouping::Name => "NAME",
            Grouping::User => "USER",
            Grouping::Operation => "OPERATION",
        }
    }

    /// The group of a span.
    pub fn key_of(self, account: &Account) -> String {
        let attribute = |keys: &[&str]| keys.iter().find_map(|key| account.attributes.get(*key)).cloned();
        match self {
            Grouping::Model => attribute(&["gen_ai.response.model"])
                .or_else(|| account.model().map(str::to_owned))
                .unwrap_or_else(|| "(no model)".into()),
            Grouping::Name if account.name.is_empty() => "(no name)".into(),
            Grouping::Name => account.name.clone(),
            Grouping::User => format!("uid {}", account.uid),
            Grouping::Operation => {
                attribute(&["gen_ai.operation.name"]).unwrap_or_else(|| "(no operation)".into())
            }
        }
    }
}
