//! Clients that another door of this daemon brings: one end of a pair of sockets, and who is at the other.
//!
//! Owns the way from that door's thread to this one: a queue, and a bell that wakes the poller. Whoever comes this way is
//! counted, judged and served like one who came through the listener; what the other door knows is only the credentials
//! its own transport states. The bell carries no meaning: lost or doubled rings change nothing.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::unix_socket::Credentials;

/// A client on its way in.
#[derive(Debug)]
pub struct Arrival {
    /// Our end of its pair.
    pub stream: UnixStream,
    /// Who is at the other end, as the other door's transport says.
    pub credentials: Credentials,
    /// Its process, where that transport tells.
    pub pid: Option<u32>,
}

/// The other door's side.
#[derive(Debug)]
pub struct Usher {
    queue: Sender<Arrival>,
    bell: UnixStream,
}

/// The service's side.
#[derive(Debug)]
pub struct Arrivals {
    queue: Receiver<Arrival>,
    bell: UnixStream,
}

/// Both sides of a new way in.
///
/// # Errors
/// The system gives no pair of sockets.
pub fn usher() -> io::Result<(Usher, Arrivals)> {
    let (ring, bell) = UnixStream::pair()?;
    ring.set_nonblocking(true)?;
    bell.set_nonblocking(true)?;
    let (sender, receiver) = channel();
    Ok((Usher { queue: sender, bell: ring }, Arrivals { queue: receiver, bell }))
}

impl Usher {
    /// Brings a client; gives its end of the pair. A client that may not come in is told so there, and let go.
    ///
    /// # Errors
    /// The system gives no pair of sockets, or the service has ended.
    pub fn bring(&self, credentials: Credentials, pid: Option<u32>) -> io::Result<UnixStream> {
        let (theirs, stream) = UnixStream::pair()?;
        let ended = |_| io::Error::from(io::ErrorKind::NotConnected);
        self.queue.send(Arrival { stream, credentials, pid }).map_err(ended)?;
        // A bell that is full rings already.
        let _ = (&self.bell).write(&[1]);
        Ok(theirs)
    }
}

impl Arrivals {
    /// What becomes readable when somebody comes.
    pub fn bell(&self) -> io::Result<UnixStream> {
        self.bell.try_clone()
    }

    /// Everybody who has come since; `None` once nobody will come any more.
    pub fn take(&self) -> Option<Vec<Arrival>> {
        let mut rings = [0; 256];
        loop {
            match (&self.bell).read(&mut rings) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(_) => return Some(self.queue.try_iter().collect()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn somebody() -> Credentials {
        Credentials { uid: 7, gid: 8, groups: vec![9] }
    }

    #[test]
    fn who_is_brought_arrives_with_its_credentials_and_a_wire_to_it() {
        let (usher, arrivals) = usher().unwrap();
        assert!(arrivals.take().unwrap().is_empty());
        let mut theirs = usher.bring(somebody(), None).unwrap();
        let mut arrived = arrivals.take().unwrap().pop().unwrap();
        assert_eq!(arrived.credentials, somebody());
        arrived.stream.write_all(b"x").unwrap();
        let mut byte = [0];
        theirs.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn each_side_learns_that_the_other_has_gone() {
        let (usher, arrivals) = super::usher().unwrap();
        drop(usher);
        assert!(arrivals.take().is_none());
        let (usher, arrivals) = super::usher().unwrap();
        drop(arrivals);
        assert!(usher.bring(somebody(), None).is_err());
    }

    #[test]
    fn a_bell_nobody_hears_does_not_hold_the_ringer_up() {
        let (usher, arrivals) = usher().unwrap();
        for _ in 0..300 {
            drop(usher.bring(somebody(), None).unwrap());
        }
        assert_eq!(arrivals.take().unwrap().len(), 300);
    }
}
