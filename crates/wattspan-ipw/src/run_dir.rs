//! The directory of a run.
//!
//! Files: `run.json` (the manifest), `questions.jsonl` (the questions), `texts.jsonl` and `rows.jsonl` (one line for
//! each finished query). Invariant: readers see only complete lines, a row always has its text, and nothing is deleted
//! or overwritten. A retried query gets a further row, and the last one counts. The manifest and the questions are on disk
//! before the first query, rows and texts about a second after it; a query whose row or text a power cut took is asked again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wattspan_client::domain::REPLAY_SOURCE;
use wattspan_client::protocol::DomainStatus;
use wattspan_system::private_file;

use super::conditions::Conditions;
use super::question::{self, Question};
use super::row::{EarlierTry, QueryRow, ReplyText};
use super::row_sync::RowSync;
use super::scope::RunDomain;

/// The manifest of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// The version of the file format.
    pub version: u32,
    /// The name of the run, for display.
    pub label: String,
    /// The model, as the server names it.
    pub model: String,
    /// The base URL of the server.
    pub server: String,
    /// The settings by name, as text, for display and comparison.
    pub settings: BTreeMap<String, String>,
    /// The source of the questions.
    pub questions: String,
    /// The fingerprint of the question set.
    pub fingerprint: String,
    pub count: usize,
    /// How often each question was asked.
    pub repeats: u32,
    /// The machine: processor, accelerators, operating system.
    pub machine: String,
    /// The version of the program that measured.
    pub meter: String,
    /// The source of the idle baseline: "configured", "learnt", "unknown".
    pub idle: String,
    /// The domains that were live when the run began; rows keep their values in this order. Earlier versions also
    /// listed the others.
    pub domains: Vec<RunDomain>,
    /// The machine's other domains, each with the reason for its absence; absent in runs of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_live: Option<BTreeMap<String, String>>,
    /// Start of the run, wall-clock time.
    pub began_unix_ns: u64,
    /// Engine, model file, driver, governor and others, as far as they were found; absent in runs of earlier versions.
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
    /// What the meter's guarantee assumed of each domain when the run began; absent in runs of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assumptions: Option<Vec<DomainStatus>>,
}

impl Manifest {
    /// Whether the energies are of a simulated machine (replayed from a file).
    pub fn is_simulated(&self) -> bool {
        self.domains.iter().any(|domain| domain.source == REPLAY_SOURCE)
    }
}

/// The meter's name in a run without metering.
pub const NO_METER: &str = "none";

/// The file format version that this program writes.
pub const FORMAT_VERSION: u32 = 1;

/// A run directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// A file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The path of the file.
        path: PathBuf,
        cause: io::Error,
    },
    /// The directory already has a run.
    #[error("{} holds a run already: name another directory, or go on with it (--resume)", .0.display())]
    AlreadyExists(PathBuf),
    /// Another process writes to the directory.
    #[error("{} is being written by another process", .0.display())]
    Locked(PathBuf),
    /// The content of a file is invalid.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The path of the file.
        path: PathBuf,
        reason: String,
    },
    /// The questions cannot be read.
    #[error(transparent)]
    Questions(#[from] question::QuestionsError),
}

/// A run directory opened for writing.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    rows: File,
    texts: File,
    row_sync: RowSync,
    /// Keys of the queries that were answered.
    answered: HashSet<(String, u32)>,
    /// The last failed try of each query that was not answered; its energy includes that of the tries before it.
    failed: HashMap<(String, u32), EarlierTry>,
    /// The number of the rows that are written from now on: one more than that of the last row.
    session: u32,
}

impl RunDir {
    /// Creates a run. The directory is created if it does not exist; an empty one is used.
    ///
    /// # Errors
    /// The directory has a run, or cannot be written.
    pub fn create(path: &Path, manifest: &Manifest, questions: &[Question]) -> Result<Self, RunDirError> {
        let missing = path.ancestors().take_while(|at| !at.as_os_str().is_empty() && !at.exists()).count();
        private_file::create_dir_all(path).map_err(io_error_at(path))?;
        // The names of the new directories; a parent that this user cannot read cannot be synced either.
        for parent in path.ancestors().skip(1).take(missing) {
            let _ = private_file::sync_directory(parent);
        }
        if path.join("run.json").exists() || path.join("rows.jsonl").exists() {
            return Err(RunDirError::AlreadyExists(path.to_owned()));
        }
        let questions_path = path.join("questions.jsonl");
        let mut lines = String::new();
        for question in questions {
            lines.push_str(&to_json(question));
            lines.push('\n');
        }
        write_whole(&questions_path, &lines)?;
        // The manifest is written last and atomically: a directory with a manifest is complete.
        let text = serde_json::to_string_pretty(manifest).expect("a manifest is plain data") + "\n";
        write_whole(&path.join("run.json"), &text)?;
        Self::open(path)
    }

    /// Resumes a run.
    ///
    /// # Errors
    /// There is no run, another process writes to it, or it cannot be written.
    pub fn resume(path: &Path) -> Result<(Self, Manifest, Vec<Question>), RunDirError> {
        let (manifest, questions) = (read_manifest(path)?, read_questions(path)?);
        if question::fingerprint(&questions) != manifest.fingerprint {
            let reason = "these are not the questions that the run began with".to_owned();
            return Err(RunDirError::Invalid { path: path.join("questions.jsonl"), reason });
        }
        Ok((Self::open(path)?, manifest, questions))
    }

    fn open(path: &Path) -> Result<Self, RunDirError> {
        let rows_path = path.join("rows.jsonl");
        let mut rows = open_append(&rows_path)?;
        if rustix::fs::flock(&rows, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(RunDirError::Locked(path.to_owned()));
        }
        let stored_texts = StoredTexts::read(path)?;
        let mut texts = open_append(&path.join("texts.jsonl"))?;
        for file in [&mut rows, &mut texts] {
            terminate_line(file).map_err(io_error_at(path))?;
        }
        // The names of new files; their lines are synced by the thread.
        private_file::sync_directory(path).map_err(io_error_at(path))?;
        let row_sync = RowSync::start(&texts, &rows).map_err(io_error_at(path))?;
        let (mut answered, mut failed, mut session) = (HashSet::new(), HashMap::new(), 0);
        for_each_row(&rows_path, |row| {
            session = session.max(row.session + 1);
            if !stored_texts.has_text_of(&row) {
                // A power cut took its text; it is asked again, and the further row counts.
                failed.remove(&row.key());
            } else if row.is_answered() {
                failed.remove(&row.key());
                answered.insert(row.key());
            } else if let Some(earlier) = row.as_earlier_try() {
                failed.insert(row.key(), earlier);
            }
        })?;
        Ok(Self { path: path.to_owned(), rows, texts, row_sync, answered, failed, session })
    }

    /// Returns the failed tries of a query in earlier sessions, as one.
    pub fn earlier_tries(&self, id: &str, repeat: u32) -> &[EarlierTry] {
        self.failed.get(&(id.to_owned(), repeat)).map_or(&[], std::slice::from_ref)
    }

    /// The number of times that the run was resumed.
    pub fn session(&self) -> u32 {
        self.session
    }

    /// Returns whether a query was already answered.
    pub fn is_answered(&self, id: &str, repeat: u32) -> bool {
        self.answered.contains(&(id.to_owned(), repeat))
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends the result of a query: first its text, then its row. They are on disk within about a second.
    ///
    /// # Errors
    /// The disk is full or unavailable; lines that were written before are complete. An earlier sync failed.
    pub fn append_row(&mut self, row: &QueryRow, text: &ReplyText) -> Result<(), RunDirError> {
        let (rows, texts) = (self.path.join("rows.jsonl"), self.path.join("texts.jsonl"));
        let text = ReplyText { session: Some(row.session), ..text.clone() };
        append_line(&mut self.texts, &text).map_err(io_error_at(&texts))?;
        append_line(&mut self.rows, row).and_then(|()| self.row_sync.request()).map_err(io_error_at(&rows))
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// A sync failed.
    pub fn finish(mut self) -> Result<(), RunDirError> {
        self.row_sync.finish().map_err(io_error_at(&self.path))
    }

    /// Appends a query's row with another score; its text exists already.
    ///
    /// # Errors
    /// As for [`RunDir::append_row`].
    pub fn rescore(&mut self, row: &QueryRow) -> Result<(), RunDirError> {
        append_line(&mut self.rows, row)
            .and_then(|()| self.row_sync.request())
            .map_err(io_error_at(&self.path.join("rows.jsonl")))
    }
}

/// Reads the manifest of a run.
///
/// # Errors
/// There is no run, or it has a later format version.
pub fn read_manifest(path: &Path) -> Result<Manifest, RunDirError> {
    let file = path.join("run.json");
    let text = fs::read_to_string(&file).map_err(io_error_at(&file))?;
    let invalid = |reason| RunDirError::Invalid { path: file.clone(), reason };
    let manifest: Manifest = serde_json::from_str(&text).map_err(|cause| invalid(cause.to_string()))?;
    if manifest.version != FORMAT_VERSION {
        let reason =
            format!("has format version {}; this program reads version {FORMAT_VERSION}", manifest.version);
        return Err(invalid(reason));
    }
    Ok(manifest)
}

/// Reads the questions of a run.
///
/// # Errors
/// The file cannot be read or is invalid.
pub fn read_questions(path: &Path) -> Result<Vec<Question>, RunDirError> {
    let file = path.join("questions.jsonl");
    let opened = File::open(&file).map_err(io_error_at(&file))?;
    Ok(question::parse(&file.display().to_string(), BufReader::new(opened))?)
}

/// Reads all replies; a later reply of the same query supersedes an earlier one.
///
/// # Errors
/// The file cannot be read.
pub fn for_each_text(path: &Path, mut visit: impl FnMut(ReplyText)) -> Result<(), RunDirError> {
    for_each_line(&path.join("texts.jsonl"), |line| {
        if let Ok(text) = serde_json::from_slice(line) {
            visit(text);
        }
    })
}

/// Which replies of a run are there: by query and session.
struct StoredTexts {
    keys: HashSet<(String, u32, Option<u32>)>,
    /// The user has removed the replies. Their queries stay answered.
    are_removed: bool,
}

impl StoredTexts {
    fn read(path: &Path) -> Result<Self, RunDirError> {
        let mut texts = Self { keys: HashSet::new(), are_removed: !path.join("texts.jsonl").exists() };
        if !texts.are_removed {
            for_each_text(path, |text| _ = texts.keys.insert((text.id, text.repeat, text.session)))?;
        }
        Ok(texts)
    }

    fn has_text_of(&self, row: &QueryRow) -> bool {
        let mut key = (row.id.clone(), row.repeat, Some(row.session));
        self.are_removed || self.keys.contains(&key) || {
            key.2 = None;
            self.keys.contains(&key)
        }
    }
}

/// Whether a power cut took the text of a row, so that a resumed run asks its query again.
///
/// # Errors
/// A file cannot be read.
pub fn has_rows_without_text(path: &Path) -> Result<bool, RunDirError> {
    let (texts, mut found) = (StoredTexts::read(path)?, false);
    for_each_row(&path.join("rows.jsonl"), |row| found |= !texts.has_text_of(&row))?;
    Ok(found)
}

/// Reads all rows in writing order; invalid lines (cut by a crash) are skipped.
///
/// # Errors
/// The file cannot be read.
pub fn for_each_row(rows: &Path, mut visit: impl FnMut(QueryRow)) -> Result<(), RunDirError> {
    for_each_line(rows, |line| {
        if let Ok(row) = serde_json::from_slice(line) {
            visit(row);
        }
    })
}

fn for_each_line(path: &Path, mut visit: impl FnMut(&[u8])) -> Result<(), RunDirError> {
    let mut reader = BufReader::new(File::open(path).map_err(io_error_at(path))?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).map_err(io_error_at(path))? > 0 {
        visit(&line);
        line.clear();
    }
    Ok(())
}

/// Writes a file that is there only when it is complete and on disk.
fn write_whole(path: &Path, text: &str) -> Result<(), RunDirError> {
    private_file::check_replaceable(path)
        .and_then(|()| {
            private_file::write_atomically(path, 0o600, |mut file| file.write_all(text.as_bytes()))
        })
        .map_err(io_error_at(path))
}

fn open_append(path: &Path) -> Result<File, RunDirError> {
    private_file::append(path).map_err(io_error_at(path))
}

/// A line cut by a crash is kept, and the next line begins after a newline.
fn terminate_line(file: &mut File) -> io::Result<()> {
    let mut last = [0];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(())
}

fn append_line(file: &mut File, value: &impl Serialize) -> io::Result<()> {
    let mut bytes = to_json(value).into_bytes();
    bytes.push(b'\n');
    let written = file.write_all(&bytes);
    if written.is_err() {
        // A partial line may precede; the next line must not be appended to it.
        let _ = terminate_line(file);
    }
    written
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("rows are plain data with text keys")
}

pub(crate) fn io_error_at(path: &Path) -> impl Fn(io::Error) -> RunDirError {
    move |cause| RunDirError::Io { path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create_run(path: &Path) -> Result<RunDir, RunDirError> {
        let questions = question::built_in();
        let fingerprint = question::fingerprint(&questions);
        RunDir::create(
            path,
            &Manifest { version: FORMAT_VERSION, fingerprint, ..Manifest::default() },
            &questions,
        )
    }

    fn append(run: &mut RunDir, id: &str, error: Option<&str>) {
        let row = QueryRow { id: id.into(), error: error.map(str::to_owned), ..QueryRow::default() };
        run.append_row(&row, &ReplyText { id: id.into(), reply: "x".into(), ..ReplyText::default() })
            .unwrap();
    }

    #[test]
    fn a_resumed_run_skips_answered_queries() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = create_run(dir.path()).unwrap();
        append(&mut run, "a", None);
        append(&mut run, "b", Some("refused"));
        drop(run);
        let (mut run, manifest, questions) = RunDir::resume(dir.path()).unwrap();
        assert!(run.is_answered("a", 0) && !run.is_answered("b", 0) && !run.is_answered("a", 1));
        assert_eq!((questions.len(), manifest.version), (50, FORMAT_VERSION));
        assert_eq!(
            (run.session(), run.earlier_tries("a", 0).len(), run.earlier_tries("b", 0).len()),
            (1, 0, 1)
        );
        append(&mut run, "b", None);
        let mut rows = Vec::new();
        for_each_row(&dir.path().join("rows.jsonl"), |row| rows.push((row.id.clone(), row.is_answered())))
            .unwrap();
        assert_eq!(rows, [("a".into(), true), ("b".into(), false), ("b".into(), true)]);
        drop(run);
        let (run, ..) = RunDir::resume(dir.path()).unwrap();
        assert!(run.earlier_tries("b", 0).is_empty(), "it was answered");
    }

    #[test]
    fn the_text_of_an_earlier_try_does_not_stand_for_a_lost_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = create_run(dir.path()).unwrap();
        append(&mut run, "a", Some("refused"));
        drop(run);
        let (mut run, ..) = RunDir::resume(dir.path()).unwrap();
        let row = QueryRow { id: "a".into(), session: run.session(), ..QueryRow::default() };
        let text = ReplyText { id: "a".into(), reply: "second".into(), ..ReplyText::default() };
        run.append_row(&row, &text).unwrap();
        drop(run);
        assert!(RunDir::resume(dir.path()).unwrap().0.is_answered("a", 0));
        // A power cut takes the second text, and not its row.
        let texts = dir.path().join("texts.jsonl");
        let lines = fs::read_to_string(&texts).unwrap();
        fs::write(&texts, lines.lines().next().unwrap()).unwrap();
        assert!(has_rows_without_text(dir.path()).unwrap());
        assert!(!RunDir::resume(dir.path()).unwrap().0.is_answered("a", 0));
        // A user removed all texts.
        fs::remove_file(&texts).unwrap();
        assert!(!has_rows_without_text(dir.path()).unwrap());
        assert!(RunDir::resume(dir.path()).unwrap().0.is_answered("a", 0));
    }

    #[test]
    fn a_truncated_line_does_not_damage_other_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = create_run(dir.path()).unwrap();
        append(&mut run, "a", None);
        run.rows.write_all(b"{\"id\":\"b\",\"sub").unwrap();
        drop(run);
        let (mut run, ..) = RunDir::resume(dir.path()).unwrap();
        append(&mut run, "c", None);
        let mut ids = Vec::new();
        for_each_row(&dir.path().join("rows.jsonl"), |row| ids.push(row.id)).unwrap();
        assert_eq!(ids, ["a", "c"]);
        let text = fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
        assert!(text.contains("{\"id\":\"b\",\"sub\n"), "nothing is deleted");
    }

    #[test]
    fn existing_and_locked_directories_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let run = create_run(dir.path()).unwrap();
        assert!(matches!(create_run(dir.path()), Err(RunDirError::AlreadyExists(_))));
        assert!(matches!(RunDir::resume(dir.path()), Err(RunDirError::Locked(_))));
        drop(run);
        assert!(RunDir::resume(dir.path()).is_ok());
        fs::write(dir.path().join("questions.jsonl"), "{\"prompt\":\"x\",\"answer\":\"1\"}\n").unwrap();
        assert!(matches!(RunDir::resume(dir.path()), Err(RunDirError::Invalid { .. })));
    }

    #[test]
    fn a_newer_format_version_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("run.json"), "{\"version\": 99}").unwrap();
        assert!(read_manifest(dir.path()).unwrap_err().to_string().contains("format version 99"));
        assert!(read_manifest(&dir.path().join("none")).unwrap_err().to_string().contains("none/run.json"));
    }
}
