//! `wattspan balance`: the energy balance of each domain.
//!
//! Checks that measured = attributed + unattributed, and attributed = settled + abandoned + not kept + open, hold exactly for
//! every domain. A violation is a defect of the daemon
//! and exits with a failure.

use std::io::stdout;

use serde::Serialize;
use wattspan_client::account::Balance;
use wattspan_client::protocol::DomainStatus;

use super::connect::{MeterConnector, MeterOptions};
use super::domain_tree::{self, indented_name};
use super::exit_status::{CliError, FAILURE, OK};
use super::output;
use super::quantity::{format_energy, format_percent};
use super::table::{TextTable, number_column, text_column};
use super::terminal::Terminal;

#[derive(Serialize)]
struct BalanceOutput<'a> {
    balance: &'a [Balance],
}

/// Runs `wattspan balance`.
pub fn balance(options: &MeterOptions) -> Result<u8, CliError> {
    let client = MeterConnector::connect_daemon(options)?;
    let balance = client.balance()?;
    if options.json {
        output::print_json(&BalanceOutput { balance: &balance })?;
    } else {
        // The domain tree comes from another call; without it the rows are not indented.
        let domains = client.info().map_or_else(|_| Vec::new(), |info| info.domains);
        output::print_text(&render_balance(&balance, &domains, Terminal::of(&stdout())))?;
    }
    match balance.iter().find(|domain| !is_balanced(domain)) {
        None => Ok(OK),
        Some(unbalanced) => {
            let text = format!("the balance of {} does not add up; please report this", unbalanced.domain);
            Err(CliError::new(FAILURE, text))
        }
    }
}

fn is_balanced(balance: &Balance) -> bool {
    let parts = [balance.settled_uj, balance.abandoned_uj, balance.not_kept_uj, balance.open_uj];
    let attributed_uj = parts.into_iter().sum::<Option<u64>>();
    balance.attributed_uj.checked_add(balance.unattributed_uj) == Some(balance.measured_uj)
        && attributed_uj.is_none_or(|uj| uj == balance.attributed_uj)
}

fn render_balance(balance: &[Balance], domains: &[DomainStatus], terminal: Terminal) -> String {
    let mut table = TextTable::new([
        text_column("DOMAIN"),
        number_column("MEASURED"),
        number_column("ATTRIBUTED"),
        number_column(""),
        number_column("UNATTRIBUTED"),
        text_column("TOTAL"),
    ]);
    for (depth, row) in domain_tree::order_rows(balance, |row| &row.domain, domains) {
        let status = domains.iter().find(|domain| domain.name == row.domain);
        table.add_row(vec![
            indented_name(&row.domain, depth),
            format_energy(row.measured_uj, None).into(),
            format_energy(row.attributed_uj, None).into(),
            format_percent(row.attributed_uj, row.measured_uj).unwrap_or_default().into(),
            format_energy(row.unattributed_uj, None).into(),
            status.map_or("".into(), |domain| domain_tree::counted_cell(domain.counted)),
        ]);
    }
    let simulated = domains.iter().any(DomainStatus::is_simulated);
    let note = if simulated { "\n  simulated: the machine is replayed from a file\n" } else { "" };
    table.render(terminal) + note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_microjoule_is_detected() {
        let of_older_daemon = Balance {
            domain: "a".into(),
            measured_uj: 10,
            attributed_uj: 7,
            unattributed_uj: 3,
            ..Balance::default()
        };
        assert!(is_balanced(&of_older_daemon));
        assert!(!is_balanced(&Balance { measured_uj: 11, ..of_older_daemon.clone() }));
        let whole = Balance {
            settled_uj: Some(3),
            abandoned_uj: Some(2),
            not_kept_uj: Some(1),
            open_uj: Some(1),
            cancelled_uj: Some(3),
            ..of_older_daemon
        };
        assert!(is_balanced(&whole));
        assert!(!is_balanced(&Balance { open_uj: Some(2), ..whole }));
    }
}
