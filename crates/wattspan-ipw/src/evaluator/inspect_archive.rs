//! The members of a `.eval` log of inspect-ai: a zip archive of JSON, compressed with Zstandard or Deflate.
//!
//! Invariant: reading takes bounded memory and time, whatever the sizes that the archive states. A member that is larger
//! than [`MAX_MEMBER_BYTES`], and members that together are larger than the file justifies, are refused. Parsed JSON takes
//! a multiple of its text: each element takes 32 bytes or more, and may be two bytes of text.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use ruzstd::decoding::StreamingDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::evaluation::ReadEvaluationError;

/// The largest member: a sample with its messages and events.
const MAX_MEMBER_BYTES: u64 = 64 << 20;

/// The most bytes of all members together: this many, or [`MAX_RATIO`] times the file, whichever is more.
const MIN_TOTAL_BYTES: u64 = 1 << 30;

/// More than JSON reaches in practice. A bomb has thousands.
const MAX_RATIO: u64 = 200;

/// The most members; an archive of 100 MB could have millions of empty ones.
const MAX_MEMBERS: usize = 2_000_000;

/// An archive opened for reading.
#[derive(Debug)]
pub struct InspectArchive {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
    /// The bytes that may still be decompressed.
    budget: u64,
    max_member_bytes: u64,
}

impl InspectArchive {
    /// Opens an archive.
    ///
    /// # Errors
    /// The file cannot be read, is no complete zip archive, or has too many members.
    pub fn open(path: &Path) -> Result<Self, ReadEvaluationError> {
        let file = File::open(path).map_err(ReadEvaluationError::io(path))?;
        let length = file.metadata().map_err(ReadEvaluationError::io(path))?.len();
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|cause| {
            ReadEvaluationError::invalid(path, format!("is no complete .eval log of inspect-ai: {cause}"))
        })?;
        if zip.len() > MAX_MEMBERS {
            let reason = format!("has {} members; {MAX_MEMBERS} are the most", zip.len());
            return Err(ReadEvaluationError::invalid(path, reason));
        }
        let budget = length.saturating_mul(MAX_RATIO).max(MIN_TOTAL_BYTES);
        Ok(Self { path: path.to_owned(), zip, budget, max_member_bytes: MAX_MEMBER_BYTES })
    }

    /// The names of the members, in the order of the archive. Where inspect-ai wrote one again, the last one is read.
    ///
    /// # Errors
    /// A name is invalid.
    pub fn names(&self) -> Result<Vec<String>, ReadEvaluationError> {
        let names = self.zip.file_names().map(|name| name.map(Cow::into_owned));
        let mut names = names.collect::<Result<Vec<String>, _>>().map_err(|cause| {
            ReadEvaluationError::invalid(&self.path, format!("a name in it is invalid: {cause}"))
        })?;
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        Ok(names)
    }

    /// Reads a member; `None` if there is none of this name.
    ///
    /// # Errors
    /// It is damaged, too large, or compressed in another way.
    pub fn read(&mut self, name: &str) -> Result<Option<Vec<u8>>, ReadEvaluationError> {
        let Some(index) = self.zip.index_for_name(name) else { return Ok(None) };
        let limit = self.budget.min(self.max_member_bytes);
        let bytes = self
            .decompress(index, limit)
            .map_err(|reason| ReadEvaluationError::invalid(&self.path, format!("{name}: {reason}")))?;
        self.budget -= bytes.len() as u64;
        Ok(Some(bytes))
    }

    fn decompress(&mut self, index: usize, limit: u64) -> Result<Vec<u8>, String> {
        let damaged = |cause: &dyn std::fmt::Display| format!("is damaged: {cause}");
        let raw = self.zip.by_index_raw(index).map_err(|cause| damaged(&cause))?;
        let (method, checksum) = (raw.compression(), raw.crc32());
        let mut bytes = Vec::new();
        if method == CompressionMethod::ZSTD {
            read_zstd(raw, limit, &mut bytes).map_err(|cause| damaged(&cause))?;
        } else {
            drop(raw);
            let member = self.zip.by_index(index).map_err(|cause| damaged(&cause))?;
            member.take(limit + 1).read_to_end(&mut bytes).map_err(|cause| damaged(&cause))?;
        }
        if bytes.len() as u64 > limit {
            return Err(format!(
                "is larger than {limit} bytes decompressed, which is refused: no log of this size has so much text"
            ));
        }
        if crc32fast::hash(&bytes) != checksum {
            return Err("is damaged: its checksum differs".into());
        }
        Ok(bytes)
    }
}

/// Decompresses consecutive Zstandard frames, and at most one byte more than `limit`.
fn read_zstd(compressed: impl Read, limit: u64, bytes: &mut Vec<u8>) -> Result<(), String> {
    let mut source = BufReader::new(compressed);
    while !source.fill_buf().map_err(|cause| cause.to_string())?.is_empty() {
        let mut decoder = StreamingDecoder::new(&mut source).map_err(|cause| cause.to_string())?;
        let rest = (limit + 1).saturating_sub(bytes.len() as u64);
        decoder.by_ref().take(rest).read_to_end(bytes).map_err(|cause| cause.to_string())?;
        if bytes.len() as u64 > limit {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
