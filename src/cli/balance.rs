//! `wattspan balance`: where the joules went.
//!
//! Owns the check that the daemon's promise holds: for every domain measured = attributed + unattributed, exactly. A
//! balance that does not add up is a failure of the daemon, and is told as one.

use std::io::stdout;

use serde::Serialize;

use super::domain_tree::{self, indented};
use super::ending::{FAILURE, OK, Trouble};
use super::quantity::{energy, percent};
use super::reach::Reach;
use super::table::{Table, figures, words};
use super::terminal::Terminal;
use super::{Meter, output};
use crate::attribution::account::Balance;
use crate::protocol::DomainStatus;

#[derive(Serialize)]
struct Told<'a> {
    balance: &'a [Balance],
}

/// Asks, checks and tells.
pub fn balance(meter: &Meter) -> Result<u8, Trouble> {
    let client = Reach::daemon(meter)?;
    let balance = client.balance()?;
    if meter.json {
        output::json(&Told { balance: &balance })?;
    } else {
        // A balance says nothing of parents; the table is worth its rows without.
        let domains = client.info().map_or_else(|_| Vec::new(), |info| info.domains);
        output::text(&shown(&balance, &domains, Terminal::of(&stdout())))?;
    }
    match balance.iter().find(|domain| !adds_up(domain)) {
        None => Ok(OK),
        Some(wrong) => {
            let text = format!("the balance of {} does not add up; please report this", wrong.domain);
            Err(Trouble::new(FAILURE, text))
        }
    }
}

fn adds_up(balance: &Balance) -> bool {
    balance.attributed_uj.checked_add(balance.unattributed_uj) == Some(balance.measured_uj)
}

fn shown(balance: &[Balance], domains: &[DomainStatus], terminal: Terminal) -> String {
    let mut table = Table::new([
        words("DOMAIN"),
        figures("MEASURED"),
        figures("ATTRIBUTED"),
        figures(""),
        figures("UNATTRIBUTED"),
        words("TOTAL"),
    ]);
    for (depth, row) in domain_tree::rows(balance, |row| &row.domain, domains) {
        let status = domains.iter().find(|domain| domain.name == row.domain);
        table.row(vec![
            indented(&row.domain, depth),
            energy(row.measured_uj, None).into(),
            energy(row.attributed_uj, None).into(),
            percent(row.attributed_uj, row.measured_uj).unwrap_or_default().into(),
            energy(row.unattributed_uj, None).into(),
            status.map_or("".into(), |domain| domain_tree::total(domain.counted)),
        ]);
    }
    let simulated = domains.iter().any(DomainStatus::is_simulated);
    let remark = if simulated { "\n  simulated: the machine is replayed from a file\n" } else { "" };
    table.draw(terminal) + remark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_microjoule_is_noticed() {
        let whole = Balance { domain: "a".into(), measured_uj: 10, attributed_uj: 7, unattributed_uj: 3 };
        assert!(adds_up(&whole));
        assert!(!adds_up(&Balance { measured_uj: 11, ..whole }));
    }
}
