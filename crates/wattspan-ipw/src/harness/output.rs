//! Output files that appear complete or not at all, and JSON lines in them.
//!
//! Invariant: a failed write leaves an existing file as it was.

use std::fs::{self, File};
use std::io::{BufWriter, Write, stdout};
use std::path::Path;

use wattspan_system::private_file;

use super::HarnessError;

/// Writes JSON lines to a file, or to standard output if `path` is "-"; returns the number of lines.
///
/// # Errors
/// The file cannot be written; an existing file stays unchanged.
pub fn write_json_lines<T: serde::Serialize>(
    path: &Path,
    lines: impl Iterator<Item = T>,
) -> Result<usize, HarnessError> {
    if path == Path::new("-") {
        return write_lines(&mut stdout().lock(), lines).map_err(HarnessError::io(path));
    }
    write_atomically(path, |file| write_lines(file, lines).map_err(HarnessError::io(path)))
}

fn write_lines<T: serde::Serialize>(
    to: &mut impl Write,
    lines: impl Iterator<Item = T>,
) -> std::io::Result<usize> {
    let mut to = BufWriter::new(to);
    let mut count = 0;
    for line in lines {
        serde_json::to_writer(&mut to, &line)?;
        to.write_all(b"\n")?;
        count += 1;
    }
    to.flush()?;
    Ok(count)
}

/// Writes a file under a temporary name and renames it when complete; a device or pipe is written directly.
pub(super) fn write_atomically<T>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<T, HarnessError>,
) -> Result<T, HarnessError> {
    if private_file::is_stream(path) {
        return write(&mut private_file::create(path).map_err(HarnessError::io(path))?);
    }
    private_file::check_replaceable(path).map_err(HarnessError::io(path))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let partial = path.with_file_name(name);
    let mut file = private_file::create(&partial).map_err(HarnessError::io(partial.clone()))?;
    let result = write(&mut file).and_then(|result| {
        file.sync_all()
            .and_then(|()| fs::rename(&partial, path))
            .and_then(|()| private_file::sync_directory(path.parent().unwrap_or(Path::new(""))))
            .map_err(HarnessError::io(path))?;
        Ok(result)
    });
    if result.is_err() {
        // A partial file is useless, so it is removed.
        let _ = fs::remove_file(&partial);
    }
    result
}
