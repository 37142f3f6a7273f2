//! Sums of energy by domain, over accounts.

use wattspan_client::account::Account;

use crate::domain::DomainName;

/// An energy of each domain, microjoules; it may be negative. Machines have a few domains, so the list is short.
#[derive(Debug, Default)]
pub(crate) struct DomainEnergy(Vec<(DomainName, i64)>);

impl DomainEnergy {
    /// The energy of a domain.
    pub(crate) fn of(&self, domain: &str) -> i64 {
        self.0.iter().find(|(name, _)| *name == *domain).map_or(0, |(_, uj)| *uj)
    }

    /// Adds the shares of an account.
    pub(crate) fn add(&mut self, account: &Account) {
        self.add_shares(account, i64::saturating_add);
    }

    /// Subtracts the shares of an account.
    pub(crate) fn subtract(&mut self, account: &Account) {
        self.add_shares(account, i64::saturating_sub);
    }

    fn add_shares(&mut self, account: &Account, combine: fn(i64, i64) -> i64) {
        for share in &account.domains {
            let share_uj = i64::try_from(share.share_uj.unwrap_or(0)).unwrap_or(i64::MAX);
            match self.0.iter_mut().find(|(name, _)| *name == share.domain) {
                Some((_, uj)) => *uj = combine(*uj, share_uj),
                None => self.0.push((share.domain.clone(), combine(0, share_uj))),
            }
        }
    }
}
