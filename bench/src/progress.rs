//! What a run looks like while it goes on: a line on the terminal each second, and the intervals
//! that end up in its result.
//!
//! A scenario hands in a [`Sample`] once a turn. Nothing is done with it until a second is over or
//! the phase changes; then the difference to the last one becomes an interval. That is done in the
//! scenario's own thread, where `tool.lag_us` sees it: another thread would take its time from the
//! server, unseen.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::engine::Counts;
use crate::environment;
use crate::histogram;
use crate::kernel;
use crate::proc::{self, CpuTime, ProcessMemory, round};

/// How a run stands: sums since its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample<'a> {
    /// What is being done, such as "opening" or "measuring"; a change ends an interval.
    pub(crate) phase: &'static str,
    /// Connections that are open now.
    pub(crate) connections: u64,
    /// Connections opened so far.
    pub(crate) opened: u64,
    /// Messages sent.
    pub(crate) sent: u64,
    /// Messages that came back, or were delivered.
    pub(crate) received: u64,
    /// Nanoseconds of those received.
    pub(crate) latency: Option<&'a Histogram<u64>>,
    /// How long the phase still takes, where that is known.
    pub(crate) left: Option<Duration>,
}

impl Sample<'_> {
    /// With the connections of an engine, and no messages.
    pub(crate) fn of(phase: &'static str, counts: &Counts) -> Self {
        Sample { phase, connections: counts.open, opened: counts.opened, ..Sample::default() }
    }
}

/// The phase in which intervals count as measured: charts and comparisons look at these.
pub(crate) const MEASURING: &str = "measuring";
/// The phase after the measured time; connections are still open when it begins.
pub(crate) const CLOSING: &str = "closing";

/// A second of a run, or what a phase left of one.
#[derive(Clone, Debug)]
pub(crate) struct Interval {
    /// Its beginning, since that of the recording.
    pub(crate) start: Duration,
    pub(crate) length: Duration,
    pub(crate) phase: &'static str,
    /// At its end.
    pub(crate) connections: u64,
    /// During it, as are those that follow.
    pub(crate) opened: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Nanoseconds and how many times, ascending.
    pub(crate) latency: Vec<(u64, u64)>,
    pub(crate) server_cpu: Option<Duration>,
    pub(crate) tool_cpu: Duration,
    /// At its end, as is what follows.
    pub(crate) server_rss_bytes: Option<u64>,
    pub(crate) tool_rss_bytes: Option<u64>,
    /// Of all TCP sockets of the machine.
    pub(crate) socket_bytes: Option<u64>,
}

/// Intervals kept. When there are more, each two become one and the next ones are twice as long:
/// a run of a day has intervals of 32 s.
pub(crate) const INTERVALS_MAX: usize = 4096;

impl Interval {
    /// As it stands in a result. Percents are of one core.
    pub(crate) fn report(&self) -> Value {
        let seconds = self.length.as_secs_f64().max(1e-9);
        let percent = |time: Duration| round(100.0 * time.as_secs_f64() / seconds);
        let mut latency = histogram::new();
        for (ns, count) in &self.latency {
            latency.saturating_record_n(*ns, *count);
        }
        json!({
            "start_seconds": round(self.start.as_secs_f64()),
            "seconds": round(self.length.as_secs_f64()),
            "phase": self.phase,
            "connections": self.connections,
            "opened_count": self.opened,
            "sent_count": self.sent,
            "received_count": self.received,
            "latency_us": histogram::report_short(&latency),
            "latency_hdr": (!latency.is_empty()).then(|| histogram::encode(&latency)),
            "server_cpu_percent": self.server_cpu.map(percent),
            "tool_cpu_percent": percent(self.tool_cpu),
            "server_rss_bytes": self.server_rss_bytes,
            "tool_rss_bytes": self.tool_rss_bytes,
            "machine_socket_bytes": self.socket_bytes,
        })
    }

    /// This one and the one after it as one.
    fn join(&mut self, next: Interval) {
        self.latency.extend(next.latency);
        self.latency.sort_unstable_by_key(|(ns, _)| *ns);
        self.latency.dedup_by(|later, kept| {
            let is_same = later.0 == kept.0;
            kept.1 += if is_same { later.1 } else { 0 };
            is_same
        });
        *self = Interval {
            start: self.start,
            length: self.length + next.length,
            opened: self.opened + next.opened,
            sent: self.sent + next.sent,
            received: self.received + next.received,
            latency: std::mem::take(&mut self.latency),
            server_cpu: self.server_cpu.zip(next.server_cpu).map(|(a, b)| a + b),
            tool_cpu: self.tool_cpu + next.tool_cpu,
            ..next
        };
    }
}

/// Collects the intervals of a run, and shows them.
pub(crate) struct Recorder {
    started: Instant,
    pids: Vec<u32>,
    processes: Value,
    /// How long an interval is.
    length: Duration,
    intervals: Vec<Interval>,
    /// The interval that goes on.
    phase: &'static str,
    since: Reading,
    /// The sums when it began.
    opened: u64,
    sent: u64,
    received: u64,
    /// Nanoseconds and how many times, ascending.
    latency: Vec<(u64, u64)>,
    memory_before: Option<ProcessMemory>,
    /// At the end of the measured time, and how many connections were open then.
    memory_after: Option<(ProcessMemory, u64)>,
    socket_bytes_before: Option<u64>,
    bar: Option<ProgressBar>,
}

/// What is read at the edge of an interval.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    server: Option<CpuTime>,
    tool: Duration,
}

impl Reading {
    fn take(at: Instant, pids: &[u32]) -> Reading {
        Reading { at, server: CpuTime::read_all(pids), tool: kernel::own_cpu_time() }
    }
}

impl Recorder {
    /// Begins now. With `show`, there is a line on standard error, if that is a terminal.
    pub(crate) fn new(show: bool) -> Recorder {
        let now = Instant::now();
        let bar = show.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.with_style(ProgressStyle::with_template("{wide_msg}").expect("a constant"))
        });
        Recorder {
            started: now,
            pids: Vec::new(),
            processes: json!([]),
            length: Duration::from_secs(1),
            intervals: Vec::new(),
            phase: "",
            since: Reading::take(now, &[]),
            opened: 0,
            sent: 0,
            received: 0,
            latency: Vec::new(),
            memory_before: None,
            memory_after: None,
            socket_bytes_before: None,
            bar,
        }
    }

    /// Watches these processes from now on; nothing has been opened yet.
    pub(crate) fn observe(&mut self, pids: &[u32]) {
        self.pids = pids.to_vec();
        self.processes = environment::processes(pids);
        self.memory_before = ProcessMemory::read_all(pids);
        self.socket_bytes_before = proc::socket_bytes();
        self.since = Reading::take(Instant::now(), pids);
    }

    /// Takes note of how the run stands. Cheap, but when an interval is over.
    pub(crate) fn tick(&mut self, sample: &Sample<'_>) {
        let now = Instant::now();
        let is_new_phase = self.phase != sample.phase;
        if !is_new_phase && now.duration_since(self.since.at) < self.length {
            return;
        }
        if self.phase.is_empty() {
            // Nothing has gone on before the first phase.
            self.phase = sample.phase;
            self.since = Reading::take(now, &self.pids);
            self.show(sample);
            return;
        }
        self.end_interval(sample, now);
        self.phase = sample.phase;
        if is_new_phase && sample.phase == CLOSING {
            let memory = ProcessMemory::read_all(&self.pids);
            self.memory_after = memory.map(|memory| (memory, sample.connections));
        }
        self.show(sample);
    }

    fn end_interval(&mut self, sample: &Sample<'_>, now: Instant) {
        let reading = Reading::take(now, &self.pids);
        let nanoseconds = |now: CpuTime, then: CpuTime| now.total_ns.saturating_sub(then.total_ns);
        let interval = Interval {
            start: self.since.at.duration_since(self.started),
            length: now.duration_since(self.since.at),
            phase: self.phase,
            connections: sample.connections,
            // Less than before: another run of the same scenario began.
            opened: sample.opened.checked_sub(self.opened).unwrap_or(sample.opened),
            sent: sample.sent.checked_sub(self.sent).unwrap_or(sample.sent),
            received: sample.received.checked_sub(self.received).unwrap_or(sample.received),
            latency: self.latency_since(sample.latency),
            server_cpu: reading
                .server
                .zip(self.since.server)
                .map(|(now, then)| Duration::from_nanos(nanoseconds(now, then))),
            tool_cpu: reading.tool.saturating_sub(self.since.tool),
            server_rss_bytes: proc::rss_bytes(&self.pids),
            tool_rss_bytes: proc::rss_bytes(&[std::process::id()]),
            socket_bytes: proc::socket_bytes(),
        };
        // What a phase leaves of a second may be too short to say anything of its own.
        match self.intervals.last_mut() {
            Some(last) if last.phase == self.phase && interval.length < self.length / 4 => {
                last.join(interval);
            }
            _ => self.intervals.push(interval),
        }
        if self.intervals.len() >= INTERVALS_MAX {
            self.intervals = halved(std::mem::take(&mut self.intervals));
            self.length *= 2;
        }
        (self.opened, self.sent, self.received) = (sample.opened, sample.sent, sample.received);
        self.since = reading;
    }

    /// What was counted since the last call.
    fn latency_since(&mut self, now: Option<&Histogram<u64>>) -> Vec<(u64, u64)> {
        let Some(now) = now else { return Vec::new() };
        // The iterator ends with the last bucket that holds something: that is short of the day
        // that there is room for, and by far cheaper than to subtract histograms.
        let recorded = now.iter_recorded();
        let all: Vec<(u64, u64)> =
            recorded.map(|step| (step.value_iterated_to(), step.count_at_value())).collect();
        let new = difference(&all, &self.latency).unwrap_or_else(|| all.clone());
        self.latency = all;
        new
    }

    fn show(&self, sample: &Sample<'_>) {
        let Some(bar) = &self.bar else { return };
        bar.set_message(line(sample, self.intervals.last()));
        bar.tick();
    }

    /// Takes the line away, and says what was recorded.
    pub(crate) fn finish(self) -> Recording {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let mut server = serde_json::Map::new();
        if let (Some(before), Some((after, connections))) =
            (&self.memory_before, &self.memory_after)
        {
            server.insert("memory".into(), after.report_growth(before, *connections));
        }
        let last = self.intervals.iter().rev().find(|interval| interval.socket_bytes.is_some());
        if let (Some(before), Some(last)) = (self.socket_bytes_before, last) {
            let after = last.socket_bytes.unwrap_or(0);
            let growth = proc::per(after as f64 - before as f64, last.connections);
            let memory = json!({
                "before_bytes": before,
                "after_bytes": after,
                "bytes_per_connection": growth,
                "note": "of the whole machine, both ends of each connection on loopback",
            });
            server.insert("machine_socket_memory".into(), memory);
        }
        Recording { intervals: self.intervals, processes: self.processes, server_memory: server }
    }
}

/// What `now` has more than `before`, both ascending; nothing when it has less of something, as it
/// is another histogram then, or was emptied.
fn difference(now: &[(u64, u64)], before: &[(u64, u64)]) -> Option<Vec<(u64, u64)>> {
    let mut before = before.iter().peekable();
    let mut out = Vec::new();
    for (value, count) in now {
        let had = match before.peek() {
            Some((known, had)) if known == value => *had,
            Some((known, _)) if known < value => return None,
            _ => 0,
        };
        if had > 0 {
            before.next();
        }
        let new = count.checked_sub(had)?;
        if new > 0 {
            out.push((*value, new));
        }
    }
    before.next().is_none().then_some(out)
}

/// What became of a recording.
pub(crate) struct Recording {
    pub(crate) intervals: Vec<Interval>,
    /// The server's processes, as they were when the run began.
    pub(crate) processes: Value,
    /// Figures of the server's memory, to stand beside those of its processor time.
    pub(crate) server_memory: serde_json::Map<String, Value>,
}

/// Each two that are of one phase as one.
fn halved(intervals: Vec<Interval>) -> Vec<Interval> {
    let mut out: Vec<Interval> = Vec::with_capacity(intervals.len());
    let mut may_join = false;
    for interval in intervals {
        match out.last_mut() {
            Some(last) if may_join && last.phase == interval.phase => {
                last.join(interval);
                may_join = false;
            }
            _ => {
                out.push(interval);
                may_join = true;
            }
        }
    }
    out
}

/// The line on the terminal: phase, connections, and what the last interval was like.
fn line(sample: &Sample<'_>, last: Option<&Interval>) -> String {
    let mut parts = vec![sample.phase.to_owned(), format!("{} connections", sample.connections)];
    if let Some(last) = last.filter(|last| last.phase == sample.phase) {
        let per_second = |count: u64| count as f64 / last.length.as_secs_f64().max(1e-9);
        if last.opened > 0 {
            parts.push(format!("{:.0} opens/s", per_second(last.opened)));
        }
        if last.received > 0 {
            parts.push(format!("{:.0} messages/s", per_second(last.received)));
        }
        if !last.latency.is_empty() {
            let us = |quantile| quantile_of(&last.latency, quantile) as f64 / 1e3;
            parts.push(format!("p50 {:.0} us, p99 {:.0} us", us(0.50), us(0.99)));
        }
    }
    if let Some(left) = sample.left {
        parts.push(format!("{:.0} s left", left.as_secs_f64()));
    }
    parts.join("  ")
}

/// The value that this share of all does not exceed.
fn quantile_of(counts: &[(u64, u64)], quantile: f64) -> u64 {
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let wanted = (total as f64 * quantile).ceil() as u64;
    let mut sum = 0;
    let found = counts.iter().find(|(_, count)| {
        sum += count;
        sum >= wanted
    });
    found.map_or(0, |(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample<'a>(phase: &'static str, sum: u64, latency: &'a Histogram<u64>) -> Sample<'a> {
        let latency = Some(latency);
        Sample { phase, connections: 3, opened: 3, sent: sum, received: sum, latency, left: None }
    }

    #[test]
    fn a_phase_ends_an_interval_and_sums_become_differences() {
        let mut recorder = Recorder::new(false);
        recorder.observe(&[std::process::id()]);
        let mut latency = histogram::new();
        recorder.tick(&sample("warm-up", 0, &latency));
        recorder.tick(&sample("warm-up", 1, &latency));
        histogram::record(&mut latency, 1000);
        recorder.tick(&sample(MEASURING, 5, &latency));
        histogram::record(&mut latency, 2000);
        histogram::record(&mut latency, 2000);
        recorder.tick(&sample(CLOSING, 7, &latency));
        let Recording { intervals, server_memory, processes } = recorder.finish();
        let got: Vec<_> = intervals.iter().map(|i| (i.phase, i.opened, i.sent)).collect();
        assert_eq!(got, [("warm-up", 3, 5), (MEASURING, 0, 2)]);
        assert_eq!(intervals[0].latency, [(1000, 1)]);
        assert_eq!(quantile_of(&intervals[1].latency, 0.99) / 10, 200);
        assert_eq!(intervals[1].latency.iter().map(|(_, count)| count).sum::<u64>(), 2);
        assert!(intervals[0].start + intervals[0].length <= intervals[1].start);
        assert!(intervals.iter().all(|i| i.server_cpu.is_some() && i.server_rss_bytes.is_some()));
        assert!(server_memory["memory"]["rss_after_bytes"].as_u64() > Some(0));
        assert_eq!(processes[0]["pid"], json!(std::process::id()));
        let report = intervals[1].report();
        assert_eq!((&report["sent_count"], &report["latency_us"]["count"]), (&json!(2), &json!(2)));
    }

    #[test]
    fn a_scenario_that_runs_again_begins_anew() {
        let mut recorder = Recorder::new(false);
        let (mut first, mut second) = (histogram::new(), histogram::new());
        (0..5).for_each(|_| histogram::record(&mut first, 1000));
        histogram::record(&mut second, 7);
        recorder.tick(&sample("a", 0, &first));
        recorder.tick(&sample("b", 5, &first));
        recorder.tick(&sample("c", 1, &second));
        let intervals = recorder.finish().intervals;
        assert_eq!((intervals[1].sent, &*intervals[1].latency), (1, &[(7, 1)][..]));
    }

    #[test]
    fn too_many_intervals_become_half_as_many() {
        let mut recorder = Recorder::new(false);
        let mut latency = histogram::new();
        recorder.tick(&sample("a", 0, &latency));
        // Each of these is an interval of its own.
        recorder.length = Duration::ZERO;
        for number in 1..=INTERVALS_MAX as u64 {
            histogram::record(&mut latency, 1 + number % 2);
            recorder.tick(&sample("a", number, &latency));
        }
        let intervals = recorder.finish().intervals;
        assert_eq!(intervals.len(), INTERVALS_MAX / 2);
        assert!(intervals.iter().all(|i| i.sent == 2 && i.latency == [(1, 1), (2, 1)]));
        let sum: Duration = intervals.iter().map(|interval| interval.length).sum();
        let last = &intervals[intervals.len() - 1];
        assert_eq!(sum, last.start + last.length - intervals[0].start);
    }

    #[test]
    fn the_line_says_what_there_is() {
        let mut recorder = Recorder::new(false);
        let mut latency = histogram::new();
        recorder.tick(&sample("a", 0, &latency));
        let quiet = Sample { phase: "opening", connections: 1, ..Sample::default() };
        assert_eq!(line(&quiet, None), "opening  1 connections");
        recorder.length = Duration::ZERO;
        histogram::record(&mut latency, 5000);
        recorder.tick(&sample("a", 1, &latency));
        recorder.intervals[0].length = Duration::from_secs(1);
        let busy = Sample { left: Some(Duration::from_secs(4)), ..sample("a", 1, &latency) };
        let want = "a  3 connections  3 opens/s  1 messages/s  p50 5 us, p99 5 us  4 s left";
        assert_eq!(line(&busy, recorder.intervals.last()), want);
    }

    #[test]
    fn a_difference_is_what_is_new() {
        let check = |now: &[(u64, u64)], before: &[(u64, u64)], want: Option<&[(u64, u64)]>| {
            assert_eq!(difference(now, before).as_deref(), want, "{now:?} after {before:?}");
        };
        check(&[(1, 2), (5, 1)], &[], Some(&[(1, 2), (5, 1)]));
        check(&[(1, 2), (3, 1), (5, 4)], &[(1, 2), (5, 1)], Some(&[(3, 1), (5, 3)]));
        check(&[(1, 2)], &[(1, 2)], Some(&[]));
        check(&[(1, 1)], &[(1, 2)], None);
        check(&[(1, 1), (3, 1)], &[(2, 1)], None);
        check(&[(1, 1)], &[(1, 1), (2, 1)], None);
        check(&[], &[(1, 1)], None);
    }
}
