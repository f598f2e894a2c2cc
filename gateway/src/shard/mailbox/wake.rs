//! How a shard falls asleep, and how others wake it, without a letter that nobody reads.
//!
//! ```text
//!   the shard: raise the flag, look for work, wait if there is none
//!   a sender:  leave the work, lower the flag, wake if it was raised
//! ```
//!
//! Every change of the flag is a swap, so each sees the one before it, and all that was done before
//! that. A sender that lowers the flag after the shard has raised it sees it raised, unless another
//! sender was in between, which wakes. One that lowers it earlier has left its work earlier, and the
//! shard, which raises the flag after that, finds it. So a shard that slept costs one wake, and
//! nothing is asked of the mailbox: a relaxed load of its length would do. A plain store in the place of
//! a swap would hide from the shard what a sender did before.
//!
//! A wake has to be remembered until the shard waits, as the count of an eventfd is.
//!
//! Atomics come from the module around this one: tests/model.rs includes this file with those of
//! `loom`, and plays every order in which this may run.

use super::{AtomicBool, Ordering};

/// Whether one shard has to be woken by who leaves it work.
pub(super) struct Sleeper {
    /// The shard has nothing to do and sleeps, or is about to.
    asleep: AtomicBool,
}

impl Sleeper {
    /// Of a shard that is awake.
    pub(super) fn new() -> Sleeper {
        Sleeper { asleep: AtomicBool::new(false) }
    }

    /// Leaves work for the shard, which `leave` does, and calls `wake` if it has to be woken for that.
    pub(super) fn leave<T>(&self, leave: impl FnOnce() -> T, wake: impl FnOnce()) -> T {
        let left = leave();
        if self.asleep.swap(false, Ordering::AcqRel) {
            wake();
        }
        left
    }

    /// Declares the shard asleep and says whether it may really wait; [`Sleeper::awake`] has to follow
    /// the wait. `has_work` looks for all that may have been left.
    pub(super) fn may_sleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.asleep.swap(true, Ordering::AcqRel);
        if has_work() {
            self.asleep.swap(false, Ordering::AcqRel);
            return false;
        }
        true
    }

    /// Declares the shard awake: no wake is needed until it may sleep again, which looks for work
    /// anew.
    pub(super) fn awake(&self) {
        // A look first: who woke the shard has lowered the flag, and the line is in everybody's cache
        // while it is busy.
        if self.asleep.load(Ordering::Relaxed) {
            self.asleep.swap(false, Ordering::AcqRel);
        }
    }
}
