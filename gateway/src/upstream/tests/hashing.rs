//! Consistent hashing.

use super::*;

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
