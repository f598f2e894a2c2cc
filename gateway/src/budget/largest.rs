//! Which slots hold most, without a walk: lists by the power of two of what each holds.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Less is not listed: nobody would be ended for so few bytes.
pub const LISTED_BYTES_MIN: usize = 4096;

const CLASSES: usize = 32;
const NONE: u32 = u32::MAX;

/// Slots of a table by what they hold, those of a class in the order in which they came into it.
/// A slot that holds less than [`LISTED_BYTES_MIN`] takes no memory here.
#[derive(Debug)]
pub struct Largest {
    places: HashMap<u32, Place, BuildHasherDefault<OfSlot>>,
    /// The first and the last of each class.
    ends: [(u32, u32); CLASSES],
    /// A bit for each class that has one.
    filled: u32,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    class: u8,
    before: u32,
    behind: u32,
}

impl Default for Largest {
    fn default() -> Largest {
        Largest { places: HashMap::default(), ends: [(NONE, NONE); CLASSES], filled: 0 }
    }
}

impl Largest {
    /// `slot` holds so many bytes from here on.
    pub fn set(&mut self, slot: u32, bytes: usize) {
        if bytes < LISTED_BYTES_MIN {
            return self.remove(slot);
        }
        let class = (bytes.ilog2() as usize).min(CLASSES - 1) as u8;
        match self.places.get(&slot) {
            Some(place) if place.class == class => return,
            Some(_) => self.remove(slot),
            None => {}
        }
        let (first, last) = &mut self.ends[usize::from(class)];
        let before = std::mem::replace(last, slot);
        match before {
            NONE => *first = slot,
            before => self.place_mut(before).behind = slot,
        }
        self.filled |= 1 << class;
        self.places.insert(slot, Place { class, before, behind: NONE });
    }

    /// `slot` holds nothing any more.
    pub fn remove(&mut self, slot: u32) {
        let Some(Place { class, before, behind }) = self.places.remove(&slot) else { return };
        match before {
            NONE => self.ends[usize::from(class)].0 = behind,
            before => self.place_mut(before).behind = behind,
        }
        match behind {
            NONE => self.ends[usize::from(class)].1 = before,
            behind => self.place_mut(behind).before = before,
        }
        if self.ends[usize::from(class)].0 == NONE {
            self.filled &= !(1 << class);
        }
        if self.places.is_empty() {
            self.places.shrink_to(64);
        }
    }

    /// The slot that holds most, by powers of two; of several the one that has for the longest.
    pub fn first(&self) -> Option<u32> {
        let class = self.filled.checked_ilog2()?;
        Some(self.ends[class as usize].0)
    }

    /// Slots that are listed.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn place_mut(&mut self, slot: u32) -> &mut Place {
        self.places.get_mut(&slot).expect("a neighbour is listed")
    }
}

/// Slots are given out by the kernel, in order: nobody can choose them to fill one bucket.
#[derive(Default)]
struct OfSlot(u64);

impl Hasher for OfSlot {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a slot is one number");
    }

    fn write_u32(&mut self, slot: u32) {
        self.0 = u64::from(slot).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_goes_first_and_of_equal_ones_the_oldest() {
        let mut largest = Largest::default();
        largest.set(1, LISTED_BYTES_MIN - 1);
        assert!(largest.is_empty() && largest.first().is_none());
        for (slot, bytes) in [(2, 5000), (3, 70_000), (4, 80_000), (5, 100_000), (6, 1 << 20)] {
            largest.set(slot, bytes);
        }
        largest.set(3, 120_000); // Still of its class, so it keeps its place.
        largest.set(4, 1 << 21); // Grows out of it.
        let mut order = Vec::new();
        while let Some(slot) = largest.first() {
            order.push(slot);
            largest.remove(slot);
        }
        assert_eq!(order, [4, 6, 3, 5, 2]);
        assert!(largest.is_empty());
    }

    #[test]
    fn as_a_naive_list() {
        let mut random = crate::ring::sim::Random::new(7);
        let mut largest = Largest::default();
        let mut naive: Vec<(u32, u32)> = Vec::new(); // Class and slot, in the order of coming.
        for _ in 0..20_000 {
            let slot = random.below(50) as u32;
            let bytes = 1 << random.below(40);
            let class = (bytes as u64).ilog2().min(31);
            let is = naive.iter().position(|(_, other)| *other == slot);
            if bytes < LISTED_BYTES_MIN {
                is.map(|index| naive.remove(index));
            } else if is.is_none_or(|index| naive[index].0 != class) {
                is.map(|index| naive.remove(index));
                naive.push((class, slot));
            }
            largest.set(slot, bytes);
            let most = naive.iter().map(|(class, _)| *class).max();
            let want = naive.iter().find(|(class, _)| Some(*class) == most).map(|(_, slot)| *slot);
            assert_eq!((largest.first(), largest.len()), (want, naive.len()));
        }
    }
}
