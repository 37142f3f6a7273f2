//! A run's rows as columns, for figures over millions of them.
//!
//! Owns the reading of `rows.jsonl` in blocks by several threads, the choice of the last row for a query that was tried again,
//! and the conversion to joules, seconds and watts. Memory is some 200 bytes a row. Invariant: in a column `NaN` is
//! "not known" and nothing else; no other module sees it but through [`known`].

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread;

use super::row::Row;
use super::run_dir::{self, Manifest, Unusable};
use super::scope::Scope;
use crate::energy::Grade;

/// Not known.
const NOT_KNOWN: f64 = f64::NAN;

/// A column's value, if it is known.
pub fn known(value: f64) -> Option<f64> {
    (!value.is_nan()).then_some(value)
}

macro_rules! columns {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The figures of every query, one column each.
        #[derive(Debug, Default)]
        pub struct Columns {
            /// The query, as a hash of its name and repetition.
            key: Vec<u64>,
            /// Place of the subject in [`Table::subjects`]; while a block is read, in its own list.
            pub subject: Vec<u32>,
            /// Whether it was answered.
            pub answered: Vec<bool>,
            /// The grade of its energy.
            pub grade: Vec<Option<Grade>>,
            $($(#[$doc])* pub $name: Vec<f64>,)*
        }

        impl Columns {
            /// Room for so many more, so that columns of millions are not moved as they grow.
            fn reserve(&mut self, more: usize) {
                self.key.reserve_exact(more);
                self.subject.reserve_exact(more);
                self.answered.reserve_exact(more);
                self.grade.reserve_exact(more);
                $(self.$name.reserve_exact(more);)*
            }

            fn append(&mut self, mut other: Self) {
                self.key.append(&mut other.key);
                self.subject.append(&mut other.subject);
                self.answered.append(&mut other.answered);
                self.grade.append(&mut other.grade);
                $(self.$name.append(&mut other.$name);)*
            }

            fn keep(&mut self, which: &[bool]) {
                fn only<T>(column: &mut Vec<T>, which: &[bool]) {
                    let mut at = 0..;
                    column.retain(|_| at.next().is_some_and(|at: usize| which[at]));
                }
                only(&mut self.key, which);
                only(&mut self.subject, which);
                only(&mut self.answered, which);
                only(&mut self.grade, which);
                $(only(&mut self.$name, which);)*
            }
        }
    };
}

columns! {
    /// Right 1, wrong 0.
    score,
    /// Monotonic seconds at which it began.
    began_s,
    /// Seconds from request to end.
    duration_s,
    /// Seconds from request to first token.
    first_token_s,
    /// Median seconds between tokens.
    between_s,
    /// Tokens of the prompt.
    tokens_in,
    /// Tokens of the prompt that were cached.
    tokens_cached,
    /// Tokens of the answer.
    tokens_out,
    /// Mean log-probability of the answer's tokens.
    mean_logprob,
    /// Seconds the account lasted.
    span_s,
    /// Joules of the counted domains while it was open, whoever caused them.
    window_j,
    /// Joules until the first token.
    prefill_j,
    /// Joules from the first token on.
    decode_j,
    /// Joules of its share, host.
    host_j,
    /// Guaranteed half-width, host.
    host_error_j,
    /// Idle part, host.
    host_idle_j,
    /// Joules of its share, CPU + memory + accelerator.
    compute_j,
    /// Guaranteed half-width.
    compute_error_j,
    /// Idle part.
    compute_idle_j,
    /// Joules of its share, accelerator only.
    accelerator_j,
    /// Guaranteed half-width.
    accelerator_error_j,
    /// Idle part.
    accelerator_idle_j,
}

impl Columns {
    /// How many queries.
    pub fn len(&self) -> usize {
        self.key.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.key.is_empty()
    }

    /// Joules, half-width and idle joules in a scope.
    pub fn scoped(&self, scope: Scope) -> [&[f64]; 3] {
        match scope {
            Scope::Host => [&self.host_j, &self.host_error_j, &self.host_idle_j],
            Scope::Compute => [&self.compute_j, &self.compute_error_j, &self.compute_idle_j],
            Scope::Accelerator => [&self.accelerator_j, &self.accelerator_error_j, &self.accelerator_idle_j],
        }
    }

    /// What tells the query from others of its questions, the same in every run.
    pub fn key(&self, at: usize) -> u64 {
        self.key[at]
    }

    fn push(&mut self, row: &Row, subject: u32, scopes: &[(Scope, Vec<usize>); 3]) {
        let count = |of: Option<u64>| of.map_or(NOT_KNOWN, |count| count as f64);
        let seconds = |of: Option<u64>| count(of) / 1e9;
        let joules = |of: Option<u64>| count(of) / 1e6;
        self.key.push(key(&row.id, row.repeat));
        self.subject.push(subject);
        self.answered.push(row.answered());
        self.score.push(row.score.filter(|_| row.answered()).unwrap_or(NOT_KNOWN));
        self.began_s.push(row.began_ns as f64 / 1e9);
        self.duration_s.push(row.duration_ns as f64 / 1e9);
        self.first_token_s.push(seconds(row.first_token_ns));
        self.between_s.push(seconds(row.between_tokens_ns.map(|(median, _)| median)));
        self.tokens_in.push(count(row.tokens_in));
        self.tokens_cached.push(count(row.tokens_cached));
        self.tokens_out.push(count(row.tokens_out));
        self.mean_logprob.push(row.mean_logprob.unwrap_or(NOT_KNOWN));
        let energy = row.energy.as_ref();
        self.grade.push(energy.and_then(|energy| energy.grade));
        self.span_s.push(seconds(energy.map(|energy| energy.span_ns)));
        self.window_j.push(joules(energy.and_then(|energy| energy.window_uj)));
        self.prefill_j.push(joules(energy.and_then(|energy| energy.prefill_uj)));
        self.decode_j.push(joules(energy.and_then(|energy| energy.decode_uj)));
        for (scope, domains) in scopes {
            let part = energy.map(|energy| scope.of(energy, domains)).unwrap_or_default();
            let [share, error, idle] = match scope {
                Scope::Host => [&mut self.host_j, &mut self.host_error_j, &mut self.host_idle_j],
                Scope::Compute => [&mut self.compute_j, &mut self.compute_error_j, &mut self.compute_idle_j],
                Scope::Accelerator => {
                    [&mut self.accelerator_j, &mut self.accelerator_error_j, &mut self.accelerator_idle_j]
                }
            };
            share.push(joules(part.share_uj));
            error.push(joules(part.error_uj));
            idle.push(joules(part.idle_uj));
        }
    }
}

/// A run, ready for figures.
#[derive(Debug)]
pub struct Table {
    /// What the run was.
    pub manifest: Manifest,
    /// The subjects, in the order in which they first came.
    pub subjects: Vec<String>,
    /// Its queries.
    pub columns: Columns,
    /// Lines that are no row: cut short by a crash, or edited.
    pub broken: usize,
    /// Rows of queries that were tried again later.
    pub superseded: usize,
    /// Why queries failed, with how often: the first few reasons; tries that were repeated count too.
    pub failures: BTreeMap<String, usize>,
}

/// How many different reasons of failure are kept apart.
const REASONS: usize = 16;

/// What one block of the file gave.
#[derive(Default)]
struct Block {
    bytes: usize,
    subjects: Vec<String>,
    columns: Columns,
    broken: usize,
    failures: BTreeMap<String, usize>,
}

impl Table {
    /// Reads a run.
    ///
    /// # Errors
    /// Its files are not there or cannot be read; lines that make no sense are counted, and are no error.
    pub fn read(path: &Path) -> Result<Self, Unusable> {
        let manifest = run_dir::manifest(path)?;
        let scopes = Scope::ALL.map(|scope| (scope, scope.domains(&manifest.domains)));
        let file = path.join("rows.jsonl");
        let failed = |cause| Unusable::File { path: file.clone(), cause };
        let opened = File::open(&file).map_err(failed)?;
        let bytes = opened.metadata().map_err(failed)?.len();
        let mut table = Self {
            manifest,
            subjects: Vec::new(),
            columns: Columns::default(),
            broken: 0,
            superseded: 0,
            failures: BTreeMap::new(),
        };
        let mut places = HashMap::new();
        let read = in_blocks(
            opened,
            |lines| block(lines, &scopes),
            |block| {
                if table.columns.is_empty() {
                    table.columns.reserve(expected(bytes, &block));
                }
                table.take(block, &mut places);
            },
        );
        read.map_err(failed)?;
        table.supersede();
        Ok(table)
    }

    fn take(&mut self, mut block: Block, places: &mut HashMap<String, u32>) {
        let mut place_of = |subject: String| {
            if let Some(place) = places.get(&subject) {
                return *place;
            }
            let place = self.subjects.len() as u32;
            self.subjects.push(subject.clone());
            places.insert(subject, place);
            place
        };
        let own: Vec<u32> = block.subjects.drain(..).map(&mut place_of).collect();
        for subject in &mut block.columns.subject {
            *subject = own[*subject as usize];
        }
        self.columns.append(block.columns);
        self.broken += block.broken;
        for (reason, count) in block.failures {
            note(&mut self.failures, reason, count);
        }
    }

    /// The last row of a query counts.
    fn supersede(&mut self) {
        let mut order: Vec<(u64, u32)> =
            self.columns.key.iter().enumerate().map(|(at, key)| (*key, at as u32)).collect();
        order.sort_unstable();
        let mut keep = vec![true; order.len()];
        for pair in order.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            keep[pair[0].1 as usize] = false;
            self.superseded += 1;
        }
        if self.superseded > 0 {
            self.columns.keep(&keep);
        }
    }
}

/// How many rows a file holds, judged by its first block; a few more, since a column that grows once more doubles.
fn expected(bytes: u64, block: &Block) -> usize {
    let share = block.columns.len() as f64 / (block.bytes.max(1) as f64);
    (bytes as f64 * share * 1.02) as usize
}

fn block(lines: &[u8], scopes: &[(Scope, Vec<usize>); 3]) -> Block {
    let mut block = Block { bytes: lines.len(), ..Block::default() };
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(row) = serde_json::from_slice::<Row>(line) else {
            block.broken += 1;
            continue;
        };
        if let Some(reason) = &row.error {
            note(&mut block.failures, reason.clone(), 1);
        }
        let known = block.subjects.iter().position(|subject| *subject == row.subject);
        let subject = known.unwrap_or_else(|| {
            block.subjects.push(row.subject.clone());
            block.subjects.len() - 1
        });
        block.columns.push(&row, subject as u32, scopes);
    }
    block
}

fn note(failures: &mut BTreeMap<String, usize>, reason: String, count: usize) {
    let room = failures.len() < REASONS || failures.contains_key(&reason);
    *failures.entry(if room { reason } else { "other reasons".into() }).or_insert(0) += count;
}

/// Reads a file in blocks of whole lines, works on them on every core, and takes the results in the file's order.
fn in_blocks<T: Send>(
    mut file: File,
    work: impl Fn(&[u8]) -> T + Sync,
    mut take: impl FnMut(T),
) -> io::Result<()> {
    const BLOCK_BYTES: usize = 2 << 20;
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(8);
    thread::scope(|scope| {
        let (send, jobs) = sync_channel::<(usize, Vec<u8>)>(workers);
        let (done, results) = sync_channel(workers * 2);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..workers {
            let (jobs, done, work) = (Arc::clone(&jobs), done.clone(), &work);
            scope.spawn(move || {
                loop {
                    let job = jobs.lock().expect("no holder of this lock can panic").recv();
                    let Ok((number, lines)) = job else { return };
                    if done.send((number, work(&lines))).is_err() {
                        return;
                    }
                }
            });
        }
        drop((jobs, done));
        let reader = scope.spawn(move || -> io::Result<()> {
            let mut rest = Vec::new();
            for number in 0.. {
                let mut lines = std::mem::take(&mut rest);
                let got = Read::by_ref(&mut file).take(BLOCK_BYTES as u64).read_to_end(&mut lines)?;
                let end = memchr::memrchr(b'\n', &lines).map_or(0, |at| at + 1);
                if got > 0 {
                    rest = lines.split_off(end);
                }
                if send.send((number, lines)).is_err() || got == 0 {
                    break;
                }
            }
            Ok(())
        });
        let mut early = HashMap::new();
        let mut next = 0;
        for (number, result) in results {
            early.insert(number, result);
            while let Some(result) = early.remove(&next) {
                take(result);
                next += 1;
            }
        }
        reader.join().expect("the reader does not panic")
    })
}

fn key(id: &str, repeat: u32) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ u64::from(repeat).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for byte in id.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // Short names differ in few bits, which a table of hashes would feel.
    hash ^ (hash >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

#[cfg(test)]
mod tests {
    use super::super::question;
    use super::super::row::{Energy, Text};
    use super::super::run_dir::{RunDir, VERSION};
    use super::*;

    fn run(rows: &[Row]) -> (tempfile::TempDir, Table) {
        let dir = tempfile::tempdir().unwrap();
        let questions = question::starter();
        let fingerprint = question::fingerprint(&questions);
        let manifest = Manifest { version: VERSION, fingerprint, ..Manifest::default() };
        let mut run = RunDir::begin(dir.path(), &manifest, &questions).unwrap();
        for row in rows {
            run.add(row, &Text::default()).unwrap();
        }
        let table = Table::read(dir.path()).unwrap();
        (dir, table)
    }

    fn row(id: usize, subject: &str) -> Row {
        Row { id: format!("q{id}"), subject: subject.into(), duration_ns: id as u64, ..Row::default() }
    }

    #[test]
    fn rows_keep_their_order_and_subjects_over_many_blocks() {
        let rows: Vec<Row> = (0..40_000).map(|id| row(id, ["a", "b", "c"][id % 3])).collect();
        let (_dir, table) = run(&rows);
        assert_eq!(table.columns.len(), 40_000);
        assert_eq!(table.subjects, ["a", "b", "c"]);
        for at in 0..40_000 {
            assert_eq!(table.columns.duration_s[at], at as f64 / 1e9);
            assert_eq!(table.columns.subject[at] as usize, at % 3);
        }
        assert_eq!((table.broken, table.superseded), (0, 0));
    }

    #[test]
    fn the_last_row_of_a_query_counts() {
        let failed = Row { error: Some("refused".into()), score: Some(1.0), ..row(1, "a") };
        let right = Row { score: Some(1.0), ..row(1, "a") };
        let (_dir, table) = run(&[failed.clone(), row(2, "a"), right]);
        assert_eq!((table.columns.len(), table.superseded), (2, 1));
        assert_eq!(known(table.columns.score[1]), Some(1.0));
        let (_dir, table) = run(&[failed]);
        assert!(!table.columns.answered[0]);
        assert_eq!(table.failures["refused"], 1);
        assert_eq!(known(table.columns.score[0]), None, "a failed query has no score, whatever its row says");
    }

    #[test]
    fn lines_that_are_no_rows_are_counted_and_what_is_absent_is_not_zero() {
        let energy = Energy { share_uj: Some(2_500_000), span_ns: 500_000_000, ..Energy::default() };
        let (dir, _) = run(&[Row { energy: Some(energy), ..row(1, "a") }]);
        let path = dir.path().join("rows.jsonl");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{{\"id\":\n{text}garbage")).unwrap();
        let table = Table::read(dir.path()).unwrap();
        assert_eq!((table.broken, table.columns.len()), (2, 1));
        assert_eq!(known(table.columns.host_j[0]), Some(2.5));
        assert_eq!(known(table.columns.span_s[0]), Some(0.5));
        for absent in [&table.columns.host_idle_j, &table.columns.tokens_out, &table.columns.accelerator_j] {
            assert_eq!(known(absent[0]), None);
        }
    }
}
