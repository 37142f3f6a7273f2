//! The wait for the sockets of a poller, with one system call.
//!
//! `Poller::wait` makes five: it arms a timer, and arms its own descriptors again after every wait. epoll_pwait2(2) has the
//! timeout in nanoseconds. The poller still owns the epoll instance and its notifications: a notification is passed on to
//! `Poller::wait`. Where the kernel or a filter does not allow the call, that is used always.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use polling::Poller;

use super::readiness::{PollerWaiter, Readiness};

/// The key of the poller's own descriptors.
const NOTIFY_KEY: u64 = usize::MAX as u64;

/// The maximum number of sockets that one wait reports; readiness is level-triggered, so that the next reports the others.
const MAX_EVENTS: usize = 1024;

/// Waits for the sockets that are registered with a poller.
pub struct ReadinessWaiter {
    poller_waiter: PollerWaiter,
    raw_events: Vec<libc::epoll_event>,
    has_pwait2: bool,
}

impl ReadinessWaiter {
    pub fn new(poller: &Arc<Poller>) -> Self {
        let raw_events = vec![libc::epoll_event { events: 0, u64: 0 }; MAX_EVENTS];
        Self { poller_waiter: PollerWaiter::new(poller), raw_events, has_pwait2: true }
    }

    /// Waits until a socket is ready, the poller is notified, a signal interrupts the wait, or `timeout` has passed; replaces
    /// `ready` by what is ready. After an interrupt the caller computes the timeout anew: a process that is stopped and continued
    /// again and again would otherwise never come to the end of it.
    pub fn wait(&mut self, timeout: Duration, ready: &mut Vec<Readiness>) -> io::Result<()> {
        if !self.has_pwait2 {
            return self.poller_waiter.wait(timeout, ready);
        }
        let count = match self.epoll_pwait2(timeout) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                self.has_pwait2 = false;
                return self.poller_waiter.wait(timeout, ready);
            }
            Err(error) => return Err(error),
        };
        let has_notification = self.raw_events[..count].iter().any(|event| { event.u64 } == NOTIFY_KEY);
        if has_notification {
            return self.poller_waiter.wait(Duration::ZERO, ready);
        }
        ready.clear();
        ready.extend(self.raw_events[..count].iter().map(to_readiness));
        Ok(())
    }

    fn epoll_pwait2(&mut self, timeout: Duration) -> io::Result<usize> {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let epoll = self.poller_waiter.poller.as_fd().as_raw_fd();
        let capacity = libc::c_int::try_from(self.raw_events.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the descriptor is the poller's, which `poller_waiter` keeps. The kernel writes at most `capacity` events to the
        // vector, which has that many, reads the timeout, and keeps neither pointer. There is no signal mask.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                epoll,
                self.raw_events.as_mut_ptr(),
                capacity,
                &raw const timeout,
                std::ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

fn to_readiness(event: &libc::epoll_event) -> Readiness {
    let (flags, key) = ({ event.events }.cast_signed(), { event.u64 });
    Readiness {
        // A key is the `usize` of its registration.
        key: key as usize,
        is_readable: flags & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLPRI) != 0,
        is_interrupted: flags & libc::EPOLLHUP != 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use polling::Event;

    use super::super::readiness_ffi::RegisteredSocket;
    use super::*;

    /// A waiter with and without the system call, each over a registered socket and its other end.
    fn waiters() -> Vec<(ReadinessWaiter, Arc<Poller>, RegisteredSocket<UnixStream>, UnixStream)> {
        let waiter = |has_pwait2| {
            let poller = Arc::new(Poller::new().unwrap());
            let (socket, other_end) = UnixStream::pair().unwrap();
            let socket = RegisteredSocket::new(&poller, socket, Event::readable(7)).unwrap();
            let waiter = ReadinessWaiter { has_pwait2, ..ReadinessWaiter::new(&poller) };
            (waiter, poller, socket, other_end)
        };
        vec![waiter(true), waiter(false)]
    }

    #[test]
    fn input_and_the_end_of_a_socket_are_reported_until_they_are_taken() {
        const LONG: Duration = Duration::from_secs(60);
        for (mut waiter, _, _socket, mut other_end) in waiters() {
            let mut ready = Vec::new();
            waiter.wait(Duration::from_millis(1), &mut ready).unwrap();
            assert_eq!(ready, []);
            other_end.write_all(&[0]).unwrap();
            for _ in 0..2 {
                waiter.wait(LONG, &mut ready).unwrap();
                assert_eq!(ready, [Readiness { key: 7, is_readable: true, is_interrupted: false }]);
            }
            drop(other_end);
            waiter.wait(LONG, &mut ready).unwrap();
            assert_eq!(ready, [Readiness { key: 7, is_readable: true, is_interrupted: true }]);
        }
    }

    #[test]
    fn a_notification_ends_one_wait_and_hides_no_socket() {
        for (mut waiter, poller, _socket, mut other_end) in waiters() {
            let mut ready = Vec::new();
            for _ in 0..3 {
                poller.notify().unwrap();
                waiter.wait(Duration::from_secs(60), &mut ready).unwrap();
                assert_eq!(ready, []);
            }
            other_end.write_all(&[0]).unwrap();
            poller.notify().unwrap();
            waiter.wait(Duration::from_secs(60), &mut ready).unwrap();
            assert_eq!(ready.len(), 1);
            other_end.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }

    #[test]
    fn a_signal_ends_a_wait() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (mut waiter, _, _socket, mut other_end) = waiters().swap_remove(0);
        signal_hook::flag::register(libc::SIGUSR2, Arc::default()).unwrap();
        // SAFETY: always succeeds.
        let waiting = unsafe { libc::pthread_self() };
        let (has_ended, mut ready) = (AtomicBool::new(false), Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    std::thread::sleep(Duration::from_millis(2));
                    if has_ended.load(Ordering::Relaxed) {
                        return;
                    }
                    // SAFETY: the thread joins this one, so that it is still there.
                    unsafe { libc::pthread_kill(waiting, libc::SIGUSR2) };
                }
                other_end.write_all(&[0]).unwrap();
            });
            waiter.wait(Duration::from_secs(60), &mut ready).unwrap();
            has_ended.store(true, Ordering::Relaxed);
        });
        assert_eq!(ready, [], "no signal has ended it");
    }
}
