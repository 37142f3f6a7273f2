//! `wattspan reload`: reloads the daemon's configuration.
//!
//! `systemctl reload wattspand` runs it. It fails if the configuration is invalid, and names the file and the key.

use wattspan_client::protocol::{Reload, ReloadReply};

use super::connect::{MeterConnector, MeterOptions};
use super::exit_status::{CliError, OK};
use super::output;
use super::terminal::printable;

/// Runs `wattspan reload`.
pub fn reload(options: &MeterOptions) -> Result<u8, CliError> {
    let client = MeterConnector::connect_daemon(options)?;
    let reloaded = client.call(Reload {})?;
    if options.json {
        output::print_json(&reloaded)?;
    } else {
        output::print_text(&render_reload(&reloaded))?;
    }
    Ok(OK)
}

fn render_reload(reloaded: &ReloadReply) -> String {
    let keys = |keys: &[String]| printable(&keys.join(", "));
    let mut text = match reloaded.changed.as_slice() {
        [] => "nothing changed\n".to_owned(),
        changed => format!("changed: {}\n", keys(changed)),
    };
    if !reloaded.needs_restart.is_empty() {
        text += &format!("needs a restart: {}\n", keys(&reloaded.needs_restart));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_keys_and_keys_that_need_a_restart_are_listed() {
        let mut reloaded = ReloadReply::default();
        assert_eq!(render_reload(&reloaded), "nothing changed\n");
        reloaded.changed = vec!["limits.connections".into(), "idle_rate_hz".into()];
        reloaded.needs_restart = vec!["socket".into()];
        assert_eq!(
            render_reload(&reloaded),
            "changed: limits.connections, idle_rate_hz\nneeds a restart: socket\n"
        );
    }
}
