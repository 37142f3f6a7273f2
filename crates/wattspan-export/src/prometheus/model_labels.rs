//! The model in the labels of a span's metrics, from a bounded set.

use std::collections::BTreeSet;

use wattspan_client::account::Account;

/// The most models that have labels of their own.
pub const MAX_MODELS: usize = 64;

/// The label of the models beyond that.
pub const OTHER: &str = "_other";

/// The label of spans without a model.
pub const NO_MODEL: &str = "_none";

/// A longer name of a model gets no label of its own.
const MAX_NAME_BYTES: usize = 128;

/// Which models have labels of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelLabels {
    /// These.
    Listed(BTreeSet<String>),
    /// The first [`MAX_MODELS`] in the accounts of callers that may add one.
    First,
}

impl ModelLabels {
    /// The label of an account's model. `known` are the labels so far; `may_add`: whether the spans of a user may add one.
    pub fn label<'a>(
        &self,
        account: &'a Account,
        known: impl Iterator<Item = &'a str> + Clone,
        may_add: impl FnOnce(u32) -> bool,
    ) -> &'a str {
        let Some(model) = account.model() else { return NO_MODEL };
        let is_valid = !model.is_empty()
            && model.len() <= MAX_NAME_BYTES
            && !model.contains(char::is_control)
            && model != NO_MODEL;
        let has_label = match self {
            ModelLabels::Listed(list) => list.contains(model),
            ModelLabels::First => {
                known.clone().any(|label| label == model) || {
                    let models = known.filter(|label| *label != OTHER && *label != NO_MODEL).count();
                    models < MAX_MODELS && may_add(account.uid)
                }
            }
        };
        if is_valid && has_label { model } else { OTHER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wattspan_client::account::MODEL_ATTRIBUTE;

    fn account(model: Option<&str>) -> Account {
        let mut account: Account = serde_json::from_str(include_str!("../test_account.json")).unwrap();
        account.attributes.clear();
        if let Some(model) = model {
            account.attributes.insert(MODEL_ATTRIBUTE.into(), model.into());
        }
        account
    }

    #[test]
    fn the_first_models_of_callers_with_access_get_labels() {
        let known: Vec<String> = (1..MAX_MODELS).map(|at| format!("m{at}")).chain([OTHER.into()]).collect();
        let label = |model: Option<&str>, known: &[String], may_add: bool| {
            let account = account(model);
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            // The account must live as long as the label.
            ModelLabels::First.label(&account, known.iter().copied(), |_| may_add).to_owned()
        };
        assert_eq!(label(Some("new"), &known, true), "new", "63 models so far");
        assert_eq!(label(Some("new"), &known, false), OTHER, "a caller without access adds none");
        assert_eq!(label(Some("m5"), &known, false), "m5", "a known one counts for each caller");
        let full: Vec<String> = known.iter().cloned().chain(["m64".into()]).collect();
        assert_eq!(label(Some("new"), &full, true), OTHER);
        assert_eq!(label(None, &full, true), NO_MODEL);
        for odd in ["", "a\nb", "_none", &"x".repeat(129)] {
            assert_eq!(label(Some(odd), &[], true), OTHER, "{odd:?}");
        }
    }

    #[test]
    fn a_list_of_models_admits_these_alone() {
        let listed = ModelLabels::Listed(["a".to_owned()].into());
        let (a, b) = (account(Some("a")), account(Some("b")));
        assert_eq!(listed.label(&a, ["b"].into_iter(), |_| true), "a");
        assert_eq!(listed.label(&b, ["b"].into_iter(), |_| true), OTHER);
    }
}
