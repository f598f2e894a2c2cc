//! What collections take of the heap, and when those that have emptied give it back.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash};

/// What an `Arc` has beside its value.
pub(crate) const ARC_BYTES: usize = 16;

/// What a vector takes.
pub(crate) fn list_bytes<T>(list: &Vec<T>) -> usize {
    list.capacity() * size_of::<T>()
}

/// What a map takes, without what its entries have on the heap: a power of two of places, of which
/// seven eighths are used, and a byte beside each.
pub(crate) fn map_bytes<K, V, S: BuildHasher>(map: &HashMap<K, V, S>) -> usize {
    match map.capacity() {
        0 => 0,
        capacity => {
            let places = (capacity * 8).div_ceil(7).next_power_of_two();
            places * (size_of::<(K, V)>() + 1) + 16
        }
    }
}

/// What a set takes, about: a node has room for eleven entries, and is two thirds full.
pub(crate) fn set_bytes<T>(set: &BTreeSet<T>) -> usize {
    set.len() * size_of::<T>() * 3 / 2
}

/// Places that a map may keep, however few it uses.
const PLACES_KEPT: usize = 1024;

/// Gives back what a map has grown to when an eighth of it or less is in use. To be called when entries are
/// removed: it costs no more than the removals since the map was full.
pub(crate) fn shrink_map<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if map.capacity() > PLACES_KEPT && map.len() <= map.capacity() / 8 {
        map.shrink_to(2 * map.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_and_lists_are_counted_by_their_room() {
        let mut map: HashMap<u64, u64> = HashMap::new();
        assert_eq!(map_bytes(&map), 0);
        // Places are powers of two, from four on; seven eighths of them are used.
        for (entries, places) in [(1, 4), (3, 4), (4, 8), (7, 8), (8, 16), (14, 16), (15, 32)] {
            (0..entries).for_each(|key| map.extend([(key, key)]));
            assert_eq!(map_bytes(&map), places * 17 + 16, "{entries}");
        }
        assert_eq!(list_bytes(&Vec::<u32>::with_capacity(10)), 40);
    }

    /// What is given back is given back seldom: a map that breathes moves no more than its breath.
    #[test]
    fn a_map_that_has_emptied_is_small_again() {
        let mut map: HashMap<u32, [u8; 100]> = (0..100_000).map(|key| (key, [0; 100])).collect();
        let (full_bytes, mut shrunk) = (map_bytes(&map), 0);
        for key in 0..99_999 {
            map.remove(&key);
            let before = map.capacity();
            shrink_map(&mut map);
            shrunk += usize::from(map.capacity() < before);
        }
        assert!(map_bytes(&map) < full_bytes / 50, "{} of {full_bytes}", map_bytes(&map));
        assert!((2..10).contains(&shrunk), "{shrunk} times");
        assert!(map.contains_key(&99_999));
    }
}
