//! Members that stop reading for a while, and what that does to the others.
//!
//! They are set apart for the whole run: what they miss is counted by itself, and the run is well
//! when everybody else got everything.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::ledger::{Counts, Shape};
use crate::engine::Reasons;
use crate::histogram;

/// Who is slow, and for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct SlowOptions {
    /// So many percent of the members' connections stop reading in the middle of the run.
    #[arg(long, default_value_t = 0.0, value_parser = percent, value_name = "PERCENT")]
    slow_percent: f64,
    /// For so long.
    #[arg(long = "slow-seconds", default_value = "10", value_parser = crate::options::seconds, value_name = "SECONDS")]
    slow: Duration,
}

fn percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|_| "not a number")?;
    if (0.0..=99.0).contains(&percent) { Ok(percent) } else { Err("0 to 99".into()) }
}

/// The slow members and what became of them.
pub(crate) struct Slow {
    /// Ascending.
    pub(crate) connections: Vec<u32>,
    /// By connection.
    is_slow: Vec<bool>,
    /// By room: its members that are slow.
    in_room: Vec<u32>,
    /// When they do not read, as the schedule counts.
    pub(crate) window_ns: Range<u64>,
    pub(crate) reading: Reading,
    /// Of the slow members alone.
    pub(crate) counts: Counts,
    /// By membership, messages that it did not get; those it got all are not in here.
    pub(crate) missed: BTreeMap<u32, u64>,
    /// Connections that are over.
    ended: BTreeSet<u32>,
    cut: Reasons,
    /// Deliveries to the others, of messages due in the window, and of all others.
    while_slow: Histogram<u64>,
    otherwise: Histogram<u64>,
    /// Of the server when the window began, and the most since.
    rss_bytes: Option<(u64, u64)>,
}

/// Whether they read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    NotYetPaused,
    Paused,
    Resumed,
}

impl Slow {
    /// Picks them evenly from the connections that do not publish; the window is in the middle of
    /// the measured time. `None` when nobody is to be slow.
    pub(crate) fn new(
        options: &SlowOptions,
        shape: &Shape,
        warm_up: Duration,
        measured: Duration,
    ) -> Result<Option<Slow>, String> {
        if options.slow_percent == 0.0 {
            return Ok(None);
        }
        let seconds = options.slow.as_secs_f64();
        if options.slow >= measured {
            return Err(format!("{seconds} s slow: should be less than what is measured"));
        }
        let mut publishes = vec![false; shape.clients() as usize];
        for room in 0..shape.rooms {
            for publisher in 0..shape.publishers {
                publishes[shape.publisher(room, publisher) as usize] = true;
            }
        }
        let readers: Vec<u32> =
            (0..shape.connections).filter(|c| !publishes[*c as usize]).collect();
        let share = f64::from(shape.connections) * options.slow_percent / 100.0;
        let count = (share.round() as usize).max(1);
        if count > readers.len() {
            return Err(format!("{count} slow connections: {} do not publish", readers.len()));
        }
        let connections: Vec<u32> =
            (0..count).map(|i| readers[i * readers.len() / count]).collect();
        let mut is_slow = vec![false; shape.connections as usize];
        let mut in_room = vec![0; shape.rooms as usize];
        for connection in &connections {
            is_slow[*connection as usize] = true;
            for membership in shape.memberships_of(*connection) {
                in_room[(membership / shape.members) as usize] += 1;
            }
        }
        if let Some(room) = in_room.iter().position(|slow| *slow >= shape.deliveries()) {
            return Err(format!("in room {room} everybody would be slow"));
        }
        let start = warm_up + (measured - options.slow) / 2;
        let window_ns = start.as_nanos() as u64..(start + options.slow).as_nanos() as u64;
        Ok(Some(Slow {
            connections,
            is_slow,
            in_room,
            window_ns,
            reading: Reading::NotYetPaused,
            counts: Counts::default(),
            missed: BTreeMap::new(),
            ended: BTreeSet::new(),
            cut: Reasons::default(),
            while_slow: histogram::new(),
            otherwise: histogram::new(),
            rss_bytes: None,
        }))
    }

    /// Whether a connection is one of them.
    pub(crate) fn has(&self, connection: u32) -> bool {
        self.is_slow.get(connection as usize) == Some(&true)
    }

    /// How many of a room's members are slow.
    pub(crate) fn in_room(&self, room: u32) -> u32 {
        self.in_room[room as usize]
    }

    /// A delivery to one of the others.
    pub(crate) fn record(&mut self, due_ns: u64, ns: u64) {
        let is_while = self.window_ns.contains(&due_ns);
        histogram::record(if is_while { &mut self.while_slow } else { &mut self.otherwise }, ns);
    }

    /// One of their connections is over.
    pub(crate) fn on_end(&mut self, connection: u32, reason: &str) {
        self.ended.insert(connection);
        self.cut.add(reason);
    }

    pub(crate) fn has_ended(&self, connection: u32) -> bool {
        self.ended.contains(&connection)
    }

    /// Takes note of the server's memory.
    pub(crate) fn on_rss(&mut self, rss_bytes: Option<u64>) {
        let Some(rss_bytes) = rss_bytes else { return };
        let (_, most) = self.rss_bytes.get_or_insert((rss_bytes, rss_bytes));
        *most = rss_bytes.max(*most);
    }

    /// The figures. `is_behind` says whether a membership lacks the last messages.
    pub(crate) fn report(&self, shape: &Shape, is_behind: impl Fn(u32) -> bool) -> Value {
        let [mut cut, mut behind, mut gaps, mut caught_up] = [0u64; 4];
        for connection in &self.connections {
            for membership in shape.memberships_of(*connection) {
                let fate = match membership {
                    _ if self.has_ended(*connection) => &mut cut,
                    lag if is_behind(lag) => &mut behind,
                    gap if self.missed.contains_key(&gap) => &mut gaps,
                    _ => &mut caught_up,
                };
                *fate += 1;
            }
        }
        let growth = self.rss_bytes.map(|(before, most)| most - before);
        let seconds = (self.window_ns.end - self.window_ns.start) as f64 / 1e9;
        let mut report = Map::new();
        let mut put = |key: &str, value: Value| {
            report.insert(key.to_owned(), value);
        };
        put("seconds", crate::proc::round(seconds));
        put("connections", json!(self.connections.len()));
        put("members", json!(cut + behind + gaps + caught_up));
        put("others_while_slow_us", histogram::report(&self.while_slow));
        put("others_otherwise_us", histogram::report(&self.otherwise));
        put("cut_members_count", json!(cut));
        put("cut_by_reason", self.cut.report());
        put("silent_gap_members_count", json!(gaps));
        put("behind_members_count", json!(behind));
        put("caught_up_members_count", json!(caught_up));
        put("delivered_count", json!(self.counts.delivered));
        put("missing_count", json!(self.counts.missing));
        put("duplicates_count", json!(self.counts.duplicates));
        put("reordered_count", json!(self.counts.reordered));
        put("server_rss_growth_bytes_max", json!(growth));
        Value::Object(report)
    }

    /// The histograms, by name.
    pub(crate) fn into_histograms(self) -> [(Cow<'static, str>, Histogram<u64>); 2] {
        [("others-while-slow".into(), self.while_slow), ("others-otherwise".into(), self.otherwise)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn shape(rooms: u32, members: u32, publishers: u32) -> Shape {
        let connections = rooms * members;
        Shape { rooms, members, connections, publishers, apart: false, hears_itself: true }
    }

    fn slow(line: &str, shape: &Shape) -> Result<Option<Slow>, String> {
        Slow::new(&crate::options::tests::parse(line), shape, SECOND, 10 * SECOND)
    }

    #[test]
    fn they_are_spread_and_do_not_publish() {
        assert!(slow("", &shape(1, 10, 1)).unwrap().is_none());
        let four = slow("--slow-percent 20 --slow-seconds 4", &shape(2, 10, 2)).unwrap().unwrap();
        assert_eq!(four.connections, [2, 6, 12, 16]);
        assert_eq!([four.in_room(0), four.in_room(1)], [2, 2]);
        assert_eq!(four.window_ns, 4_000_000_000..8_000_000_000);
        assert!(four.has(6) && !four.has(7) && !four.has(20));
        // One at least.
        let one = slow("--slow-percent 0.1 --slow-seconds 1", &shape(1, 10, 1)).unwrap().unwrap();
        assert_eq!(one.connections.len(), 1);
    }

    #[test]
    fn what_cannot_be() {
        let error = |line: &str, shape: &Shape| slow(line, shape).err().unwrap();
        assert!(error("--slow-percent 10 --slow-seconds 10", &shape(1, 10, 1)).contains("less"));
        let line = "--slow-percent 60 --slow-seconds 1";
        assert!(error(line, &shape(1, 10, 5)).contains("5 do not publish"));
        let alone = Shape { hears_itself: false, ..shape(1, 3, 1) };
        assert!(error(line, &alone).contains("everybody"));
        assert!(percent("100").is_err() && percent("-1").is_err() && percent("x").is_err());
    }
}
