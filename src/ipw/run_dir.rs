//! A run's directory.
//!
//! Owns the files of a run: `run.json` (what was done where), `questions.jsonl` (what was asked), `texts.jsonl` and
//! `rows.jsonl` (what came of it, a line for each query, as they end). Invariant: a line is written whole or not at all as far
//! as a reader can see, a row is never without its text, and nothing is ever deleted or overwritten: a query that is tried
//! again gets a further row, and the last one counts.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::question::{self, Question};
use super::row::{QueryRow, ReplyText};
use super::scope::RunDomain;
use crate::domain::REPLAY_SOURCE;
use crate::private_file;

/// What a run was.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// The form of these files.
    pub version: u32,
    /// What people call it.
    pub label: String,
    /// The model, in the server's words.
    pub model: String,
    /// Where it was asked.
    pub server: String,
    /// How it was asked: each setting by name, as text, for people and for comparisons.
    pub settings: BTreeMap<String, String>,
    /// Where the questions came from.
    pub questions: String,
    /// What tells the set from others.
    pub fingerprint: String,
    /// How many questions.
    pub count: usize,
    /// How often each was asked.
    pub repeats: u32,
    /// The machine, in words: processor, cards, system.
    pub machine: String,
    /// The program that measured.
    pub meter: String,
    /// How idle power was known: "configured", "learnt", "unknown".
    pub idle: String,
    /// The domains that were live when the run began; rows keep their parts in this order. Earlier versions listed the
    /// others too.
    pub domains: Vec<RunDomain>,
    /// The machine's other domains, which are no part of the run, each with the reason; absent in runs of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_live: Option<BTreeMap<String, String>>,
    /// When it began; wall time.
    pub began_unix_ns: u64,
}

impl Manifest {
    /// Whether the energies are of a machine that was replayed from a file.
    pub fn is_simulated(&self) -> bool {
        self.domains.iter().any(|domain| domain.source == REPLAY_SOURCE)
    }
}

/// The meter of a run that was made without one.
pub const NO_METER: &str = "none";

/// The version of the files that this program writes.
pub const FORMAT_VERSION: u32 = 1;

/// A run's directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// A file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// There is a run in it already.
    #[error("{} holds a run already: name another directory, or go on with it (--resume)", .0.display())]
    AlreadyExists(PathBuf),
    /// Somebody else writes to it.
    #[error("{} is being written by another process", .0.display())]
    Locked(PathBuf),
    /// What it says makes no sense.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What.
        reason: String,
    },
    /// Its questions cannot be read.
    #[error(transparent)]
    Questions(#[from] question::QuestionsError),
}

/// A run that is being written.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    rows: File,
    texts: File,
    /// What is there already, and was answered.
    answered: HashSet<(String, u32)>,
}

impl RunDir {
    /// Begins a run. The directory is made where it is not there; an empty one is taken.
    ///
    /// # Errors
    /// It holds a run, or cannot be written.
    pub fn create(path: &Path, manifest: &Manifest, questions: &[Question]) -> Result<Self, RunDirError> {
        private_file::create_dir_all(path).map_err(io_error_at(path))?;
        if path.join("run.json").exists() || path.join("rows.jsonl").exists() {
            return Err(RunDirError::AlreadyExists(path.to_owned()));
        }
        let questions_path = path.join("questions.jsonl");
        let mut lines = String::new();
        for question in questions {
            lines.push_str(&to_json(question));
            lines.push('\n');
        }
        private_file::write(&questions_path, lines).map_err(io_error_at(&questions_path))?;
        // The manifest comes last and under its name at once: a directory with one is a whole run.
        let (partial_path, final_path) = (path.join("run.json.part"), path.join("run.json"));
        let text = serde_json::to_string_pretty(manifest).expect("a manifest is plain data");
        private_file::write(&partial_path, text + "\n").map_err(io_error_at(&partial_path))?;
        fs::rename(&partial_path, &final_path).map_err(io_error_at(&final_path))?;
        Self::open(path)
    }

    /// Goes on with a run.
    ///
    /// # Errors
    /// There is none, another process writes it, or it cannot be written.
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
        let mut texts = open_append(&path.join("texts.jsonl"))?;
        for file in [&mut rows, &mut texts] {
            terminate_line(file).map_err(io_error_at(path))?;
        }
        let mut done = HashSet::new();
        for_each_row(&rows_path, |row| {
            if row.is_answered() {
                done.insert(row.key());
            }
        })?;
        Ok(Self { path: path.to_owned(), rows, texts, answered: done })
    }

    /// Whether a query was answered already.
    pub fn is_answered(&self, id: &str, repeat: u32) -> bool {
        self.answered.contains(&(id.to_owned(), repeat))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds what a query came to: its text first.
    ///
    /// # Errors
    /// The disk is full or gone; what was written before is whole.
    pub fn append_row(&mut self, row: &QueryRow, text: &ReplyText) -> Result<(), RunDirError> {
        let (rows, texts) = (self.path.join("rows.jsonl"), self.path.join("texts.jsonl"));
        append_line(&mut self.texts, text).map_err(io_error_at(&texts))?;
        append_line(&mut self.rows, row).map_err(io_error_at(&rows))
    }

    /// Writes the row of a query again, with another score; its text is there already.
    ///
    /// # Errors
    /// As for [`RunDir::add`].
    pub fn rescore(&mut self, row: &QueryRow) -> Result<(), RunDirError> {
        append_line(&mut self.rows, row).map_err(io_error_at(&self.path.join("rows.jsonl")))
    }
}

/// What a run was.
///
/// # Errors
/// There is no run, or one of a later version.
pub fn read_manifest(path: &Path) -> Result<Manifest, RunDirError> {
    let file = path.join("run.json");
    let text = fs::read_to_string(&file).map_err(io_error_at(&file))?;
    let invalid = |reason| RunDirError::Invalid { path: file.clone(), reason };
    let manifest: Manifest = serde_json::from_str(&text).map_err(|cause| invalid(cause.to_string()))?;
    if manifest.version != FORMAT_VERSION {
        let reason =
            format!("was written in form {}, and this program knows {FORMAT_VERSION}", manifest.version);
        return Err(invalid(reason));
    }
    Ok(manifest)
}

/// What was asked.
///
/// # Errors
/// They cannot be read.
pub fn read_questions(path: &Path) -> Result<Vec<Question>, RunDirError> {
    let file = path.join("questions.jsonl");
    let opened = File::open(&file).map_err(io_error_at(&file))?;
    Ok(question::parse(&file.display().to_string(), BufReader::new(opened))?)
}

/// What was said, the last word on each query.
///
/// # Errors
/// It cannot be read.
pub fn for_each_text(path: &Path, mut visit: impl FnMut(ReplyText)) -> Result<(), RunDirError> {
    for_each_line(&path.join("texts.jsonl"), |line| {
        if let Ok(text) = serde_json::from_slice(line) {
            visit(text);
        }
    })
}

/// Every row in the order of writing; lines that are none (a crash cut them) are passed over.
///
/// # Errors
/// It cannot be read.
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

fn open_append(path: &Path) -> Result<File, RunDirError> {
    private_file::append(path).map_err(io_error_at(path))
}

/// A line that a crash cut short stays as it is, and the next one begins on its own.
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
        // A part may stand there; the next line must not be glued to it.
        let _ = terminate_line(file);
    }
    written
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("rows are plain data with text keys")
}

fn io_error_at(path: &Path) -> impl Fn(io::Error) -> RunDirError {
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
        append(&mut run, "b", None);
        let mut rows = Vec::new();
        for_each_row(&dir.path().join("rows.jsonl"), |row| rows.push((row.id.clone(), row.is_answered())))
            .unwrap();
        assert_eq!(rows, [("a".into(), true), ("b".into(), false), ("b".into(), true)]);
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
        assert!(read_manifest(dir.path()).unwrap_err().to_string().contains("form 99"));
        assert!(read_manifest(&dir.path().join("none")).unwrap_err().to_string().contains("none/run.json"));
    }
}
