//! How much a client may do: token buckets, and the rates that they are held against.
//!
//! A bucket holds `burst` tokens, fills with `per_second` tokens a second and gives one for each
//! message, byte or frame. It is kept as one number, the instant at which it will be full again:
//!
//! ```text
//!   now              full_at
//!    |<--- missing --->|            missing tokens = (full_at - now) * per_second
//!    |<---------- filling time ---------->|          of an empty bucket: burst / per_second
//! ```
//!
//! (the generic cell rate algorithm, ITU-T I.371: `full_at` is its theoretical arrival time). Nothing
//! has to tick, a bucket that nobody uses is full, and zero is a full bucket. A bucket knows no rate:
//! the same state is held against whatever the configuration says now.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::time::Time;

const SECOND_NS: u64 = 1_000_000_000;

/// The highest rate: a token takes a nanosecond at least.
pub const PER_SECOND_MAX: u64 = SECOND_NS;

/// The largest burst: so many tokens of a second each still fit into the 64 bits of an instant.
pub const BURST_MAX: u64 = u32::MAX as u64;

/// How fast a bucket fills, and what it holds. The default is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second; zero: no limit. At most [`PER_SECOND_MAX`].
    per_second: u32,
    /// Tokens that a full bucket holds: at least one, unless there is no limit.
    burst: u32,
    /// How long an empty bucket takes to fill, in nanoseconds, rounded up.
    filling_ns: u64,
}

impl Rate {
    /// No limit.
    pub const NONE: Rate = Rate { per_second: 0, burst: 0, filling_ns: 0 };

    /// `per_second` tokens a second and at most `burst` at once; zero a second is no limit. Both are
    /// cut at their bounds.
    pub const fn new(per_second: u64, burst: u64) -> Rate {
        if per_second == 0 {
            return Rate::NONE;
        }
        let per_second = if per_second < PER_SECOND_MAX { per_second } else { PER_SECOND_MAX };
        let burst = if burst < BURST_MAX { burst } else { BURST_MAX };
        let burst = if burst > 0 { burst } else { 1 };
        let filling_ns = (burst * SECOND_NS).div_ceil(per_second);
        Rate { per_second: per_second as u32, burst: burst as u32, filling_ns }
    }

    /// Whether there is a limit.
    pub fn is_limit(&self) -> bool {
        self.per_second > 0
    }

    /// Tokens a second.
    pub const fn per_second(&self) -> u64 {
        self.per_second as u64
    }

    /// Tokens at once.
    pub fn burst(&self) -> u64 {
        self.burst.into()
    }

    /// How long `tokens` take to come, in nanoseconds, rounded down: a burst taken one by one is
    /// whole, and a client gets a nanosecond's worth per charge too much.
    fn time_for(&self, tokens: u64) -> u64 {
        let tokens = tokens.min(u64::MAX / SECOND_NS);
        tokens * SECOND_NS / u64::from(self.per_second).max(1)
    }

    /// Whole tokens in a bucket that is full in `missing_ns`.
    fn tokens_at(&self, missing_ns: u64) -> u64 {
        let there_ns = u128::from(self.filling_ns.saturating_sub(missing_ns));
        let tokens = there_ns * u128::from(self.per_second) / u128::from(SECOND_NS);
        // What was rounded up in `filling_ns` is no token.
        (tokens as u64).min(self.burst())
    }

    /// What `full_at` becomes when `tokens` are taken.
    fn after(&self, full_at: u64, now: Time, tokens: u64) -> u64 {
        full_at.max(now.0).saturating_add(self.time_for(tokens))
    }

    /// When a bucket that is full at `full_at` has a token to give.
    fn ready_at(&self, full_at: u64) -> Time {
        let token_ns = SECOND_NS.div_ceil(u64::from(self.per_second).max(1));
        Time(full_at.saturating_sub(self.filling_ns.saturating_sub(token_ns)))
    }
}

/// A bucket of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    full_at: u64,
}

impl Bucket {
    /// Tokens that are there.
    pub fn tokens(&self, now: Time, rate: &Rate) -> u64 {
        rate.tokens_at(self.full_at.saturating_sub(now.0))
    }

    /// Takes `tokens`, or none when they are not there.
    pub fn try_take(&mut self, now: Time, tokens: u64, rate: &Rate) -> bool {
        let there = tokens <= self.tokens(now, rate);
        if there {
            self.full_at = rate.after(self.full_at, now, tokens);
        }
        there
    }

    /// Takes `tokens` whether they are there or not. Returns when there is one to give again: in the
    /// past, unless this left the bucket empty or owing.
    pub fn take(&mut self, now: Time, tokens: u64, rate: &Rate) -> Time {
        self.full_at = rate.after(self.full_at, now, tokens);
        rate.ready_at(self.full_at)
    }

    /// Whether nothing is missing, whatever the rate.
    pub fn is_full(&self, now: Time) -> bool {
        self.full_at <= now.0
    }
}

/// A bucket of many connections, on several threads. Each of these calls is as if it happened at one
/// instant; `now` may differ a little from thread to thread.
#[derive(Debug, Default)]
pub struct SharedBucket {
    full_at: AtomicU64,
}

impl SharedBucket {
    /// As [`Bucket::tokens`].
    pub fn tokens(&self, now: Time, rate: &Rate) -> u64 {
        rate.tokens_at(self.load().saturating_sub(now.0))
    }

    /// As [`Bucket::try_take`].
    pub fn try_take(&self, now: Time, tokens: u64, rate: &Rate) -> bool {
        // Nothing else is published by this number, so no order is needed.
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let there = rate.tokens_at(full_at.saturating_sub(now.0));
            (tokens <= there).then(|| rate.after(full_at, now, tokens))
        });
        taken.is_ok()
    }

    /// As [`Bucket::take`].
    pub fn take(&self, now: Time, tokens: u64, rate: &Rate) -> Time {
        let after = |full_at| Some(rate.after(full_at, now, tokens));
        let before = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
        let before = before.unwrap_or_else(|full_at| full_at); // `after` never declines.
        rate.ready_at(rate.after(before, now, tokens))
    }

    /// As [`Bucket::is_full`].
    pub fn is_full(&self, now: Time) -> bool {
        self.load() <= now.0
    }

    fn load(&self) -> u64 {
        self.full_at.load(Ordering::Relaxed)
    }
}

/// What a client may do, and what happens when it does more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of one connection.
    pub connection: Flow,
    /// Of all connections of one address together.
    pub address: Flow,
    /// Upgrades asked for by one address.
    pub address_handshakes: Rate,
    /// Connections of one address; zero: no limit.
    pub address_connections_max: u32,
    /// The action on a connection that sends more.
    pub action: Action,
}

/// Rates of what a client sends, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Messages, each with its last byte.
    pub messages: Rate,
    /// Bytes as they come: those of frame headers too, so that many small or empty frames count.
    pub bytes: Rate,
    /// Pings and Pongs. A Close frame is the last that a peer sends.
    pub control_frames: Rate,
}

/// What happens to a connection that sends more than its rates allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// It is closed with 1008. What is above the limit is not served.
    #[default]
    Close,
    /// It is read no further until the bucket has a token again: nothing is lost.
    Throttle,
}

impl Rates {
    /// Whether messages or bytes are counted at all.
    pub fn limit_data(&self) -> bool {
        let limits_data = |flow: &Flow| flow.messages.is_limit() || flow.bytes.is_limit();
        limits_data(&self.connection) || limits_data(&self.address)
    }

    /// Whether anything is counted per address.
    pub fn limit_addresses(&self) -> bool {
        let Flow { messages, bytes, control_frames } = self.address;
        self.address_connections_max > 0
            || [messages, bytes, control_frames, self.address_handshakes].iter().any(Rate::is_limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::sim::Random;

    /// A bucket as it is usually drawn: tokens, in parts of which `SECOND_NS` are one, that are
    /// added to with every nanosecond.
    struct Slow {
        parts: i128,
        at: u64,
        per_second: i128,
        burst: i128,
    }

    impl Slow {
        fn tokens(&mut self, now: u64) -> i128 {
            self.parts += i128::from(now - self.at) * self.per_second;
            self.parts = self.parts.min(self.burst * i128::from(SECOND_NS));
            self.at = now;
            self.parts.div_euclid(i128::from(SECOND_NS))
        }
    }

    fn below_one_of(random: &mut Random, bounds: &[u64]) -> u64 {
        let bound = bounds[random.below(bounds.len() as u64) as usize];
        random.below(bound)
    }

    /// Random charges, some of them into debt, against the slow bucket. A rate that divides a second
    /// gives the very same answers; another may give a nanosecond's worth more per charge.
    #[test]
    fn behaves_as_a_slow_bucket() {
        let mut random = Random::new(5);
        for round in 0..400 {
            let exact = round % 2 == 0;
            let per_second = match exact {
                true => [1, 2, 5, 1000, 1_000_000, SECOND_NS][random.below(6) as usize],
                false => 1 + below_one_of(&mut random, &[10, 1000, PER_SECOND_MAX]),
            };
            let burst = 1 + below_one_of(&mut random, &[1, 20, 100_000, BURST_MAX]);
            let rate = Rate::new(per_second, burst);
            let mut now = SECOND_NS + random.below(1 << 50);
            let mut slow = Slow {
                parts: i128::from(burst) * i128::from(SECOND_NS),
                at: now,
                per_second: per_second.into(),
                burst: burst.into(),
            };
            let (mut plain, shared) = (Bucket::default(), SharedBucket::default());
            for charge in 0..300 {
                now += below_one_of(&mut random, &[2, 1 << 20, 1 << 32]);
                let time = Time(now);
                let there = slow.tokens(now);
                let got = i128::from(plain.tokens(time, &rate));
                assert_eq!(got, i128::from(shared.tokens(time, &rate)));
                let more = if exact { 0 } else { (charge + 1) * i128::from(per_second) };
                let more = more.div_euclid(i128::from(SECOND_NS)) + i128::from(!exact);
                assert!(
                    got >= there.max(0) && got <= (there + more).max(0),
                    "{rate:?}: {got}, {there} in a slow bucket, at most {more} more"
                );
                let tokens = below_one_of(&mut random, &[2, burst + 2, got as u64 + 2]);
                if random.below(4) == 0 {
                    let ready = plain.take(time, tokens, &rate);
                    assert_eq!(ready, shared.take(time, tokens, &rate));
                    slow.parts -= i128::from(tokens) * i128::from(SECOND_NS);
                    // The instant that it names is the first at which there is one.
                    if ready > time {
                        assert!(plain.tokens(ready, &rate) >= 1, "{rate:?}");
                        assert_eq!(plain.tokens(Time(ready.0 - 1), &rate), 0, "{rate:?}");
                    } else {
                        assert!(plain.tokens(time, &rate) >= 1, "{rate:?}");
                    }
                } else {
                    let taken = plain.try_take(time, tokens, &rate);
                    assert_eq!(taken, shared.try_take(time, tokens, &rate));
                    assert_eq!(taken, i128::from(tokens) <= got);
                    if taken {
                        slow.parts -= i128::from(tokens) * i128::from(SECOND_NS);
                    }
                }
                assert_eq!(plain.full_at, shared.load());
            }
        }
    }

    /// However much is asked for, nothing overflows and nothing is given twice.
    #[test]
    fn at_the_edges() {
        let none = Rate::new(0, 5);
        assert!(!none.is_limit());
        assert_eq!(Rate::new(1, 0).burst(), 1);
        let rate = Rate::new(u64::MAX, u64::MAX);
        assert_eq!((rate.per_second(), rate.burst()), (PER_SECOND_MAX, BURST_MAX));
        let slowest = Rate::new(1, BURST_MAX);
        for now in [Time(0), Time(1), Time(1 << 60), Time::NEVER] {
            let mut bucket = Bucket::default();
            assert_eq!(bucket.tokens(now, &slowest), BURST_MAX);
            assert!(bucket.is_full(now));
            bucket.take(now, u64::MAX, &slowest);
            assert!(!bucket.try_take(now, 1, &slowest) || now == Time::NEVER);
        }
        let mut bucket = Bucket::default();
        assert!(!bucket.try_take(Time(0), BURST_MAX + 1, &slowest));
        assert!(bucket.try_take(Time(0), BURST_MAX, &slowest));
        assert!(!bucket.try_take(Time(SECOND_NS - 1), 1, &slowest));
        assert!(bucket.try_take(Time(SECOND_NS), 1, &slowest));
    }

    /// A burst is whole also where a token does not take whole nanoseconds.
    #[test]
    fn one_by_one_a_burst_is_whole() {
        for per_second in [1, 3, 7, 333, 999_983, 300_000_007, PER_SECOND_MAX] {
            let rate = Rate::new(per_second, 1000);
            let mut bucket = Bucket::default();
            let taken = (0..1010).filter(|_| bucket.try_take(Time(1), 1, &rate)).count();
            let most = 1000 + 1000 * per_second as usize / SECOND_NS as usize;
            assert!((1000..=most).contains(&taken), "{taken} at {per_second}");
        }
    }

    /// Threads that take at the same instant get all the tokens there are, and none twice.
    #[test]
    fn threads_share_a_bucket_exactly() {
        let rate = Rate::new(1, 10_000);
        let bucket = SharedBucket::default();
        let now = Time(SECOND_NS);
        let take = || (0..8000).filter(|_| bucket.try_take(now, 1, &rate)).count();
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(taken, 10_000);
        assert_eq!(bucket.tokens(now, &rate), 0);
    }
}
