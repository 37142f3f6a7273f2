//! The inference server's process or control group, whose share each account states.
//!
//! Without one a span requests no process share: the daemon's default is the process that connected, which is the
//! proxy. Invariant: after the end of the process no span names its id, which the kernel can give to another process.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wattspan_client::protocol::{IncomingReply, MethodError, OpenSpan, OpenedSpan};

use super::log::LogSink;

/// How long spans do not name a control group that the daemon refused: a service that restarts has none for a moment.
/// One request is unmeasured at each attempt.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// The process or control group of the inference server.
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

/// The process that new spans name.
pub struct ServerProcessTracker {
    state: Mutex<TrackerState>,
    log: LogSink,
}

struct TrackerState {
    server: Option<ServerProcess>,
    refused_at: Option<Instant>,
}

impl ServerProcessTracker {
    pub fn new(server: Option<ServerProcess>, log: LogSink) -> Self {
        ServerProcessTracker { state: Mutex::new(TrackerState { server, refused_at: None }), log }
    }

    /// Names the process in `request`; returns whether it did.
    pub fn set_process(&self, request: &mut OpenSpan) -> bool {
        let state = self.lock();
        let server = state
            .server
            .as_ref()
            .filter(|_| state.refused_at.is_none_or(|at| at.elapsed() >= RETRY_INTERVAL));
        match server {
            Some(ServerProcess::Process(pid)) => request.process = Some(i64::from(*pid)),
            Some(ServerProcess::ControlGroup(path)) => request.cgroup = Some(path.clone()),
            None => request.process_share = Some(false),
        }
        request.process_share.is_none()
    }

    /// Stops naming the process and logs the reason.
    pub fn forget(&self, reason: &str) {
        let server = self.lock().server.take();
        if let Some(server) = server {
            self.log.write_line(&format!(
                "{server}: {reason}; accounts have no process share from now on; restart the proxy to name another process"
            ));
        }
    }

    /// Stops naming the control group for [`RETRY_INTERVAL`]; the first of consecutive refusals is logged.
    fn suspend(&self, error: &MethodError) {
        let mut state = self.lock();
        let is_first = state.refused_at.replace(Instant::now()).is_none();
        if let Some(server) = state.server.as_ref().filter(|_| is_first) {
            self.log.write_line(&format!(
                "{server}: {error}; accounts have no process share until the daemon accepts it (tried every {} s)",
                RETRY_INTERVAL.as_secs()
            ));
        }
    }

    fn lock(&self) -> MutexGuard<'_, TrackerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles the reply to an OpenSpan that named the process. After a refusal of the process itself, spans stop
    /// naming it: every request would be unmeasured. Returns an error that concerns the span instead.
    ///
    /// # Errors
    /// The connection must be closed: the reply is invalid.
    pub fn handle_open_reply(&self, message: &[u8]) -> Result<Option<MethodError>, String> {
        let unreadable = |error| format!("invalid reply of the daemon to OpenSpan: {error}");
        let reply = IncomingReply::parse(message).map_err(unreadable)?;
        match reply.into_result::<OpenedSpan>().map_err(unreadable)? {
            Ok(_) => self.lock().refused_at = None,
            Err(MethodError::InvalidValue { field, reason }) if field == "process" => self.forget(&reason),
            // The connection has access to OpenSpan (the reply to GetInfo), so the process causes this error.
            Err(error @ MethodError::AccessDenied { .. }) => self.forget(&error.to_string()),
            Err(error) if is_control_group_error(&error) => self.suspend(&error),
            Err(error) => return Ok(Some(error)),
        }
        Ok(None)
    }
}

fn is_control_group_error(error: &MethodError) -> bool {
    match error {
        MethodError::InvalidValue { field, .. } => field == "cgroup",
        MethodError::QuotaExceeded { quota, .. } => quota.starts_with("watched processes"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request_for(tracker: &ServerProcessTracker) -> (bool, OpenSpan) {
        let mut request = OpenSpan::default();
        (tracker.set_process(&mut request), request)
    }

    #[test]
    fn a_span_names_the_server_process_or_disables_the_process_share() {
        let (names_process, request) = request_for(&ServerProcessTracker::new(None, LogSink::new(|_| ())));
        assert_eq!((names_process, request.process_share), (false, Some(false)));
        let (names_process, request) =
            request_for(&ServerProcessTracker::new(Some(ServerProcess::Process(7)), LogSink::new(|_| ())));
        assert_eq!((names_process, request.process, request.process_share), (true, Some(7), None));
        let group = ServerProcess::ControlGroup("/vllm".into());
        let (names_process, request) =
            request_for(&ServerProcessTracker::new(Some(group), LogSink::new(|_| ())));
        assert_eq!((names_process, request.cgroup.as_deref()), (true, Some("/vllm")));
    }

    /// Whether spans name the server after this reply.
    fn is_still_named(server: ServerProcess, message: &str) -> bool {
        let tracker = ServerProcessTracker::new(Some(server), LogSink::new(|_| ()));
        tracker.handle_open_reply(message.as_bytes()).unwrap();
        request_for(&tracker).0
    }

    fn error_reply(name: &str, parameters: &str) -> String {
        format!(r#"{{"error":"org.wattspan.Meter.{name}","parameters":{parameters}}}"#)
    }

    #[test]
    fn only_errors_about_the_process_stop_naming_it() {
        let process = || ServerProcess::Process(7);
        let group = || ServerProcess::ControlGroup("/vllm".into());
        assert!(is_still_named(process(), r#"{"parameters":{"span":"a"}}"#));
        for (name, parameters) in [
            ("SpanExists", r#"{"span":"a"}"#),
            ("InvalidValue", r#"{"field":"name","reason":"x"}"#),
            ("QuotaExceeded", r#"{"quota":"calls a second","limit":2}"#),
        ] {
            let message = error_reply(name, parameters);
            assert!(is_still_named(process(), &message), "{name} {parameters}");
            let tracker = ServerProcessTracker::new(Some(process()), LogSink::new(|_| ()));
            let error = tracker.handle_open_reply(message.as_bytes()).unwrap();
            assert!(error.is_some(), "{name}: the refusal of the span is logged");
        }
        let gone = |field| error_reply("InvalidValue", &format!(r#"{{"field":"{field}","reason":"gone"}}"#));
        assert!(!is_still_named(process(), &gone("process")));
        assert!(!is_still_named(group(), &gone("cgroup")));
        for (name, parameters) in [
            ("AccessDenied", r#"{"needs":"telemetry"}"#),
            ("QuotaExceeded", r#"{"quota":"watched processes and control groups","limit":64}"#),
        ] {
            assert!(!is_still_named(group(), &error_reply(name, parameters)), "{name} {parameters}");
        }
    }

    #[test]
    fn a_missing_control_group_is_retried() {
        let tracker = ServerProcessTracker::new(
            Some(ServerProcess::ControlGroup("/vllm".into())),
            LogSink::new(|_| ()),
        );
        let gone = error_reply("InvalidValue", r#"{"field":"cgroup","reason":"gone"}"#);
        tracker.handle_open_reply(gone.as_bytes()).unwrap();
        assert!(!request_for(&tracker).0);
        tracker.lock().refused_at = Instant::now().checked_sub(RETRY_INTERVAL);
        assert!(request_for(&tracker).0);
        tracker.handle_open_reply(br#"{"parameters":{"span":"a"}}"#).unwrap();
        assert!(request_for(&tracker).0 && tracker.lock().refused_at.is_none());
    }
}
