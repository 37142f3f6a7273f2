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
use super::scope::{Meter, Scope};

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
    /// Why answered queries have no energy, with how often, in the same way.
    pub unmetered: BTreeMap<String, usize>,
    /// Domains of the run that gave some queries no energy, with how many.
    pub domain_gaps: BTreeMap<String, usize>,
    /// Domains that became live only during the run and are no part of it, with how many queries' accounts hold them.
    pub other_domains: BTreeMap<String, usize>,
    /// Queries whose totals are lower bounds.
    pub lower_bounds: usize,
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
    remarks: Remarks<Vec<(usize, String)>>,
}

/// What rows say in words, each with the row's place in the columns.
#[derive(Default)]
struct Remarks<T> {
    /// Why it failed.
    failed: T,
    /// Why it has no energy.
    unmetered: T,
    /// A domain of the run that gave it no energy.
    gaps: T,
    /// A domain that is no part of the run.
    others: T,
    /// Its totals are lower bounds.
    bounds: T,
}

impl<T> Remarks<T> {
    fn each(&mut self) -> [&mut T; 5] {
        [&mut self.failed, &mut self.unmetered, &mut self.gaps, &mut self.others, &mut self.bounds]
    }
}

/// The same text of many rows, kept once.
#[derive(Default)]
struct Noted {
    texts: Texts,
    /// The places of rows in the columns, and of their texts.
    rows: Vec<(usize, usize)>,
}

impl Noted {
    fn take(&mut self, before: usize, more: Vec<(usize, String)>) {
        for (row, text) in more {
            self.rows.push((before + row, self.texts.place(text)));
        }
    }

    /// How many of the rows that are kept say each text: the first few texts.
    fn counts(&self, keep: &[bool]) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, text) in self.rows.iter().filter(|(row, _)| keep[*row]) {
            note(&mut counts, &self.texts.texts[*text]);
        }
        counts
    }
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
    remarks: Remarks<Noted>,
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
            |lines| block(lines, &manifest.domains, &scopes),
            |block| {
                if taken.columns.is_empty() {
                    taken.columns.reserve(expected(bytes, &block));
                }
                taken.take(block);
            },
        );
        read.map_err(failed)?;
        let keep = taken.supersede();
        let Taken { subjects, columns, broken, remarks } = taken;
        Ok(Self {
            run: path.to_owned(),
            manifest,
            subjects: subjects.texts,
            columns,
            broken,
            superseded: keep.iter().filter(|kept| !**kept).count(),
            failures: remarks.failed.counts(&keep),
            unmetered: remarks.unmetered.counts(&keep),
            domain_gaps: remarks.gaps.counts(&keep),
            other_domains: remarks.others.counts(&keep),
            lower_bounds: remarks.bounds.counts(&keep).into_values().sum(),
        })
    }
}

impl Taken {
    fn take(&mut self, mut block: Block) {
        let own: Vec<usize> = block.subjects.drain(..).map(|subject| self.subjects.place(subject)).collect();
        for subject in &mut block.columns.subject {
            *subject = own[*subject as usize] as u32;
        }
        let before = self.columns.len();
        for (noted, more) in self.remarks.each().into_iter().zip(block.remarks.each()) {
            noted.take(before, std::mem::take(more));
        }
        self.columns.append(block.columns);
        self.broken += block.broken;
    }

    /// The last row of a query counts, for figures and for remarks; gives which rows those are.
    fn supersede(&mut self) -> Vec<bool> {
        let mut order: Vec<(u64, u32)> =
            self.columns.keys().enumerate().map(|(at, key)| (key, at as u32)).collect();
        order.sort_unstable();
        let mut keep = vec![true; order.len()];
        for pair in order.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            keep[pair[0].1 as usize] = false;
        }
        if keep.contains(&false) {
            self.columns.keep(&keep);
        }
        keep
    }
}

/// How many rows a file holds, judged by its first block; a few more, since a column that grows once more doubles.
fn expected(bytes: u64, block: &Block) -> usize {
    let share = block.columns.len() as f64 / (block.bytes.max(1) as f64);
    (bytes as f64 * share * 1.02) as usize
}

fn block(lines: &[u8], domains: &[Meter], scopes: &[(Scope, Vec<usize>); 3]) -> Block {
    let mut block = Block { bytes: lines.len(), ..Block::default() };
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(row) = serde_json::from_slice::<Row>(line) else {
            block.broken += 1;
            continue;
        };
        let (at, remarks) = (block.columns.len(), &mut block.remarks);
        remarks.failed.extend(row.error.iter().map(|reason| (at, reason.clone())));
        if row.answered() {
            remarks.unmetered.extend(row.unmetered.iter().map(|reason| (at, reason.clone())));
        }
        if let Some(energy) = &row.energy {
            let parts = domains.iter().zip(&energy.domains).filter(|(_, part)| part.share_uj.is_none());
            remarks.gaps.extend(parts.map(|(domain, _)| (at, domain.name.clone())));
            remarks.bounds.extend(energy.at_least.then(|| (at, String::new())));
            remarks.others.extend(energy.other_domains.iter().map(|name| (at, name.clone())));
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

    #[test]
    fn what_rows_say_of_their_energy_is_counted_once_for_each_query() {
        let unmetered = |id| Row { unmetered: Some("no account".into()), ..row(id, "a") };
        let other = |id| {
            let other_domains = vec!["psys".into()];
            let energy = Energy { other_domains, at_least: id == 4, ..Energy::default() };
            Row { energy: Some(energy), ..row(id, "a") }
        };
        let failed = Row { error: Some("refused".into()), ..unmetered(3) };
        let (_dir, table) = run(&[unmetered(1), unmetered(1), failed, unmetered(2), other(2), other(4)]);
        assert_eq!(table.unmetered, BTreeMap::from([("no account".to_owned(), 1)]));
        assert_eq!(table.other_domains, BTreeMap::from([("psys".to_owned(), 2)]));
        assert_eq!((table.superseded, table.lower_bounds), (2, 1));
    }
}
