//! The one place where a request meets the ledger.
//!
//! Owns the ledger, the feeds that fill it, and the register of whose span is which. Knows no transport: callers come
//! with a [`Peer`], answers go out as values, awaited ones under a [`Ticket`]. Everything here runs on one thread and
//! never waits; time comes from the one clock it was given.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::attribution::account::Account;
use crate::attribution::{self, Ledger, MOST_DOMAINS, SpanKey};
use crate::clock::{self, Clock};
use crate::config::Limits;
use crate::domain::Absent;
use crate::privileges::Confinement;
use crate::process_usage::{Origin, Roots};
use crate::protocol::Refusal;
use crate::sampler;

use super::access::{Peer, Policy};
use super::allocator;
use super::allowance::{Allowance, Errand, Excess};
use super::coarse_spans::CoarseSpans;
use super::cursor::Cursors;
use super::feed::Feeds;
use super::gpu_share::GpuShares;
use super::keeping::Keeping;
use super::recall::Known;
use super::register::Register;
use super::subject::Subjects;
use super::ticket::Ticket;
use super::token::Tokens;
use super::upkeep::Upkeep;

/// How far ahead of the daemon's clock an edge may lie (clocks of two CPUs, rounding by the client).
const FUTURE_NS: u64 = 1_000_000;

/// How the service is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How the ledger is.
    pub ledger: attribution::Settings,
    /// What one client may take.
    pub limits: Limits,
    /// Who may what.
    pub policy: Policy,
    /// How far back readings are kept, and edges are taken, at least.
    pub history_ns: u64,
    /// Where processes and control groups are shown.
    pub roots: Roots,
    /// A library to load instead of the system's NVML.
    pub nvml_library: Option<PathBuf>,
}

/// Who calls, through what.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Who it is.
    pub peer: Peer,
    /// Where an awaited answer would go.
    pub ticket: Ticket,
    /// The process at the other end, where the transport tells it.
    pub origin: Option<Origin>,
}

/// What a close gives.
#[derive(Debug)]
pub enum Closed {
    /// The account so far.
    Account(Box<Account>),
    /// The final account will come under the caller's ticket.
    Awaited,
}

/// A final account, and who waited for it.
#[derive(Debug)]
pub struct Final {
    /// The account.
    pub account: Arc<Account>,
    /// Whose answer it is.
    pub ticket: Option<Ticket>,
}

/// The meter as its clients see it.
pub struct Service {
    pub(crate) clock: Clock,
    pub(crate) ledger: Ledger,
    pub(crate) feeds: Feeds,
    pub(crate) absent: Vec<Absent>,
    pub(crate) settings: Settings,
    pub(crate) index: HashMap<String, usize>,
    pub(crate) register: Register,
    pub(crate) coarse: CoarseSpans,
    allowance: Allowance,
    pub(crate) tokens: Tokens,
    /// Of lists that go on on disk.
    pub(crate) cursors: Cursors,
    pub(crate) subjects: Subjects,
    pub(crate) boot_id: String,
    /// What a daemon has and a meter inside a client has not.
    pub(crate) upkeep: Option<Upkeep>,
    pub(crate) confinement: Option<Confinement>,
    /// Room to settle into, empty between two calls.
    settled: Vec<(SpanKey, Account)>,
    /// Some have settled and are not finished.
    unfinished: bool,
    /// The most memory that spans took since memory was last given back, by estimate.
    peak_held: usize,
    /// When it is given back once more.
    compact_at_ns: Option<u64>,
    /// Final, and not yet handed out by a pump.
    pub(crate) finals: Vec<Final>,
    /// The ledger on disk, where there is one.
    pub(crate) keeping: Option<Keeping>,
    /// The disk's answers, not yet handed out.
    pub(crate) replies: Vec<(Ticket, Vec<u8>)>,
    /// Somebody watches the final accounts.
    pub(crate) listened: bool,
    taken_in_ns: u64,
    hurried: bool,
    recording: bool,
    watchers: usize,
}

impl Service {
    /// A service over feeds that run already. Fails where the kernel's random device cannot be opened.
    pub fn new(feeds: Feeds, absent: Vec<Absent>, settings: Settings, clock: Clock) -> io::Result<Self> {
        let index = feeds.domains().enumerate().map(|(at, domain)| (domain.name.clone(), at)).collect();
        let mut ledger = Ledger::new(feeds.domains().cloned().collect(), settings.ledger.clone());
        feeds.introduce(&mut ledger);
        let gpus = GpuShares::new(feeds.domains().enumerate(), settings.nvml_library.clone());
        let domains = feeds.domains().count().min(MOST_DOMAINS);
        Ok(Self {
            clock,
            ledger,
            feeds,
            absent,
            register: Register::new(settings.limits.clone(), domains),
            coarse: CoarseSpans::new(settings.ledger.horizon_ns),
            allowance: Allowance::default(),
            subjects: Subjects::new(settings.roots.clone(), gpus),
            settings,
            index,
            tokens: Tokens::new()?,
            cursors: Cursors::default(),
            boot_id: boot_id(),
            upkeep: None,
            confinement: None,
            settled: Vec::new(),
            unfinished: false,
            peak_held: 0,
            compact_at_ns: None,
            finals: Vec::new(),
            keeping: None,
            replies: Vec::new(),
            listened: false,
            taken_in_ns: 0,
            hurried: false,
            recording: false,
            watchers: 0,
        })
    }

    /// Makes it a daemon's: it can be reloaded, tells the service manager how it is, and shows what it gave up.
    pub fn serve_as_daemon(&mut self, upkeep: Upkeep, confinement: Confinement) {
        (self.upkeep, self.confinement) = (Some(upkeep), Some(confinement));
    }

    /// The service's clock.
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// What one client may take.
    pub fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    /// One call of this peer, through whatever door.
    ///
    /// # Errors
    /// The peer's calls are used up.
    pub fn spend(&mut self, peer: &Peer, errand: Errand) -> Result<(), Excess> {
        if peer.unlimited {
            return Ok(());
        }
        self.allowance.spend(peer, errand, self.clock.now_ns(), &self.settings.limits)
    }

    /// Who may what.
    pub fn policy(&self) -> &Policy {
        &self.settings.policy
    }

    /// How many watch the domains; while somebody does, the samplers are fast.
    pub fn set_watchers(&mut self, watchers: usize) {
        self.watchers = watchers;
        self.hurry(self.ledger.busy() || watchers > 0);
    }

    /// Takes in new readings and settles what they allow, and appends the final accounts to `finals`.
    pub fn pump(&mut self, finals: &mut Vec<Final>) {
        self.take_in(self.clock.now_ns());
        finals.append(&mut self.finals);
        self.finals.shrink_to(1024);
    }

    /// The same, unless it was done a moment ago: an account so far should be that of now, but a client that asks in a
    /// loop should not cost more than one that waits.
    pub(crate) fn freshen(&mut self, now_ns: u64) {
        const MOMENT_NS: u64 = 1_000_000;
        if now_ns.saturating_sub(self.taken_in_ns) >= MOMENT_NS {
            self.take_in(now_ns);
        }
    }

    fn take_in(&mut self, now_ns: u64) {
        let since_ns = now_ns.saturating_sub(self.taken_in_ns);
        self.taken_in_ns = now_ns;
        self.attach_late();
        self.feeds.drain(now_ns, &mut self.ledger);
        self.look(now_ns);
        self.ledger.advance(now_ns);
        self.unfinished = self.settle_for_a_moment(now_ns, since_ns);
        for (_, account) in self.coarse.release(now_ns) {
            self.finish_span(account, now_ns);
        }
        self.attend_to_disk(now_ns);
        self.give_memory_back(now_ns);
        self.hurry(self.ledger.busy() || self.watchers > 0);
    }

    /// Takes up the domains of sources that have answered since.
    fn attach_late(&mut self) {
        let Some(attached) = self.feeds.attach_late(&mut self.ledger) else { return };
        self.absent.extend(attached.absent);
        let new = || self.feeds.domains().enumerate().skip(attached.first);
        self.index.extend(new().map(|(at, domain)| (domain.name.clone(), at)));
        self.subjects.add_gpus(new());
        self.register.set_domains(self.feeds.domains().count().min(MOST_DOMAINS));
    }

    /// Finishes spans that have settled, one by one, so that accounts of thousands that end together are never in memory all
    /// at once, and no call waits for all of them; whether there are more. It may take as long as calls took since it ran
    /// last: settling a span is cheaper than the calls that opened and closed it, so that no backlog builds up.
    fn settle_for_a_moment(&mut self, now_ns: u64, since_ns: u64) -> bool {
        const SHORTEST_NS: u64 = 100_000;
        const LONGEST_NS: u64 = 2_000_000;
        let mut settled = std::mem::take(&mut self.settled);
        let end_ns = now_ns + since_ns.clamp(SHORTEST_NS, LONGEST_NS);
        let more = loop {
            let more = self.ledger.hand_out_some(1, |span| settled.push((span.key(), span.account())));
            for (key, account) in settled.drain(..) {
                if let Some(account) = self.coarse.withhold(key, account, now_ns) {
                    self.finish_span(account, now_ns);
                }
            }
            if !more || self.clock.now_ns() >= end_ns {
                break more;
            }
        };
        self.settled = settled;
        more
    }

    /// Shrinks tables and gives free memory back to the system once most of what spans and their accounts took is free. Costs
    /// milliseconds, so only where that is megabytes.
    fn give_memory_back(&mut self, now_ns: u64) {
        /// By estimate, like what spans take.
        const WORTH_BYTES: usize = 2 << 20;
        const EDGE_BYTES: usize = 128;
        /// Then once more: the disk's thread has freed its part too.
        const CALM_NS: u64 = 2_000_000_000;
        let edges = self.ledger.waiting_edges() * EDGE_BYTES;
        let held = self.register.held() + edges + self.bytes_for_disk();
        self.peak_held = self.peak_held.max(held);
        let much = self.peak_held >= WORTH_BYTES && held <= self.peak_held / 4;
        let calm = held < WORTH_BYTES && self.compact_at_ns.is_some_and(|at_ns| now_ns >= at_ns);
        if !much && !calm {
            return;
        }
        self.peak_held = held;
        self.ledger.shrink();
        self.register.shrink();
        self.coarse.shrink();
        if calm {
            self.register.compact(self.committed());
        }
        self.compact_at_ns = much.then_some(now_ns + CALM_NS);
        allocator::return_free_memory();
    }

    /// When to pump again, if nothing happens before; on the service's clock.
    pub fn next_pump_ns(&self, now_ns: u64) -> u64 {
        /// Soon enough for watchers of spans, seldom enough to cost nothing.
        const RELAXED_NS: u64 = 20_000_000;
        /// Nobody waits: only the slow tick's readings are to be taken in.
        const IDLE_NS: u64 = 1_000_000_000;
        /// An account that is due and has not come waits for a reading; looking more often than they come is vain.
        const EAGER_NS: u64 = 500_000;
        let relaxed_ns = now_ns + if self.hurried { RELAXED_NS } else { IDLE_NS };
        let relaxed_ns = self.coarse.due_ns().map_or(relaxed_ns, |due_ns| due_ns.clamp(now_ns, relaxed_ns));
        let looks = [self.look_due_ns(), self.disk_due_ns()].into_iter().flatten();
        let relaxed_ns = looks.fold(relaxed_ns, |soonest_ns, due_ns| soonest_ns.min(due_ns.max(now_ns)));
        if self.unfinished || !self.finals.is_empty() || !self.replies.is_empty() || self.has_news() {
            return now_ns;
        }
        if self.register.waiting() == 0 {
            return relaxed_ns;
        }
        let due_ns = self.ledger.next_due_ns().unwrap_or(relaxed_ns);
        due_ns.max(now_ns + EAGER_NS).min(relaxed_ns)
    }

    /// The accounts so far of all who wait for a final one; for the end of the daemon. Questions that the disk has not
    /// answered are answered without it.
    pub fn give_up_waiting(&mut self) -> Vec<(Ticket, Account)> {
        let now_ns = self.clock.now_ns();
        self.answer_without_disk();
        let mut given_up = self.give_up_disk();
        let waiting = self.register.give_up_waiting();
        let so_far = |(ticket, key)| Some((ticket, self.so_far(now_ns, "", Known::Held(key)).ok()?));
        given_up.extend(waiting.into_iter().filter_map(so_far));
        given_up
    }

    /// What the samplers give, for a recording; they are fast from here on.
    pub fn record(&mut self) -> Vec<sampler::SampleStream> {
        self.recording = true;
        self.hurry(true);
        self.feeds.sources()
    }

    /// The domains' names.
    pub fn names(&self) -> Vec<&str> {
        self.feeds.names().collect()
    }

    /// The sources that are not there.
    pub fn absent(&self) -> &[Absent] {
        &self.absent
    }

    /// How many wait for a final account, or an old one.
    pub fn waiting(&self) -> usize {
        self.register.waiting() + self.waiting_for_disk()
    }

    /// The samplers are to be fast, or need not be; they linger by themselves.
    pub(crate) fn hurry(&mut self, fast: bool) {
        let fast = fast || self.recording;
        if fast != self.hurried {
            self.hurried = fast;
            self.feeds.demand(fast);
        }
    }

    /// The instant a client names, or now.
    pub(crate) fn edge(&self, at_ns: Option<i64>, now_ns: u64) -> Result<u64, Refusal> {
        let Some(asked) = at_ns else { return Ok(now_ns) };
        let (earliest_ns, latest_ns) =
            (now_ns.saturating_sub(self.settings.history_ns), now_ns.saturating_add(FUTURE_NS));
        let inside = u64::try_from(asked).ok().filter(|at_ns| (earliest_ns..=latest_ns).contains(at_ns));
        inside.ok_or(Refusal::InvalidTime { at_ns: asked, earliest_ns, latest_ns })
    }
}

/// What tells one boot of the machine from another: the kernel's random id, else the wall time of the boot.
fn boot_id() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    kernel.map_or_else(
        |_| format!("booted-{}", clock::unix_ns().saturating_sub(clock::monotonic_ns()) / 1_000_000_000),
        |id| id.trim().to_owned(),
    )
}
