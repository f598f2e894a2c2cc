//! What a proxy adds: messages at a fixed rate through it and past it, to the same backend, in one
//! run. Open loop, as `load`.
//!
//! The two paths take turns in slices of a fraction of a second, in random order within each pair.
//! A slice has the path for itself, at the whole rate. Both at once at half the rate would show the
//! machine's noise to both alike as well; but each would then wait for the other in the tool and in
//! the backend, the direct path would look worse than it is, and the backend's time could not be
//! told apart by path. The price is that every slice begins with everybody idle: its first part, the
//! lead-in, is not measured.

use std::io;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::{Map, Value, json};

use crate::echo::{median, shuffled};
use crate::histogram;
use crate::open_loop::{self, Course, Meter};
use crate::options;
use crate::outcome::{Outcome, Watch};
use crate::proc::{CpuTime, per, round};
use crate::rig::{Clients, Part, Rig, Tally};

/// Measures what a proxy adds to the latency, next to the direct path to its backend (open loop).
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Of the proxy, behind which is a server that sends every message back. Its processes are --pid.
    #[arg(long)]
    pub(crate) url: String,
    /// Of that server itself.
    #[arg(long)]
    pub(crate) direct: String,
    /// The backend's processes, for their processor time.
    #[arg(long = "direct-pid", value_delimiter = ',', value_name = "PID")]
    pub(crate) direct_pids: Vec<u32>,
    /// Messages per second of all connections of a path, in its slices, such as "20000/s".
    #[arg(long, value_parser = options::rate)]
    pub(crate) rate: u32,
    /// How long to measure each of the two paths, lead-ins apart.
    #[arg(long = "seconds", default_value = "10", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) measured: Duration,
    /// The same, unmeasured, before.
    #[arg(long = "warm-up-seconds", default_value = "1", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) warm_up: Duration,
    /// What is measured at one go.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) slice_ms: u32,
    /// Unmeasured time at the beginning of each slice.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub(crate) lead_in_ms: u32,
    #[command(flatten)]
    pub(crate) clients: Clients,
}

/// Sides of the rig.
const PROXIED: usize = 0;
const DIRECT: usize = 1;

/// Slices of a path: a day of the shortest ones would be more than anybody reads.
const SLICES_MAX: u128 = 100_000;

const PERCENTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let Options { rate, ref clients, .. } = *options;
    let common = &clients.common;
    let targets = vec![common.target(&options.url)?, common.target(&options.direct)?];
    let addresses = [targets[PROXIED].address, targets[DIRECT].address].map(|a| a.to_string());
    let slice = Duration::from_millis(u64::from(options.slice_ms));
    let lead_in = Duration::from_millis(u64::from(options.lead_in_ms));
    let slices_of = |time: Duration| time.as_nanos().div_ceil(slice.as_nanos()).min(SLICES_MAX);
    let warm_up = slices_of(options.warm_up);
    let rounds = warm_up + slices_of(options.measured).max(1);

    let mut rig = Rig::open(targets, clients, watch)?;
    let pids = [&common.pids, &options.direct_pids];
    let mut paths = [Path::default(), Path::default()];
    let mut added_p50_us = Vec::new();
    let mut began = None;
    let mut started_at = SystemTime::now();
    let mut ended_by = None;
    'rounds: for round in 0..rounds {
        let is_measured = round >= warm_up;
        if round == warm_up {
            began = Some(Meter::read(common.cpu, &[]));
            started_at = SystemTime::now();
        }
        let mut p50_us = [None; 2];
        for side in shuffled(2, round as u64) {
            if !rig.settle(watch)? && !watch.stopped() {
                ended_by = Some("what was under way did not come back within 30 s");
                break 'rounds;
            }
            let part = Part { side, rate, warm_up: lead_in, measured: slice };
            let before = pids.map(|pids| CpuTime::read_all(pids));
            let played = rig.play(&part, Course::new(None, &[]), watch)?;
            let after = pids.map(|pids| CpuTime::read_all(pids));
            let tally = rig.take_tally(side);
            if is_measured {
                let median = tally.latency.value_at_quantile(0.5);
                p50_us[side] = (!tally.latency.is_empty()).then_some(median as f64 / 1e3);
                paths[side].add(&tally, played.back_in_all, before, after);
            }
            if !played.complete || watch.stopped() {
                ended_by = Some("stopped");
                break 'rounds;
            }
        }
        if let [Some(proxied), Some(direct)] = p50_us {
            added_p50_us.push(proxied - direct);
        }
    }
    let ended = Meter::read(common.cpu, &[]);
    let usage = began.as_ref().unwrap_or(&ended).usage_until(&ended);
    let closed = rig.close()?;

    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("scenario", json!("relay, open loop: through a proxy and past it, in alternating slices"));
    put("address", json!(addresses[PROXIED]));
    put("direct_address", json!(addresses[DIRECT]));
    put("complete", json!(ended_by.is_none()));
    put("ended_by", json!(ended_by));
    put("connections", json!(clients.connections));
    put("offered_per_second", json!(rate));
    put("slice_ms", json!(options.slice_ms));
    put("lead_in_ms", json!(options.lead_in_ms));
    put("slices_count", json!(paths.each_ref().map(|path| path.slices).iter().min()));
    closed.put(&mut report);
    let [proxied, direct] = &paths;
    report.insert("added_us".into(), compare(proxied, direct, |with, without| with - without));
    report.insert("ratio".into(), compare(proxied, direct, |with, without| with / without));
    report.insert("added_p50_us_of_pairs".into(), spread(added_p50_us));
    report.insert("proxied".into(), proxied.report());
    report.insert("direct".into(), direct.report());
    let mut lag = histogram::new();
    for path in &paths {
        lag.add(&path.tally.lag).expect("histograms of one make");
    }
    let back = proxied.back + direct.back;
    report.insert("tool".into(), usage.tool_report(&lag, "message", back));
    let p99_ns = direct.tally.latency.value_at_quantile(0.99);
    open_loop::put_saturation(&mut report, usage.saturation(&lag, p99_ns).as_deref());
    let [proxied, direct] = paths;
    let histograms = vec![
        ("latency".into(), proxied.tally.latency),
        ("direct".into(), direct.tally.latency),
        ("lag".into(), lag),
    ];
    Ok(Outcome { figures: report, histograms, started_at, measured: options.measured })
}

/// What was measured of one path.
struct Path {
    slices: u32,
    tally: Tally,
    /// Messages that came back in its slices, lead-ins included: what processor time is divided by,
    /// as that is taken before the first and after the last of a slice.
    back: u64,
    /// Processor time in its slices, of the proxy and of the backend.
    cpu_ns: [Option<u64>; 2],
}

impl Default for Path {
    fn default() -> Path {
        Path { slices: 0, tally: Tally::new(), back: 0, cpu_ns: [Some(0); 2] }
    }
}

impl Path {
    fn add(
        &mut self,
        tally: &Tally,
        back: u64,
        before: [Option<CpuTime>; 2],
        after: [Option<CpuTime>; 2],
    ) {
        self.slices += 1;
        self.tally.add(tally);
        self.back += back;
        for (cpu_ns, (before, after)) in self.cpu_ns.iter_mut().zip(before.iter().zip(&after)) {
            let used = before.zip(*after).map(|(before, after)| after.total_ns - before.total_ns);
            *cpu_ns = cpu_ns.zip(used).map(|(sum, used)| sum + used);
        }
    }

    fn report(&self) -> Value {
        let mut report = Map::new();
        self.tally.put_counts(&mut report);
        for (name, cpu_ns) in ["proxy", "backend"].into_iter().zip(self.cpu_ns) {
            let each = cpu_ns.map_or(Value::Null, |ns| per(ns as f64 / 1e3, self.back));
            report.insert(format!("{name}_cpu_us_per_message"), each);
        }
        report.insert("latency_us".into(), histogram::report(&self.tally.latency));
        let uncorrected = histogram::report(&self.tally.uncorrected);
        report.insert("latency_from_actual_send_us".into(), uncorrected);
        Value::Object(report)
    }
}

/// A figure of both paths, by percentile.
fn compare(proxied: &Path, direct: &Path, figure: impl Fn(f64, f64) -> f64) -> Value {
    if proxied.tally.latency.is_empty() || direct.tally.latency.is_empty() {
        return Value::Null;
    }
    let us = |path: &Path, quantile| path.tally.latency.value_at_quantile(quantile) as f64 / 1e3;
    let figures = PERCENTILES.map(|(name, quantile)| {
        (name.to_owned(), round(figure(us(proxied, quantile), us(direct, quantile))))
    });
    Value::Object(figures.into_iter().collect())
}

/// How far the pairs of slices agree.
fn spread(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return Value::Null };
    let (min, max) = (round(*first), round(*last));
    let at = |share: f64| round(values[((values.len() - 1) as f64 * share).round() as usize]);
    let (low, high) = (at(0.25), at(0.75));
    json!({
        "min": min, "p25": low, "median": median(values).map(round), "p75": high, "max": max,
    })
}
