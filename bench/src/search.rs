//! Looks for the highest rate at which a server stays within a bound of latency: open loop, one
//! probe after the other, on connections that stay open.
//!
//! The rate grows by doubling until a probe fails, then the gap between the highest good and the
//! lowest bad rate is halved until it is small enough, and what was found is tried again. A probe is
//! good when nothing was lost and the percentile is within its bound. The latency counts from when a
//! message was due, so a tool that is late makes a probe bad, never good; and when a bad probe may
//! be the tool's doing, the result says so.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::{Map, Value, json};

use crate::histogram;
use crate::open_loop::{self, Course, Usage};
use crate::options;
use crate::outcome::{Outcome, Watch};
use crate::proc::round;
use crate::rig::{Clients, Part, Rig, Tally};

/// Finds the highest rate at which a percentile of the latency stays within a bound (open loop).
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Of a server that sends every message back, such as ws://127.0.0.1:8080/echo.
    #[arg(long)]
    pub(crate) url: String,
    /// The percentile that is bounded.
    #[arg(long, default_value = "99.9", value_parser = percentile)]
    pub(crate) percentile: f64,
    /// Its bound, in milliseconds.
    #[arg(long = "max-ms", default_value = "2", value_parser = milliseconds, value_name = "MILLISECONDS")]
    pub(crate) max: Duration,
    /// The rate to begin with, such as "1000/s"; lower ones are tried if it is too high.
    #[arg(long, default_value = "1000/s", value_parser = options::rate)]
    pub(crate) from: u32,
    /// No lower rate is tried.
    #[arg(long, default_value = "1/s", value_parser = options::rate)]
    pub(crate) rate_min: u32,
    /// No higher rate is tried.
    #[arg(long, default_value = "4000000/s", value_parser = options::rate)]
    pub(crate) rate_max: u32,
    /// How far apart the highest good and the lowest bad rate may be in the end, in percent.
    #[arg(long, default_value = "3", value_parser = percent)]
    pub(crate) tolerance: f64,
    /// Probes in a row that have to fail for a rate to be too high: a machine that is not quiet
    /// spoils one now and then.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10))]
    pub(crate) tries: u32,
    /// Probes at the rate that was found; if one fails, in all its tries, the search goes on below.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) confirm: u32,
    /// How long each probe measures.
    #[arg(long = "seconds", default_value = "3", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) measured: Duration,
    /// The same, unmeasured, before.
    #[arg(long = "warm-up-seconds", default_value = "0.5", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) warm_up: Duration,
    /// Cores that the server can use: it is at its limit when it is busy on 95 % of them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) server_cores: u32,
    #[command(flatten)]
    pub(crate) clients: Clients,
}

fn percentile(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percentile @ 1.0..100.0) => Ok(percentile),
        _ => Err("from 1 to below 100".into()),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent @ 0.1..=50.0) => Ok(percent),
        _ => Err("0.1 to 50".into()),
    }
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(ms @ 0.001..=60_000.0) => Ok(Duration::from_secs_f64(ms / 1e3)),
        _ => Err("0.001 to 60000".into()),
    }
}

/// Probes in one search. Doubling from 1 to 4 million takes 22, halving down to a thousandth 10; the
/// rest is for tries and confirmations.
const PROBES_MAX: usize = 200;
/// Above this, whoever it is has no time to spare.
const BUSY: f64 = 0.95;

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let Options { measured, warm_up, ref clients, .. } = *options;
    let target = clients.common.target(&options.url)?;
    let address = target.address.to_string();
    let mut rig = Rig::open(vec![target], clients, watch)?;
    let started_at = SystemTime::now();
    let mut search = Search::new(options);
    let mut probes: Vec<Probe> = Vec::new();
    let mut goods: BTreeMap<u32, Tally> = BTreeMap::new();
    let mut ended_by = None;
    while let Some(rate) = search.next_rate() {
        if probes.len() == PROBES_MAX {
            ended_by = Some(format!("{PROBES_MAX} probes were not enough"));
        } else {
            ended_by = rig.why_not_go_on(watch)?;
        }
        if ended_by.is_some() {
            break;
        }
        let part = Part { side: 0, rate, warm_up, measured };
        let course = Course::new(clients.common.cpu, rig.pids());
        let played = rig.play(&part, course, watch)?;
        let tally = rig.take_tally(0);
        if !played.complete {
            ended_by = Some("stopped".into());
            break;
        }
        let probe = Probe::new(options, rate, &tally, &played.usage);
        search.note(rate, probe.bad.is_none());
        if probe.bad.is_none() {
            match goods.entry(rate) {
                Entry::Occupied(known) => known.into_mut().add(&tally),
                Entry::Vacant(place) => drop(place.insert(tally)),
            }
        }
        probes.push(probe);
    }
    let closed = rig.close()?;

    let found = search.found();
    let limit = search.too_high().and_then(|rate| {
        probes.iter().rev().find(|probe| probe.rate == rate).and_then(|probe| probe.bad.as_ref())
    });
    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("scenario", json!("search, open loop: the highest rate within a bound of latency"));
    put("address", json!(address));
    put("complete", json!(ended_by.is_none()));
    put("ended_by", json!(ended_by));
    put("connections", json!(clients.connections));
    put("bounded_percentile", json!(options.percentile));
    put("bound_us", round(options.max.as_secs_f64() * 1e6));
    put("tolerance_percent", json!(options.tolerance));
    put("probe_seconds", round(measured.as_secs_f64()));
    put("rate_found_per_second", json!(found));
    put("rate_too_high_per_second", json!(search.too_high()));
    put("confirmed_count", json!(search.confirmed));
    put(
        "limited_by",
        match (limit, search.reached_max()) {
            (Some(bad), _) => json!(bad.by.name()),
            (None, true) => json!("rate_max"),
            (None, false) => Value::Null,
        },
    );
    put("limited_by_reason", json!(limit.map(|bad| &bad.reason)));
    put("probes", Value::Array(probes.iter().map(Probe::report).collect()));
    closed.put(&mut report);
    let tally = found.and_then(|rate| goods.remove(&rate));
    let latency = tally.as_ref().map_or(Value::Null, |tally| histogram::report(&tally.latency));
    report.insert("latency_at_rate_found_us".into(), latency);
    let by_tool = limit.filter(|bad| bad.by == Limit::Tool);
    let reason = by_tool.map(|bad| format!("they keep the rate down: {}", bad.reason));
    open_loop::put_saturation(&mut report, reason.as_deref());
    let histograms = tally.map_or(Vec::new(), Tally::into_histograms);
    Ok(Outcome { figures: report, histograms, started_at, measured })
}

/// Which rate is next.
struct Search {
    from: u32,
    rate_min: u32,
    rate_max: u32,
    tolerance: f64,
    tries: u32,
    confirm: u32,
    /// Rates at which a probe was good, all below `high`.
    goods: BTreeSet<u32>,
    /// The lowest rate that is too high.
    high: Option<u32>,
    /// The rate of the last probe, when that failed and is to be tried again, and how often it has.
    failed: Option<(u32, u32)>,
    /// Good probes at the highest good rate since it was found.
    confirmed: u32,
}

impl Search {
    fn new(options: &Options) -> Search {
        let rate_min = options.rate_min.min(options.rate_max);
        Search {
            from: options.from.clamp(rate_min, options.rate_max),
            rate_min,
            rate_max: options.rate_max,
            tolerance: options.tolerance / 100.0,
            tries: options.tries,
            confirm: options.confirm,
            goods: BTreeSet::new(),
            high: None,
            failed: None,
            confirmed: 0,
        }
    }

    /// The rate of the next probe; `None` when the search is over.
    fn next_rate(&self) -> Option<u32> {
        if let Some((rate, _)) = self.failed {
            return Some(rate);
        }
        match (self.found(), self.high) {
            (None, None) => Some(self.from),
            (None, Some(high)) => (high > self.rate_min).then(|| (high / 2).max(self.rate_min)),
            (Some(low), None) if low < self.rate_max => {
                Some(low.saturating_mul(2).min(self.rate_max))
            }
            (Some(low), Some(high))
                if high - low > 1 && f64::from(high - low) > f64::from(low) * self.tolerance =>
            {
                Some(low + (high - low) / 2)
            }
            (Some(low), _) => (self.confirmed < self.confirm).then_some(low),
        }
    }

    /// Takes note of how a probe went.
    fn note(&mut self, rate: u32, good: bool) {
        let failures = self.failed.take().map_or(0, |(_, failures)| failures);
        if good {
            let is_new = self.goods.insert(rate);
            self.confirmed = if is_new { 0 } else { self.confirmed + 1 };
        } else if failures + 1 < self.tries {
            self.failed = Some((rate, failures + 1));
        } else {
            self.high = Some(rate);
            self.goods.retain(|good| *good < rate);
            self.confirmed = 0;
        }
    }

    /// The highest good rate so far.
    fn found(&self) -> Option<u32> {
        self.goods.last().copied()
    }

    /// The lowest rate that has failed in all its tries.
    fn too_high(&self) -> Option<u32> {
        self.high
    }

    fn reached_max(&self) -> bool {
        self.high.is_none() && self.found() == Some(self.rate_max)
    }
}

/// How a probe went.
struct Probe {
    rate: u32,
    figures: Map<String, Value>,
    /// Nothing, when it was good.
    bad: Option<Bad>,
}

struct Bad {
    by: Limit,
    reason: String,
}

/// What keeps the rate from being higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// Its cores have no time to spare.
    Server,
    /// This tool was late or had no time to spare, and the server had.
    Tool,
    /// Messages were lost, though both had time.
    Loss,
    /// The latency alone: both had time.
    Latency,
}

impl Limit {
    fn name(self) -> &'static str {
        match self {
            Limit::Server => "server",
            Limit::Tool => "tool",
            Limit::Loss => "loss",
            Limit::Latency => "latency",
        }
    }
}

impl Probe {
    fn new(options: &Options, rate: u32, tally: &Tally, usage: &Usage) -> Probe {
        // Through whole numbers: 99.9 / 100.0 is a little more than 0.999, and so the next message.
        let quantile = (options.percentile * 1e6).round() / 1e8;
        let bound_ns = options.max.as_nanos() as u64;
        let bounded_ns = tally.latency.value_at_quantile(quantile);
        let us = |quantile| round(tally.latency.value_at_quantile(quantile) as f64 / 1e3);
        let lag_ns = tally.lag.value_at_quantile(quantile);
        let percent = |busy: Option<f64>| busy.map_or(Value::Null, |busy| round(100.0 * busy));
        let bad = judge(options, tally.lost, bounded_ns, lag_ns, usage);
        let figures = json!({
            "rate_per_second": rate,
            "good": bad.is_none(),
            "bounded_us": round(bounded_ns as f64 / 1e3),
            "bound_us": round(bound_ns as f64 / 1e3),
            "p50_us": us(0.5),
            "p99_us": us(0.99),
            "p99.9_us": us(0.999),
            "max_us": round(tally.latency.max() as f64 / 1e3),
            "achieved_per_second": round(tally.back_in_time as f64 / usage.seconds.max(1e-9)),
            "due_count": tally.due,
            "lost_count": tally.lost,
            "server_cpu_busy_percent": percent(usage.server_busy()),
            "server_cpu_us_per_message": usage.server_us_per(tally.back_in_time),
            "tool_thread_busy_percent": percent(Some(usage.thread_busy())),
            "tool_core_busy_percent": percent(usage.core_busy),
            "tool_lag_us": round(lag_ns as f64 / 1e3),
            "limited_by": bad.as_ref().map(|bad| bad.by.name()),
            "reason": bad.as_ref().map(|bad| bad.reason.clone()),
        });
        let Value::Object(figures) = figures else { unreachable!("it was written as an object") };
        Probe { rate, figures, bad }
    }

    fn report(&self) -> Value {
        Value::Object(self.figures.clone())
    }
}

/// What was wrong with a probe, if anything, and whose doing it was. A server without time to spare
/// explains it whatever else there was; then the tool, which must not be taken for the server.
fn judge(options: &Options, lost: u64, bounded_ns: u64, lag_ns: u64, usage: &Usage) -> Option<Bad> {
    let bound_ns = options.max.as_nanos() as u64;
    let what = if lost > 0 {
        format!("{lost} messages were lost")
    } else if bounded_ns > bound_ns {
        format!("p{} was {:.1} us", options.percentile, bounded_ns as f64 / 1e3)
    } else {
        return None;
    };
    let server_busy = usage.server_busy().map(|busy| busy / f64::from(options.server_cores));
    let mut tool = usage.busy_reasons();
    if lag_ns > bound_ns / 10 {
        let lag_us = lag_ns as f64 / 1e3;
        tool.push(format!("it sent up to {lag_us:.1} us late, above a tenth of the bound"));
    }
    let (by, why) = match server_busy {
        Some(busy) if busy >= BUSY => {
            (Limit::Server, format!("its cores were busy {:.1} %", 100.0 * busy))
        }
        _ if !tool.is_empty() => (Limit::Tool, tool.join("; ")),
        None => (
            if lost > 0 { Limit::Loss } else { Limit::Latency },
            "the tool had time to spare; of the server nothing is known without --pid".into(),
        ),
        Some(busy) => (
            if lost > 0 { Limit::Loss } else { Limit::Latency },
            format!("the tool had time to spare, and the server was busy {:.1} %", 100.0 * busy),
        ),
    };
    Some(Bad { by, reason: format!("{what}; {}: {why}", by.name()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    /// Plays a search against a server that is good up to a rate; the probes, as they went.
    fn play(line: &str, mut is_good: impl FnMut(u32) -> bool) -> (Vec<u32>, Search) {
        let mut search = Search::new(&parse(&format!("--url ws://127.0.0.1/ {line}")));
        let mut rates = Vec::new();
        while let Some(rate) = search.next_rate() {
            rates.push(rate);
            assert!(rates.len() <= PROBES_MAX, "{rates:?}");
            search.note(rate, is_good(rate));
        }
        (rates, search)
    }

    #[test]
    fn whatever_the_limit_it_is_found_within_the_tolerance() {
        for limit in [1, 2, 3, 999, 1000, 1001, 1999, 2000, 77_777, 3_999_999] {
            for tolerance in ["0.1", "3", "50"] {
                let line = format!("--tolerance {tolerance}");
                let (_, search) = play(&line, |rate| rate <= limit);
                let (found, high) = (search.found().unwrap(), search.too_high().unwrap());
                assert!(found <= limit && limit < high, "{limit}: {found} to {high}");
                let gap = f64::from(high - found);
                let allowed = tolerance.parse::<f64>().unwrap() / 100.0 * f64::from(found);
                assert!(gap <= allowed || gap <= 1.0, "{limit}: {found} to {high}");
                assert_eq!(search.confirmed, 3);
            }
        }
    }

    #[test]
    fn the_bounds_of_a_search() {
        let (rates, search) = play("", |_| false);
        assert_eq!((search.found(), search.too_high()), (None, Some(1)));
        assert_eq!(rates[..4], [1000, 1000, 500, 500]);
        let (rates, search) = play("--rate-max 3000 --confirm 1", |_| true);
        assert_eq!(rates, [1000, 2000, 3000, 3000]);
        assert!(search.reached_max());
        let (rates, search) = play("--rate-min 300 --tries 1", |_| false);
        assert_eq!((rates, search.found()), (vec![1000, 500, 300], None));
        let (rates, _) = play("--from 9000 --rate-max 3000 --confirm 0", |_| true);
        assert_eq!(rates, [3000]);
    }

    #[test]
    fn a_spoilt_probe_is_tried_again_and_an_unconfirmed_rate_is_left() {
        // Every probe fails the first time.
        let mut seen = BTreeSet::new();
        let (_, search) = play("--confirm 0", |rate| !seen.insert(rate) && rate <= 5000);
        assert!(search.found().is_some_and(|found| found > 4800), "{:?}", search.found());
        // At 4,000 and above a rate is good only once: it goes down from there, step by step.
        let mut seen = BTreeSet::new();
        let (_, search) =
            play("--rate-max 5000 --tolerance 5", |rate| rate < 4000 || seen.insert(rate));
        let found = search.found().unwrap();
        assert!(found < 4000 && found > 3700 && search.confirmed == 3, "{found}");
    }

    #[test]
    fn whose_doing_a_bad_probe_was() {
        let options: Options = parse("--url ws://127.0.0.1/ --max-ms 1");
        let check = |lost, bounded_us: u64, lag_us: u64, tool, core, server, want: &str| {
            let usage = Usage::of(tool, core, server);
            let bad = judge(&options, lost, bounded_us * 1000, lag_us * 1000, &usage);
            assert_eq!(bad.as_ref().map_or("good", |bad| bad.by.name()), want);
        };
        check(0, 1000, 900, 1.0, Some(1.0), Some(1.0), "good");
        check(0, 1001, 10, 0.5, Some(0.5), Some(0.96), "server");
        check(0, 1001, 10, 0.99, Some(0.5), Some(0.96), "server");
        check(0, 1001, 10, 0.96, Some(0.5), Some(0.9), "tool");
        check(0, 1001, 10, 0.5, Some(0.96), Some(0.9), "tool");
        check(0, 1001, 101, 0.5, None, None, "tool");
        check(0, 1001, 99, 0.5, None, Some(0.9), "latency");
        check(1, 10, 1, 0.5, None, Some(0.9), "loss");
        check(1, 10, 1, 0.5, None, None, "loss");
    }
}
