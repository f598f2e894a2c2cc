//! Hashes of what peers choose, under a secret: nobody can look for names that collide.

use std::fmt;
use std::hash::{BuildHasher, Hash};

use siphasher::sip::SipHasher13;

use crate::random::Random;

/// A key of SipHash-1-3. Of a hash under it a peer is shown at most what it decides, such as a shard.
/// Under the same key the same things have the same hash, in every shard and every run.
#[derive(Clone, Copy)]
pub struct HashKey([u64; 2]);

impl HashKey {
    /// A key of its own.
    pub fn draw(random: &mut Random) -> HashKey {
        HashKey([random.next_u64(), random.next_u64()])
    }

    /// One of `count` places (at least 1) for `item`: about as many items for each.
    pub fn place_of(self, item: impl Hash, count: u16) -> u16 {
        ((u128::from(self.hash_one(item)) * u128::from(count)) >> 64) as u16
    }
}

impl BuildHasher for HashKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

/// Without the key.
impl fmt::Debug for HashKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("HashKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_even_and_follow_from_the_key() {
        let (one, other) = (HashKey::draw(&mut Random::new([1, 1])), HashKey([3, 4]));
        for count in [1, 2, 3, 64] {
            let mut counts = vec![0_u32; usize::from(count)];
            for number in 0..64_000 {
                counts[usize::from(one.place_of(format!("room {number}"), count))] += 1;
            }
            let even = 64_000 / u32::from(count);
            let near = |got: &u32| got.abs_diff(even) < even / 5;
            assert!(counts.iter().all(near), "{count}: {counts:?}");
        }
        let places = |key: HashKey| (0..100).map(|room| key.place_of(room, 64)).collect::<Vec<_>>();
        assert_eq!(places(one), places(one));
        assert_ne!(places(one), places(other));
        assert_eq!(format!("{one:?}"), "HashKey");
    }
}
