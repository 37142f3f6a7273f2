//! Every domain's energy again and again, for whoever may have it.
//!
//! Owns the two ways to it. With telemetry access the daemon sends; with span access it is asked, while an open span of
//! weight 0 keeps its samplers fast: that span takes no share from anybody. Both begin only when the samplers are
//! awake: an idle meter's last reading may be a second old, and the energy since then would look like a burst.

use std::thread;
use std::time::Duration;

use super::ending::Trouble;
use super::reach::Reach;
use crate::client::{Client, Failure, Stream};
use crate::protocol::{Access, CancelSpan, DomainTick, Info, OpenSpan, Refusal};

/// How long the samplers are kept awake before the first tick counts.
const WAKING: Duration = Duration::from_millis(60);

/// How often the waking stream ticks.
const WAKING_HZ: f64 = 100.0;

/// How far behind its interval a tick may be before the meter counts as stalled.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ticks without end, until the first failure.
pub enum Ticks {
    /// The daemon sends them.
    Sent(Stream<DomainTick>),
    /// The daemon is asked for them.
    Asked(Asking),
}

/// A client that asks again and again.
pub struct Asking {
    client: Client,
    interval: Duration,
    span: String,
    first: bool,
}

impl Ticks {
    /// Ticks every `interval`, in the way that the caller's access allows.
    pub fn open(reach: &Reach, client: Client, info: &Info, interval: Duration) -> Result<Self, Trouble> {
        match info.access {
            Access::None | Access::Coarse => {
                Err(Failure::Refused(Refusal::AccessDenied { needs: "span".into() }).into())
            }
            Access::Span => {
                let opening =
                    OpenSpan { name: Some("wattspan read".into()), weight: Some(0.0), ..OpenSpan::default() };
                let span = client.call(opening)?.span;
                thread::sleep(WAKING);
                Ok(Ticks::Asked(Asking { client, interval, span, first: true }))
            }
            Access::Telemetry | Access::Admin => {
                waken(reach)?;
                let stream = client.watch_domains(Some(1.0 / interval.as_secs_f64()))?;
                stream.set_timeout(Some(interval + PATIENCE))?;
                Ok(Ticks::Sent(stream))
            }
        }
    }
}

/// Watches on a connection of its own until the samplers are fast; they stay so for a while after.
fn waken(reach: &Reach) -> Result<(), Failure> {
    let mut stream = reach.again()?.watch_domains(Some(WAKING_HZ))?;
    let first = stream.next().transpose()?;
    let begin = first.map_or(0, |tick| tick.now_ns);
    let waking_ns = u64::try_from(WAKING.as_nanos()).unwrap_or(u64::MAX);
    for tick in stream {
        if tick?.now_ns.saturating_sub(begin) >= waking_ns {
            break;
        }
    }
    Ok(())
}

impl Iterator for Ticks {
    type Item = Result<DomainTick, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Ticks::Sent(stream) => stream.next(),
            Ticks::Asked(asking) => Some(asking.ask()),
        }
    }
}

impl Asking {
    fn ask(&mut self) -> Result<DomainTick, Failure> {
        if !std::mem::replace(&mut self.first, false) {
            thread::sleep(self.interval);
        }
        let info = self.client.info()?;
        Ok(DomainTick { now_ns: info.now_ns, domains: info.domains, at_least: info.at_least })
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // The daemon forgets it with the connection otherwise.
        let _ = self.client.oneway(CancelSpan { span: std::mem::take(&mut self.span) });
    }
}
