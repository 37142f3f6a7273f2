//! `wattspan balance`: where the joules went.
//!
//! Owns the check that the daemon's promise holds: for every domain measured = attributed + unattributed, exactly. A
//! balance that does not add up is a failure of the daemon, and is told as one.

use std::io::{Write, stdout};

use serde::Serialize;

use super::Meter;
use super::ending::{FAILURE, OK, Trouble};
use super::quantity::{energy, percent};
use super::reach::Reach;
use super::table::{Table, figures, words};
use super::terminal::{Terminal, printable};
use crate::ledger::account::Balance;

#[derive(Serialize)]
struct Told<'a> {
    balance: &'a [Balance],
}

/// Asks, checks and tells.
pub fn balance(meter: &Meter) -> Result<u8, Trouble> {
    let (_, client) = Reach::daemon(meter)?;
    let balance = client.balance()?;
    let text = if meter.json {
        serde_json::to_string(&Told { balance: &balance })? + "\n"
    } else {
        shown(&balance, Terminal::of(&stdout()))
    };
    stdout().write_all(text.as_bytes())?;
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

fn shown(balance: &[Balance], terminal: Terminal) -> String {
    let heads =
        [words("DOMAIN"), figures("MEASURED"), figures("ATTRIBUTED"), figures(""), figures("UNATTRIBUTED")];
    let mut table = Table::new(heads);
    for domain in balance {
        table.row(vec![
            printable(&domain.domain),
            energy(domain.measured_uj, None),
            energy(domain.attributed_uj, None),
            percent(domain.attributed_uj, domain.measured_uj).unwrap_or_default(),
            energy(domain.unattributed_uj, None),
        ]);
    }
    table.draw(terminal)
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
