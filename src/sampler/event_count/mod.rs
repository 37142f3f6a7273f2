//! An event count: a thread sleeps on it until an instant, and other threads wake it.
//!
//! Linux uses a futex, other systems a condition variable. Both have the same methods and pass the same tests.

#[cfg(any(test, not(target_os = "linux")))]
mod condvar;
#[cfg(target_os = "linux")]
mod futex;

#[cfg(not(target_os = "linux"))]
pub(super) use condvar::EventCount;
#[cfg(target_os = "linux")]
pub(super) use futex::EventCount;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use crate::clock::monotonic_ns;

    fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
        let give_up_ns = monotonic_ns() + 20_000_000_000;
        while !happened() {
            assert!(monotonic_ns() < give_up_ns, "{what} did not happen");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The tests of both implementations.
    macro_rules! event_count {
        ($name:ident) => {
            mod $name {
                use super::super::$name::EventCount;
                use super::*;

                #[test]
                fn a_notification_after_the_count_was_read_prevents_sleep() {
                    let event_count = EventCount::default();
                    let count = event_count.count();
                    event_count.notify();
                    // Without the notification this would sleep for years.
                    event_count.wait_until(u64::MAX / 2, count);
                    assert_eq!(event_count.count(), count + 1);
                }

                #[test]
                fn notify_wakes_the_waiter() {
                    let (event_count, asleep) =
                        (Arc::new(EventCount::default()), Arc::new(AtomicU64::new(0)));
                    let waiter = std::thread::spawn({
                        let (event_count, asleep) = (Arc::clone(&event_count), Arc::clone(&asleep));
                        move || {
                            let count = event_count.count();
                            asleep.store(1, Ordering::Release);
                            while event_count.count() == count {
                                event_count.wait_until(u64::MAX / 2, count);
                            }
                        }
                    });
                    wait_for("sleep", || asleep.load(Ordering::Acquire) == 1);
                    event_count.notify();
                    wait_for("waking", || waiter.is_finished());
                }

                #[test]
                fn wait_until_returns_at_the_deadline_and_at_once_after_it() {
                    let event_count = EventCount::default();
                    for deadline_ns in [0, monotonic_ns(), monotonic_ns() + 2_000_000] {
                        event_count.wait_until(deadline_ns, event_count.count());
                        wait_for("the deadline", || monotonic_ns() >= deadline_ns);
                    }
                }
            }
        };
    }

    #[cfg(target_os = "linux")]
    event_count!(futex);
    event_count!(condvar);
}
