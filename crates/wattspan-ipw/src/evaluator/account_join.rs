//! Joins samples to the accounts of their requests, which `wattspan proxy --prompt-hash` measured.
//!
//! An account belongs to a sample if it has the hash of the sample's prompt. Invariant: an account belongs to one sample
//! at most, so that no energy counts twice.

use std::collections::HashMap;

use wattspan_client::account::{Account, SpanState};
use wattspan_client::protocol::DaemonInfo;
use wattspan_http::prompt_hash::PROMPT_HASH_ATTRIBUTE;

use super::super::account_result::query_energy;
use super::super::row::QueryEnergy;
use super::super::scope::{self, RunDomain};
use super::evaluation::{EvaluatedSample, Evaluation, without_moved_bounds};

/// Whether an account may be that of a request of the evaluation: it opened within it, and has a prompt and its model.
pub fn may_belong(account: &Account, evaluation: &Evaluation, window_unix_ns: (u64, u64)) -> bool {
    (window_unix_ns.0..=window_unix_ns.1).contains(&account.opened_unix_ns)
        && account.attributes.contains_key(PROMPT_HASH_ATTRIBUTE)
        && account.model().is_none_or(|model| model == evaluation.model)
}

/// Sets the energies of the samples from the accounts that [`may_belong`].
pub fn join_accounts(evaluation: &mut Evaluation, mut accounts: Vec<Account>, info: &DaemonInfo) {
    let (domains, _) = scope::live_domains(info);
    accounts.sort_unstable_by_key(|account| account.opened_ns);
    let mut by_prompt: HashMap<&str, Vec<&Account>> = HashMap::new();
    for account in &accounts {
        if let Some(hash) = account.attributes.get(PROMPT_HASH_ATTRIBUTE) {
            by_prompt.entry(hash).or_default().push(account);
        }
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    for hash in evaluation.samples.iter().filter_map(|sample| sample.prompt_hash.clone()) {
        *counts.entry(hash).or_default() += 1;
    }
    for sample in &mut evaluation.samples {
        let Some(hash) = &sample.prompt_hash else { continue };
        let found = by_prompt.get(hash.as_str()).map_or(&[][..], Vec::as_slice);
        match counts.get(hash) {
            // Which account is whose is unknown, and so are the times and tokens.
            Some(count) if *count > 1 => {
                sample.energy = Err(format!("{count} samples have the same prompt"));
            }
            _ => {
                sample.energy = sum_accounts(found, &domains);
                set_times(sample, found);
            }
        }
    }
    evaluation.domains = domains;
    evaluation.meter = info.version.clone();
}

/// The energy of all tries of a request together.
fn sum_accounts(accounts: &[&Account], domains: &[RunDomain]) -> Result<QueryEnergy, String> {
    let mut sum: Option<QueryEnergy> = None;
    for account in accounts {
        if account.state != SpanState::Settled {
            return Err("an account of its prompt is not settled".into());
        }
        let energy = query_energy(account, domains).map_err(|reason| reason.into_owned())?;
        match &mut sum {
            Some(sum) => {
                sum.add(&energy);
                sum.span = energy.span;
            }
            None => sum = Some(energy),
        }
    }
    sum.map(without_moved_bounds).ok_or_else(|| "the daemon has no account with its prompt".into())
}

fn set_times(sample: &mut EvaluatedSample, accounts: &[&Account]) {
    let (Some(first), Some(last)) = (accounts.first(), accounts.last()) else { return };
    sample.began_ns = first.opened_ns;
    sample.duration_ns = last.closed_ns.unwrap_or(last.opened_ns).saturating_sub(first.opened_ns);
    let tokens =
        |key: &str| accounts.iter().map(|account| account.attributes.get(key)?.parse::<u64>().ok()).sum();
    sample.tokens_in = tokens("gen_ai.usage.input_tokens");
    sample.tokens_out = tokens("gen_ai.usage.output_tokens");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn account(prompt: &str, at: u64, share_uj: u64) -> Account {
        let domain = |name: &str, share_uj: u64| json!({"domain": name, "grade": "measured", "share_uj": share_uj, "error_uj": 1, "window_uj": 500, "unknown_ns": 0});
        serde_json::from_value(json!({
            "span": format!("proxy-{at}"), "name": "chat", "state": "settled", "uid": 0, "opened_ns": at, "closed_ns": at + 10,
            "moved_ns": 0, "opened_unix_ns": at, "weight": 1.0, "share_uj": share_uj, "error_uj": 2, "window_uj": 1000,
            "grade": "measured", "peak_concurrency": 2, "domains": [domain("a", share_uj - 1), domain("b", 1)], "phases": [],
            "attributes": {PROMPT_HASH_ATTRIBUTE: prompt, "gen_ai.request.model": "m", "gen_ai.usage.output_tokens": "4"},
        }))
        .unwrap()
    }

    fn info() -> DaemonInfo {
        let domain = |name: &str| {
            json!({"name": name, "kind": "package", "source": "replay", "counted": true, "grade": "measured",
                   "liveness": "live", "age_ns": 0, "reads": 1, "quantum_uj": 1, "latency_ns": 0, "accuracy_measured": true})
        };
        serde_json::from_value(json!({
            "version": "9.9", "boot_id": "", "now_ns": 1, "horizon_ns": 1, "history_ns": 1,
            "domains": [domain("a"), domain("b")], "absent": [], "samplers": [], "access": "telemetry",
        }))
        .unwrap()
    }

    fn sample(id: usize, prompt: Option<&str>) -> EvaluatedSample {
        EvaluatedSample {
            id: id.to_string(),
            repeat: 0,
            subject: None,
            prompt: String::new(),
            answer: String::new(),
            reply: String::new(),
            score: Ok(1.0),
            is_cut_off: false,
            began_ns: 0,
            duration_ns: 0,
            tokens_in: None,
            tokens_out: None,
            energy: Err("several requests".into()),
            prompt_hash: prompt.map(str::to_owned),
        }
    }

    #[test]
    fn all_tries_of_a_prompt_are_its_energy_and_no_account_counts_twice() {
        let prompts = [Some("x"), Some("twice"), Some("twice"), Some("none"), None, Some("moved")];
        let samples = prompts.iter().enumerate().map(|(id, prompt)| sample(id, *prompt)).collect();
        let mut evaluation = Evaluation { samples, ..Evaluation::default() };
        let moved = Account { moved_ns: 1, ..account("moved", 400, 9) };
        let accounts = vec![
            account("x", 200, 30),
            account("x", 100, 70),
            account("twice", 300, 5),
            account("other", 1, 1),
            moved,
        ];
        join_accounts(&mut evaluation, accounts, &info());
        assert_eq!(evaluation.domains.len(), 2);
        let first = &evaluation.samples[0];
        let energy = first.energy.clone().unwrap();
        assert_eq!((energy.share_uj, energy.error_uj, energy.window_uj), (Some(100), Some(4), Some(2000)));
        assert_eq!(
            (energy.span.as_str(), energy.span_ns, energy.domains[0].share_uj),
            ("proxy-200", 20, Some(98))
        );
        assert_eq!(
            (first.began_ns, first.duration_ns, first.tokens_out, first.tokens_in),
            (100, 110, Some(8), None)
        );
        let reason = |at: usize| evaluation.samples[at].energy.clone().unwrap_err();
        assert_eq!((reason(1), reason(2)), ("2 samples have the same prompt".into(), reason(1)));
        for twice in &evaluation.samples[1..3] {
            assert_eq!((twice.began_ns, twice.duration_ns, twice.tokens_out), (0, 0, None));
        }
        assert!(reason(3).contains("no account with its prompt"), "{}", reason(3));
        assert_eq!(reason(4), "several requests");
        let moved = evaluation.samples[5].energy.clone().unwrap();
        assert_eq!((moved.share_uj, moved.error_uj, moved.domains[0].error_uj), (Some(9), None, None));
    }

    #[test]
    fn accounts_of_other_times_and_models_do_not_belong() {
        let evaluation = Evaluation { model: "m".into(), ..Evaluation::default() };
        let belongs = |account: &Account| may_belong(account, &evaluation, (100, 200));
        assert!(belongs(&account("x", 100, 5)) && belongs(&account("x", 200, 5)));
        assert!(!belongs(&account("x", 99, 5)) && !belongs(&account("x", 201, 5)));
        let mut other = account("x", 150, 5);
        other.attributes.insert("gen_ai.request.model".into(), "n".into());
        assert!(!belongs(&other));
        let mut plain = account("x", 150, 5);
        plain.attributes.remove(PROMPT_HASH_ATTRIBUTE);
        assert!(!belongs(&plain));
    }
}
