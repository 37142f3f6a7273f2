//! The data of `wattspan top`: polls the meter, and reconnects after the daemon is gone.
//!
//! Polls instead of subscribing to the domains: each WatchDomains stream makes the samplers run at their full rate, which
//! a viewer at two frames a second does not need. Settled accounts come from a stream, which costs nothing while none
//! settles.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wattspan_client::account::{Account, Balance, SpanState};
use wattspan_client::clock;
use wattspan_client::protocol::{Access, DomainStatus, ListSpans, SamplerStatus, StoreStatus, WatchedSpan};
use wattspan_client::{Client, ClientError, ReplyStream};

use crate::account_pages::{AccountPage, AccountPages};
use crate::connect::{MeterConnector, MeterOptions, ensure_access, ensure_measurable};
use crate::exit_status::CliError;

/// The time after which a daemon that does not answer counts as gone.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pages of earlier accounts that are fetched after connecting.
const MAX_PAGES: usize = 16;

/// The most accounts of one page.
const PAGE_LENGTH: usize = 256;

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
    pub samplers: Vec<SamplerStatus>,
    /// The store on disk; `None` without one.
    pub store: Option<StoreStatus>,
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
    /// In the first update of a connection: `settled` has all accounts that closed since this instant. Earlier totals may be
    /// of another run of the daemon.
    pub complete_since_ns: Option<u64>,
}

/// The connections to the meter.
pub struct MeterFeed {
    connector: MeterConnector,
    link: Option<MeterLink>,
}

struct MeterLink {
    client: Client,
    settled: Receiver<Account>,
    /// Receives the stream of settled accounts, and ends with it.
    receiver_thread: JoinHandle<()>,
    /// Accounts of the first list, which the stream may repeat.
    listed: HashSet<(String, u64)>,
    /// The first list, until the first update.
    earlier: Option<EarlierAccounts>,
}

/// The accounts that settled in the daemon's present run, as far as they can be listed.
#[derive(Debug, Default, PartialEq)]
struct EarlierAccounts {
    accounts: Vec<Account>,
    /// Every account that closed since this instant is in the list.
    complete_since_ns: u64,
}

impl MeterFeed {
    /// Opens the meter selected by `options`.
    pub fn open(options: &MeterOptions) -> Result<Self, CliError> {
        let (connector, client) = MeterConnector::open(options)?;
        let info = client.info()?;
        ensure_measurable(&info)?;
        ensure_access(&info, Access::Span)?;
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
        // The daemon ends the stream of a client that was stopped for long. The list has the accounts of that time.
        let mut link = match self.link.take().filter(|link| !link.receiver_thread.is_finished()) {
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
        let listed = earlier.accounts.iter().map(identity).collect();
        let (settled, receiver_thread) = forward(stream);
        Ok(MeterLink { client, settled, receiver_thread, listed, earlier: Some(earlier) })
    }

    /// Asks for the balance last: then every account that is seen is part of it.
    fn poll(&mut self) -> Result<MeterUpdate, ClientError> {
        let limit = i64::try_from(PAGE_LENGTH).ok();
        let request = ListSpans { state: Some(SpanState::Open), limit, ..ListSpans::default() };
        let mut open = self.client.call(request)?.accounts;
        let info = self.client.info()?;
        let complete_since_ns = self.earlier.as_ref().map(|earlier| earlier.complete_since_ns);
        let mut settled = self.earlier.take().unwrap_or_default().accounts;
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
            samplers: info.samplers,
            store: info.keeping,
        };
        Ok(MeterUpdate { snapshot, settled, complete_since_ns })
    }
}

fn closed_or_opened_ns(account: &Account) -> u64 {
    account.closed_ns.unwrap_or(account.opened_ns)
}

/// IDs are unique among the open spans of a user only.
fn identity(account: &Account) -> (String, u64) {
    (account.span.clone(), account.opened_ns)
}

/// Receives a stream on a thread of its own, which ends with the connection or the receiver.
fn forward(stream: ReplyStream<WatchedSpan>) -> (Receiver<Account>, JoinHandle<()>) {
    let (sender, receiver) = channel();
    let thread = thread::spawn(move || {
        for reply in stream {
            let Ok(reply) = reply else { return };
            if sender.send(reply.account).is_err() {
                return;
            }
        }
    });
    (receiver, thread)
}

/// The accounts that settled in the daemon's present run, as many as fit the limit. Without the time of its start there
/// are none, since accounts of an earlier run are not part of its balance.
fn list_earlier_accounts(client: &Client) -> Result<EarlierAccounts, ClientError> {
    let info = client.info()?;
    let Some(started_ns) = info.started_ns else {
        return Ok(EarlierAccounts { complete_since_ns: info.now_ns, ..EarlierAccounts::default() });
    };
    // The instants of another boot are on another clock; their wall time is before the start.
    let started_unix_ns = clock::unix_ns().saturating_sub(clock::monotonic_ns().saturating_sub(started_ns));
    let request = ListSpans {
        since_unix_ns: i64::try_from(started_unix_ns.saturating_sub(1_000_000_000)).ok(),
        ..ListSpans::default()
    };
    let mut pages = AccountPages::new(client, request);
    let mut accounts: Vec<Account> = Vec::new();
    let oldest_ns = |accounts: &[Account]| accounts.last().map_or(info.now_ns, closed_or_opened_ns);
    let mut gap_ns = None;
    for _ in 0..MAX_PAGES {
        match pages.fetch(PAGE_LENGTH) {
            Ok(Some(AccountPage::Accounts(page))) => {
                accounts.extend(page.into_iter().filter(|account| account.opened_ns >= started_ns));
            }
            // Their energy is in the row of the other spans.
            Ok(Some(AccountPage::Damaged(_))) => gap_ns = gap_ns.or(Some(oldest_ns(&accounts))),
            Ok(None) | Err(ClientError::Method(_)) => break,
            Err(error) => return Err(error),
        }
    }
    if !pages.is_at_end() {
        gap_ns = gap_ns.or(Some(oldest_ns(&accounts)));
    }
    accounts.reverse();
    Ok(EarlierAccounts { accounts, complete_since_ns: gap_ns.unwrap_or(started_ns) })
}

#[cfg(test)]
mod tests {
    //! The list of earlier accounts from a thread that plays a daemon.

    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use serde_json::{Value, json};

    use super::super::test_machine::account;
    use super::*;

    /// Lists the earlier accounts of a daemon that started at 10 s and answers with these replies.
    fn list(replies: impl IntoIterator<Item = Value>) -> EarlierAccounts {
        let (client, mut daemon) = UnixStream::pair().unwrap();
        let info = json!({"parameters": {
            "version": "1", "boot_id": "b", "now_ns": 100_000_000_000_u64, "started_ns": 10_000_000_000_u64,
            "horizon_ns": 1, "history_ns": 1, "domains": [], "absent": [], "access": "span",
        }});
        let replies: Vec<Value> = [info].into_iter().chain(replies).collect();
        let thread = thread::spawn(move || {
            for reply in replies {
                let mut byte = [1];
                while byte != [0] {
                    daemon.read_exact(&mut byte).unwrap();
                }
                daemon.write_all(format!("{reply}\0").as_bytes()).unwrap();
            }
        });
        let earlier = list_earlier_accounts(&Client::from_stream(client).unwrap()).unwrap();
        thread.join().unwrap();
        earlier
    }

    fn page(closed_s: u64, before: Option<u64>) -> Value {
        let account = Account {
            opened_ns: closed_s * 1_000_000_000 - 1,
            closed_ns: Some(closed_s * 1_000_000_000),
            ..account("a", "small", &[])
        };
        json!({"parameters": {"accounts": [account], "before": before}})
    }

    fn damaged(before: u64) -> Value {
        json!({"error": "org.wattspan.Meter.StoreDamaged", "parameters": {"reason": "r", "before": before}})
    }

    fn closed_s(earlier: &EarlierAccounts) -> Vec<u64> {
        earlier.accounts.iter().map(|account| account.closed_ns.unwrap() / 1_000_000_000).collect()
    }

    #[test]
    fn a_list_is_complete_since_its_last_gap() {
        let whole = list([page(90, Some(7)), page(80, None)]);
        assert_eq!((closed_s(&whole), whole.complete_since_ns), (vec![80, 90], 10_000_000_000));
        let damaged = list([page(90, Some(7)), damaged(6), page(80, Some(4)), damaged(3), page(70, None)]);
        assert_eq!((closed_s(&damaged), damaged.complete_since_ns), (vec![70, 80, 90], 90_000_000_000));
        let unreadable =
            json!({"error": "org.wattspan.Meter.StoreUnavailable", "parameters": {"reason": "r"}});
        assert_eq!(
            list([unreadable]),
            EarlierAccounts { complete_since_ns: 100_000_000_000, ..EarlierAccounts::default() }
        );
    }

    #[test]
    fn a_list_that_is_cut_is_complete_since_its_oldest_account() {
        let cut = list((0..MAX_PAGES as u64).map(|number| page(90 - number, Some(1000 - number))));
        assert_eq!((cut.accounts.len(), cut.complete_since_ns), (MAX_PAGES, 75_000_000_000));
    }
}
