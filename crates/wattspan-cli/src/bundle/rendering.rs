//! The text of a bundle: the files of a machine, the domains that its tree shows, and a trace.
//!
//! docs/bundles.md describes the format. Invariant: every text passes the pseudonyms; only numbers do not.

use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;
use wattspan::embedded;
use wattspan_system::private_file;

use super::machine_files::{FileKind, MachineFiles};
use super::pseudonyms::{IdentifierKind, Pseudonyms, TextOrigin};

/// One line of the tree.
#[derive(Debug, PartialEq, Eq)]
pub struct TreeEntry {
    pub path: String,
    pub content: EntryContent,
}

/// What is at a path.
#[derive(Debug, PartialEq, Eq)]
pub enum EntryContent {
    Text(String),
    Binary(Vec<u8>),
    Link(String),
}

/// The tree under pseudonyms, and a remark for each file that is not part of it.
pub fn tree_entries(files: &MachineFiles, pseudonyms: &mut Pseudonyms) -> (Vec<TreeEntry>, Vec<String>) {
    let (mut entries, mut remarks) = (Vec::new(), Vec::new());
    for (path, target) in &files.links {
        let content = EntryContent::Link(replace_in_path(target, pseudonyms));
        entries.push(TreeEntry { path: replace_in_path(path, pseudonyms), content });
    }
    for (path, (kind, bytes)) in &files.files {
        let path = replace_in_file_path(path, pseudonyms);
        match entry_content(*kind, bytes, pseudonyms) {
            Some(content) => entries.push(TreeEntry { path, content }),
            None => remarks.push(format!("left out {path}: it contains an identifier")),
        }
    }
    for (path, reason) in &files.unreadable {
        remarks.push(format!("unreadable {}: {reason}", replace_in_file_path(path, pseudonyms)));
    }
    (entries, remarks)
}

fn entry_content(kind: FileKind, bytes: &[u8], pseudonyms: &mut Pseudonyms) -> Option<EntryContent> {
    if kind == FileKind::Binary {
        return (!pseudonyms.is_in(bytes)).then(|| EntryContent::Binary(bytes.to_vec()));
    }
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches(['\n', '\0']);
    Some(EntryContent::Text(match kind {
        FileKind::Number if is_numeric(text) => text.to_owned(),
        FileKind::Identifier => pseudonyms.replace_whole(IdentifierKind::Serial, text),
        FileKind::Kernel => pseudonyms.replace_in(text, TextOrigin::Kernel),
        _ => pseudonyms.replace_in(text, TextOrigin::Free),
    }))
}

fn is_numeric(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_digit() || " \n,-.+e%".contains(c))
}

fn replace_in_path(path: &str, pseudonyms: &mut Pseudonyms) -> String {
    let parts: Vec<_> = path.split('/').map(|part| pseudonyms.replace_in(part, TextOrigin::Kernel)).collect();
    parts.join("/")
}

/// The last part of a file's path is a name of the kernel.
fn replace_in_file_path(path: &str, pseudonyms: &mut Pseudonyms) -> String {
    match path.rsplit_once('/') {
        Some((dir, name)) => format!("{}/{name}", replace_in_path(dir, pseudonyms)),
        None => path.to_owned(),
    }
}

/// The lines of the tree.
pub fn render_tree(entries: &[TreeEntry]) -> String {
    let line = |entry: &TreeEntry| match &entry.content {
        EntryContent::Text(text) => format!("{} = {}\n", entry.path, escape(text)),
        EntryContent::Binary(bytes) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{} =hex {hex}\n", entry.path)
        }
        EntryContent::Link(target) => format!("{} -> {target}\n", entry.path),
    };
    entries.iter().map(line).collect()
}

/// One line without control characters.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('\n', "\\n")
        .chars()
        .map(|c| if c.is_control() && c != '\t' { '?' } else { c })
        .collect()
}

/// The domains that the tree shows, as lines; tests/support/bundle.rs compares them.
pub fn tree_domains(entries: &[TreeEntry]) -> io::Result<Vec<String>> {
    let root = tempfile::tempdir()?;
    write_tree(root.path(), entries)?;
    Ok(embedded::describe_tree(&root.path().join("sys"), &root.path().join("proc")))
}

fn write_tree(root: &Path, entries: &[TreeEntry]) -> io::Result<()> {
    for top in ["sys", "proc"] {
        private_file::create_dir_all(&root.join(top))?;
    }
    for entry in entries {
        let at = root.join(&entry.path);
        at.parent().map_or(Ok(()), private_file::create_dir_all)?;
        match &entry.content {
            EntryContent::Text(text) => private_file::write(&at, format!("{text}\n"))?,
            EntryContent::Binary(bytes) => private_file::write(&at, bytes)?,
            EntryContent::Link(target) => {
                private_file::create_dir_all(&root.join(target))?;
                symlink(root.join(target), at)?;
            }
        }
    }
    Ok(())
}

/// The trace as lines, with pseudonyms in its header; empty if it has no reading.
pub fn render_trace(trace: &str, pseudonyms: &mut Pseudonyms) -> Result<String, serde_json::Error> {
    let Some((header, readings)) = trace.split_once('\n').filter(|(_, readings)| !readings.is_empty()) else {
        return Ok(String::new());
    };
    let mut header: Value = serde_json::from_str(header)?;
    replace_in_strings(&mut header, pseudonyms);
    let lines = std::iter::once(header.to_string()).chain(readings.lines().map(String::from));
    Ok(lines.map(|line| format!("trace {line}\n")).collect())
}

fn replace_in_strings(value: &mut Value, pseudonyms: &mut Pseudonyms) {
    /// Their values are words of the format.
    const FIXED: [&str; 3] = ["kind", "grade", "source"];
    match value {
        Value::String(text) => *text = pseudonyms.replace_in(text, TextOrigin::Free),
        Value::Array(items) => items.iter_mut().for_each(|item| replace_in_strings(item, pseudonyms)),
        Value::Object(fields) => fields
            .iter_mut()
            .filter(|(name, _)| !FIXED.contains(&name.as_str()))
            .for_each(|(_, field)| replace_in_strings(field, pseudonyms)),
        _ => (),
    }
}
