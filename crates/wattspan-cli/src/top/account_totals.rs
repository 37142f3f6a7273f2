//! Totals of the settled accounts of the daemon's present run, per group.
//!
//! Memory is bounded: groups above a limit share one, and only the latest accounts are kept for rates. An account counts
//! with its shares of the counted domains, so that its energy is part of the machine's.

use std::collections::{BTreeMap, VecDeque};

use wattspan_client::account::Account;

use super::grouping::Grouping;

/// Groups of one grouping. Names are chosen by clients, so there can be any number.
const MAX_GROUPS: usize = 1_000;

/// The group of all others above [`MAX_GROUPS`].
const OVERFLOW_GROUP: &str = "(other groups)";

/// Accounts that are kept for rates and medians.
const MAX_RECENT: usize = 20_000;

/// The time over which rates and medians are taken, if the accounts of all of it are known.
pub const RATE_WINDOW_NS: u64 = 60_000_000_000;

/// The names of the counted domains.
pub type CountedDomains<'a> = &'a [String];

/// The figures of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupTotals {
    pub requests: u64,
    pub share_uj: u64,
    pub idle_uj: u64,
    /// The sum of the guaranteed errors; `None` if one is unknown.
    pub error_uj: Option<u64>,
    /// Of the accounts that state their output tokens.
    pub tokens: u64,
    pub token_share_uj: u64,
    pub token_error_uj: Option<u64>,
}

/// One settled account, for rates.
#[derive(Debug)]
struct RecentAccount {
    closed_ns: u64,
    groups: [String; Grouping::ALL.len()],
    share_uj: u64,
    first_token_ns: Option<u64>,
}

/// The figures of one group over the rate window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecentTotals {
    pub requests: u64,
    pub share_uj: u64,
    /// The median time from the opening to the first token.
    pub first_token_ns: Option<u64>,
}

/// The totals of all groupings.
#[derive(Debug, Default)]
pub struct AccountTotals {
    groups: [BTreeMap<String, GroupTotals>; Grouping::ALL.len()],
    recent: VecDeque<RecentAccount>,
    /// `recent` has every account that closed since this instant.
    complete_since_ns: u64,
    domain_idle_uj: BTreeMap<String, u64>,
}

/// The energy of an account in the counted domains, and its idle part.
pub fn counted_share(account: &Account, counted: CountedDomains) -> (u64, u64) {
    let shares = account.domains.iter().filter(|share| counted.iter().any(|name| *name == share.domain));
    shares.fold((0, 0), |(share_uj, idle_uj), share| {
        let uj = share.share_uj.unwrap_or(0);
        (share_uj + uj, idle_uj + share.idle_uj.unwrap_or(0).min(uj))
    })
}

/// The time from the opening of a request to its first token: the beginning of the phase `decode`.
fn first_token_ns(account: &Account) -> Option<u64> {
    let decode = account.phases.iter().find(|phase| phase.name == "decode")?;
    decode.opened_ns.checked_sub(account.opened_ns)
}

/// The output tokens that the account states, if any. A count beyond 32 bits is none of a request.
pub fn output_tokens(account: &Account) -> Option<u64> {
    let text = account.attributes.get("gen_ai.usage.output_tokens")?;
    text.parse::<u32>().ok().filter(|&tokens| tokens > 0).map(u64::from)
}

impl AccountTotals {
    /// No accounts. All that closed since `complete_since_ns` will be added.
    pub fn complete_since(complete_since_ns: u64) -> Self {
        AccountTotals { complete_since_ns, ..AccountTotals::default() }
    }

    /// Adds a settled account.
    pub fn add(&mut self, account: &Account, counted: CountedDomains) {
        let (share_uj, idle_uj) = counted_share(account, counted);
        for share in &account.domains {
            let idle_uj = share.idle_uj.unwrap_or(0);
            *self.domain_idle_uj.entry(share.domain.to_string()).or_default() += idle_uj;
        }
        let groups = Grouping::ALL.map(|grouping| self.bounded_group(grouping, account));
        for (grouping, name) in Grouping::ALL.into_iter().zip(&groups) {
            let totals = self.groups[grouping as usize].entry(name.clone()).or_insert_with(|| GroupTotals {
                error_uj: Some(0),
                token_error_uj: Some(0),
                ..GroupTotals::default()
            });
            let add_error = |sum: Option<u64>| Some(sum?.saturating_add(account.error_uj?));
            totals.requests += 1;
            totals.share_uj += share_uj;
            totals.idle_uj += idle_uj;
            totals.error_uj = add_error(totals.error_uj);
            if let Some(tokens) = output_tokens(account) {
                totals.tokens = totals.tokens.saturating_add(tokens);
                totals.token_share_uj += share_uj;
                totals.token_error_uj = add_error(totals.token_error_uj);
            }
        }
        if self.recent.len() == MAX_RECENT
            && let Some(oldest) = self.recent.pop_front()
        {
            self.complete_since_ns = self.complete_since_ns.max(oldest.closed_ns + 1);
        }
        let closed_ns = account.closed_ns.unwrap_or(account.opened_ns);
        self.recent.push_back(RecentAccount {
            closed_ns,
            groups,
            share_uj,
            first_token_ns: first_token_ns(account),
        });
    }

    fn bounded_group(&self, grouping: Grouping, account: &Account) -> String {
        let name = grouping.key_of(account);
        let groups = &self.groups[grouping as usize];
        if groups.len() < MAX_GROUPS || groups.contains_key(&name) { name } else { OVERFLOW_GROUP.into() }
    }

    pub fn groups(&self, grouping: Grouping) -> &BTreeMap<String, GroupTotals> {
        &self.groups[grouping as usize]
    }

    /// The idle part of all accounts in a domain.
    pub fn domain_idle_uj(&self, domain: &str) -> u64 {
        self.domain_idle_uj.get(domain).copied().unwrap_or(0)
    }

    /// The start of the window of rates that ends at `now_ns`. It is shorter if earlier accounts are unknown.
    pub fn window_start_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(RATE_WINDOW_NS).max(self.complete_since_ns)
    }

    /// The figures of each group for accounts that closed within the window of rates.
    pub fn recent(&self, grouping: Grouping, now_ns: u64) -> BTreeMap<&str, RecentTotals> {
        let from_ns = self.window_start_ns(now_ns);
        let mut totals: BTreeMap<&str, (RecentTotals, Vec<u64>)> = BTreeMap::new();
        for account in self.recent.iter().filter(|account| account.closed_ns >= from_ns) {
            let (group, first_tokens) = totals.entry(&account.groups[grouping as usize]).or_default();
            group.requests += 1;
            group.share_uj += account.share_uj;
            first_tokens.extend(account.first_token_ns);
        }
        let with_median = |(name, (group, mut times)): (_, (RecentTotals, Vec<u64>))| {
            times.sort_unstable();
            (name, RecentTotals { first_token_ns: times.get(times.len() / 2).copied(), ..group })
        };
        totals.into_iter().map(with_median).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_machine::account;
    use super::*;

    #[test]
    fn only_shares_of_counted_domains_count_and_errors_add() {
        let counted = ["package-0".to_owned(), "dram-0".to_owned()];
        let mut totals = AccountTotals::default();
        for span in ["a", "b"] {
            let mut account = account(span, "small", &[("package-0", 700, 200), ("core-0", 600, 100)]);
            account.attributes.insert("gen_ai.usage.output_tokens".into(), "10".into());
            totals.add(&account, &counted);
        }
        let group = &totals.groups(Grouping::Model)["small"];
        assert_eq!((group.requests, group.share_uj, group.idle_uj), (2, 1400, 400));
        assert_eq!((group.tokens, group.token_share_uj, group.error_uj), (20, 1400, Some(20)));
        assert_eq!(totals.domain_idle_uj("core-0"), 200);
        let unknown = Account { error_uj: None, ..account("c", "small", &[("package-0", 1, 0)]) };
        totals.add(&unknown, &counted);
        assert_eq!(totals.groups(Grouping::Model)["small"].error_uj, None);
    }

    #[test]
    fn a_count_of_tokens_that_no_request_has_is_none() {
        let with = |tokens: &str| {
            let mut account = account("a", "small", &[]);
            account.attributes.insert("gen_ai.usage.output_tokens".into(), tokens.into());
            output_tokens(&account)
        };
        assert_eq!([with("1"), with("4294967295")], [Some(1), Some(4_294_967_295)]);
        for tokens in ["0", "-1", "4294967296", "18446744073709551615", "many"] {
            assert_eq!(with(tokens), None, "{tokens}");
        }
    }

    #[test]
    fn any_number_of_names_needs_bounded_memory_and_loses_no_energy() {
        let counted = ["package-0".to_owned()];
        let mut totals = AccountTotals::default();
        for number in 0..MAX_GROUPS + 50 {
            totals.add(&account("s", &format!("model {number}"), &[("package-0", 3, 0)]), &counted);
        }
        let groups = totals.groups(Grouping::Model);
        assert_eq!(groups.len(), MAX_GROUPS + 1);
        assert_eq!(groups[OVERFLOW_GROUP].requests, 50);
        assert_eq!(groups.values().map(|group| group.share_uj).sum::<u64>(), 3 * (MAX_GROUPS as u64 + 50));
    }

    #[test]
    fn rates_are_of_the_last_minute() {
        let counted = ["package-0".to_owned()];
        let mut totals = AccountTotals::default();
        for (closed_s, ttft_ns) in [(1, 9), (100, 5), (110, 7), (119, 6)] {
            let mut account = account("s", "small", &[("package-0", 10, 0)]);
            account.closed_ns = Some(closed_s * 1_000_000_000);
            account.phases = serde_json::from_value(serde_json::json!([
                {"name": "decode", "opened_ns": account.opened_ns + ttft_ns}
            ]))
            .unwrap();
            totals.add(&account, &counted);
        }
        let recent = &totals.recent(Grouping::Model, 120_000_000_000)["small"];
        assert_eq!(*recent, RecentTotals { requests: 3, share_uj: 30, first_token_ns: Some(6) });
    }
}
