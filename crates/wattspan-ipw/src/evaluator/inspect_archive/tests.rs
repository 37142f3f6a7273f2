//! Archives whose methods, sizes and checksums are right, wrong and hostile.

use std::fs;
use std::io::Write;

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

/// A zip archive with one member, whose compressed bytes, method and size the caller states.
pub fn raw_zip(name: &str, method: u16, compressed: &[u8], content: &[u8]) -> Vec<u8> {
    let (checksum, size) = (crc32fast::hash(content), content.len() as u32);
    let mut fields = Vec::new();
    fields.extend_from_slice(&[20, 0, 0, 0]);
    fields.extend_from_slice(&method.to_le_bytes());
    fields.extend_from_slice(&[0; 4]);
    for number in [checksum, compressed.len() as u32, size] {
        fields.extend_from_slice(&number.to_le_bytes());
    }
    fields.extend_from_slice(&(name.len() as u16).to_le_bytes());
    fields.extend_from_slice(&[0, 0]);
    let mut archive = b"PK\x03\x04".to_vec();
    archive.extend_from_slice(&fields);
    archive.extend_from_slice(name.as_bytes());
    archive.extend_from_slice(compressed);
    let directory = archive.len() as u32;
    archive.extend_from_slice(b"PK\x01\x02\x14\x00");
    archive.extend_from_slice(&fields);
    archive.extend_from_slice(&[0; 14]);
    archive.extend_from_slice(name.as_bytes());
    let directory_bytes = archive.len() as u32 - directory;
    archive.extend_from_slice(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    archive.extend_from_slice(&directory_bytes.to_le_bytes());
    archive.extend_from_slice(&directory.to_le_bytes());
    archive.extend_from_slice(&[0, 0]);
    archive
}

pub fn zstd(content: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest)
}

fn read_member(archive: &[u8], max_member_bytes: u64) -> Result<Option<Vec<u8>>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.eval");
    fs::write(&path, archive).unwrap();
    let mut archive = InspectArchive::open(&path).map_err(|error| error.to_string())?;
    archive.max_member_bytes = max_member_bytes;
    archive.read("a.json").map_err(|error| error.to_string())
}

#[test]
fn zstandard_frames_deflate_and_stored_members_are_read() {
    let content = "{\"text\":\"aaaaaaaaaaaaaaaaaaaa\"}".repeat(1000).into_bytes();
    let (first, second) = content.split_at(700);
    let frames = [zstd(first), zstd(second)].concat();
    assert_eq!(read_member(&raw_zip("a.json", 93, &frames, &content), 1 << 20), Ok(Some(content.clone())));
    assert_eq!(read_member(&raw_zip("a.json", 0, &content, &content), 1 << 20), Ok(Some(content.clone())));
    assert_eq!(read_member(&raw_zip("b.json", 0, b"{}", b"{}"), 1 << 20), Ok(None));
    let mut deflated = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    deflated.start_file("a.json", options).unwrap();
    deflated.write_all(&content).unwrap();
    let deflated = deflated.finish().unwrap().into_inner();
    assert!(deflated.len() < content.len() / 2, "it is compressed");
    assert_eq!(read_member(&deflated, 1 << 20), Ok(Some(content)));
}

#[test]
fn a_bomb_is_refused_whatever_size_it_states() {
    let content = vec![b' '; 200_000];
    for archive in [raw_zip("a.json", 93, &zstd(&content), b"{}"), raw_zip("a.json", 0, &content, &content)] {
        let error = read_member(&archive, 100_000).unwrap_err();
        assert!(error.contains("larger than 100000 bytes"), "{error}");
    }
}

#[test]
fn all_members_together_are_limited() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.eval");
    let content = vec![b' '; 1000];
    fs::write(&path, raw_zip("a.json", 93, &zstd(&content), &content)).unwrap();
    let mut archive = InspectArchive::open(&path).unwrap();
    archive.budget = 2500;
    assert!(archive.read("a.json").is_ok() && archive.read("a.json").is_ok());
    assert!(archive.read("a.json").unwrap_err().to_string().contains("larger than 500 bytes"));
}

#[test]
fn damaged_archives_are_errors_that_name_the_file() {
    let content = b"{\"a\":1}".repeat(100);
    let whole = raw_zip("a.json", 93, &zstd(&content), &content);
    for cut in [0, 3, 30, whole.len() / 2, whole.len() - 1] {
        let error = read_member(&whole[..cut], 1 << 20).unwrap_err();
        assert!(error.contains("log.eval: is no complete .eval log"), "{error}");
    }
    for archive in [
        raw_zip("a.json", 93, &zstd(&content), b"other content"),
        raw_zip("a.json", 93, b"no frame", &content),
        raw_zip("a.json", 93, &zstd(&content)[..20], &content),
        raw_zip("a.json", 8, b"\xFF\xFF\xFF", &content),
        raw_zip("a.json", 14, b"lzma", &content),
    ] {
        let error = read_member(&archive, 1 << 20).unwrap_err();
        assert!(error.contains("a.json: is damaged"), "{error}");
    }
}
