//! The model server's process, whose share of each account is stated beside the whole.
//!
//! Owns what the operator named, a process or a control group, until it turns out to be gone or refused. Without one an
//! account has no process share: the default, the process that connected, would be the proxy, which computes nothing.
//! Invariant: a process that has ended is named no more, so that its number cannot mean another one.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::visible::Log;
use crate::protocol::{Answer, OpenSpan, OpenedSpan, Refusal};

/// How long a control group that the daemon refused is not named: a service that restarts has none for a moment. One
/// request goes unmeasured at each attempt.
const RETRY: Duration = Duration::from_secs(30);

/// What the operator named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerProcess {
    /// A process with its descendants.
    Process(u32),
    /// A control group, by its path in `/proc/PID/cgroup`.
    ControlGroup(String),
}

impl fmt::Display for ServerProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerProcess::Process(pid) => write!(f, "process {pid}"),
            ServerProcess::ControlGroup(path) => write!(f, "control group {path}"),
        }
    }
}

/// The process that spans name now.
pub struct Named {
    state: Mutex<State>,
    log: Log,
}

struct State {
    server: Option<ServerProcess>,
    refused: Option<Instant>,
}

impl Named {
    /// Spans name this one, or none.
    pub fn new(server: Option<ServerProcess>, log: Log) -> Self {
        Named { state: Mutex::new(State { server, refused: None }), log }
    }

    /// Names it in a span that is about to open; whether the span depends on it.
    pub fn fill(&self, opening: &mut OpenSpan) -> bool {
        let state = self.state();
        let named = state.server.as_ref().filter(|_| state.refused.is_none_or(|at| at.elapsed() >= RETRY));
        match named {
            Some(ServerProcess::Process(pid)) => opening.process = Some(i64::from(*pid)),
            Some(ServerProcess::ControlGroup(path)) => opening.cgroup = Some(path.clone()),
            None => opening.process_share = Some(false),
        }
        opening.process_share.is_none()
    }

    /// Names it no more, and logs why.
    pub fn forget(&self, reason: &str) {
        let server = self.state().server.take();
        if let Some(server) = server {
            self.log.line(&format!(
                "{server}: {reason}; accounts have no process share from now on. Start the proxy again to name another"
            ));
        }
    }

    /// Names the control group no more for a while; one refusal of many in a row is logged.
    fn suspend(&self, refusal: &Refusal) {
        let mut state = self.state();
        let is_first = state.refused.replace(Instant::now()).is_none();
        if let Some(server) = state.server.as_ref().filter(|_| is_first) {
            self.log.line(&format!(
                "{server}: {refusal}; accounts have no process share until the daemon accepts it (tried every {} s)",
                RETRY.as_secs()
            ));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the answer to a span that named it. A refusal of the process itself ends the naming, since it would leave
    /// every request unmeasured.
    ///
    /// # Errors
    /// Why the connection is of no use any more: it is no answer.
    pub fn opened(&self, message: &[u8]) -> Result<(), String> {
        let unreadable = |error| format!("the daemon's answer to OpenSpan is unreadable: {error}");
        let answer = Answer::read(message).map_err(unreadable)?;
        match answer.into_reply::<OpenedSpan>().map_err(unreadable)? {
            Ok(_) => self.state().refused = None,
            Err(Refusal::InvalidValue { field, reason }) if field == "process" => self.forget(&reason),
            // The connection itself may open spans: its first answer said so.
            Err(refusal @ Refusal::AccessDenied { .. }) => self.forget(&refusal.to_string()),
            Err(refusal) if is_of_group(&refusal) => self.suspend(&refusal),
            // Any other refusal is of the span, and its end states it.
            Err(_) => {}
        }
        Ok(())
    }
}

fn is_of_group(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::InvalidValue { field, .. } => field == "cgroup",
        Refusal::QuotaExceeded { quota, .. } => quota.starts_with("watched processes"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(named: &Named) -> (bool, OpenSpan) {
        let mut opening = OpenSpan::default();
        (named.fill(&mut opening), opening)
    }

    #[test]
    fn a_span_names_the_server_or_has_no_process_share_and_never_the_default() {
        let (depends, opening) = filled(&Named::new(None, Log::new(|_| ())));
        assert_eq!((depends, opening.process_share), (false, Some(false)));
        let (depends, opening) = filled(&Named::new(Some(ServerProcess::Process(7)), Log::new(|_| ())));
        assert_eq!((depends, opening.process, opening.process_share), (true, Some(7), None));
        let group = ServerProcess::ControlGroup("/vllm".into());
        let (depends, opening) = filled(&Named::new(Some(group), Log::new(|_| ())));
        assert_eq!((depends, opening.cgroup.as_deref()), (true, Some("/vllm")));
    }

    /// Whether spans name the server after this answer.
    fn still_named(server: ServerProcess, message: &str) -> bool {
        let named = Named::new(Some(server), Log::new(|_| ()));
        named.opened(message.as_bytes()).unwrap();
        filled(&named).0
    }

    fn refusal(name: &str, parameters: &str) -> String {
        format!(r#"{{"error":"org.wattspan.Meter.{name}","parameters":{parameters}}}"#)
    }

    #[test]
    fn a_refusal_of_the_process_ends_the_naming_and_one_of_the_span_does_not() {
        let process = || ServerProcess::Process(7);
        let group = || ServerProcess::ControlGroup("/vllm".into());
        assert!(still_named(process(), r#"{"parameters":{"span":"a"}}"#));
        for (name, parameters) in [
            ("SpanExists", r#"{"span":"a"}"#),
            ("InvalidValue", r#"{"field":"name","reason":"x"}"#),
            ("QuotaExceeded", r#"{"quota":"calls a second","limit":2}"#),
        ] {
            assert!(still_named(process(), &refusal(name, parameters)), "{name} {parameters}");
        }
        let gone = |field| refusal("InvalidValue", &format!(r#"{{"field":"{field}","reason":"gone"}}"#));
        assert!(!still_named(process(), &gone("process")));
        assert!(!still_named(group(), &gone("cgroup")));
        for (name, parameters) in [
            ("AccessDenied", r#"{"needs":"telemetry"}"#),
            ("QuotaExceeded", r#"{"quota":"watched processes and control groups","limit":64}"#),
        ] {
            assert!(!still_named(group(), &refusal(name, parameters)), "{name} {parameters}");
        }
    }

    #[test]
    fn a_control_group_that_was_missing_is_named_again_later() {
        let named = Named::new(Some(ServerProcess::ControlGroup("/vllm".into())), Log::new(|_| ()));
        let gone = refusal("InvalidValue", r#"{"field":"cgroup","reason":"gone"}"#);
        named.opened(gone.as_bytes()).unwrap();
        assert!(!filled(&named).0);
        named.state().refused = Instant::now().checked_sub(RETRY);
        assert!(filled(&named).0);
        named.opened(br#"{"parameters":{"span":"a"}}"#).unwrap();
        assert!(filled(&named).0 && named.state().refused.is_none());
    }
}
