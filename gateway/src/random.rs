//! Numbers that a peer cannot guess, from a seed that the kernel gave once.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A stream of ChaCha20: no system call per number, and the same numbers again for the same seed, which
/// the simulation needs. A peer that is shown numbers of it learns nothing about those before and after,
/// nor about the seed. So epochs, nonces, masks and keys are all drawn from it, and none is made of another.
pub struct Random {
    stream: ChaCha20Rng,
}

impl Random {
    /// Numbers for one seed. For tests and the simulation: the gateway has its seeds from the kernel.
    pub fn new(seed: [u64; 2]) -> Random {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed[0].to_le_bytes());
        bytes[8..16].copy_from_slice(&seed[1].to_le_bytes());
        Random { stream: ChaCha20Rng::from_seed(bytes) }
    }

    /// A seed of 32 bytes from the kernel.
    ///
    /// # Errors
    ///
    /// When the kernel has no randomness to give, which it has on every booted Linux.
    pub fn from_kernel() -> Result<Random, getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Random { stream: ChaCha20Rng::from_seed(seed) })
    }

    /// Another stream, for a part of the program that draws for itself. Its seed is 32 bytes of this one.
    #[must_use]
    pub fn split(&mut self) -> Random {
        let mut seed = [0; 32];
        self.stream.fill_bytes(&mut seed);
        Random { stream: ChaCha20Rng::from_seed(seed) }
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.stream.next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(random: &mut Random) -> [u64; 4] {
        std::array::from_fn(|_| random.next_u64())
    }

    /// The first 16 bytes of the key stream for the key zero and the nonce zero are a published vector
    /// (draft-nir-cfrg-chacha20-poly1305-04, A.1, test vector 1).
    #[test]
    fn it_is_chacha20() {
        let mut random = Random::new([0, 0]);
        let got = [random.next_u64(), random.next_u64()].map(u64::to_le_bytes).concat();
        let want = [
            0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90, 0x40, 0x5d, 0x6a, 0xe5, 0x53, 0x86,
            0xbd, 0x28,
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn a_seed_gives_the_same_numbers_and_a_split_gives_others() {
        let (mut one, mut other) = (Random::new([1, 2]), Random::new([1, 2]));
        let (mut split, mut same) = (one.split(), other.split());
        let got = numbers(&mut split);
        assert_eq!(got, numbers(&mut same));
        let rest = numbers(&mut one);
        assert_eq!(rest, numbers(&mut other));
        assert!(got.iter().all(|number| !rest.contains(number)));
        assert_ne!(numbers(&mut one.split()), numbers(&mut one.split()));
        assert_ne!(numbers(&mut Random::new([1, 2])), numbers(&mut Random::new([2, 1])));
    }
}
