//! Groups against naive twins, and what they promise of distributions. Every seed is fixed, so a
//! bound that holds once holds always; bounds are six deviations of what is expected, which a
//! right implementation leaves once in 500 million seeds.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const NOW: Time = Time(77_000_000_000);

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            list.swap(end, self.below(end + 1));
        }
    }
}

fn spec(number: u16, weight: u32) -> UpstreamSpec {
    let address = format!("10.0.{}.{}:3000", number / 256, number % 256);
    UpstreamSpec {
        url: format!("ws://{address}").parse().expect("a URL"),
        address: UpstreamAddress::Tcp(address.parse().expect("an address")),
        other: None,
        weight,
        connections_max: 0,
        mode: Mode::Active,
    }
}

fn list(weights: &[u32]) -> Vec<UpstreamSpec> {
    weights.iter().enumerate().map(|(number, weight)| spec(number as u16, *weight)).collect()
}

fn options(balance: Balance) -> GroupOptions {
    GroupOptions { balance, ..GroupOptions::default() }
}

fn hashed(load_factor_percent: Option<u32>) -> GroupOptions {
    options(Balance::Hash { key: HashKey::ClientIp, load_factor_percent })
}

fn group(options: GroupOptions, weights: &[u32]) -> Group {
    Group::new(options, list(weights), 0).expect("a good list")
}

/// An attempt at an upstream is over, and this speaks against it.
fn failed(
    group: &mut Group,
    id: UpstreamId,
    evidence: Evidence,
    now: Time,
    random: u64,
) -> Option<Health> {
    group.on_abandoned(id);
    group.on_evidence(id, evidence, now, random)
}

fn connect_failed(group: &mut Group, id: UpstreamId, now: Time, random: u64) -> Option<Health> {
    failed(group, id, Evidence::Connect, now, random)
}

fn client(key: u64, random: u64) -> Client {
    Client { key, sticky: Sticky::Nowhere, random }
}

#[track_caller]
fn picked(pick: Pick) -> UpstreamId {
    match pick {
        Pick::Upstream(id) => id,
        other => panic!("nobody was picked: {other:?}"),
    }
}

/// Whether `count` of `draws` may be a draw with `probability`.
#[track_caller]
fn assert_near(count: u64, draws: u64, probability: f64) {
    let mean = draws as f64 * probability;
    let deviation = (mean * (1.0 - probability)).sqrt();
    let distance = (count as f64 - mean).abs();
    assert!(distance <= 6.0 * deviation + 1.0, "{count} of {draws} where {mean} are expected");
}

const WEIGHTS: [&[u32]; 6] =
    [&[1], &[1, 1], &[1, 1, 1, 1, 1], &[5, 1, 1], &[7, 3, 2, 2, 1], &[1000, 1, 30]];

// Who is chosen.

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

// Consistent hashing.

/// Where each of `keys` goes, by the number of the upstream's address.
fn places(group: &mut Group, keys: u64) -> Vec<UpstreamName> {
    (0..keys)
        .map(|key| {
            let id = picked(group.pick(
                &client(stable_hash(&key.to_le_bytes()), 0),
                NOW,
                &Tried::default(),
            ));
            group.get(id).expect("it is in the list").name()
        })
        .collect()
}

#[test]
fn keys_spread_by_weight() {
    const KEYS: u64 = 60_000;
    for weights in WEIGHTS {
        let mut group = group(hashed(None), weights);
        let total: u32 = weights.iter().sum();
        let places = places(&mut group, KEYS);
        for upstream in group.upstreams() {
            let count = places.iter().filter(|place| **place == upstream.name()).count();
            let probability = f64::from(upstream.spec().weight) / f64::from(total);
            assert_near(count as u64, KEYS, probability);
        }
    }
}

#[test]
fn the_order_of_the_list_means_nothing() {
    let mut numbers = Numbers(6);
    let first = places(&mut group(hashed(None), &[3, 1, 4, 1, 5, 9, 2, 6]), 2000);
    for _ in 0..20 {
        let mut list = list(&[3, 1, 4, 1, 5, 9, 2, 6]);
        numbers.shuffle(&mut list);
        let mut group = Group::new(hashed(None), list, numbers.next()).expect("good");
        assert_eq!(places(&mut group, 2000), first);
    }
}

/// Gateways of different releases stand side by side: these never change.
#[test]
fn places_are_the_same_for_ever() {
    let mut group = group(hashed(None), &[1, 1, 2, 4]);
    let names: Vec<UpstreamName> = group.upstreams().iter().map(Upstream::name).collect();
    let places: String = places(&mut group, 40)
        .iter()
        .map(|place| names.iter().position(|name| name == place).expect("listed").to_string())
        .collect();
    assert_eq!(places, "0232323003133212013332332200223311210023");
}

/// One of `n` comes or goes: the keys that move are its own, about `1 / n`, and they move to it or
/// away from it and nowhere else.
#[test]
fn one_of_n_moves_its_own_keys_only() {
    const KEYS: u64 = 20_000;
    for count in [1_u16, 2, 3, 10, 50] {
        let all: Vec<UpstreamSpec> = (0..=count).map(|number| spec(number, 1)).collect();
        let mut with = Group::new(hashed(None), all.clone(), 0).expect("good");
        let before = places(&mut with, KEYS);
        for gone in [0, count / 2, count] {
            let rest = all.iter().filter(|one| one.url != all[usize::from(gone)].url).cloned();
            let mut without = Group::new(hashed(None), rest.collect(), 0).expect("good");
            let after = places(&mut without, KEYS);
            let name = with.upstreams()[usize::from(gone)].name();
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
            let moved: Vec<_> = moved.collect();
            assert!(moved.iter().all(|(before, _)| **before == name));
            assert!(!after.contains(&name));
            assert_near(moved.len() as u64, KEYS, 1.0 / f64::from(count + 1));
            // And they go to all others alike.
            for other in without.upstreams() {
                let taken = moved.iter().filter(|(_, after)| **after == other.name()).count();
                assert_near(taken as u64, moved.len() as u64, 1.0 / f64::from(count));
            }
        }
    }
}

/// A higher weight only takes, in proportion.
#[test]
fn a_weight_that_grows_takes_from_all_and_gives_nothing() {
    const KEYS: u64 = 20_000;
    let before = places(&mut group(hashed(None), &[1, 1, 1, 1]), KEYS);
    let mut heavier = group(hashed(None), &[1, 1, 1, 2]);
    let after = places(&mut heavier, KEYS);
    let name = heavier.upstreams()[3].name();
    let moved: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
    assert!(moved.iter().all(|(_, after)| **after == name));
    assert_near(moved.len() as u64, KEYS, 2.0 / 5.0 - 1.0 / 4.0);
}

/// The twin sorts all upstreams by their distance from the key and takes the first below its bound,
/// which it computes in fractions. Keys are of the worst kind: few, and some of them all the time.
#[test]
fn loads_stay_bounded_and_keys_keep_their_order() {
    let mut numbers = Numbers(7);
    let mut passed_on = 0;
    for (weights, percent) in
        [(&[1, 1, 1][..], 100), (&[1; 10], 125), (&[7, 3, 2, 2, 1], 125), (&[1000, 1, 30], 200)]
    {
        let mut group = group(hashed(Some(percent)), weights);
        let total = f64::from(weights.iter().sum::<u32>());
        let mut open: Vec<UpstreamId> = Vec::new();
        for _ in 0..4000 {
            if numbers.below(9) < 4 && !open.is_empty() {
                let index = numbers.below(open.len());
                group.on_closed(open.swap_remove(index));
                continue;
            }
            let key = if numbers.below(2) == 0 { 5 } else { numbers.below(30) as u64 };
            let key = stable_hash(&key.to_le_bytes());
            let id = picked(group.pick(&client(key, 0), NOW, &Tried::default()));

            let after = (open.len() + 1) as f64;
            let bound = |upstream: &Upstream| {
                let share = f64::from(upstream.spec().weight) / total;
                // What is whole in theory may be a hair above in fractions.
                (f64::from(percent) / 100.0 * after * share - 1e-9).ceil() as u32
            };
            let mut order: Vec<&Upstream> = group.upstreams().iter().collect();
            order.sort_by(|a, b| balance::distance(key, a).total_cmp(&balance::distance(key, b)));
            let want = order.iter().position(|one| one.connections() < bound(one));
            let want = want.expect("the bounds add up to more than there are");
            passed_on += usize::from(want > 0);
            assert_eq!(id, order[want].id());

            group.on_picked(id);
            open.push(id);
            let upstream = group.get(id).expect("it is in the list");
            assert!(upstream.connections() <= bound(upstream));
        }
    }
    assert!(passed_on > 1000, "the bound was met {passed_on} times");
}

/// One key alone: without a bound all its clients are on one upstream, with one it cannot swamp it.
#[test]
fn one_key_cannot_swamp_an_upstream() {
    for (percent, most) in [(None, 1000), (Some(125), 125), (Some(100), 100)] {
        let mut group = group(hashed(percent), &[1; 10]);
        for _ in 0..1000 {
            let id = picked(group.pick(&client(9, 0), NOW, &Tried::default()));
            group.on_picked(id);
        }
        assert_eq!(group.upstreams().iter().map(Upstream::connections).max(), Some(most));
    }
}

/// The way on, when the first was tried or is down, is the same as if it had never been there.
#[test]
fn the_next_in_a_keys_order() {
    let mut whole = group(hashed(None), &[1, 2, 3, 4, 5]);
    for key in 0..500 {
        let mut tried = Tried::default();
        let mut rest = list(&[1, 2, 3, 4, 5]);
        while !rest.is_empty() {
            let mut smaller = Group::new(hashed(None), rest.clone(), 0).expect("good");
            let want = picked(smaller.pick(&client(key, 0), NOW, &Tried::default()));
            let want = smaller.get(want).expect("listed").spec().url.clone();
            let id = picked(whole.pick(&client(key, 0), NOW, &tried));
            assert_eq!(whole.get(id).expect("listed").spec().url, want);
            tried.push(id);
            rest.retain(|one| one.url != want);
        }
        assert_eq!(whole.pick(&client(key, 0), NOW, &tried), Pick::None);
    }
}

// Who may be chosen.

const ALL: [fn() -> Balance; 4] = [
    || Balance::RoundRobin,
    || Balance::LeastConnections,
    || Balance::RandomTwo,
    || Balance::Hash { key: HashKey::ClientIp, load_factor_percent: Some(125) },
];

/// Who can be picked: the numbers of upstreams that come up in many picks, or the other answer.
fn reachable(group: &mut Group, sticky: Sticky, now: Time, tried: &Tried) -> String {
    let mut seen = BTreeSet::new();
    for number in 0..300 {
        let client = Client { key: mix(number), sticky, random: mix(number) };
        seen.insert(match group.pick(&client, now, tried) {
            Pick::Upstream(id) => group.index(id).expect("listed").to_string(),
            other => format!("{other:?}"),
        });
    }
    seen.into_iter().collect::<Vec<_>>().join(" ")
}

#[test]
fn tried_ones_are_not_picked_again() {
    for balance in ALL {
        let mut group = group(options(balance()), &[1; 10]);
        let ids: Vec<UpstreamId> = group.upstreams().iter().map(Upstream::id).collect();
        let mut tried = Tried::default();
        for (count, id) in ids.iter().enumerate() {
            let want = match count {
                0..TRIED_MAX => {
                    (count..10).map(|index| index.to_string()).collect::<Vec<_>>().join(" ")
                }
                _ => "None".to_owned(),
            };
            assert_eq!(reachable(&mut group, Sticky::Nowhere, NOW, &tried), want);
            tried.push(*id);
        }
        assert_eq!(tried.count(), TRIED_MAX);
    }
}

#[test]
fn modes_and_maxima() {
    for balance in ALL {
        let mut list = list(&[1, 1, 1]);
        list[0].connections_max = 1;
        list[2].mode = Mode::Disabled;
        let mut group = Group::new(options(balance()), list, 0).expect("good");
        let [a, b, c] = [0, 1, 2].map(|index| group.upstreams()[index].id());
        let who = |group: &mut Group| reachable(group, Sticky::Nowhere, NOW, &Tried::default());
        assert_eq!(who(&mut group), "0 1");
        group.on_picked(a);
        assert_eq!(who(&mut group), "1");
        group.set_mode(b, Mode::Draining, NOW);
        assert_eq!(who(&mut group), "Wait");
        group.set_mode(c, Mode::Active, NOW);
        assert_eq!(who(&mut group), "2");
        group.set_mode(c, Mode::Draining, NOW);
        group.set_mode(a, Mode::Draining, NOW);
        assert_eq!(who(&mut group), "None");
        group.set_mode(a, Mode::Active, NOW);
        group.on_closed(a);
        assert_eq!(who(&mut group), "0");
    }
    let mut nobody = group(options(Balance::RandomTwo), &[]);
    assert_eq!(nobody.pick(&client(0, 0), NOW, &Tried::default()), Pick::None);
}

#[test]
fn sessions_and_cookies_return() {
    for balance in ALL {
        let mut group = group(options(balance()), &[1, 1, 1]);
        let [a, b, _] = [0, 1, 2].map(|index| group.upstreams()[index].id());
        let mut tried_a = Tried::default();
        tried_a.push(a);
        let check = |group: &mut Group, want_session: &str, want_cookie: &str| {
            for (sticky, want) in
                [(Sticky::Session(a), want_session), (Sticky::Cookie(a), want_cookie)]
            {
                assert_eq!(reachable(group, sticky, NOW, &Tried::default()), want, "{sticky:?}");
                assert_eq!(reachable(group, sticky, NOW, &tried_a), "1 2");
            }
        };
        check(&mut group, "0", "0");
        group.set_mode(a, Mode::Draining, NOW);
        check(&mut group, "0", "1 2");
        group.set_mode(a, Mode::Disabled, NOW);
        check(&mut group, "1 2", "1 2");
        group.set_mode(a, Mode::Active, NOW);
        for _ in 0..3 {
            group.on_check_result(a, false, NOW);
        }
        check(&mut group, "1 2", "1 2");
        for _ in 0..2 {
            group.on_check_result(a, true, NOW);
        }
        let mut full = list(&[1, 1, 1]);
        full[0].connections_max = 1;
        group.reconfigure(options(balance()), full, NOW).expect("good");
        group.on_picked(a);
        // Of the bounded hash no key is left out by the one connection.
        check(&mut group, "Wait", "1 2");
        // An upstream that has left the list is nobody's any more.
        group.reconfigure(options(balance()), list(&[1, 1, 1])[1..].to_vec(), NOW).expect("good");
        assert_eq!(reachable(&mut group, Sticky::Session(a), NOW, &Tried::default()), "0 1");
        assert_eq!(reachable(&mut group, Sticky::Session(b), NOW, &Tried::default()), "0");
    }
}

#[test]
fn panic_ignores_health() {
    // Percent, how many of five are down, who is picked then.
    for (percent, down, want) in [
        (0, 4, "4"),
        (0, 5, "None"),
        (25, 3, "3 4"),
        (25, 4, "0 1 2 3 4"),
        (40, 3, "3 4"),
        (41, 3, "0 1 2 3 4"),
        (100, 0, "0 1 2 3 4"),
        (100, 1, "0 1 2 3 4"),
        (1, 4, "4"),
        (1, 5, "0 1 2 3 4"),
    ] {
        for balance in ALL {
            let options = GroupOptions { panic_percent: percent, ..options(balance()) };
            let mut group = group(options, &[1; 5]);
            for index in 0..down {
                let id = group.upstreams()[index].id();
                // By either way of being unfit.
                for _ in 0..3 {
                    if index % 2 == 0 {
                        group.on_check_result(id, false, NOW);
                    } else {
                        group.on_picked(id);
                        connect_failed(&mut group, id, NOW, 0);
                    }
                }
            }
            let got = reachable(&mut group, Sticky::Nowhere, NOW, &Tried::default());
            assert_eq!(got, want, "{percent} % with {down} down");
        }
    }
    // Those that the operator keeps away are not missed.
    let mut group = group(options(Balance::RoundRobin), &[1; 5]);
    for index in 0..4 {
        let id = group.upstreams()[index].id();
        group.set_mode(id, Mode::Disabled, NOW);
    }
    assert_eq!(reachable(&mut group, Sticky::Nowhere, NOW, &Tried::default()), "4");
}

#[test]
fn health_says_when_it_changes() {
    let mut group = group(options(Balance::RoundRobin), &[1, 1]);
    let id = group.upstreams()[0].id();
    let fail = |group: &mut Group, now| {
        group.on_picked(id);
        connect_failed(group, id, now, 0)
    };
    assert_eq!(fail(&mut group, NOW), None);
    assert_eq!(fail(&mut group, NOW), None);
    let until = NOW + 5 * SECOND;
    assert_eq!(fail(&mut group, NOW), Some(Health::Ejected { until }));
    assert_eq!(fail(&mut group, NOW), None);
    assert_eq!(group.upstreams()[0].health(until), Health::Up);
    // What the client brought upon itself, and clients that left, are no failures.
    for _ in 0..5 {
        group.on_picked(id);
        group.on_abandoned(id);
        group.on_picked(id);
        group.on_answered(id, until);
    }
    assert_eq!(group.upstreams()[0].connections(), 0);
    assert_eq!(fail(&mut group, until), None);
    assert_eq!(group.on_check_result(id, false, until), None);
    assert_eq!(group.on_check_result(id, false, until), None);
    assert_eq!(group.on_check_result(id, false, until), Some(Health::Down));
    assert_eq!(group.on_check_result(id, true, until), None);
    assert_eq!(group.on_check_result(id, true, until), Some(Health::Up));
    // Nobody knows it.
    let nobody = UpstreamId(99.try_into().expect("a number"));
    assert_eq!(group.on_check_result(nobody, false, until), None);
    assert_eq!(connect_failed(&mut group, nobody, until, 0), None);
}

/// Whatever clients meet, half of a group is left, and the only upstream always.
#[test]
fn half_of_a_group_is_never_ejected() {
    for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (9, 4)] {
        let mut group = group(options(Balance::RoundRobin), &vec![1; count]);
        let ids: Vec<UpstreamId> = group.upstreams().iter().map(Upstream::id).collect();
        for number in 0..20_u8 {
            for id in &ids {
                group.on_picked(*id);
                failed(&mut group, *id, Evidence::Client([192, 0, 2, number].into()), NOW, 0);
                group.on_picked(*id);
                connect_failed(&mut group, *id, NOW, 0);
            }
        }
        let ejected = group.upstreams().iter().filter(|it| it.health(NOW) != Health::Up).count();
        assert_eq!(ejected, most, "of {count}");
    }
}

/// One of four comes new. Its part of the round grows from a tenth of a share to a whole one.
#[test]
fn slow_start_ramps_the_share() {
    let slow = |balance| GroupOptions { slow_start: 10 * SECOND, ..options(balance) };
    let mut group = group(slow(Balance::RoundRobin), &[1, 1, 1]);
    // What is there at the start starts whole.
    assert_eq!(group.upstreams()[0].record.ramp(Time(0), 10 * SECOND), 1000);
    let list = list(&[1, 1, 1, 1]);
    group.reconfigure(slow(Balance::RoundRobin), list.clone(), NOW).expect("good");
    for (seconds, share) in [(0, 0.1), (5, 0.55), (10, 1.0), (100, 1.0)] {
        let now = NOW + seconds * SECOND;
        let mut count = 0;
        for _ in 0..3100 {
            let id = picked(group.pick(&client(0, 0), now, &Tried::default()));
            count += u64::from(group.index(id) == Some(3));
        }
        let want = 3100.0 * share / (3.0 + share);
        assert!((count as f64 - want).abs() <= 2.0, "{count} after {seconds} s, not {want}");
    }
    // A reload does not begin it again.
    group.reconfigure(slow(Balance::RoundRobin), list.clone(), NOW + 5 * SECOND).expect("good");
    assert_eq!(group.upstreams()[3].record.ramp(NOW + 5 * SECOND, 10 * SECOND), 550);
    // Being let in again does.
    let id = group.upstreams()[0].id();
    group.set_mode(id, Mode::Draining, NOW);
    group.set_mode(id, Mode::Active, NOW + 20 * SECOND);
    assert_eq!(group.upstreams()[0].record.ramp(NOW + 20 * SECOND, 10 * SECOND), 100);
    // By the file as well.
    let mut drained = list.clone();
    drained[1].mode = Mode::Draining;
    for list in [drained, list.clone()] {
        let options = slow(Balance::RoundRobin);
        group.reconfigure(options, list, NOW + 20 * SECOND).expect("good");
    }
    assert_eq!(group.upstreams()[1].record.ramp(NOW + 20 * SECOND, 10 * SECOND), 100);
    assert_eq!(group.upstreams()[2].record.ramp(NOW + 20 * SECOND, 10 * SECOND), 1000);
    // Keys stay where they are.
    let hash = Balance::Hash { key: HashKey::ClientIp, load_factor_percent: None };
    group.reconfigure(slow(hash), list, NOW + 20 * SECOND).expect("good");
    let mut whole = super::tests::group(hashed(None), &[1, 1, 1, 1]);
    assert_eq!(places(&mut group, 1000), places(&mut whole, 1000));
}

// Reloads.

#[test]
fn faulty_lists_change_nothing() {
    let mut group = group(options(Balance::RoundRobin), &[1, 2]);
    let before = group.upstreams().iter().map(Upstream::id).collect::<Vec<_>>();
    let many = (0..=UPSTREAMS_MAX as u16).map(|number| spec(number, 1)).collect();
    for (list, want) in [
        (many, ListFault::TooMany(UPSTREAMS_MAX + 1)),
        (vec![spec(1, 1), spec(2, 1), spec(1, 5)], ListFault::Twice(spec(1, 1).url)),
        (vec![spec(1, 0)], ListFault::Weight(spec(1, 1).url, 0)),
        (vec![spec(1, WEIGHT_MAX + 1)], ListFault::Weight(spec(1, 1).url, WEIGHT_MAX + 1)),
    ] {
        assert!(want.to_string().contains(": ") && want.to_string().contains("; "), "{want}");
        let got = group.reconfigure(options(Balance::RandomTwo), list, NOW);
        assert_eq!(got, Err(want));
        assert_eq!(group.options().balance, Balance::RoundRobin);
        assert_eq!(group.upstreams().iter().map(Upstream::id).collect::<Vec<_>>(), before);
    }
    group.next_id = u32::MAX - 1;
    let got = group.reconfigure(options(Balance::RandomTwo), list(&[1, 1]), NOW);
    assert_eq!(got, Err(ListFault::OutOfIds));
    assert_eq!(group.upstreams().len(), 2);
    let full = (0..UPSTREAMS_MAX as u16).map(|number| spec(number, WEIGHT_MAX)).collect();
    let mut full = Group::new(options(Balance::RoundRobin), full, 1).expect("good");
    for balance in ALL {
        full.options.balance = balance();
        full.pick(&client(1, u64::MAX), NOW, &Tried::default());
    }
}

#[test]
fn health_and_cookies_survive_a_reload() {
    let cookie = StickyCookie {
        name: "a".to_owned(),
        secret: b"s".to_vec(),
        max_age: Duration::ZERO,
        same_site: SameSite::Lax,
        secure: false,
    };
    let with_cookie = GroupOptions { cookie: Some(cookie.clone()), ..options(Balance::RoundRobin) };
    let mut group = group(options(Balance::RoundRobin), &[1, 1, 1]);
    let [a, b, c] = [0, 1, 2].map(|index| group.upstreams()[index].id());
    for _ in 0..3 {
        group.on_picked(a);
        connect_failed(&mut group, a, NOW, 0);
        group.on_check_result(b, false, NOW);
    }
    let mut reordered = list(&[7, 8, 9]);
    reordered.reverse();
    reordered.push(spec(77, 1));
    group.reconfigure(with_cookie, reordered, NOW).expect("good");
    let ejected = Health::Ejected { until: NOW + 5 * SECOND };
    for (id, weight, health) in [(a, 7, ejected), (b, 8, Health::Down), (c, 9, Health::Up)] {
        let upstream = group.get(id).expect("listed");
        assert_eq!((upstream.spec().weight, upstream.health(NOW)), (weight, health));
        assert_eq!(group.find(upstream.name()), Some(id));
        let head = format!(
            "GET / HTTP/1.1\r\nHost: x\r\nCookie: a={}\r\n\r\n",
            upstream.token().expect("the group has a cookie")
        );
        let limits =
            crate::http::HeadLimits { head_bytes_max: 500, headers_max: 9, target_bytes_max: 9 };
        let request = crate::http::parse_request(head.as_bytes(), &limits).expect("a request");
        assert_eq!(group.find_cookie(&request.headers), Some(id));
    }
    assert_eq!(group.find(UpstreamName(1)), None);
}

#[test]
fn shares_of_a_maximum_add_up() {
    for (total, shards) in [(1, 1), (10, 3), (3, 10), (1000, 7), (u32::MAX, 1024)] {
        let shares = (0..shards).map(|shard| connections_share(total, shard, shards));
        assert_eq!(shares.clone().map(u64::from).sum::<u64>(), u64::from(total));
        assert!(shares.clone().max().unwrap() - shares.min().unwrap() <= 1);
    }
}

/// Above the bound the one that left first is forgotten, and its connections end without harm.
#[test]
fn those_that_leave_are_bounded() {
    let mut group = group(options(Balance::RoundRobin), &[1]);
    let mut left = Vec::new();
    for number in 0..LEAVING_MAX as u16 + 10 {
        let list = vec![spec(number, 1)];
        group.reconfigure(options(Balance::RoundRobin), list, NOW).expect("good");
        left.push(group.upstreams()[0].id());
        group.on_picked(left[usize::from(number)]);
    }
    group.reconfigure(options(Balance::RoundRobin), vec![], NOW).expect("good");
    assert_eq!(group.leaving_connections(), LEAVING_MAX as u64);
    // The forgotten comes back as a new one; the one that is known still has its connection.
    let list = vec![spec(9, 1), spec(10, 1)];
    group.reconfigure(options(Balance::RoundRobin), list, NOW).expect("good");
    assert_eq!(group.get(left[9]).map(Upstream::connections), None);
    assert_eq!(group.get(left[10]).map(Upstream::connections), Some(1));
    left.iter().for_each(|id| group.on_closed(*id));
    assert_eq!(group.leaving_connections(), 0);
    assert!(group.upstreams().iter().all(|upstream| upstream.connections() == 0));
}

/// Ten thousand reloads with connections open, being opened and failing all the while. The twin
/// keeps a list of connections and counts them; the rules of who may be picked are written out
/// again here, in words.
#[test]
fn counts_survive_ten_thousand_reloads() {
    let mut numbers = Numbers(8);
    let mut group = Group::new(options(Balance::RoundRobin), Vec::new(), 5).expect("good");
    // Every connection: its upstream's id, the number of its address, and whether it is open.
    let mut live: Vec<(UpstreamId, u16, bool)> = Vec::new();
    let mut ids: BTreeMap<u16, UpstreamId> = BTreeMap::new();
    let mut used: BTreeMap<UpstreamId, u16> = BTreeMap::new();
    let mut now = NOW;
    let specs: Vec<UpstreamSpec> = (0..12).map(|number| spec(number, 1)).collect();
    let (mut picks, mut waits, mut nones, mut comebacks) = (0, 0, 0, 0);
    for _ in 0..10_000 {
        now = now + Duration::from_millis(numbers.next() % 500);
        let mut list = Vec::new();
        for spec in &specs {
            if numbers.below(3) > 0 {
                let mut one = UpstreamSpec { weight: 1 + numbers.below(5) as u32, ..spec.clone() };
                one.connections_max = [0, 0, 3, 8][numbers.below(4)];
                one.mode = match numbers.below(8) {
                    0 => Mode::Draining,
                    1 => Mode::Disabled,
                    _ => Mode::Active,
                };
                list.push(one);
            }
        }
        numbers.shuffle(&mut list);
        let mut options = options(ALL[numbers.below(4)]());
        options.slow_start = [0, 1][numbers.below(2)] * SECOND;
        options.panic_percent = [0, 25, 60][numbers.below(3)];
        let weights: BTreeMap<String, u32> =
            list.iter().map(|one| (one.url.to_string(), one.weight)).collect();
        group.reconfigure(options, list, now).expect("a good list");

        // Who stays or still has connections keeps its id; every other one gets a fresh one.
        let mut listed = BTreeMap::new();
        for upstream in group.upstreams() {
            let number = specs.iter().position(|spec| spec.url == upstream.spec().url);
            let number = number.expect("one of ours") as u16;
            listed.insert(number, upstream.id());
            assert_eq!(
                weights.get(&upstream.spec().url.to_string()),
                Some(&upstream.spec().weight)
            );
            let open = live.iter().find(|one| one.1 == number);
            match (ids.get(&number), open) {
                (Some(before), _) => assert_eq!(*before, upstream.id()),
                (None, Some(open)) => {
                    assert_eq!(open.0, upstream.id());
                    comebacks += 1;
                }
                (None, None) => assert_eq!(used.get(&upstream.id()), None, "an id is used again"),
            }
            used.insert(upstream.id(), number);
        }
        assert_eq!(listed.len(), weights.len());
        ids = listed;

        for _ in 0..numbers.below(8) {
            let random = numbers.next();
            if numbers.below(2) == 0 && !live.is_empty() {
                let index = numbers.below(live.len());
                let (id, _, is_open) = &mut live[index];
                let id = *id;
                match (*is_open, numbers.below(5)) {
                    (false, 0..2) => {
                        group.on_opened(id, now);
                        live[index].2 = true;
                        continue;
                    }
                    (false, 2) => group.on_answered(id, now),
                    (false, 3) => group.on_abandoned(id),
                    (false, _) => {
                        connect_failed(&mut group, id, now, random);
                    }
                    (true, _) => group.on_closed(id),
                }
                live.swap_remove(index);
                continue;
            }
            if numbers.below(6) == 0 && !ids.is_empty() {
                let id = *ids.values().nth(numbers.below(ids.len())).expect("one");
                group.on_check_result(id, numbers.below(3) > 0, now);
            }
            let mut tried = Tried::default();
            let mut tried_ids = BTreeSet::new();
            for id in ids.values() {
                if numbers.below(6) == 0 && tried.count() < TRIED_MAX {
                    tried.push(*id);
                    tried_ids.insert(*id);
                }
            }
            let active = || group.upstreams().iter().filter(|one| one.spec().mode == Mode::Active);
            let fit = active().filter(|one| one.health(now) == Health::Up).count();
            let panics = fit * 100 < group.options().panic_percent as usize * active().count();
            let usable: Vec<&Upstream> = active()
                .filter(|one| panics || one.health(now) == Health::Up)
                .filter(|one| !tried_ids.contains(&one.id()))
                .collect();
            let has_room = |one: &&&Upstream| {
                one.spec().connections_max == 0 || one.connections() < one.spec().connections_max
            };
            let open: BTreeSet<UpstreamId> =
                usable.iter().filter(has_room).map(|one| one.id()).collect();
            let is_usable = !usable.is_empty() && tried.count() < TRIED_MAX;
            match group.pick(&client(random, random), now, &tried) {
                Pick::Upstream(id) => {
                    assert!(is_usable && open.contains(&id));
                    group.on_picked(id);
                    live.push((id, used[&id], false));
                    picks += 1;
                }
                Pick::Wait => {
                    assert!(is_usable && open.is_empty());
                    waits += 1;
                }
                Pick::None => {
                    assert!(!is_usable);
                    nones += 1;
                }
            }
        }
        for upstream in group.upstreams() {
            let want = live.iter().filter(|one| one.0 == upstream.id()).count();
            assert_eq!(upstream.connections() as usize, want);
        }
        let gone = live.iter().filter(|one| !ids.values().any(|id| *id == one.0)).count();
        assert_eq!(group.leaving_connections(), gone as u64);
    }
    // The day had everything in it.
    let day = format!("{picks} picks, {waits} waits, {nones} nones, {comebacks} comebacks");
    assert!(picks > 5000 && waits > 20 && nones > 20 && comebacks > 1000, "{day}");
    live.iter().for_each(|one| group.on_closed(one.0));
    assert!(group.upstreams().iter().all(|upstream| upstream.connections() == 0));
    assert!(group.leaving.is_empty());
}
