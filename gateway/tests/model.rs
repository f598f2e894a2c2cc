//! Every order in which a shard and its senders may run, and every value that memory may show them:
//! a shard that sleeps while a letter waits for it would sleep until something else comes.
//!
//! The lines under test are those of the gateway, with the atomics of `loom`. It plays what C11 allows
//! where a value is changed by read-modify-write alone; a plain store beside a swap it may play in an
//! order that cannot be, and `SeqCst` accesses it takes for weaker ones. The protocol has neither. The
//! mailbox is a count of letters without any order of its own, so nothing is owed to the real queue.

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

#[path = "../src/shard/mailbox/wake.rs"]
mod wake;

use wake::Sleeper;

/// How a shard sleeps and is woken: the gateway's way, and ways that lose wakes.
trait Protocol: Send + Sync + 'static {
    fn new() -> Self;
    fn leave(&self, leave: impl FnOnce(), wake: impl FnOnce());
    fn may_sleep(&self, has_work: impl FnOnce() -> bool) -> bool;
    fn awake(&self);
}

impl Protocol for Sleeper {
    fn new() -> Self {
        Sleeper::new()
    }

    fn leave(&self, leave: impl FnOnce(), wake: impl FnOnce()) {
        self.leave(leave, wake);
    }

    fn may_sleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.may_sleep(has_work)
    }

    fn awake(&self) {
        self.awake();
    }
}

/// What is wrong with a [`Faulty`].
const LOOKS_TOO_EARLY: u8 = 0;
const LEAVES_TOO_LATE: u8 = 1;
const SHARD_IS_BLIND: u8 = 2;
const SENDER_SAYS_NOTHING: u8 = 3;
const SHARD_SAYS_NOTHING: u8 = 4;
const PLAIN_STORE: u8 = 5;

/// As [`Sleeper`], with one fault.
struct Faulty<const FAULT: u8>(AtomicBool);

impl<const FAULT: u8> Protocol for Faulty<FAULT> {
    fn new() -> Self {
        Faulty(AtomicBool::new(false))
    }

    fn leave(&self, leave: impl FnOnce(), wake: impl FnOnce()) {
        let order = match FAULT {
            SENDER_SAYS_NOTHING => Ordering::Acquire,
            _ => Ordering::AcqRel,
        };
        let was_asleep = if FAULT == LEAVES_TOO_LATE {
            let was_asleep = self.0.swap(false, order);
            leave();
            was_asleep
        } else {
            leave();
            self.0.swap(false, order)
        };
        if was_asleep {
            wake();
        }
    }

    fn may_sleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        let order = match FAULT {
            SHARD_IS_BLIND => Ordering::Release,
            SHARD_SAYS_NOTHING => Ordering::Acquire,
            _ => Ordering::AcqRel,
        };
        if FAULT == LOOKS_TOO_EARLY {
            let found = has_work();
            self.0.swap(!found, order);
            return !found;
        }
        self.0.swap(true, order);
        let found = has_work();
        if found {
            self.0.swap(false, Ordering::AcqRel);
        }
        !found
    }

    fn awake(&self) {
        if !self.0.load(Ordering::Relaxed) {
            return;
        }
        if FAULT == PLAIN_STORE {
            self.0.store(false, Ordering::Release);
        } else {
            self.0.swap(false, Ordering::AcqRel);
        }
    }
}

/// What a shard and those who write to it share.
struct Inbox<P> {
    sleeper: P,
    /// Letters that were ever left.
    posted: AtomicUsize,
    /// Whether it is known how the shard is woken.
    has_waker: AtomicBool,
    /// As an eventfd: wakes that the shard has not seen.
    wakes: Mutex<usize>,
}

impl<P: Protocol> Inbox<P> {
    fn post(&self) {
        let leave = || {
            self.posted.fetch_add(1, Ordering::Relaxed);
        };
        self.sleeper.leave(leave, || {
            if self.has_waker.load(Ordering::Relaxed) {
                *self.wakes.lock().expect("no panic") += 1;
            }
        });
    }

    fn take_wakes(&self) -> usize {
        std::mem::take(&mut *self.wakes.lock().expect("no panic"))
    }
}

/// Times that a thread is stopped in the middle, in one order of things: all orders with more take
/// minutes. What loses a letter needs one or two.
const PREEMPTIONS_MAX: usize = 3;

/// `senders` write one letter each to a shard, which turns until it has read them all. Its first
/// `early` waits end at once, as those do in which a socket has something.
fn play<P: Protocol>(senders: usize, early: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS_MAX);
    model.check(move || {
        let inbox = Arc::new(Inbox {
            sleeper: P::new(),
            posted: AtomicUsize::new(0),
            has_waker: AtomicBool::new(false),
            wakes: Mutex::new(0),
        });
        let threads = (0..senders).map(|_| {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || inbox.post())
        });
        let mut threads: Vec<_> = threads.collect();
        inbox.has_waker.store(true, Ordering::Relaxed);
        let (mut read, mut raised, mut wakes, mut early) = (0, 0, 0, early);
        while read < senders {
            raised += 1;
            if inbox.sleeper.may_sleep(|| inbox.posted.load(Ordering::Relaxed) != read) {
                let mut woken = inbox.take_wakes();
                if early > 0 {
                    early -= 1;
                } else if woken == 0 {
                    // Who has not woken it yet does so now, or nobody does. A wake that comes earlier
                    // is one that `take_wakes` has found in another of the orders.
                    for thread in threads.drain(..) {
                        thread.join().expect("no panic");
                    }
                    woken = inbox.take_wakes();
                    assert!(woken > 0, "asleep for ever with {read} of {senders} letters read");
                }
                wakes += woken;
            }
            inbox.sleeper.awake();
            read = inbox.posted.load(Ordering::Relaxed);
        }
        assert!(wakes <= raised, "{wakes} wakes of a shard that raised its flag {raised} times");
    });
}

#[test]
fn no_letter_waits_for_a_shard_that_sleeps() {
    play::<Sleeper>(1, 0);
    play::<Sleeper>(2, 0);
}

#[test]
fn nor_for_one_that_a_socket_woke_meanwhile() {
    play::<Sleeper>(1, 1);
    play::<Sleeper>(2, 1);
}

#[test]
#[should_panic(expected = "asleep for ever with 0 of 1")]
fn to_look_for_letters_before_the_flag_is_raised_loses_one() {
    play::<Faulty<LOOKS_TOO_EARLY>>(1, 0);
}

#[test]
#[should_panic(expected = "asleep for ever with 0 of 1")]
fn to_lower_the_flag_before_the_letter_is_left_loses_it() {
    play::<Faulty<LEAVES_TOO_LATE>>(1, 0);
}

#[test]
#[should_panic(expected = "asleep for ever with 0 of 1")]
fn a_shard_that_does_not_acquire_loses_a_letter() {
    play::<Faulty<SHARD_IS_BLIND>>(1, 0);
}

#[test]
#[should_panic(expected = "asleep for ever with 0 of 1")]
fn a_sender_that_does_not_release_loses_its_letter() {
    play::<Faulty<SENDER_SAYS_NOTHING>>(1, 0);
}

#[test]
#[should_panic(expected = "asleep for ever with 0 of 1")]
fn a_shard_that_does_not_release_cannot_be_woken() {
    play::<Faulty<SHARD_SAYS_NOTHING>>(1, 0);
}

#[test]
#[should_panic(expected = "asleep for ever with 1 of 2")]
fn a_plain_store_hides_a_letter() {
    play::<Faulty<PLAIN_STORE>>(2, 1);
}
