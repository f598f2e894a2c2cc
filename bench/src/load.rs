//! Sends messages at a fixed rate and waits for nothing: open loop, against a server that echoes.
//! What that means is said in `rig.rs`, which does it.

use std::io;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, json};

use crate::open_loop::Course;
use crate::options;
use crate::outcome::{Outcome, Watch};
use crate::proc::round;
use crate::rig::{Clients, Part, Rig};

/// Sends messages at a fixed rate and measures from when each was due (open loop).
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Of a server that sends every message back, such as ws://127.0.0.1:8080/echo.
    #[arg(long)]
    pub(crate) url: String,
    /// Messages per second of all connections together, such as "20000/s".
    #[arg(long, value_parser = options::rate)]
    pub(crate) rate: u32,
    /// How long to measure.
    #[arg(long = "seconds", default_value = "10", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) measured: Duration,
    /// The same, unmeasured, before.
    #[arg(long = "warm-up-seconds", default_value = "1", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) warm_up: Duration,
    #[command(flatten)]
    pub(crate) clients: Clients,
}

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let Options { rate, measured, warm_up, ref clients, .. } = *options;
    let target = clients.common.target(&options.url)?;
    let address = target.address.to_string();
    let mut rig = Rig::open(vec![target], clients, watch)?;
    let part = Part { side: 0, rate, warm_up, measured };
    let course = Course::new(clients.common.cpu, rig.pids());
    let played = rig.play(&part, course, watch)?;
    let tally = rig.take_tally(0);
    let closed = rig.close()?;

    let mut report = Map::new();
    report.insert(
        "scenario".into(),
        json!("load, open loop: latency counts from when a message was due"),
    );
    report.insert("address".into(), json!(address));
    report.insert("complete".into(), json!(played.complete));
    report.insert("connections".into(), json!(clients.connections));
    closed.put(&mut report);
    report.insert("measured_seconds".into(), round(played.usage.seconds));
    tally.put_part(&mut report, rate, &played.usage);
    let (started_at, measured) = (played.started_at, played.measured);
    Ok(Outcome { figures: report, histograms: tally.into_histograms(), started_at, measured })
}
