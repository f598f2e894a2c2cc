//! Groups against naive twins, and what they promise of distributions. Every seed is fixed, so a
//! bound that holds once holds always; bounds are six deviations of what is expected, which a
//! right implementation leaves once in 500 million seeds.

mod balancing;
mod fitness;
mod hashing;
mod reloads;

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

const ALL: [fn() -> Balance; 4] = [
    || Balance::RoundRobin,
    || Balance::LeastConnections,
    || Balance::RandomTwo,
    || Balance::Hash { key: HashKey::ClientIp, load_factor_percent: Some(125) },
];

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
