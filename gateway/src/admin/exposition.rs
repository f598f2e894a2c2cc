//! `GET /metrics`: what `families.rs` lists, in the form that is asked for.
//!
//! | Form | Histograms |
//! | --- | --- |
//! | Prometheus' text, 0.0.4 | classic buckets |
//! | OpenMetrics' text, 1.0 | classic buckets |
//! | Prometheus' protobuf | classic and native buckets |
//!
//! All that is served is made anew for each request, and no shard is asked for anything.
//!
//! # Buckets
//!
//! Ours are 32 to a power of two and so at most 3.1 % wide. What is in one of them counts in a classic
//! or native bucket as a whole, where its middle is (sizes: where its lowest is, as sizes like 4096 are
//! common and bounds of classic buckets): a value counts as one that is at most 1.6 % (sizes: 3.1 %) away.
//! Which bucket that is never changes, so that counts of buckets only grow. Native buckets have the
//! schema 3: eight to a power of two, each 9.05 % wider than the one before. That is three to six of
//! ours to one; with a finer schema some would get one of ours and their neighbours two, and a heat map
//! would show stripes that are not there. So a quantile that Prometheus computes is off by 9.05 % + 1.6 %
//! at most, and by half as much as a rule, as it interpolates within a bucket.

mod native;
mod negotiate;
mod text;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::control::Control;
use crate::families::{Unit, aliases, of};
use crate::histogram::Snapshot;
use negotiate::{Form, negotiate};

/// Bounds of the classic buckets of durations, in seconds.
const SECONDS: [f64; 21] = [
    5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

/// Bounds of the classic buckets of sizes, in bytes.
const BYTES: [f64; 10] =
    [16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 16_777_216.0];

/// Bounds of the classic buckets of counts.
const COUNTS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 10_000.0, 100_000.0];

/// Bounds of the classic buckets, less the last, which has none.
fn bounds(unit: Unit) -> &'static [f64] {
    match unit {
        Unit::Seconds => &SECONDS,
        Unit::Bytes => &BYTES,
        Unit::Count => &COUNTS,
    }
}

/// As what the values of a bucket of ours count, in order, and how many they are.
fn values(snapshot: &Snapshot, unit: Unit) -> impl Iterator<Item = (f64, u64)> {
    let scale = unit.scale();
    snapshot.buckets().map(move |(lowest, highest, count)| match unit {
        Unit::Seconds => ((lowest + (highest - lowest) / 2) as f64 / scale, count),
        Unit::Bytes | Unit::Count => (lowest as f64, count),
    })
}

/// The classic buckets: bounds and how many values are not above them. The last is infinite.
fn classic(snapshot: &Snapshot, unit: Unit) -> Vec<(f64, u64)> {
    let mut values = values(snapshot, unit).peekable();
    let mut count = 0;
    let bounds = bounds(unit).iter().copied().chain([f64::INFINITY]);
    bounds
        .map(|bound| {
            while let Some((_, more)) = values.next_if(|(value, _)| *value <= bound) {
                count += more;
            }
            (bound, count)
        })
        .collect()
}

/// What a number is in text: the shortest form that is read as the same number, as Go writes it, so
/// that a bound is spelt alike in all forms.
fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let mut text = value.to_string();
    if !text.contains('.') {
        text.push_str(".0");
    }
    text
}

pub(super) async fn metrics(State(control): State<Arc<Control>>, headers: HeaderMap) -> Response {
    let accept: Vec<&str> =
        headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let form = negotiate(&accept.join(","));
    let mut families = of(&control);
    if control.config().admin.aliases {
        let aliases = aliases(&families, messages_per_second(&control));
        families.extend(aliases);
    }
    let body = match form {
        Form::Text => text::prometheus(&families).into_bytes(),
        Form::OpenMetrics => text::open_metrics(&families).into_bytes(),
        Form::Protobuf => native::encode(&families),
    };
    ([(CONTENT_TYPE, form.content_type())], body).into_response()
}

/// In the last interval that is over.
fn messages_per_second(control: &Control) -> f64 {
    let history = control.history();
    let last = history.since(0).last();
    last.map_or(0.0, |interval| {
        let messages = interval.messages_in + interval.messages_out;
        messages as f64 * 1000.0 / interval.length_ms.max(1) as f64
    })
}

/// `GET /api/v1/ws/metrics`, as guides have it: of one server, which is this.
pub(super) async fn summary(State(control): State<Arc<Control>>) -> Response {
    if !control.config().admin.aliases {
        return StatusCode::NOT_FOUND.into_response();
    }
    let clients: u64 =
        control.gateway.counters().iter().map(|counters| counters.clients.get()).sum();
    let host = rustix::system::uname();
    Json(json!({
        "serverId": format!("{}-{}", host.nodename().to_string_lossy(), std::process::id()),
        "connections": clients,
        "totalConnections": control.gateway.metrics().upgraded,
        "serverCount": 1,
        "uptime": control.started.elapsed().as_secs(),
    }))
    .into_response()
}

#[cfg(test)]
mod tests;
