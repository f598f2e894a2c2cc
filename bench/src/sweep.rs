//! Plays one rate after the other on connections that stay open: how latency and processor time grow
//! with the rate, and where the server's knee is. Open loop, as `load`.

use std::io;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::{Map, Value, json};

use crate::open_loop::{self, Course};
use crate::options;
use crate::outcome::{Outcome, Watch};
use crate::proc::round;
use crate::rig::{Clients, Part, Rig, Tally};

/// Measures the latency at one rate after the other (open loop).
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Of a server that sends every message back, such as ws://127.0.0.1:8080/echo.
    #[arg(long)]
    pub(crate) url: String,
    /// The rates, such as "1000,2000,5000"; instead of --from, --to and --steps.
    #[arg(long, value_delimiter = ',', value_parser = options::rate, conflicts_with_all = ["from", "to", "steps"])]
    pub(crate) rates: Vec<u32>,
    /// The first rate.
    #[arg(long, default_value = "1000/s", value_parser = options::rate)]
    pub(crate) from: u32,
    /// The last rate.
    #[arg(long, default_value = "100000/s", value_parser = options::rate)]
    pub(crate) to: u32,
    /// Rates, the first and the last included; each is the same factor above the one before.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=i64::from(POINTS_MAX)))]
    pub(crate) steps: u32,
    /// Points past the knee, one after the other, that end the sweep: there, messages were lost, or
    /// a twentieth of them did not come back in time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=i64::from(POINTS_MAX)))]
    pub(crate) past_knee_max: u32,
    /// How long to measure each rate.
    #[arg(long = "seconds", default_value = "3", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) measured: Duration,
    /// The same, unmeasured, before.
    #[arg(long = "warm-up-seconds", default_value = "0.5", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) warm_up: Duration,
    #[command(flatten)]
    pub(crate) clients: Clients,
}

/// Rates in one sweep. Each keeps its histograms, a megabyte, to the end.
const POINTS_MAX: u32 = 100;

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let Options { measured, warm_up, ref clients, .. } = *options;
    let rates = rates(options)?;
    let target = clients.common.target(&options.url)?;
    let address = target.address.to_string();
    let mut rig = Rig::open(vec![target], clients, watch)?;
    let started_at = SystemTime::now();
    let mut points: Vec<Point> = Vec::new();
    let mut ended_by = None;
    let mut past_knee = 0;
    for rate in &rates {
        if past_knee == options.past_knee_max {
            ended_by = Some(format!("{past_knee} rates past the knee"));
        } else {
            ended_by = rig.why_not_go_on(watch)?;
        }
        if ended_by.is_some() {
            break;
        }
        let part = Part { side: 0, rate: *rate, warm_up, measured };
        let course = Course::new(clients.common.cpu, rig.pids());
        let played = rig.play(&part, course, watch)?;
        let tally = rig.take_tally(0);
        let is_past_knee = tally.lost > 0 || tally.fell_behind();
        past_knee = if is_past_knee { past_knee + 1 } else { 0 };
        let mut figures = Map::new();
        tally.put_part(&mut figures, *rate, &played.usage);
        figures.insert("complete".into(), json!(played.complete));
        figures.insert("past_knee".into(), json!(is_past_knee));
        points.push(Point { rate: *rate, figures, tally, is_past_knee });
        if !played.complete {
            ended_by = Some("stopped".into());
            break;
        }
    }
    let closed = rig.close()?;

    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("scenario", json!("sweep, open loop: latency at one rate after the other"));
    put("address", json!(address));
    let is_cut = points.iter().any(|point| point.figures["complete"] == false);
    let is_knee = past_knee == options.past_knee_max;
    put("complete", json!(!is_cut && (points.len() == rates.len() || is_knee)));
    put("ended_by", json!(ended_by));
    put("connections", json!(clients.connections));
    put("measured_seconds_each", round(measured.as_secs_f64()));
    let kept_up = points.iter().filter(|point| !point.is_past_knee).map(|point| point.rate).max();
    put("rate_kept_up_per_second", json!(kept_up));
    put("rates_not_played_per_second", json!(rates[points.len()..]));
    closed.put(&mut report);
    let saturated = points.iter().filter(|point| point.figures["saturated"] == true);
    let saturated: Vec<String> = saturated.map(|point| format!("{}/s", point.rate)).collect();
    let reason = format!("at {}; see each point's reason", saturated.join(", "));
    open_loop::put_saturation(&mut report, (!saturated.is_empty()).then_some(&reason));
    let figures = points.iter_mut().map(|point| Value::Object(std::mem::take(&mut point.figures)));
    report.insert("points".into(), figures.collect());
    let histograms =
        points.into_iter().map(|point| (format!("{}/s", point.rate).into(), point.tally.latency));
    Ok(Outcome { figures: report, histograms: histograms.collect(), started_at, measured })
}

/// A rate that was played.
struct Point {
    rate: u32,
    figures: Map<String, Value>,
    tally: Tally,
    is_past_knee: bool,
}

/// The rates to play, in their order.
fn rates(options: &Options) -> io::Result<Vec<u32>> {
    if options.rates.len() > POINTS_MAX as usize {
        return Err(io::Error::other(format!("--rates: at most {POINTS_MAX}")));
    }
    if !options.rates.is_empty() {
        return Ok(options.rates.clone());
    }
    let Options { from, to, steps, .. } = *options;
    let factor = f64::from(to) / f64::from(from);
    let place = |step| f64::from(step) / f64::from(steps.max(2) - 1);
    let mut rates: Vec<u32> = (0..steps)
        .map(|step| (f64::from(from) * factor.powf(place(step))).round() as u32)
        .collect();
    // Few messages a second in many steps: some would be played twice.
    rates.dedup();
    Ok(rates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    #[test]
    fn rates_are_a_list_or_grow_by_a_factor() {
        let rates = |line: &str| rates(&parse(&format!("--url ws://127.0.0.1/ {line}"))).unwrap();
        assert_eq!(rates("--rates 5,1000/s,7"), [5, 1000, 7]);
        assert_eq!(rates("--from 1000 --to 8000 --steps 4"), [1000, 2000, 4000, 8000]);
        assert_eq!(rates("--from 100 --to 100000 --steps 4"), [100, 1000, 10_000, 100_000]);
        assert_eq!(rates("--from 1 --to 3 --steps 9"), [1, 2, 3]);
        assert_eq!(rates("--from 7 --steps 1"), [7]);
        assert_eq!(rates("").len(), 10);
    }
}
