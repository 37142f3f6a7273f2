//! Which domain lies inside which.
//!
//! Owns the parents by number. Never follows more steps than there are domains, whatever the sources say.

use crate::domain::Domain;

/// The parents of all domains.
#[derive(Debug, Default)]
pub(crate) struct DomainTree {
    parents: Vec<Option<usize>>,
}

impl DomainTree {
    pub(crate) fn of<'a>(domains: impl Iterator<Item = &'a Domain> + Clone) -> Self {
        let number = |name: &String| domains.clone().position(|domain| domain.name == *name);
        Self { parents: domains.clone().map(|domain| domain.parent.as_ref().and_then(number)).collect() }
    }

    /// The domains around this one, the nearest first.
    pub(crate) fn ancestors(&self, domain: usize) -> impl Iterator<Item = usize> + Clone + '_ {
        let parent = |at: &usize| self.parents.get(*at).copied().flatten();
        std::iter::successors(parent(&domain), parent).take(self.parents.len())
    }
}
