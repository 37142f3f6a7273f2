//! A run's rows as columns, for figures over millions of them.
//!
//! Owns the reading of `rows.jsonl` by all cores, and the choice of the last row for a query that was tried again. Memory is
//! some 200 bytes a row. Invariant: rows keep the order in which they were written, and a line that is no row costs
//! no other line.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use super::blocks::in_blocks;
pub use super::columns::{Columns, known};
use super::row::Row;
use super::run_dir::{self, Manifest, Unusable};
use super::scope::Scope;

/// A run, ready for figures.
#[derive(Debug)]
pub struct Table {
    /// The run's directory.
    pub run: PathBuf,
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
    /// Why queries failed, with how often: the first few reasons. One that was tried again later is not among them.
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
    /// The places of failed rows in the columns, and why they failed.
    failed: Vec<(usize, String)>,
}

/// Texts by their places, each kept once, in the order in which they first came.
#[derive(Default)]
struct Texts {
    texts: Vec<String>,
    places: HashMap<String, usize>,
}

impl Texts {
    fn place(&mut self, text: String) -> usize {
        if let Some(place) = self.places.get(&text) {
            return *place;
        }
        let place = self.texts.len();
        self.texts.push(text.clone());
        self.places.insert(text, place);
        place
    }
}

/// What the blocks so far gave.
#[derive(Default)]
struct Taken {
    subjects: Texts,
    columns: Columns,
    broken: usize,
    reasons: Texts,
    /// The places of failed rows in the columns, and of their reasons.
    failed: Vec<(usize, usize)>,
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
        let mut taken = Taken::default();
        let read = in_blocks(
            opened,
            |lines| block(lines, &scopes),
            |block| {
                if taken.columns.is_empty() {
                    taken.columns.reserve(expected(bytes, &block));
                }
                taken.take(block);
            },
        );
        read.map_err(failed)?;
        let (superseded, failures) = taken.supersede();
        let Taken { subjects, columns, broken, .. } = taken;
        let run = path.to_owned();
        Ok(Self { run, manifest, subjects: subjects.texts, columns, broken, superseded, failures })
    }
}

impl Taken {
    fn take(&mut self, mut block: Block) {
        let own: Vec<usize> = block.subjects.drain(..).map(|subject| self.subjects.place(subject)).collect();
        for subject in &mut block.columns.subject {
            *subject = own[*subject as usize] as u32;
        }
        let before = self.columns.len();
        for (row, reason) in block.failed {
            self.failed.push((before + row, self.reasons.place(reason)));
        }
        self.columns.append(block.columns);
        self.broken += block.broken;
    }

    /// The last row of a query counts, for figures and for failures; gives how many rows do not, and why others failed.
    fn supersede(&mut self) -> (usize, BTreeMap<String, usize>) {
        let mut order: Vec<(u64, u32)> =
            self.columns.keys().enumerate().map(|(at, key)| (key, at as u32)).collect();
        order.sort_unstable();
        let mut keep = vec![true; order.len()];
        let mut superseded = 0;
        for pair in order.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            keep[pair[0].1 as usize] = false;
            superseded += 1;
        }
        if superseded > 0 {
            self.columns.keep(&keep);
        }
        let mut failures = BTreeMap::new();
        for (_, reason) in self.failed.iter().filter(|(row, _)| keep[*row]) {
            note(&mut failures, &self.reasons.texts[*reason]);
        }
        (superseded, failures)
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
            block.failed.push((block.columns.len(), reason.clone()));
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

fn note(failures: &mut BTreeMap<String, usize>, reason: &str) {
    let room = failures.len() < REASONS || failures.contains_key(reason);
    *failures.entry(if room { reason } else { "other reasons" }.to_owned()).or_insert(0) += 1;
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
    fn failures_are_those_of_rows_that_stand() {
        let failed = |id, reason: String| Row { error: Some(reason), ..row(id, "a") };
        // More reasons than are kept apart, and every one of them passed: they take no room either.
        let mut rows: Vec<Row> = (0..20).map(|id| failed(id, format!("refused {id}"))).collect();
        rows.extend((0..20).map(|id| row(id, "a")));
        rows.extend([failed(1, "lost".into()), failed(30, "lost".into())]);
        let (_dir, table) = run(&rows);
        assert_eq!(table.failures, BTreeMap::from([("lost".to_owned(), 2)]));
        let (_dir, table) = run(&(0..20).map(|id| failed(id, format!("refused {id}"))).collect::<Vec<_>>());
        assert_eq!((table.failures.len(), table.failures["other reasons"]), (REASONS + 1, 4));
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
