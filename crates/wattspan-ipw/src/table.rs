//! A run's rows as columns, for figures over millions of rows.
//!
//! Reads `rows.jsonl` on all cores and keeps the last row of each retried query. Memory use is about 200 bytes per
//! row. Invariant: rows keep the order of the file, and an invalid line affects no other line.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

pub use super::columns::{QueryColumns, known};
use super::row::QueryRow;
use super::run_dir::{self, Manifest, RunDirError};
use super::scope::{RunDomain, Scope};

/// A run loaded into columns.
#[derive(Debug)]
pub struct RunTable {
    pub run: PathBuf,
    pub manifest: Manifest,
    /// The subjects, in order of first appearance.
    pub subjects: Vec<String>,
    /// The columns of its queries.
    pub columns: QueryColumns,
    /// Number of invalid lines (cut by a crash, or edited).
    pub invalid_lines: usize,
    /// Number of rows superseded by a later attempt.
    pub superseded: usize,
    /// Reasons of the delivered queries that failed and are wrong, with their counts, limited to the first few;
    /// superseded rows are excluded.
    pub failures: BTreeMap<String, usize>,
    /// Reasons of the queries that were never delivered and are not asked, in the same way.
    pub not_delivered: BTreeMap<String, usize>,
    /// Reasons why delivered queries have no energy, with their counts, in the same way.
    pub unmetered: BTreeMap<String, usize>,
    /// Domains of the run without energy for some queries, with the number of those queries.
    pub domain_gaps: BTreeMap<String, usize>,
    /// Domains that became live during the run and are not part of it, with the number of accounts that contain them.
    pub other_domains: BTreeMap<String, usize>,
    /// Number of queries whose totals are lower bounds.
    pub lower_bounds: usize,
}

/// The maximum number of distinct reasons.
const MAX_REASONS: usize = 16;

/// The result of one chunk of the file.
#[derive(Default)]
struct TableChunk {
    bytes: usize,
    subjects: Vec<String>,
    columns: QueryColumns,
    invalid_lines: usize,
    notes: RowNotes<Vec<(usize, String)>>,
}

/// Text notes of rows, each with the index of its row.
#[derive(Default)]
struct RowNotes<T> {
    /// Failure reason of a delivered query.
    failed: T,
    /// Failure reason of a query that was not delivered.
    not_delivered: T,
    /// Reason for a missing energy.
    unmetered: T,
    /// Domain of the run without energy.
    gaps: T,
    /// Domain that is not part of the run.
    others: T,
    /// Empty text for a row whose totals are lower bounds.
    bounds: T,
}

impl<T> RowNotes<T> {
    fn fields(&mut self) -> [&mut T; 6] {
        [
            &mut self.failed,
            &mut self.not_delivered,
            &mut self.unmetered,
            &mut self.gaps,
            &mut self.others,
            &mut self.bounds,
        ]
    }
}

/// Row notes with interned texts.
#[derive(Default)]
struct InternedNotes {
    strings: StringInterner,
    /// Pairs of row index and text index.
    rows: Vec<(usize, usize)>,
}

impl InternedNotes {
    fn extend(&mut self, before: usize, more: Vec<(usize, String)>) {
        for (row, text) in more {
            self.rows.push((before + row, self.strings.intern(text)));
        }
    }

    /// Counts the texts of the rows to keep, limited to the first few texts.
    fn counts(&self, keep: &[bool]) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, text) in self.rows.iter().filter(|(row, _)| keep[*row]) {
            count_reason(&mut counts, &self.strings.strings[*text]);
        }
        counts
    }
}

/// Interned strings by index, in order of first appearance.
#[derive(Default)]
struct StringInterner {
    strings: Vec<String>,
    indices: HashMap<String, usize>,
}

impl StringInterner {
    fn intern(&mut self, text: String) -> usize {
        if let Some(index) = self.indices.get(&text) {
            return *index;
        }
        let index = self.strings.len();
        self.strings.push(text.clone());
        self.indices.insert(text, index);
        index
    }
}

/// The table under construction.
#[derive(Default)]
struct TableBuilder {
    subjects: StringInterner,
    columns: QueryColumns,
    invalid_lines: usize,
    notes: RowNotes<InternedNotes>,
}

impl RunTable {
    /// Reads a run.
    ///
    /// # Errors
    /// A file is missing or cannot be read. Invalid lines are counted and are no error.
    pub fn read(path: &Path) -> Result<Self, RunDirError> {
        let manifest = run_dir::read_manifest(path)?;
        let scopes = Scope::ALL.map(|scope| (scope, scope.domain_indices(&manifest.domains)));
        let file = path.join("rows.jsonl");
        let failed = |cause| RunDirError::Io { path: file.clone(), cause };
        let opened = File::open(&file).map_err(failed)?;
        let bytes = opened.metadata().map_err(failed)?.len();
        let mut builder = TableBuilder::default();
        let read = process_chunks(
            opened,
            |lines| parse_chunk(lines, &manifest.domains, &scopes),
            |chunk| {
                if builder.columns.is_empty() {
                    builder.columns.reserve(estimate_row_count(bytes, &chunk));
                }
                builder.add_chunk(chunk);
            },
        );
        read.map_err(failed)?;
        let keep = builder.remove_superseded();
        let TableBuilder { subjects, columns, invalid_lines: broken, notes: remarks } = builder;
        Ok(Self {
            run: path.to_owned(),
            manifest,
            subjects: subjects.strings,
            columns,
            invalid_lines: broken,
            superseded: keep.iter().filter(|kept| !**kept).count(),
            failures: remarks.failed.counts(&keep),
            not_delivered: remarks.not_delivered.counts(&keep),
            unmetered: remarks.unmetered.counts(&keep),
            domain_gaps: remarks.gaps.counts(&keep),
            other_domains: remarks.others.counts(&keep),
            lower_bounds: remarks.bounds.counts(&keep).into_values().sum(),
        })
    }

    /// The number of queries; of an interrupted run all that it would have asked.
    pub fn asked(&self) -> usize {
        let planned = self.manifest.count.saturating_mul(self.manifest.repeats as usize);
        self.columns.len().max(planned)
    }
}

impl TableBuilder {
    fn add_chunk(&mut self, mut chunk: TableChunk) {
        let subject_indices: Vec<usize> =
            chunk.subjects.drain(..).map(|subject| self.subjects.intern(subject)).collect();
        for subject in &mut chunk.columns.subject {
            *subject = subject_indices[*subject as usize] as u32;
        }
        let before = self.columns.len();
        for (notes, more) in self.notes.fields().into_iter().zip(chunk.notes.fields()) {
            notes.extend(before, std::mem::take(more));
        }
        self.columns.append(chunk.columns);
        self.invalid_lines += chunk.invalid_lines;
    }

    /// Finds the last row of each query, for figures and notes; returns which rows to keep.
    fn remove_superseded(&mut self) -> Vec<bool> {
        let mut order: Vec<(u64, u32)> =
            self.columns.query_hashes().enumerate().map(|(at, key)| (key, at as u32)).collect();
        order.sort_unstable();
        let mut keep = vec![true; order.len()];
        for pair in order.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            keep[pair[0].1 as usize] = false;
        }
        if keep.contains(&false) {
            self.columns.retain_rows(&keep);
        }
        keep
    }
}

/// Estimates the number of rows from the first chunk, with a margin, since growing a full column doubles it.
fn estimate_row_count(bytes: u64, chunk: &TableChunk) -> usize {
    let share = chunk.columns.len() as f64 / (chunk.bytes.max(1) as f64);
    (bytes as f64 * share * 1.02) as usize
}

fn parse_chunk(lines: &[u8], domains: &[RunDomain], scopes: &[(Scope, Vec<usize>); 3]) -> TableChunk {
    let mut chunk = TableChunk { bytes: lines.len(), ..TableChunk::default() };
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(row) = serde_json::from_slice::<QueryRow>(line) else {
            chunk.invalid_lines += 1;
            continue;
        };
        let (at, notes) = (chunk.columns.len(), &mut chunk.notes);
        let is_delivered = row.is_delivered();
        let failed = if is_delivered { &mut notes.failed } else { &mut notes.not_delivered };
        failed.extend(row.error.iter().map(|reason| (at, reason.clone())));
        if is_delivered {
            notes.unmetered.extend(row.unmetered.iter().map(|reason| (at, reason.clone())));
        }
        if let Some(energy) = &row.energy {
            let parts = domains.iter().zip(&energy.domains).filter(|(_, part)| part.share_uj.is_none());
            notes.gaps.extend(parts.map(|(domain, _)| (at, domain.name.clone())));
            notes.bounds.extend(energy.at_least.then(|| (at, String::new())));
            notes.others.extend(energy.other_domains.iter().map(|name| (at, name.clone())));
        }
        let index = chunk.subjects.iter().position(|subject| *subject == row.subject);
        let subject = index.unwrap_or_else(|| {
            chunk.subjects.push(row.subject.clone());
            chunk.subjects.len() - 1
        });
        chunk.columns.push(&row, subject as u32, scopes);
    }
    chunk
}

fn count_reason(counts: &mut BTreeMap<String, usize>, reason: &str) {
    let has_room = counts.len() < MAX_REASONS || counts.contains_key(reason);
    *counts.entry(if has_room { reason } else { "other reasons" }.to_owned()).or_insert(0) += 1;
}

/// A chunk's place in the file, and the chunk or what was made of it.
type Numbered<T> = (usize, T);

/// Reads a file in chunks of whole lines, processes them on all cores, and consumes the results in file order. A few
/// chunks are in memory at a time.
fn process_chunks<T: Send>(
    file: File,
    process: impl Fn(&[u8]) -> T + Sync,
    mut consume: impl FnMut(T),
) -> io::Result<()> {
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(8);
    thread::scope(|scope| {
        let (chunk_sender, chunks) = bounded::<Numbered<Vec<u8>>>(workers);
        let (result_sender, results) = bounded::<Numbered<T>>(workers * 2);
        for _ in 0..workers {
            let (chunks, result_sender, process) = (chunks.clone(), result_sender.clone(), &process);
            scope.spawn(move || {
                for (number, lines) in chunks {
                    if result_sender.send((number, process(&lines))).is_err() {
                        return;
                    }
                }
            });
        }
        // The results end when every worker has dropped its sender.
        drop((chunks, result_sender));
        let reader = scope.spawn(move || read_chunks(file, &chunk_sender));
        consume_in_order(&results, &mut consume);
        reader.join().expect("the reader does not panic")
    })
}

/// Sends a file in chunks of whole lines, up to its end or until no worker is left.
fn read_chunks(mut file: File, chunks: &Sender<Numbered<Vec<u8>>>) -> io::Result<()> {
    const CHUNK_BYTES: usize = 2 << 20;
    let mut rest = Vec::new();
    for number in 0.. {
        let mut lines = std::mem::take(&mut rest);
        lines.reserve(CHUNK_BYTES);
        let read = Read::by_ref(&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut lines)?;
        let end = memchr::memrchr(b'\n', &lines).map_or(0, |at| at + 1);
        if read > 0 {
            rest = lines.split_off(end);
        }
        if chunks.send((number, lines)).is_err() || read == 0 {
            break;
        }
    }
    Ok(())
}

fn consume_in_order<T>(results: &Receiver<Numbered<T>>, consume: &mut impl FnMut(T)) {
    let mut out_of_order = HashMap::new();
    let mut next = 0;
    for (number, result) in results {
        out_of_order.insert(number, result);
        while let Some(result) = out_of_order.remove(&next) {
            consume(result);
            next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::question;
    use super::super::row::{QueryEnergy, ReplyText};
    use super::super::run_dir::{FORMAT_VERSION, RunDir};
    use super::*;

    fn run(rows: &[QueryRow]) -> (tempfile::TempDir, RunTable) {
        let dir = tempfile::tempdir().unwrap();
        let questions = question::built_in();
        let fingerprint = question::fingerprint(&questions);
        let manifest = Manifest { version: FORMAT_VERSION, fingerprint, ..Manifest::default() };
        let mut run = RunDir::create(dir.path(), &manifest, &questions).unwrap();
        for row in rows {
            run.append_row(row, &ReplyText::default()).unwrap();
        }
        let table = RunTable::read(dir.path()).unwrap();
        (dir, table)
    }

    fn row(id: usize, subject: &str) -> QueryRow {
        QueryRow {
            id: format!("q{id}"),
            subject: subject.into(),
            duration_ns: id as u64,
            ..QueryRow::default()
        }
    }

    #[test]
    fn rows_keep_their_order_over_many_chunks() {
        let rows: Vec<QueryRow> = (0..40_000).map(|id| row(id, ["a", "b", "c"][id % 3])).collect();
        let (_dir, table) = run(&rows);
        assert_eq!(table.columns.len(), 40_000);
        assert_eq!(table.subjects, ["a", "b", "c"]);
        for at in 0..40_000 {
            assert_eq!(table.columns.duration_s[at], at as f64 / 1e9);
            assert_eq!(table.columns.subject[at] as usize, at % 3);
        }
        assert_eq!((table.invalid_lines, table.superseded), (0, 0));
    }

    #[test]
    fn the_last_row_of_a_query_wins() {
        let failed = QueryRow { error: Some("refused".into()), score: Some(1.0), ..row(1, "a") };
        let right = QueryRow { score: Some(1.0), ..row(1, "a") };
        let (_dir, table) = run(&[failed.clone(), row(2, "a"), right]);
        assert_eq!((table.columns.len(), table.superseded), (2, 1));
        assert_eq!(known(table.columns.score[1]), Some(1.0));
        let (_dir, table) = run(std::slice::from_ref(&failed));
        assert!(!table.columns.answered[0] && table.columns.delivered[0]);
        assert_eq!((table.failures["refused"], table.not_delivered.len()), (1, 0));
        assert_eq!(
            known(table.columns.score[0]),
            Some(0.0),
            "a failed answer is wrong, whatever its row says"
        );
        let refused = QueryRow { delivered: Some(false), ..failed };
        let (_dir, table) = run(&[refused]);
        assert!(!table.columns.delivered[0]);
        assert_eq!((table.failures.len(), table.not_delivered["refused"]), (0, 1));
        assert_eq!(known(table.columns.score[0]), None, "a question that was not asked has no score");
    }

    #[test]
    fn an_answer_that_was_cut_off_is_wrong_whatever_its_text() {
        let finish =
            |id, reason: &str| QueryRow { finish: Some(reason.into()), score: Some(1.0), ..row(id, "a") };
        let rows = ["stop", "length", "max_tokens", "ABORT", "content_filter", "eos"];
        let rows: Vec<QueryRow> = rows.iter().enumerate().map(|(id, reason)| finish(id, reason)).collect();
        let (_dir, table) = run(&rows);
        assert_eq!(table.columns.score, [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn rows_of_earlier_versions_are_judged_by_their_error_text() {
        let failed = |text: &str| QueryRow { error: Some(text.into()), ..row(1, "a") };
        for not_asked in
            ["no connection: refused", "HTTP 401: who are you?", "HTTP 503: loading", "HTTP 429: "]
        {
            assert!(!failed(not_asked).is_delivered(), "{not_asked}");
        }
        for wrong in [
            "HTTP 400: context too long",
            "HTTP 500: ",
            "no answer within 1s",
            "the answer broke off",
            "HTTP",
        ] {
            assert!(failed(wrong).is_delivered(), "{wrong}");
        }
    }

    #[test]
    fn superseded_failures_are_not_counted() {
        let failed = |id, reason: String| QueryRow { error: Some(reason), ..row(id, "a") };
        // More distinct reasons than are kept, all of superseded rows: they take no slots.
        let mut rows: Vec<QueryRow> = (0..20).map(|id| failed(id, format!("refused {id}"))).collect();
        rows.extend((0..20).map(|id| row(id, "a")));
        rows.extend([failed(1, "lost".into()), failed(30, "lost".into())]);
        let (_dir, table) = run(&rows);
        assert_eq!(table.failures, BTreeMap::from([("lost".to_owned(), 2)]));
        let (_dir, table) = run(&(0..20).map(|id| failed(id, format!("refused {id}"))).collect::<Vec<_>>());
        assert_eq!((table.failures.len(), table.failures["other reasons"]), (MAX_REASONS + 1, 4));
    }

    #[test]
    fn invalid_lines_are_counted_and_absent_values_are_unknown() {
        let energy =
            QueryEnergy { share_uj: Some(2_500_000), span_ns: 500_000_000, ..QueryEnergy::default() };
        let (dir, _) = run(&[QueryRow { energy: Some(energy), ..row(1, "a") }]);
        let path = dir.path().join("rows.jsonl");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{{\"id\":\n{text}garbage")).unwrap();
        let table = RunTable::read(dir.path()).unwrap();
        assert_eq!((table.invalid_lines, table.columns.len()), (2, 1));
        assert_eq!(known(table.columns.host_j[0]), Some(2.5));
        assert_eq!(known(table.columns.span_s[0]), Some(0.5));
        for absent in [&table.columns.host_idle_j, &table.columns.tokens_out, &table.columns.accelerator_j] {
            assert_eq!(known(absent[0]), None);
        }
    }

    #[test]
    fn energy_notes_are_counted_once_per_query() {
        let unmetered = |id| QueryRow { unmetered: Some("no account".into()), ..row(id, "a") };
        let other = |id| {
            let other_domains = vec!["psys".into()];
            let energy = QueryEnergy { other_domains, at_least: id == 4, ..QueryEnergy::default() };
            QueryRow { energy: Some(energy), ..row(id, "a") }
        };
        let failed = QueryRow { error: Some("refused".into()), delivered: Some(false), ..unmetered(3) };
        let (_dir, table) = run(&[unmetered(1), unmetered(1), failed, unmetered(2), other(2), other(4)]);
        assert_eq!(table.unmetered, BTreeMap::from([("no account".to_owned(), 1)]));
        assert_eq!(table.other_domains, BTreeMap::from([("psys".to_owned(), 2)]));
        assert_eq!((table.superseded, table.lower_bounds), (2, 1));
    }
}
