//! The thread that touches the disk.
//!
//! Owns the database, what of the backlog is not yet on disk, and what to do when the disk refuses: say so once, let go of
//! the connection (after a failed write nothing that SQLite or the kernel has in memory is to be trusted), and begin anew
//! from the file every second. Invariant: accounts are written in the order in which they were taken, each once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backlog::Batch;
use super::database::{Broken, Database};
use super::history::Question;
use super::place::{Place, Unfit};
use super::settings::Settings;
use super::shared::Shared;
use crate::clock;

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
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    settings: Settings,
    tell: fn(&str),
    place: Option<Place>,
    database: Option<Database>,
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
        let mut database = Database::open(&place.file()?, &self.settings, unix_s())?;
        let file = place.identity()?;
        if !self.own.contains(&file) {
            let interrupted = database.recover(unix_s())?;
            self.own.push(file);
            if interrupted > 0 {
                (self.tell)(&format!(
                    "the daemon went away while {interrupted} spans were open; they are kept as interrupted"
                ));
            }
        }
        let bytes = database.bytes()?;
        self.database = Some(database);
        if !self.failing || self.held.is_empty() {
            self.succeed(bytes);
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), Trouble> {
        let (Some(database), false) = (&mut self.database, self.held.is_empty()) else { return Ok(()) };
        database.write(self.held.make_contiguous(), unix_s())?;
        let last = self.held.back().map_or(0, |batch| batch.last);
        let weight = self.held.iter().map(Batch::weight).sum();
        self.untidied += self.held.iter().map(|batch| batch.orders.len()).sum::<usize>();
        self.held.clear();
        self.shared.note_committed(last, weight);
        if self.failing {
            let bytes = database.bytes()?;
            self.succeed(bytes);
        }
        Ok(())
    }

    fn tidy(&mut self) -> Result<(), Trouble> {
        self.place.as_ref().map_or(Ok(()), Place::check)?;
        let Some(database) = &mut self.database else { return Ok(()) };
        let more = database.let_go(&self.settings, unix_s())?;
        let bytes = database.bytes()?;
        self.tidy_at = Instant::now() + if more { STEP } else { TIDY };
        self.untidied = 0;
        if !self.failing {
            self.shared.set_health(None, bytes);
        }
        Ok(())
    }

    /// Answers questions for a moment; those who wait for a commit come next.
    fn answer_some(&self, first: (u64, Question)) {
        let until = Instant::now() + MOMENT;
        let mut next = Some(first);
        while let Some((number, question)) = next {
            self.answer(number, &question);
            next = if Instant::now() < until { self.shared.next_question() } else { None };
        }
    }

    /// Reading fails for itself: what cannot be read may still be written beside.
    fn answer(&self, number: u64, question: &Question) {
        let found = self.database.as_ref().and_then(|database| match database.answer(question) {
            Ok(found) => Some(found),
            Err(broken) => {
                (self.tell)(&format!("a question to the ledger in {} failed: {broken}", self.directory()));
                None
            }
        });
        self.shared.answer(number, found);
    }

    fn succeed(&mut self, bytes: u64) {
        self.shared.set_health(None, bytes);
        if std::mem::take(&mut self.failing) {
            (self.tell)(&format!("the ledger in {} is written again", self.directory()));
        }
    }

    fn fail(&mut self, trouble: &Trouble) {
        let reason = format!("the ledger in {} cannot be written: {trouble}", self.directory());
        let bytes = self.shared.health().bytes;
        if !std::mem::replace(&mut self.failing, true) {
            (self.tell)(&format!(
                "{reason}; accounts are answered, marked as not durable; it is tried again every second"
            ));
        }
        self.shared.set_health(Some(reason), bytes);
        self.shared.wake();
    }

    /// The file is no sound database: another one takes its place.
    fn put_aside(&mut self, broken: &Broken) {
        let moved = match &self.place {
            Some(place) => place.put_aside(unix_s().max(0) as u64),
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

fn unix_s() -> i64 {
    (clock::unix_ns() / 1_000_000_000) as i64
}
