//! A file of lines, read by all cores.
//!
//! Owns the threads: one reads blocks of whole lines, the others work on them, the caller takes the results in the file's
//! order. Invariant: a few blocks are in memory at a time, however long the file; no line is cut.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread;

/// Reads a file in blocks of whole lines, works on them on every core, and takes the results in the file's order.
///
/// # Errors
/// The file cannot be read.
pub fn in_blocks<T: Send>(
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
                lines.reserve(BLOCK_BYTES);
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
