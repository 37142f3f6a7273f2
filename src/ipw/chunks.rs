//! A file of lines, read by all cores.
//!
//! Owns the threads: one reads chunks of whole lines, the others work on them, the caller takes the results in the file's
//! order. Invariant: a few chunks are in memory at a time, however long the file; no line is cut.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread;

/// Reads a file in chunks of whole lines, works on them on every core, and takes the results in the file's order.
///
/// # Errors
/// The file cannot be read.
pub fn process_chunks<T: Send>(
    mut file: File,
    process: impl Fn(&[u8]) -> T + Sync,
    mut consume: impl FnMut(T),
) -> io::Result<()> {
    const CHUNK_BYTES: usize = 2 << 20;
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(8);
    thread::scope(|scope| {
        let (job_sender, jobs) = sync_channel::<(usize, Vec<u8>)>(workers);
        let (result_sender, results) = sync_channel(workers * 2);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..workers {
            let (jobs, result_sender, process) = (Arc::clone(&jobs), result_sender.clone(), &process);
            scope.spawn(move || {
                loop {
                    let job = jobs.lock().expect("no holder of this lock can panic").recv();
                    let Ok((number, lines)) = job else { return };
                    if result_sender.send((number, process(&lines))).is_err() {
                        return;
                    }
                }
            });
        }
        drop((jobs, result_sender));
        let reader = scope.spawn(move || -> io::Result<()> {
            let mut rest = Vec::new();
            for number in 0.. {
                let mut lines = std::mem::take(&mut rest);
                lines.reserve(CHUNK_BYTES);
                let read = Read::by_ref(&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut lines)?;
                let end = memchr::memrchr(b'\n', &lines).map_or(0, |at| at + 1);
                if read > 0 {
                    rest = lines.split_off(end);
                }
                if job_sender.send((number, lines)).is_err() || read == 0 {
                    break;
                }
            }
            Ok(())
        });
        let mut out_of_order = HashMap::new();
        let mut next = 0;
        for (number, result) in results {
            out_of_order.insert(number, result);
            while let Some(result) = out_of_order.remove(&next) {
                consume(result);
                next += 1;
            }
        }
        reader.join().expect("the reader does not panic")
    })
}
