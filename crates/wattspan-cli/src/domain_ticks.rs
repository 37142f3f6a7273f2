//! Periodic snapshots of every domain's energy.
//!
//! With telemetry access the daemon streams them. With span access they are polled, while an open span of weight 0 keeps
//! the samplers at their full rate without taking a share. Both start only once the samplers run at that rate: an idle
//! meter's last reading may be a second old, and the energy since then would appear as a burst.

use std::thread;
use std::time::Duration;

use wattspan_client::protocol::{Access, CancelSpan, DaemonInfo, DomainSnapshot, MethodError, OpenSpan};
use wattspan_client::{Client, ClientError, ReplyStream};

use super::connect::MeterConnector;
use super::exit_status::CliError;

/// Time for the samplers to reach their full rate before the first tick.
const WARM_UP: Duration = Duration::from_millis(60);

/// Rate of the stream that wakes the samplers.
const WARM_UP_HZ: f64 = 100.0;

/// Delay of a tick, beyond its interval, after which the meter counts as stalled.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// An endless iterator of snapshots, until the first error.
pub enum DomainTicks {
    /// Streamed by the daemon.
    Streamed(ReplyStream<DomainSnapshot>),
    /// Polled from the daemon.
    Polled(DomainPoller),
}

/// Polls the daemon, with an open span of weight 0.
pub struct DomainPoller {
    client: Client,
    interval: Duration,
    span: String,
    first: bool,
}

impl DomainTicks {
    /// Starts ticks every `interval`, streamed or polled depending on the caller's access.
    pub fn open(
        connector: &MeterConnector,
        client: Client,
        info: &DaemonInfo,
        interval: Duration,
    ) -> Result<Self, CliError> {
        match info.access {
            Access::None | Access::Coarse => {
                Err(ClientError::Method(MethodError::AccessDenied { needs: "span".into() }).into())
            }
            Access::Span => {
                let request =
                    OpenSpan { name: Some("wattspan read".into()), weight: Some(0.0), ..OpenSpan::default() };
                let span = client.call(request)?.span;
                thread::sleep(WARM_UP);
                Ok(DomainTicks::Polled(DomainPoller { client, interval, span, first: true }))
            }
            Access::Telemetry | Access::Admin => {
                warm_up_samplers(connector)?;
                let stream = client.watch_domains(Some(1.0 / interval.as_secs_f64()))?;
                stream.set_timeout(Some(interval + STALL_TIMEOUT))?;
                Ok(DomainTicks::Streamed(stream))
            }
        }
    }
}

/// Watches on a separate connection until the samplers run at full rate; they keep it for a while.
fn warm_up_samplers(connector: &MeterConnector) -> Result<(), ClientError> {
    let mut stream = connector.connect()?.watch_domains(Some(WARM_UP_HZ))?;
    let first = stream.next().transpose()?;
    let start_ns = first.map_or(0, |tick| tick.now_ns);
    let warm_up_ns = u64::try_from(WARM_UP.as_nanos()).unwrap_or(u64::MAX);
    for tick in stream {
        if tick?.now_ns.saturating_sub(start_ns) >= warm_up_ns {
            break;
        }
    }
    Ok(())
}

impl Iterator for DomainTicks {
    type Item = Result<DomainSnapshot, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            DomainTicks::Streamed(stream) => stream.next(),
            DomainTicks::Polled(poller) => Some(poller.poll()),
        }
    }
}

impl DomainPoller {
    fn poll(&mut self) -> Result<DomainSnapshot, ClientError> {
        if !std::mem::replace(&mut self.first, false) {
            thread::sleep(self.interval);
        }
        let info = self.client.info()?;
        Ok(DomainSnapshot { now_ns: info.now_ns, domains: info.domains, at_least: info.at_least })
    }
}

impl Drop for DomainPoller {
    fn drop(&mut self) {
        // If this fails, the daemon cancels the span when the connection closes.
        let _ = self.client.oneway(CancelSpan { span: std::mem::take(&mut self.span) });
    }
}
