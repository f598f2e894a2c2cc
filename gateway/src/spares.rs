//! Vectors that wait to be used again, so that a shard in its steady state allocates nothing.

/// Spare vectors of one shard: at most `count_max`, none larger than [`SPARE_BYTES_MAX`].
///
/// The last one given is the first one taken: its memory is the likeliest to be in cache.
pub struct Spares {
    vectors: Vec<Vec<u8>>,
    count_max: usize,
}

/// A vector of more than this goes back to the allocator. One large message must not be paid for
/// as long as the shard lives.
pub const SPARE_BYTES_MAX: usize = 64 * 1024;

impl Spares {
    /// An empty pool that will keep `count_max` vectors, so `count_max * SPARE_BYTES_MAX` bytes.
    pub fn new(count_max: usize) -> Spares {
        Spares { vectors: Vec::with_capacity(count_max), count_max }
    }

    /// An empty vector with room for at least `capacity` bytes.
    pub fn take(&mut self, capacity: usize) -> Vec<u8> {
        let mut vector = self.vectors.pop().unwrap_or_default();
        vector.reserve(capacity);
        vector
    }

    /// Keeps `vector` for later, or frees it where one of the bounds says so. What it held is
    /// forgotten: nobody reads another connection's bytes out of a spare.
    pub fn give(&mut self, mut vector: Vec<u8>) {
        let worth_keeping = (1..=SPARE_BYTES_MAX).contains(&vector.capacity());
        if worth_keeping && self.vectors.len() < self.count_max {
            vector.clear();
            self.vectors.push(vector);
        }
    }

    /// Frees all of them.
    pub fn trim(&mut self) {
        self.vectors.clear();
    }

    /// Bytes that the pool holds, for the memory ledger; without the list of what it holds.
    pub fn held_bytes(&self) -> usize {
        self.vectors.iter().map(Vec::capacity).sum()
    }
}

impl Default for Spares {
    /// Thirty-two vectors: 2 MiB at most.
    fn default() -> Spares {
        Spares::new(32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_given_is_the_first_taken_and_it_is_empty() {
        let mut spares = Spares::new(2);
        spares.give(Vec::with_capacity(100));
        let mut last = Vec::with_capacity(1000);
        last.extend_from_slice(b"of another connection");
        spares.give(last);
        let taken = spares.take(10);
        assert_eq!((taken.len(), taken.capacity()), (0, 1000));
        assert!(spares.take(500).capacity() >= 500);
        assert_eq!(spares.held_bytes(), 0);
    }

    #[test]
    fn bounded_in_count_and_size() {
        let mut spares = Spares::new(2);
        spares.give(Vec::new());
        spares.give(Vec::with_capacity(SPARE_BYTES_MAX + 1));
        assert_eq!(spares.held_bytes(), 0);
        for _ in 0..5 {
            spares.give(Vec::with_capacity(SPARE_BYTES_MAX));
        }
        assert_eq!(spares.held_bytes(), 2 * SPARE_BYTES_MAX);
    }
}
