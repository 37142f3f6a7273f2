//! `wattspan reload`: the daemon reads its configuration again.
//!
//! Owns the words of the answer. What `systemctl reload wattspand` runs: it fails where the configuration is broken, and
//! says file and key.

use super::ending::{OK, Trouble};
use super::reach::Reach;
use super::terminal::printable;
use super::{Meter, output};
use crate::protocol::{Reload, Reloaded};

/// Asks and tells.
pub fn reload(meter: &Meter) -> Result<u8, Trouble> {
    let client = Reach::daemon(meter)?;
    let reloaded = client.call(Reload {})?;
    if meter.json {
        output::json(&reloaded)?;
    } else {
        output::text(&shown(&reloaded))?;
    }
    Ok(OK)
}

fn shown(reloaded: &Reloaded) -> String {
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
    fn what_changed_and_what_did_not_are_told_apart() {
        let mut reloaded = Reloaded::default();
        assert_eq!(shown(&reloaded), "nothing changed\n");
        reloaded.changed = vec!["limits.connections".into(), "idle_rate_hz".into()];
        reloaded.needs_restart = vec!["socket".into()];
        assert_eq!(shown(&reloaded), "changed: limits.connections, idle_rate_hz\nneeds a restart: socket\n");
    }
}
