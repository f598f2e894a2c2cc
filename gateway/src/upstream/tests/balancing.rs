//! Who is chosen.

use super::*;

/// The twin: in turn `k` upstream `i` is owed `k * weight / total` minus what it had. It is stable
/// over time, and exact after each round of as many turns as the weights add up to.
#[test]
fn round_robin_gives_each_what_it_is_owed() {
    for weights in WEIGHTS {
        let mut group = group(options(Balance::RoundRobin), weights);
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let mut counts = vec![0_u64; weights.len()];
        for turn in 1..=3 * total {
            let mut owed = weights.iter().zip(&counts).enumerate().map(|(index, (weight, had))| {
                (turn as i64 * i64::from(*weight) - (had * total) as i64, std::cmp::Reverse(index))
            });
            let want = owed.by_ref().max().expect("some").1.0;
            let id = picked(group.pick(&client(0, turn), NOW, &Tried::default()));
            assert_eq!(id, group.upstreams()[want].id(), "{weights:?} turn {turn}");
            counts[want] += 1;
            if turn % total == 0 {
                let want: Vec<u64> =
                    weights.iter().map(|weight| u64::from(*weight) * turn / total).collect();
                assert_eq!(counts, want);
            }
        }
    }
}

/// Shards begin anywhere in the round, and are as even from there on.
#[test]
fn round_robin_begins_elsewhere_in_each_shard() {
    let mut numbers = Numbers(1);
    let mut firsts = [0_u64; 4];
    for _ in 0..4000 {
        let options = options(Balance::RoundRobin);
        let mut group = Group::new(options, list(&[1; 4]), numbers.next()).expect("good");
        let mut counts = [0; 4];
        for turn in 0..400 {
            let id = picked(group.pick(&client(0, 0), NOW, &Tried::default()));
            let index = group.index(id).expect("it is in the list");
            counts[index] += 1;
            firsts[index] += u64::from(turn == 0);
        }
        // Where it begins is less than one turn each.
        assert!(counts.iter().all(|count| (99..=101).contains(count)), "{counts:?}");
    }
    for first in firsts {
        assert_near(first, 4000, 0.25);
    }
}

/// The twin: no other upstream would be less loaded for its weight, in fractions.
#[test]
fn least_connections_chooses_the_least_loaded() {
    let mut numbers = Numbers(2);
    for weights in WEIGHTS {
        let mut group = group(options(Balance::LeastConnections), weights);
        let mut open: Vec<UpstreamId> = Vec::new();
        for _ in 0..3000 {
            if numbers.below(5) < 2 && !open.is_empty() {
                let index = numbers.below(open.len());
                group.on_closed(open.swap_remove(index));
                continue;
            }
            let load = |upstream: &Upstream| {
                f64::from(upstream.connections() + 1) / f64::from(upstream.spec().weight)
            };
            let least = group.upstreams().iter().map(load).fold(f64::INFINITY, f64::min);
            let id = picked(group.pick(&client(0, numbers.next()), NOW, &Tried::default()));
            let got = load(group.get(id).expect("it is in the list"));
            assert!(got <= least * (1.0 + 1e-12), "{weights:?}: {got} where {least} was");
            group.on_picked(id);
            open.push(id);
        }
    }
}

#[test]
fn least_connections_draws_among_equals() {
    let mut group = group(options(Balance::LeastConnections), &[1, 1, 1, 1, 1, 1, 1]);
    let mut numbers = Numbers(3);
    let mut counts = HashMap::new();
    for _ in 0..70_000 {
        let id = picked(group.pick(&client(0, numbers.next()), NOW, &Tried::default()));
        *counts.entry(id).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 7);
    counts.values().for_each(|count| assert_near(*count, 70_000, 1.0 / 7.0));
}

/// With fixed loads, every pair has a known probability and a known better one.
#[test]
fn random_two_is_the_better_of_two_by_weight() {
    let (weights, loads) = ([4_u32, 1, 2, 3], [9_u32, 1, 2, 9]);
    let mut group = group(options(Balance::RandomTwo), &weights);
    for (index, load) in loads.iter().enumerate() {
        let id = group.upstreams()[index].id();
        (0..*load).for_each(|_| group.on_picked(id));
    }
    let total = 10.0;
    let mut want = [0.0; 4];
    for (first, a) in weights.iter().enumerate() {
        for (second, b) in weights.iter().enumerate().filter(|(second, _)| *second != first) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            let (load_a, load_b) =
                (f64::from(loads[first] + 1) / a, f64::from(loads[second] + 1) / b);
            let better = if load_b < load_a { second } else { first };
            want[better] += a / total * b / (total - a);
        }
    }
    let mut numbers = Numbers(4);
    let mut counts = [0_u64; 4];
    for _ in 0..200_000 {
        let id = picked(group.pick(&client(0, numbers.next()), NOW, &Tried::default()));
        counts[group.index(id).expect("it is in the list")] += 1;
    }
    for (count, want) in counts.iter().zip(want) {
        assert_near(*count, 200_000, want);
    }
    assert_eq!(counts[3], 0, "the most loaded for its weight loses to everybody");
}

/// What weights come to in the long run: nobody is off its share by more than a few connections,
/// as theory has it for two choices (`log log n` above the mean).
#[test]
fn loads_follow_weights() {
    for balance in [Balance::LeastConnections, Balance::RandomTwo] {
        let weights = [8, 4, 2, 1, 1];
        let mut group = group(options(balance.clone()), &weights);
        let mut numbers = Numbers(5);
        for _ in 0..16_000 {
            let id = picked(group.pick(&client(0, numbers.next()), NOW, &Tried::default()));
            group.on_picked(id);
        }
        for upstream in group.upstreams() {
            let mean = 1000.0 * f64::from(upstream.spec().weight);
            let distance = (f64::from(upstream.connections()) - mean).abs();
            let most = if balance == Balance::LeastConnections { 1.0 } else { 0.05 * mean };
            assert!(distance <= most, "{balance:?} {}", upstream.connections());
        }
    }
}
