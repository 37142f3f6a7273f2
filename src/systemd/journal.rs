//! The daemon's log: one entry for each change of state.
//!
//! If standard error is connected to the journal (JOURNAL_STREAM, systemd.exec(5)), entries are sent with
//! their fields by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), else as lines on standard error.
//! Logging never fails and never blocks: an unavailable log must not stop the daemon.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

use wattspan_system::escape::{printable, printable_lines};

/// A kind of entry, with an ID that does not change with the text (`journalctl MESSAGE_ID=...`).
#[derive(Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// The journal's MESSAGE_ID, 128 random bits.
    pub id: &'static str,
    /// As in syslog(3): 3 error, 4 warning, 5 notice, 6 information.
    pub priority: u8,
}

/// The daemon measures and listens.
pub const STARTED: LogEvent = LogEvent { id: "5a1f0c6de9a84f6f8e2b7d1c3f90a4b1", priority: 6 };
/// The daemon stopped on request.
pub const STOPPED: LogEvent = LogEvent { id: "0e4c8b7a96d2455fa3b1c9e27d5f6082", priority: 6 };
/// The daemon cannot start or continue.
pub const FAILED: LogEvent = LogEvent { id: "c7d92e5b1f3a4e80b6a5490d8e17f2c3", priority: 3 };
/// A domain became live.
pub const DOMAIN_LIVE: LogEvent = LogEvent { id: "91b3f6a04c7d4d2e9f58e1a2b6c0d374", priority: 5 };
/// A domain stopped being live.
pub const DOMAIN_NOT_LIVE: LogEvent = LogEvent { id: "e2a7c4d85b90463fb1d6f37a08c9e515", priority: 4 };
/// The check whether two domains read the same counter has a result.
pub const DUPLICATE_DOMAINS: LogEvent = LogEvent { id: "9c2c8d5cf5a408fed36986517b4d27db", priority: 5 };
/// A domain used more power than the error bounds assumed.
pub const CEILING_EXCEEDED: LogEvent = LogEvent { id: "7ce750f1e7944b93b805a1b92c6c3ac9", priority: 4 };
/// The configuration was reloaded.
pub const CONFIG_RELOADED: LogEvent = LogEvent { id: "b84f1d7c62e04a9395a0c3e8f7d6b247", priority: 5 };
/// The new configuration is invalid; the old one stays in effect.
pub const CONFIG_REJECTED: LogEvent = LogEvent { id: "68c0a5f3d9174be2ae7b20d4c1f39e58", priority: 3 };
/// The daemon has more privileges than it needs.
pub const EXCESS_PRIVILEGES: LogEvent = LogEvent { id: "2c97d4e8f6b1403a8d5e0b7fa9c3164d", priority: 4 };
/// A group to which the configuration gives access does not exist.
pub const UNKNOWN_GROUP: LogEvent = LogEvent { id: "524db23c58510006b04b13acb73debc9", priority: 4 };
/// A recording has ended; the message has the numbers of samples recorded and lost.
pub const RECORDING_ENDED: LogEvent = LogEvent { id: "a4e1790b5d3c4f26987c6d8fe0b2135a", priority: 6 };

/// The state of the store changed.
pub const STORE_STATE: LogEvent = LogEvent { id: "7be02f94c5d84a1e9a63d8f1b70c2e95", priority: 4 };
/// The state of the connection to D-Bus changed.
pub const DBUS_STATE: LogEvent = LogEvent { id: "d3f6581ea90b4c72b8e41c7d95a0f263", priority: 5 };

/// What the administrator reads about one event.
#[derive(Debug)]
pub struct LogEntry<'a> {
    /// The kind of entry.
    pub event: &'static LogEvent,
    /// The text, for the administrator.
    pub message: &'a str,
    /// Fields of the journal, such as WATTSPAN_DOMAIN.
    pub fields: &'a [(&'static str, &'a str)],
}

/// A function that logs an entry. A process that has no log of its own uses `|_| ()`.
pub type LogFn = fn(&LogEntry);

/// The destination of this process's entries, detected once.
enum LogTarget {
    Journal(UnixDatagram),
    /// Standard error, each line with its priority in angle brackets (sd-daemon(3)).
    StderrWithPriority,
    Stderr,
}

const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// Writes an entry to the journal, or to standard error where there is none.
pub fn log(entry: &LogEntry) {
    static TARGET: OnceLock<LogTarget> = OnceLock::new();
    let target = TARGET.get_or_init(|| detect_target(std::env::var("JOURNAL_STREAM").ok().as_deref()));
    let line = match target {
        LogTarget::Journal(socket) if socket.send(&encode_entry(entry)).is_ok() => return,
        LogTarget::Journal(_) | LogTarget::StderrWithPriority => {
            format!("<{}>{}\n", entry.event.priority, printable(entry.message))
        }
        LogTarget::Stderr => format!("wattspand: {}\n", printable_lines(entry.message).replace('\n', "\n  ")),
    };
    // A single write, so that lines of several threads do not mix. A failure cannot be reported.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// The journal, if standard error is the stream that the service manager connected to it. A redirected
/// standard error takes precedence.
fn detect_target(stream: Option<&str>) -> LogTarget {
    let stderr = rustix::fs::fstat(std::io::stderr()).ok();
    let named = stream.and_then(|stream| stream.split_once(':'));
    let is_journal = stderr.zip(named).is_some_and(|(stderr, (device, inode))| {
        device.parse() == Ok(stderr.st_dev) && inode.parse() == Ok(stderr.st_ino)
    });
    if !is_journal {
        return LogTarget::Stderr;
    }
    let connect = || -> std::io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(JOURNAL_SOCKET)?;
        // A journal that does not read must not block the daemon.
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    match connect() {
        // Another user could have bound the path, so it must belong to root.
        Ok(socket) if std::fs::metadata(JOURNAL_SOCKET).is_ok_and(|found| found.uid() == 0) => {
            LogTarget::Journal(socket)
        }
        _ => LogTarget::StderrWithPriority,
    }
}

/// Encodes an entry in the native protocol.
fn encode_entry(entry: &LogEntry) -> Vec<u8> {
    let priority = entry.event.priority.to_string();
    let standard = [
        ("MESSAGE", entry.message),
        ("PRIORITY", priority.as_str()),
        ("SYSLOG_IDENTIFIER", "wattspand"),
        ("MESSAGE_ID", entry.event.id),
    ];
    let mut bytes = Vec::new();
    for (name, value) in standard.iter().chain(entry.fields) {
        encode_field(&mut bytes, name, value);
    }
    bytes
}

/// `NAME=value`, or the form with a length if the value has a newline, which would start another field.
fn encode_field(bytes: &mut Vec<u8>, name: &str, value: &str) {
    /// Far below the maximum size of a datagram.
    const MAX_FIELD_BYTES: usize = 4096;
    let end =
        (0..=value.len().min(MAX_FIELD_BYTES)).rev().find(|&end| value.is_char_boundary(end)).unwrap_or(0);
    let value = &value[..end];
    bytes.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_entry_has_its_fields_and_cannot_forge_another() {
        let entry = LogEntry {
            event: &DOMAIN_NOT_LIVE,
            message: "domain gpu-0 is not live: a\nMESSAGE=forged",
            fields: &[("WATTSPAN_DOMAIN", "gpu-0")],
        };
        let bytes = encode_entry(&entry);
        let length = entry.message.len() as u64;
        let mut expected = b"MESSAGE\n".to_vec();
        expected.extend_from_slice(&length.to_le_bytes());
        expected.extend_from_slice(entry.message.as_bytes());
        expected.extend_from_slice(b"\nPRIORITY=4\nSYSLOG_IDENTIFIER=wattspand\nMESSAGE_ID=");
        expected.extend_from_slice(DOMAIN_NOT_LIVE.id.as_bytes());
        expected.extend_from_slice(b"\nWATTSPAN_DOMAIN=gpu-0\n");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_long_value_is_truncated_at_a_char_boundary() {
        let mut bytes = Vec::new();
        encode_field(&mut bytes, "F", &"é".repeat(4000));
        assert_eq!(bytes.len(), 2 + 4096 + 1);
        assert!(std::str::from_utf8(&bytes).is_ok());
    }

    #[test]
    fn every_message_id_is_unique_and_has_128_bits() {
        let all = [
            STARTED,
            STOPPED,
            FAILED,
            DOMAIN_LIVE,
            DOMAIN_NOT_LIVE,
            CONFIG_RELOADED,
            CONFIG_REJECTED,
            EXCESS_PRIVILEGES,
            RECORDING_ENDED,
        ];
        let mut ids: Vec<&str> = all.iter().map(|event| event.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all.len());
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())));
    }

    #[test]
    fn a_journal_stream_other_than_stderr_is_ignored() {
        assert!(matches!(detect_target(None), LogTarget::Stderr));
        assert!(matches!(detect_target(Some("0:0")), LogTarget::Stderr));
        assert!(matches!(detect_target(Some("nonsense")), LogTarget::Stderr));
    }
}
