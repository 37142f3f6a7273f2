//! The daemon's end of the lane: connects, writes what is queued, reads what is answered, and begins again.
//!
//! Owns the socket. A daemon counts as there once it answered a first question; it counts as gone when it hangs up,
//! speaks nonsense, or makes no progress. Every change is told once, in one line.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::lane::{Orders, Shared};
use super::order::{Order, Question};
use crate::client::Place;
use crate::protocol::{Access, Answer, Call, END, GetInfo, Info};

/// Pause before the daemon is looked for again: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A daemon that takes longer for its first answer, or to take what it is sent, is as good as gone.
const STALL: Duration = Duration::from_secs(3);

/// A close that is answered later than this never will be; a settled account may wait for a slow counter.
const LONGEST_SETTLING: Duration = Duration::from_secs(60);

/// A daemon that sends more than this without an end is not one.
const LARGEST_MESSAGE: usize = 1 << 20;

/// Orders that are written at once.
const AT_ONCE: usize = 256;

/// Keeps the lane served until nobody is left to send orders.
pub async fn serve(place: Place, mut orders: Orders, shared: &Shared, tell: &(dyn Fn(&str) + Sync)) {
    let (mut generation, mut pause, mut told) = (0, PAUSES.0, None);
    loop {
        let began = Instant::now();
        let reason = match meet(&place).await {
            Ok((stream, path)) => {
                generation += 1;
                if told.take() != Some(String::new()) {
                    tell(&format!("the meter at {} answers", path.display()));
                    told = Some(String::new());
                }
                shared.set_generation(generation);
                let reason = talk(stream, generation, &mut orders, shared).await;
                shared.set_generation(0);
                let Some(reason) = reason else { return };
                if began.elapsed() > PAUSES.1 {
                    pause = PAUSES.0;
                }
                reason
            }
            Err(reason) => reason,
        };
        if told.as_ref() != Some(&reason) {
            tell(&format!("{reason}; requests go through unmeasured until the meter answers"));
            told = Some(reason);
        }
        if !sleep(pause, &mut orders, shared).await {
            return;
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Waits, and lets go of what is queued meanwhile; false where nobody is left.
async fn sleep(pause: Duration, orders: &mut Orders, shared: &Shared) -> bool {
    let end = tokio::time::sleep(pause);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return true,
            order = orders.recv() => match order {
                Some(_) => shared.took(),
                None => return false,
            },
        }
    }
}

/// Connects to the first place that answers a question; which that was.
async fn meet(place: &Place) -> Result<(UnixStream, &Path), String> {
    let mut failure = String::from("no place to look for the meter at");
    for path in place.paths() {
        let at = path.display();
        let meeting = async {
            let mut stream = UnixStream::connect(path).await?;
            let mut question = Vec::new();
            Call::new(GetInfo {}).write(&mut question);
            stream.write_all(&question).await?;
            let mut incoming = Vec::new();
            while !incoming.contains(&END) {
                if stream.read_buf(&mut incoming).await? == 0 || incoming.len() > LARGEST_MESSAGE {
                    return Err(io::Error::other("it hung up instead of answering"));
                }
            }
            Ok((stream, incoming))
        };
        match timeout(STALL, meeting).await {
            Ok(Ok((stream, incoming))) => match may_measure(&incoming) {
                Ok(()) => return Ok((stream, path)),
                Err(reason) => failure = format!("the meter at {at}: {reason}"),
            },
            Ok(Err(reason)) => failure = format!("no meter at {at}: {reason}"),
            Err(_) => failure = format!("the meter at {at} does not answer"),
        }
    }
    Err(failure)
}

/// Whether the first answer lets this user open spans. Nothing follows it, since nothing else was asked.
fn may_measure(incoming: &[u8]) -> Result<(), String> {
    let message = incoming.split(|&byte| byte == END).next().unwrap_or_default();
    let answer = Answer::read(message).map_err(|error| error.to_string())?;
    match answer.into_reply::<Info>() {
        Ok(Ok(info)) if info.access == Access::None => {
            Err("this user may not open spans; `wattspan doctor` says how to get access".into())
        }
        Ok(Ok(_)) => Ok(()),
        Ok(Err(refusal)) => Err(refusal.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Serves the lane over one connection; why it was lost, or `None` where nobody is left to send orders.
async fn talk(stream: UnixStream, generation: u64, orders: &mut Orders, shared: &Shared) -> Option<String> {
    let (reader, writer) = stream.into_split();
    let asked = Mutex::new(VecDeque::new());
    tokio::select! {
        reason = write(writer, generation, orders, &asked, shared) => reason,
        reason = read(reader, &asked, shared) => Some(reason),
    }
}

type Asked = Mutex<VecDeque<Question>>;

async fn write(
    mut writer: OwnedWriteHalf,
    generation: u64,
    orders: &mut Orders,
    asked: &Asked,
    shared: &Shared,
) -> Option<String> {
    let (mut batch, mut bytes) = (Vec::with_capacity(AT_ONCE), Vec::new());
    loop {
        if orders.recv_many(&mut batch, AT_ONCE).await == 0 {
            return None;
        }
        // They have left the queue, whatever becomes of them: this may end at any wait from here on.
        batch.iter().for_each(|_| shared.took());
        // The request itself goes first: what is told here says when it was.
        tokio::task::yield_now().await;
        for Order { generation: of, bytes: message, question } in batch.drain(..) {
            if of == generation {
                bytes.extend_from_slice(&message);
                asked.lock().unwrap_or_else(PoisonError::into_inner).extend(question);
            }
        }
        match timeout(STALL, writer.write_all(&bytes)).await {
            Ok(Ok(())) => bytes.clear(),
            Ok(Err(error)) => return Some(format!("the meter is gone: {error}")),
            Err(_) => return Some("the meter does not take what it is sent".into()),
        }
    }
}

async fn read(mut reader: OwnedReadHalf, asked: &Asked, shared: &Shared) -> String {
    let mut incoming = Vec::new();
    let oldest = || match asked.lock().unwrap_or_else(PoisonError::into_inner).front() {
        Some(Question::Ending(ask)) => Some(ask.since),
        Some(Question::Opening(_)) | None => None,
    };
    loop {
        match timeout(STALL, reader.read_buf(&mut incoming)).await {
            Ok(Ok(0)) => return "the meter hung up".into(),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return format!("the meter is gone: {error}"),
            Err(_) if oldest().is_some_and(|since| since.elapsed() > LONGEST_SETTLING) => {
                return "the meter does not answer".into();
            }
            Err(_) => {}
        }
        let mut from = 0;
        while let Some(length) = memchr::memchr(END, incoming.get(from..).unwrap_or_default()) {
            let message = incoming.get(from..from + length).unwrap_or_default();
            let Some(question) = asked.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else {
                return "the meter answers what nobody asked".into();
            };
            let answered = match question {
                Question::Opening(server) => server.opened(message),
                Question::Ending(ask) => {
                    shared.came(ask.since.elapsed());
                    ask.answered(message)
                }
            };
            if let Err(reason) = answered {
                return reason;
            }
            from += length + 1;
        }
        incoming.drain(..from);
        if incoming.len() > LARGEST_MESSAGE {
            return "the meter's answer does not end".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::UnixListener;

    use super::*;
    use crate::protocol::{CloseSpan, OpenSpan, Reply};
    use crate::proxy::lane::Lane;
    use crate::proxy::server_process::Named;
    use crate::proxy::visible::Log;

    fn info() -> Info {
        Info {
            version: "1".into(),
            boot_id: String::new(),
            now_ns: 1,
            horizon_ns: 1,
            history_ns: 1,
            domains: Vec::new(),
            at_least: None,
            absent: Vec::new(),
            samplers: Vec::new(),
            simulated: None,
            keeping: None,
            confinement: None,
            access: Access::Span,
        }
    }

    #[tokio::test]
    async fn of_the_usual_places_the_one_that_answered_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let places = ["none.sock", "here.sock"].map(|name| directory.path().join(name));
        let listener = UnixListener::bind(&places[1]).unwrap();
        let (lane, orders) = Lane::new(Duration::ZERO, Arc::default(), Named::new(None, Log::new(|_| ())));
        let told = Mutex::new(String::new());
        let tell = |line: &str| told.lock().unwrap().push_str(line);
        let daemon = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut answer = Vec::new();
            Reply::last(info()).write(&mut answer);
            stream.write_all(&answer).await.unwrap();
            while lane.shared.generation() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = serve(Place::Usual(places.to_vec()), orders, &lane.shared, &tell) => {}
            () = daemon => {}
        }
        let expected = format!("the meter at {} answers", places[1].display());
        assert_eq!(*told.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn what_is_lost_with_a_connection_waits_no_more() {
        let (lane, mut orders) =
            Lane::new(Duration::ZERO, Arc::default(), Named::new(None, Log::new(|_| ())));
        lane.shared.set_generation(1);
        // As many as may wait, twice over, in batches whose connection is lost before they are written.
        for _ in 0..128 {
            for _ in 0..128 {
                let open = lane.open("a".into(), OpenSpan::default()).expect("nothing waits");
                drop(open.close(CloseSpan::default()));
            }
            let (stream, _other) = UnixStream::pair().unwrap();
            let (_reader, writer) = stream.into_split();
            let asked = Mutex::new(VecDeque::new());
            let writing = write(writer, 1, &mut orders, &asked, &lane.shared);
            tokio::pin!(writing);
            std::future::poll_fn(|cx| {
                assert!(writing.as_mut().poll(cx).is_pending(), "it lets the request go first");
                std::task::Poll::Ready(())
            })
            .await;
        }
        assert_eq!(lane.shared.tally.ended(), 128 * 128);
    }
}
