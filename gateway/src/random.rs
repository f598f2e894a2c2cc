//! Numbers that a peer cannot guess, from a seed that the kernel gave once.

use std::hash::{DefaultHasher, Hasher};

/// A keyed hash (SipHash) of a counter: no system call per number, and the same numbers again for
/// the same seed, which the simulation needs. Good for nonces, mask keys and jitter; not meant to
/// make long-lived secrets.
pub struct Random {
    seed: [u64; 2],
    counter: u64,
}

impl Random {
    /// Numbers for one seed.
    pub fn new(seed: [u64; 2]) -> Random {
        Random { seed, counter: 0 }
    }

    /// A seed from the kernel.
    ///
    /// # Errors
    ///
    /// When the kernel has no randomness to give, which it has on every booted Linux.
    pub fn from_kernel() -> Result<Random, getrandom::Error> {
        Ok(Random::new([getrandom::u64()?, getrandom::u64()?]))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.counter += 1;
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed[0]);
        hasher.write_u64(self.seed[1]);
        hasher.write_u64(self.counter);
        hasher.finish()
    }
}
