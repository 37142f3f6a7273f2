//! Recording: a thread that copies the samples of all rings to a sink, such as a trace file.
//!
//! The thread only reads the rings, so that a slow or failing sink never delays a sampler. Samples that a ring
//! overwrote before they were read are counted as lost.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::ring::{RingReader, Sample};

/// How often the rings are read; they hold several times as many samples at the highest rate.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A recording in progress. Dropping it ends the recording without waiting for the sink.
pub struct Recording {
    shared: Arc<RecordingShared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct RecordingShared {
    stop: AtomicBool,
    recorded: AtomicU64,
    lost: AtomicU64,
}

/// The statistics of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordingStats {
    /// Samples that the sink accepted.
    pub recorded: u64,
    /// Samples that were overwritten before they were read.
    pub lost: u64,
}

/// Starts a recording of the samples written from now on. `sink` gets the index of the ring and the sample; the
/// samples of a ring come in order. The first error of the sink ends the recording.
///
/// # Errors
/// The thread cannot be created.
pub fn start(
    rings: Vec<RingReader>,
    sink: impl FnMut(usize, &Sample) -> io::Result<()> + Send + 'static,
) -> io::Result<Recording> {
    let shared = Arc::new(RecordingShared::default());
    let cursors = rings.into_iter().map(RingCursor::new).collect();
    let thread = std::thread::Builder::new().name("recorder".into()).spawn({
        let shared = Arc::clone(&shared);
        move || copy_samples(cursors, sink, &shared)
    })?;
    Ok(Recording { shared, thread: Some(thread) })
}

impl Recording {
    /// The statistics so far.
    pub fn stats(&self) -> RecordingStats {
        RecordingStats {
            recorded: self.shared.recorded.load(Ordering::Relaxed),
            lost: self.shared.lost.load(Ordering::Relaxed),
        }
    }

    /// Whether an error of the sink ended the recording; [`Recording::finish`] returns the error.
    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Passes all samples written so far to the sink, and ends the recording.
    ///
    /// # Errors
    /// The error of the sink that ended the recording.
    pub fn finish(mut self) -> io::Result<RecordingStats> {
        self.stop();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.map(|()| self.stats()),
            Some(Err(_)) => Err(io::Error::other("the sink panicked")),
            None => Ok(self.stats()),
        }
    }

    fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A ring, and the index of the next sample to read.
struct RingCursor {
    ring: RingReader,
    next: u64,
    /// Reused for every sample.
    sample: Sample,
}

impl RingCursor {
    fn new(ring: RingReader) -> Self {
        Self { next: ring.written_count(), sample: Sample::empty(ring.domains()), ring }
    }

    /// Passes the new samples to the sink.
    fn drain(
        &mut self,
        shared: &RecordingShared,
        mut sink: impl FnMut(&Sample) -> io::Result<()>,
    ) -> io::Result<()> {
        // Only the samples present at the start, so that a fast ring cannot starve the others.
        let written = self.ring.written_count();
        while self.next < written {
            if self.ring.read(self.next, &mut self.sample) {
                sink(&self.sample)?;
                shared.recorded.fetch_add(1, Ordering::Relaxed);
                self.next += 1;
            } else {
                // The writer overtook the cursor: this sample and all before the oldest are lost.
                let oldest = self.ring.oldest_index().max(self.next + 1);
                shared.lost.fetch_add(oldest - self.next, Ordering::Relaxed);
                self.next = oldest;
            }
        }
        Ok(())
    }
}

fn copy_samples(
    mut cursors: Vec<RingCursor>,
    mut sink: impl FnMut(usize, &Sample) -> io::Result<()>,
    shared: &RecordingShared,
) -> io::Result<()> {
    loop {
        // Loaded before the rings are read, so that samples written before the stop are recorded.
        let stopped = shared.stop.load(Ordering::Acquire);
        for (index, cursor) in cursors.iter_mut().enumerate() {
            cursor.drain(shared, |sample| sink(index, sample))?;
        }
        if stopped {
            return Ok(());
        }
        std::thread::park_timeout(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::ring::{RingWriter, ring};

    fn push(writer: &mut RingWriter, times: std::ops::Range<u64>) {
        for at_ns in times {
            writer.push(&Sample { before_ns: at_ns, after_ns: at_ns, readings: Vec::new() });
        }
    }

    #[test]
    fn every_sample_of_every_ring_reaches_the_sink_in_order() {
        let (mut first, first_ring) = ring(64, 0);
        let (mut second, second_ring) = ring(64, 0);
        push(&mut first, 0..5);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let seen = Arc::clone(&seen);
            move |ring, sample: &Sample| {
                seen.lock().unwrap().push((ring, sample.after_ns));
                Ok(())
            }
        };
        let recording = start(vec![first_ring, second_ring], sink).unwrap();
        push(&mut first, 5..8);
        push(&mut second, 100..102);
        assert_eq!(recording.finish().unwrap(), RecordingStats { recorded: 5, lost: 0 });
        let mut seen = seen.lock().unwrap().clone();
        seen.sort_by_key(|&(ring, _)| ring);
        assert_eq!(seen, [(0, 5), (0, 6), (0, 7), (1, 100), (1, 101)], "from the start of the recording on");
    }

    #[test]
    fn overwritten_samples_are_counted_as_lost() {
        let (mut writer, reader) = ring(4, 0);
        let (started, first) = channel();
        let (resume, resumed) = channel();
        let mut held = true;
        let sink = move |_, _: &Sample| {
            if std::mem::take(&mut held) {
                started.send(()).unwrap();
                resumed.recv().unwrap();
            }
            Ok(())
        };
        let recording = start(vec![reader], sink).unwrap();
        push(&mut writer, 0..1);
        first.recv().unwrap();
        push(&mut writer, 1..101);
        resume.send(()).unwrap();
        let recorded = recording.finish().unwrap();
        assert_eq!(recorded, RecordingStats { recorded: 5, lost: 96 }, "the held one and the last four");
    }

    #[test]
    fn a_sink_that_fails_ends_the_recording_with_its_error() {
        let (mut writer, reader) = ring(4, 0);
        let recording = start(vec![reader], |_, _| Err(io::Error::other("disk full"))).unwrap();
        push(&mut writer, 0..2);
        assert_eq!(recording.finish().unwrap_err().to_string(), "disk full");
    }
}
