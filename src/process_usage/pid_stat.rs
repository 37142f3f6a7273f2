//! Parses `/proc/PID/stat`, proc_pid_stat(5).
//!
//! The second field, the command's name, may contain any character. Fields are counted from the last closing parenthesis.

use std::path::Path;

/// The tick of CPU times in `/proc` (USER_HZ, 100 per second on every port of Linux: proc(5)).
pub(super) const TICK_NS: u64 = 10_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidStat {
    /// Field 4.
    pub parent: u32,
    /// Fields 14 and 15: CPU time of all threads, with those that have exited.
    pub cpu_ns: u64,
    /// Fields 16 and 17: CPU time of waited-for children, and of theirs.
    pub waited_children_ns: u64,
    /// Field 20.
    pub threads: u64,
    /// Field 22: start time in ticks since boot.
    pub start_ticks: u64,
}

impl PidStat {
    /// `None` where the process does not exist or is hidden.
    pub fn read(proc_root: &Path, pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(proc_root.join(pid.to_string()).join("stat")).ok()?)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        // The first of these is field 3.
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        // The manual page has the children's times as signed; they are never negative.
        let ticks = |first: usize| field(first)?.checked_add(field(first + 1)?)?.checked_mul(TICK_NS);
        Some(Self {
            parent: u32::try_from(field(4)?).ok()?,
            cpu_ns: ticks(14)?,
            waited_children_ns: ticks(16)?,
            threads: field(20)?,
            start_ticks: field(22)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_and_spaces_shifts_no_field() {
        let text = "7 (a) S (b) R 3 7 7 0 -1 4194304 99 0 0 0 11 22 33 44 20 0 5 0 12345 1000 2\n";
        let stat = PidStat::parse(text).unwrap();
        assert_eq!((stat.parent, stat.threads, stat.start_ticks), (3, 5, 12_345));
        assert_eq!((stat.cpu_ns, stat.waited_children_ns), (330_000_000, 770_000_000));
    }

    #[test]
    fn a_malformed_line_is_none() {
        for text in ["", "7 (a", "7 (a) R 3 7", "7 (a) R x 7 7 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 5"] {
            assert_eq!(PidStat::parse(text), None, "{text:?}");
        }
    }
}
