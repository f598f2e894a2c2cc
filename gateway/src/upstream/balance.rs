//! Which of the candidates is chosen. Each function looks at all upstreams a fixed number of times
//! (at most [`UPSTREAMS_MAX`](super::UPSTREAMS_MAX) of them) and allocates nothing.
//!
//! The caller has written into [`Upstream::share`] how much of the clients each of them is due, 0
//! for those that are no candidates, and at least one is a candidate.
//!
//! # Consistent hashing
//!
//! Placement is by rendezvous: an upstream's score for a key is a hash of the two, and the best
//! score wins. Against a ring or a Maglev table this has four merits here. There is no table, so
//! that health, drains and reloads need no rebuilding, and the order of the list means nothing.
//! An upstream that comes takes its share of the keys evenly from all others and nothing else
//! moves; one that goes gives up its own and nothing else moves. Weights are met exactly. And
//! every key has an order of all upstreams, its own one, for the way on when the first is at its
//! bound or was tried. The price is a hash and a logarithm per upstream and new client: a pick was
//! measured at 0.7 µs among 16 upstreams and at 31 µs among 1024, of which round robin takes 0.3
//! and 14.
//!
//! The bound is that of "Consistent Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam;
//! 2016): with `m` connections, the new one included, no candidate is given one above
//! `ceil(factor * m * its share)`. Some candidate is always below, because the bounds add up to at
//! least `m` and one of the connections is still to be placed. Connections that are open are never
//! moved, so that one can stand above its bound for a while after others have closed.

use super::Upstream;
use super::hash::mix;

/// Smooth weighted round robin: whoever is owed most. Out of as many picks as all shares add up
/// to, each has exactly its own, spread as evenly as can be.
pub(super) fn round_robin(upstreams: &mut [Upstream]) -> usize {
    let (mut total, mut best) = (0_i64, None);
    for (index, upstream) in upstreams.iter_mut().enumerate() {
        let share = upstream.share as i64;
        if share == 0 {
            continue;
        }
        total += share;
        upstream.owed += share;
        if best.is_none_or(|(_, owed)| upstream.owed > owed) {
            best = Some((index, upstream.owed));
        }
    }
    let (best, _) = best.expect("there is a candidate");
    upstreams[best].owed -= total;
    best
}

/// The fewest connections for its share, the new one included; of equals, one at random.
pub(super) fn least_connections(upstreams: &[Upstream], random: u64) -> usize {
    let tie = |upstream: &Upstream| mix(random ^ upstream.name.0);
    let mut best: Option<usize> = None;
    for (index, upstream) in upstreams.iter().enumerate() {
        if upstream.share == 0 {
            continue;
        }
        let is_better = best.is_none_or(|best| {
            let best = &upstreams[best];
            match load_order(upstream, best) {
                std::cmp::Ordering::Equal => tie(upstream) < tie(best),
                order => order.is_lt(),
            }
        });
        if is_better {
            best = Some(index);
        }
    }
    best.expect("there is a candidate")
}

/// The less loaded of two that are drawn by their shares. Nearly as even as
/// [`least_connections`], and shards that do not know of each other do not all run to the same one.
pub(super) fn random_two(upstreams: &[Upstream], random: u64) -> usize {
    let total = upstreams.iter().map(|upstream| upstream.share).sum();
    let first = draw(upstreams, None, below(random, total));
    let rest = total - upstreams[first].share;
    if rest == 0 {
        return first;
    }
    let second = draw(upstreams, Some(first), below(mix(random), rest));
    if load_order(&upstreams[second], &upstreams[first]).is_lt() { second } else { first }
}

/// The upstream at `place` when all shares, but for that of `without`, are laid end to end.
fn draw(upstreams: &[Upstream], without: Option<usize>, mut place: u64) -> usize {
    for (index, upstream) in upstreams.iter().enumerate() {
        if without == Some(index) {
            continue;
        }
        if place < upstream.share {
            return index;
        }
        place -= upstream.share;
    }
    unreachable!("`place` is below the sum of the shares")
}

/// A number below `bound`, as evenly as 64 bits allow.
fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

/// Compares what a new connection would make of two loads: `(connections + 1) / share`.
fn load_order(a: &Upstream, b: &Upstream) -> std::cmp::Ordering {
    let a_load = (u64::from(a.connections) + 1) * b.share;
    let b_load = (u64::from(b.connections) + 1) * a.share;
    a_load.cmp(&b_load)
}

/// The first in the order of `key` that is below its bound; see the module's text.
/// `load_factor_percent` is at least 100; `None`: there is no bound.
pub(super) fn hash(upstreams: &[Upstream], key: u64, load_factor_percent: Option<u32>) -> usize {
    let (mut shares, mut connections) = (0_u128, 1_u128);
    for upstream in upstreams.iter().filter(|upstream| upstream.share > 0) {
        shares += u128::from(upstream.share);
        connections += u128::from(upstream.connections);
    }
    // `a < ceil(b / c)` is `a * c < b` for whole numbers, which needs no division.
    let is_below = |upstream: &Upstream| {
        load_factor_percent.is_none_or(|percent| {
            let bound = u128::from(percent) * connections * u128::from(upstream.share);
            u128::from(upstream.connections) * 100 * shares < bound
        })
    };
    let mut best: Option<(usize, f64)> = None;
    for (index, upstream) in upstreams.iter().enumerate() {
        if upstream.share == 0 || !is_below(upstream) {
            continue;
        }
        let distance = distance(key, upstream);
        let is_better = best.is_none_or(|(best, least)| {
            distance < least || (distance == least && upstream.name < upstreams[best].name)
        });
        if is_better {
            best = Some((index, distance));
        }
    }
    best.expect("some candidate is below its bound").0
}

/// How far an upstream is from a key; the nearest wins. Drawn from an exponential distribution
/// whose rate is the share, the least of several is each one's with the probability of its share
/// (weighted rendezvous, Schindelhauer and Schomaker 2005).
pub(super) fn distance(key: u64, upstream: &Upstream) -> f64 {
    minus_ln(mix(key ^ upstream.name.0)) / upstream.share as f64
}

/// `-ln((value + 1) / 2^64)`, to ten digits.
///
/// Not the logarithm of the C library, which differs between them in the last digit, while
/// gateways have to agree; this is made of operations that IEEE 754 defines to the last bit.
fn minus_ln(value: u64) -> f64 {
    const SQRT_2: f64 = std::f64::consts::SQRT_2;
    let value = value.max(1);
    let zeros = value.leading_zeros();
    // `value = mantissa * 2^(64 - halvings)`, the mantissa near 1, where the series is short.
    let (mut mantissa, mut halvings) = ((value << zeros) as f64 / (1_u64 << 63) as f64, zeros + 1);
    if mantissa > SQRT_2 {
        mantissa /= 2.0;
        halvings -= 1;
    }
    // ln m = 2 artanh((m - 1) / (m + 1)), and the fraction is at most 0.172.
    let fraction = (mantissa - 1.0) / (mantissa + 1.0);
    let square = fraction * fraction;
    let mut series = 0.0;
    for divisor in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * square + 1.0 / divisor;
    }
    f64::from(halvings) * std::f64::consts::LN_2 - 2.0 * fraction * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_one() {
        let mut value = 1_u64;
        for step in 0..20_000_u64 {
            value = mix(value.wrapping_add(step)) >> (step % 64);
            let want = -((value.max(1) as f64) / 2_f64.powi(64)).ln();
            let got = minus_ln(value);
            assert!((got - want).abs() <= 1e-10 * want.max(1e-5), "{value}: {got} for {want}");
        }
        for (value, want) in [(0, 64.0), (1, 64.0), (1 << 63, 1.0), (1 << 32, 32.0)] {
            assert_eq!(minus_ln(value), want * std::f64::consts::LN_2, "{value}");
        }
        assert!(minus_ln(u64::MAX) >= 0.0);
    }
}
