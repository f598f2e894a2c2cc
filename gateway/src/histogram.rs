//! Histograms that one thread fills and any thread reads, without asking it.
//!
//! ```text
//!   value >> SHIFT      0 1 2 … 63 | 64 66 68 … 126 | 128 132 … 252 | …     the lowest of a bucket
//!   bucket              0 1 2 … 63 | 64 65 66 …  95 |  96  97 … 127 | …
//! ```
//!
//! Log-linear, as HdrHistogram's: 32 buckets per power of two, so that a bucket is at most 1/32 of
//! what it holds wide, and its middle is off by at most 1/64. What is larger than the range counts
//! in the last bucket.
//!
//! To record is to compute an index and to count in two places with relaxed loads and stores: no
//! lock, no allocation, no read-modify-write. A reader sees each counter as it was at some moment
//! during its reading: buckets may be of slightly different moments, and the sum may be ahead of
//! them or behind, by what was recorded meanwhile. Nothing is lost: the next reading has it.

use hdrhistogram::Histogram as Hdr;

use crate::metrics::Counter;

/// Buckets per power of two: two to this.
const SUB_BITS: u32 = 5;

/// Significant digits of what is handed to HdrHistogram: finer than our buckets.
const HDR_DIGITS: u8 = 3;

/// Counts of values, by size. `SHIFT`: how many low bits do not matter; `BUCKETS`: see
/// [`buckets`].
#[derive(Debug)]
pub struct Histogram<const SHIFT: u32, const BUCKETS: usize> {
    counts: [Counter; BUCKETS],
    sum: Counter,
}

/// Durations in nanoseconds: as finely as 32 ns, in buckets of 3 % from 2 µs on, up to 68 s.
pub type Durations = Histogram<5, { buckets(31) }>;

/// Sizes in bytes, up to 64 MiB.
pub type Sizes = Histogram<0, { buckets(26) }>;

// A route has two of each in each shard: see `recorder.rs`.
const _: () = assert!(size_of::<Durations>() <= 7 << 10 && size_of::<Sizes>() <= 6 << 10);
const _: () = assert!(highest_of(5, buckets(31) - 1) >= 60_000_000_000);

/// How many buckets values of `bits` bits have, after the shift.
const fn buckets(bits: u32) -> usize {
    ((bits - SUB_BITS) << SUB_BITS) as usize + (1 << SUB_BITS)
}

const fn bucket_of(value: u64) -> usize {
    let exponent = (value | (1 << SUB_BITS)).ilog2() - SUB_BITS;
    (exponent as usize * (1 << SUB_BITS)) + (value >> exponent) as usize
}

const fn lowest_of(shift: u32, bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let exponent = (bucket >> SUB_BITS).saturating_sub(1);
    (bucket - (exponent << SUB_BITS)) << exponent << shift
}

const fn highest_of(shift: u32, bucket: usize) -> u64 {
    lowest_of(shift, bucket + 1) - 1
}

impl<const SHIFT: u32, const BUCKETS: usize> Default for Histogram<SHIFT, BUCKETS> {
    fn default() -> Self {
        Histogram { counts: [const { Counter::new() }; BUCKETS], sum: Counter::new() }
    }
}

impl<const SHIFT: u32, const BUCKETS: usize> Histogram<SHIFT, BUCKETS> {
    /// Counts `value` as many times. Only the thread that owns the histogram may.
    pub fn record(&self, value: u64, times: u64) {
        let bucket = bucket_of(value >> SHIFT).min(BUCKETS - 1);
        self.counts[bucket].add(times);
        self.sum.add(value.wrapping_mul(times));
    }

    /// Adds what was counted so far to `snapshot`.
    pub fn add_to(&self, snapshot: &mut Snapshot) {
        if snapshot.counts.is_empty() {
            *snapshot = Snapshot { shift: SHIFT, counts: vec![0; BUCKETS], sum: 0 };
        }
        assert!(
            (snapshot.shift, snapshot.counts.len()) == (SHIFT, BUCKETS),
            "histograms of one layout"
        );
        for (sum, count) in snapshot.counts.iter_mut().zip(&self.counts) {
            *sum = sum.saturating_add(count.get());
        }
        snapshot.sum = snapshot.sum.wrapping_add(self.sum.get());
    }
}

/// What histograms of one layout have counted, those of all shards together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    shift: u32,
    /// Empty: nothing was added to it.
    counts: Vec<u64>,
    sum: u64,
}

impl Snapshot {
    /// How many values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all values, as they were recorded; what exceeds the range counts in full.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The middle of each bucket that is not empty, in order, and how many values are in it.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.buckets().map(|(lowest, highest, count)| (lowest + (highest - lowest) / 2, count))
    }

    /// The value that this part of all values (0 to 1) does not exceed, as the middle of its bucket;
    /// 0 when there are none. Off by a 64th, without what [`Snapshot::to_hdr`] costs.
    pub fn quantile(&self, part: f64) -> u64 {
        let rank = ((self.count() as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let mut values = self.iter();
        let reached = values.find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        reached.map_or(0, |(value, _)| value)
    }

    /// What was counted since `earlier`, an earlier snapshot of the same histograms.
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        if earlier.counts.is_empty() {
            return self.clone();
        }
        let counts = self.counts.iter().zip(&earlier.counts);
        Snapshot {
            shift: self.shift,
            counts: counts.map(|(now, then)| now.saturating_sub(*then)).collect(),
            sum: self.sum.wrapping_sub(earlier.sum),
        }
    }

    /// Adds what another of the same layout has counted.
    pub fn add(&mut self, other: &Snapshot) {
        if self.counts.is_empty() {
            self.clone_from(other);
            return;
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// The lowest and highest value of each bucket that is not empty, in order, and how many values
    /// are in it.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let shift = self.shift;
        let counted = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counted.map(move |(bucket, count)| {
            (lowest_of(shift, bucket), highest_of(shift, bucket), *count)
        })
    }

    /// As HdrHistogram has it: for percentiles, and to be written to files.
    pub fn to_hdr(&self) -> Hdr<u64> {
        let last = self.counts.len().saturating_sub(1);
        let highest = highest_of(self.shift, last).max(2);
        let mut hdr =
            Hdr::new_with_max(highest, HDR_DIGITS).expect("a range that is more than its lowest");
        for (value, count) in self.iter() {
            hdr.record_n(value, count).expect("within the range");
        }
        hdr
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::sim::Random;

    fn snapshot_of<const S: u32, const B: usize>(histograms: &[&Histogram<S, B>]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        histograms.iter().for_each(|histogram| histogram.add_to(&mut snapshot));
        snapshot
    }

    #[test]
    fn buckets_lie_side_by_side() {
        for bucket in 0..buckets(31) {
            let (lowest, highest) = (lowest_of(0, bucket), highest_of(0, bucket));
            assert_eq!((bucket_of(lowest), bucket_of(highest)), (bucket, bucket), "{bucket}");
            assert_eq!(bucket_of(highest + 1), bucket + 1);
            assert!(highest - lowest <= lowest / 32, "{lowest} to {highest}");
        }
        assert_eq!(bucket_of((1 << 31) - 1), buckets(31) - 1);
    }

    /// Values of all magnitudes, recorded by four shards, against HdrHistogram itself.
    #[test]
    fn percentiles_are_those_of_hdrhistogram() {
        let mut random = Random::new(3);
        let shards: [Box<Durations>; 4] = Default::default();
        let mut exact = Hdr::<u64>::new_with_max(60_000_000_000, 4).expect("a range");
        let mut sum = 0;
        for step in 0..200_000_usize {
            let bits = 10 + random.below(25);
            let value = (1 << bits) + random.below(1 << bits);
            let times = 1 + random.below(3);
            shards[step % 4].record(value, times);
            exact.record_n(value, times).expect("in range");
            sum += value * times;
        }
        let snapshot = snapshot_of(&shards.each_ref().map(|shard| &**shard));
        let ours = snapshot.to_hdr();
        assert_eq!((snapshot.count(), ours.len()), (exact.len(), exact.len()));
        assert_eq!(snapshot.sum(), sum);
        for percentile in [0.1, 1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0] {
            let (want, got) =
                (exact.value_at_percentile(percentile), ours.value_at_percentile(percentile));
            let error = got.abs_diff(want) as f64 / want as f64;
            let quick = snapshot.quantile(percentile / 100.0);
            assert!(got.abs_diff(quick) <= got / 500, "p{percentile}: {quick} and {got}");
            // Half a bucket, what HdrHistogram rounds, and 32 ns where values are small.
            assert!(error <= 1.0 / 64.0 + 0.003, "p{percentile}: {got} instead of {want}");
        }
    }

    #[test]
    fn what_is_out_of_range_counts_at_the_ends() {
        let histogram = Durations::default();
        histogram.record(0, 2);
        histogram.record(31, 1);
        histogram.record(3_600_000_000_000, 1);
        histogram.record(u64::MAX / 2, 1);
        let snapshot = snapshot_of(&[&histogram]);
        let values: Vec<_> = snapshot.iter().collect();
        assert_eq!(values[0], (15, 3));
        let (value, count) = values[1];
        assert!(value > 60_000_000_000 && count == 2, "{values:?}");
        assert_eq!(snapshot.to_hdr().len(), 5);

        let sizes = Sizes::default();
        for bytes in [0, 1, 63, 64, 64 << 20, u64::from(u32::MAX)] {
            sizes.record(bytes, 1);
        }
        let values: Vec<_> = snapshot_of(&[&sizes]).iter().collect();
        assert_eq!(values[..4], [(0, 1), (1, 1), (63, 1), (64, 1)]);
        assert_eq!(values[4].1, 2, "64 MiB is the last bucket's: {values:?}");
    }

    #[test]
    fn nothing_recorded_is_nothing() {
        assert_eq!(Snapshot::default().to_hdr().len(), 0);
        assert_eq!(Snapshot::default().quantile(0.99), 0);
        let snapshot = snapshot_of(&[&Sizes::default()]);
        assert_eq!((snapshot.count(), snapshot.iter().count(), snapshot.to_hdr().len()), (0, 0, 0));
    }

    #[test]
    fn an_interval_is_what_came_since() {
        let histogram = Sizes::default();
        histogram.record(10, 3);
        let first = snapshot_of(&[&histogram]);
        assert_eq!(first.since(&Snapshot::default()), first);
        histogram.record(10, 1);
        histogram.record(100, 2);
        let second = snapshot_of(&[&histogram]);
        let mut interval = second.since(&first);
        assert_eq!((interval.count(), interval.sum()), (3, 210));
        assert_eq!(interval.buckets().collect::<Vec<_>>(), [(10, 10, 1), (100, 101, 2)]);
        interval.add(&first);
        assert_eq!(interval, second);
        let mut none = Snapshot::default();
        none.add(&second);
        assert_eq!(none, second);
    }

    /// A reader while a writer is at it: counts only grow, and at the end all are there.
    #[test]
    fn a_reader_needs_no_help() {
        let histogram = Durations::default();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..200_000_u64).for_each(|v| histogram.record(v * 97, 1)));
            let mut before = 0;
            while !writer.is_finished() {
                let count = snapshot_of(&[&histogram]).count();
                assert!(count >= before);
                before = count;
            }
        });
        assert_eq!(snapshot_of(&[&histogram]).count(), 200_000);
    }
}
