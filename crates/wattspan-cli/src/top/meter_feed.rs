//! The data of `wattspan top`: polls the meter, and reconnects after the daemon is gone.
//!
//! Polls instead of subscribing to the domains: each WatchDomains stream makes the samplers run at their full rate, which
//! a viewer at two frames a second does not need. Settled accounts come from a stream, which costs nothing while none
//! settles.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use wattspan_client::account::{Account, Balance, SpanState};
use wattspan_client::clock;
use wattspan_client::protocol::{Access, DomainStatus, ListSpans, MethodError};
use wattspan_client::{Client, ClientError, ReplyStream};

use crate::connect::{MeterConnector, MeterOptions, ensure_measurable};
use crate::exit_status::CliError;

/// The time after which a daemon that does not answer counts as gone.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pages of earlier accounts that are fetched after connecting.
const MAX_PAGES: usize = 16;

/// The most accounts of one page.
const PAGE_LENGTH: i64 = 256;

/// The state of the meter at one instant.
#[derive(Debug, Clone)]
pub struct MeterSnapshot {
    pub version: String,
    pub now_ns: u64,
    pub started_ns: Option<u64>,
    pub domains: Vec<DomainStatus>,
    pub at_least: Option<bool>,
    pub balance: Vec<Balance>,
    /// Open spans, with their accounts so far.
    pub open: Vec<Account>,
}

impl MeterSnapshot {
    pub fn counted_domains(&self) -> Vec<String> {
        let counted = self.domains.iter().filter(|domain| domain.counted);
        counted.map(|domain| domain.name.clone()).collect()
    }

    pub fn uptime_ns(&self) -> Option<u64> {
        self.now_ns.checked_sub(self.started_ns?)
    }
}

/// What changed since the last poll.
#[derive(Debug)]
pub struct MeterUpdate {
    pub snapshot: MeterSnapshot,
    /// Accounts that settled since the last update.
    pub settled: Vec<Account>,
    /// The first update of a connection: earlier totals may be of another run of the daemon.
    pub is_first: bool,
}

/// The connections to the meter.
pub struct MeterFeed {
    connector: MeterConnector,
    link: Option<MeterLink>,
}

struct MeterLink {
    client: Client,
    settled: Receiver<Account>,
    /// Accounts of the first list, which the stream may repeat.
    listed: HashSet<(String, u64)>,
    /// The accounts of the first list, until the first update.
    earlier: Option<Vec<Account>>,
}

impl MeterFeed {
    /// Opens the meter selected by `options`.
    pub fn open(options: &MeterOptions) -> Result<Self, CliError> {
        let (connector, client) = MeterConnector::open(options)?;
        let info = client.info()?;
        ensure_measurable(&info)?;
        if info.access < Access::Span {
            return Err(ClientError::Method(MethodError::AccessDenied { needs: "span".into() }).into());
        }
        Ok(MeterFeed { connector, link: None })
    }

    /// "daemon" or "embedded".
    pub fn meter_kind(&self) -> &'static str {
        self.connector.description().kind
    }

    /// Why the meter is embedded, if that was not requested.
    pub fn fallback_notice(&self) -> Option<String> {
        self.connector.description().remark
    }

    /// Prints why the meter is embedded, if that was not requested.
    pub fn print_fallback_notice(&self) {
        self.connector.print_fallback_notice();
    }

    /// The present state. After an error the next poll connects again.
    pub fn poll(&mut self) -> Result<MeterUpdate, ClientError> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => MeterLink::connect(&self.connector)?,
        };
        let update = link.poll()?;
        self.link = Some(link);
        Ok(update)
    }
}

impl MeterLink {
    fn connect(connector: &MeterConnector) -> Result<Self, ClientError> {
        // The stream begins before the list, so that no account is missed.
        let stream = connector.connect()?.watch_spans()?;
        stream.set_timeout(None)?;
        let client = connector.connect()?;
        client.set_timeout(Some(REPLY_TIMEOUT))?;
        let earlier = list_earlier_accounts(&client)?;
        let listed = earlier.iter().map(identity).collect();
        Ok(MeterLink { client, settled: forward(stream), listed, earlier: Some(earlier) })
    }

    /// Asks for the balance last: then every account that is seen is part of it.
    fn poll(&mut self) -> Result<MeterUpdate, ClientError> {
        let request =
            ListSpans { state: Some(SpanState::Open), limit: Some(PAGE_LENGTH), ..ListSpans::default() };
        let mut open = self.client.call(request)?.accounts;
        let info = self.client.info()?;
        let is_first = self.earlier.is_some();
        let mut settled = self.earlier.take().unwrap_or_default();
        let received: Vec<Account> = self.settled.try_iter().collect();
        settled.extend(received.into_iter().filter(|account| !self.listed.contains(&identity(account))));
        let ended: HashSet<(String, u64)> = settled.iter().map(identity).collect();
        open.retain(|account| !ended.contains(&identity(account)));
        let balance = self.client.balance()?;
        let snapshot = MeterSnapshot {
            version: info.version,
            now_ns: info.now_ns,
            started_ns: info.started_ns,
            domains: info.domains,
            at_least: info.at_least,
            balance,
            open,
        };
        Ok(MeterUpdate { snapshot, settled, is_first })
    }
}

/// IDs are unique among the open spans of a user only.
fn identity(account: &Account) -> (String, u64) {
    (account.span.clone(), account.opened_ns)
}

/// Receives a stream on a thread of its own, which ends with the connection or the receiver.
fn forward(stream: ReplyStream<wattspan_client::protocol::WatchedSpan>) -> Receiver<Account> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for reply in stream {
            let Ok(reply) = reply else { return };
            if sender.send(reply.account).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The accounts that settled in the daemon's present run, as many as fit the limit. Without the time of its start there
/// are none, since accounts of an earlier run are not part of its balance.
fn list_earlier_accounts(client: &Client) -> Result<Vec<Account>, ClientError> {
    let info = client.info()?;
    let Some(started_ns) = info.started_ns else { return Ok(Vec::new()) };
    // The instants of another boot are on another clock; their wall time is before the start.
    let started_unix_ns = clock::unix_ns().saturating_sub(clock::monotonic_ns().saturating_sub(started_ns));
    let mut request = ListSpans {
        since_unix_ns: i64::try_from(started_unix_ns.saturating_sub(1_000_000_000)).ok(),
        limit: Some(PAGE_LENGTH),
        ..ListSpans::default()
    };
    let mut accounts = Vec::new();
    for _ in 0..MAX_PAGES {
        let page = match client.call(request.clone()) {
            Ok(page) => page,
            // Their energy is in the row of the other spans.
            Err(ClientError::Method(MethodError::StoreDamaged { before: Some(before), .. })) => {
                request.before = i64::try_from(before).ok();
                continue;
            }
            Err(ClientError::Method(_)) => break,
            Err(error) => return Err(error),
        };
        accounts.extend(page.accounts.into_iter().rev());
        match page.before {
            Some(before) => request.before = i64::try_from(before).ok(),
            None => break,
        }
    }
    accounts.retain(|account| account.opened_ns >= started_ns);
    accounts.reverse();
    Ok(accounts)
}
