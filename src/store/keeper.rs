//! The thread that touches the disk.
//!
//! Owns the database, what of the backlog is not yet on disk, and what to do when the disk refuses: say so once, let go of
//! the connection (after a failed write nothing that SQLite or the kernel has in memory is to be trusted), and begin anew
//! from the file every second. Invariant: accounts are written in the order in which they were taken, each once.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backlog::Batch;
use super::clock_reading::ClockReading;
use super::database::{Broken, Database};
use super::gap::Damage;
use super::history::{Fault, Found, Question, ReadError};
use super::mark::Mark;
use super::place::{Identity, Place, Unfit};
use super::settings::Settings;
use super::shared::Shared;

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// How often to look whether accounts are to be let go, and between two steps of that.
const TIDY: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(20);

/// The same after so many orders.
const TIDY_ORDERS: usize = 16_384;

/// How long questions are answered before the next commit.
const MOMENT: Duration = Duration::from_millis(5);

/// Why nothing can be written.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Place(#[from] Unfit),
    #[error("{0}")]
    Database(#[from] Broken),
    #[error("cannot write ledger.mark: {0}")]
    Mark(#[from] io::Error),
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    settings: Settings,
    tell: fn(&str),
    place: Option<Place>,
    database: Option<Database>,
    /// The files that are open.
    identity: Option<Identity>,
    /// For the administrator: what may be lost, and the damage that a look-up met first.
    loss: Option<String>,
    met: Option<String>,
    /// Files whose journal is this process's own: opened anew after a failure, they have spans in it that are open.
    own: Vec<(u64, u64)>,
    /// Taken, and not on disk.
    held: VecDeque<Batch>,
    failing: bool,
    retry_at: Instant,
    tidy_at: Instant,
    untidied: usize,
    put_aside_at: Option<Instant>,
}

impl Keeper {
    pub fn new(shared: Arc<Shared>, settings: Settings, tell: fn(&str)) -> Self {
        let now = Instant::now();
        Self {
            shared,
            settings,
            tell,
            place: None,
            database: None,
            identity: None,
            loss: None,
            met: None,
            own: Vec::new(),
            held: VecDeque::new(),
            failing: false,
            retry_at: now,
            tidy_at: now + STEP,
            untidied: 0,
            put_aside_at: None,
        }
    }

    /// Works until asked to end.
    pub fn run(mut self) {
        self.attempt(Self::open);
        loop {
            let due = if self.database.is_some() { self.tidy_at } else { self.retry_at };
            let (question, finish) = self.shared.take_work(due, &mut self.held);
            if self.database.is_none() && (Instant::now() >= self.retry_at || finish) {
                self.attempt(Self::open);
            }
            let mut wake = self.held.iter().any(|batch| batch.wanted);
            self.attempt(Self::write);
            if let Some(first) = question {
                self.answer_some(first);
                wake = true;
            }
            if wake {
                self.shared.wake();
            }
            if finish {
                break;
            }
            if Instant::now() >= self.tidy_at || self.untidied >= TIDY_ORDERS {
                self.attempt(Self::tidy);
            }
        }
        // Puts the write-ahead log into the database.
        self.database = None;
        self.shared.note_done();
    }

    /// Does something with the disk, and deals with its refusal.
    fn attempt(&mut self, act: fn(&mut Self) -> Result<(), Trouble>) {
        if let Err(trouble) = act(self) {
            self.database = None;
            self.retry_at = Instant::now() + RETRY;
            match trouble {
                Trouble::Database(broken) if broken.is_damage() => self.put_aside(&broken),
                trouble => {
                    if matches!(trouble, Trouble::Place(Unfit::Gone(_))) {
                        self.place = None;
                    }
                    self.fail(&trouble);
                }
            }
        }
    }

    fn open(&mut self) -> Result<(), Trouble> {
        if self.place.is_none() {
            self.place = Some(Place::take(&self.settings.directory)?);
        }
        let Some(place) = &self.place else { return Ok(()) };
        let (file, mark) = (place.file()?, Mark(place.mark()?));
        let now = ClockReading::now();
        let mut database = Database::open(&file, mark, &self.settings, now)?;
        let identity = place.identity()?;
        let losses = std::mem::take(&mut database.losses);
        if !self.own.contains(&identity.database) {
            let interrupted = database.recover(now)?;
            self.own.push(identity.database);
            if interrupted > 0 {
                (self.tell)(&format!(
                    "the daemon went away while {interrupted} spans were open; they are kept as interrupted"
                ));
            }
        }
        self.identity = Some(place.identity()?);
        (self.loss, self.met) = (database.loss(), None);
        let bytes = database.bytes()?;
        self.database = Some(database);
        for loss in losses {
            (self.tell)(&format!("the store in {} is incomplete: {loss}", self.directory()));
        }
        if !self.failing || self.held.is_empty() {
            self.succeed(bytes);
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), Trouble> {
        let (Some(database), false) = (&mut self.database, self.held.is_empty()) else { return Ok(()) };
        database.write(self.held.make_contiguous(), ClockReading::now())?;
        // What went into files that have no name any more is written again into those that have.
        self.check_files()?;
        let Some(database) = &self.database else { return Ok(()) };
        let marked = database.mark();
        let last = self.held.back().map_or(0, |batch| batch.last);
        let weight = self.held.iter().map(Batch::weight).sum();
        self.untidied += self.held.iter().map(|batch| batch.orders.len()).sum::<usize>();
        self.held.clear();
        self.shared.note_committed(last, weight);
        marked?;
        if self.failing {
            let bytes = database.bytes()?;
            self.succeed(bytes);
        }
        Ok(())
    }

    /// Whether the open files are still those of their names.
    fn check_files(&mut self) -> Result<(), Trouble> {
        let (Some(place), Some(open)) = (&self.place, &mut self.identity) else { return Ok(()) };
        let there = place.identity()?;
        let log = *open.log.get_or_insert(there.log.unwrap_or_default());
        if there.database == open.database && there.log == Some(log) {
            return Ok(());
        }
        Err(Unfit::Gone(self.settings.directory.clone()).into())
    }

    fn tidy(&mut self) -> Result<(), Trouble> {
        self.place.as_ref().map_or(Ok(()), Place::check)?;
        let Some(database) = &mut self.database else { return Ok(()) };
        let now = ClockReading::now();
        let step = database.let_go(&self.settings, now)?;
        database.mark_time(now)?;
        step.lines.iter().for_each(|line| (self.tell)(line));
        self.tidy_at = Instant::now() + if step.more { STEP } else { TIDY };
        self.untidied = 0;
        if !step.more {
            self.shared.set_outlook(database.outlook(&self.settings, now)?);
            self.loss = database.loss();
        }
        let bytes = database.bytes()?;
        if !self.failing {
            self.shared.set_written(bytes, self.damage());
        }
        Ok(())
    }

    /// Answers questions for a moment; those who wait for a commit come next.
    fn answer_some(&mut self, first: (u64, Question)) {
        let until = Instant::now() + MOMENT;
        let mut next = Some(first);
        while let Some((number, question)) = next {
            let found = self.answer(&question);
            self.shared.answer(number, found);
            next = if Instant::now() < until { self.shared.next_question() } else { None };
        }
    }

    /// Reading fails for itself: what cannot be read may still be written beside.
    fn answer(&mut self, question: &Question) -> Result<Found, Fault> {
        let Some(database) = &self.database else {
            let reason =
                self.shared.health().reason.unwrap_or_else(|| "the store is being opened; ask again".into());
            return Err(Fault::Unavailable { reason });
        };
        let broken = match database.answer(question) {
            Ok(found) => return Ok(found),
            Err(ReadError::Damaged(damage)) => {
                let before =
                    matches!(question, Question::List { .. }).then_some(damage.first().max(1) as u64);
                let reason = damage.reason();
                // A loss was reported when it was found.
                if let Damage::Unsound { first, last } = damage {
                    self.note_damage(&format!("{reason} (accounts {first} to {last})"));
                }
                return Err(Fault::Damaged { reason, before });
            }
            Err(ReadError::Database(broken)) => broken,
        };
        let reason = format!("the store in {} cannot be read: {broken}", self.directory());
        if broken.is_damage() {
            self.note_damage(&reason);
            return Err(Fault::Damaged { reason: "the store on disk is damaged".into(), before: None });
        }
        (self.tell)(&reason);
        Err(Fault::Unavailable { reason })
    }

    /// A look-up met damage: it is logged once, and shown from now on.
    fn note_damage(&mut self, reason: &str) {
        if self.met.is_some() {
            return;
        }
        (self.tell)(&format!(
            "{}: {reason}; look-ups that meet it fail, new accounts are kept",
            self.directory()
        ));
        self.met = Some(reason.to_owned());
        if !self.failing {
            self.shared.set_written(self.shared.health().bytes, self.damage());
        }
    }

    fn damage(&self) -> Option<String> {
        let all: Vec<&str> = [&self.loss, &self.met].into_iter().flatten().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn succeed(&mut self, bytes: u64) {
        self.shared.set_written(bytes, self.damage());
        if std::mem::take(&mut self.failing) {
            (self.tell)(&format!("the ledger in {} is written again", self.directory()));
        }
    }

    fn fail(&mut self, trouble: &Trouble) {
        let reason = format!("the ledger in {} cannot be written: {trouble}", self.directory());
        if !std::mem::replace(&mut self.failing, true) {
            (self.tell)(&format!(
                "{reason}; accounts are answered, marked as not durable; it is tried again every second"
            ));
        }
        self.shared.set_failing(reason);
        self.shared.wake();
    }

    /// The file is no sound database: another one takes its place.
    fn put_aside(&mut self, broken: &Broken) {
        let moved = match &self.place {
            Some(place) => place.put_aside(ClockReading::now().unix_s.max(0) as u64),
            None => return,
        };
        match moved {
            Ok(aside) => {
                (self.tell)(&format!(
                    "the ledger in {} is damaged ({broken}); it is moved to {} and a new one is begun",
                    self.directory(),
                    aside.display()
                ));
                // At once, unless that was just done: then the disk makes nothing but damage.
                let now = Instant::now();
                if self.put_aside_at.replace(now).is_none_or(|before| now - before > 10 * RETRY) {
                    self.retry_at = now;
                }
            }
            Err(unfit) => self.fail(&unfit.into()),
        }
    }

    fn directory(&self) -> std::path::Display<'_> {
        self.settings.directory.display()
    }
}
