//! `GET /api/v1/histograms` and `GET /api/v1/history`: what was counted since the start, and in each of
//! the last intervals.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Asked;
use crate::control::Control;
use crate::history::{INTERVAL, Interval, LATENCY_ROWS_US};
use crate::totals::{Series, Totals};

/// Every histogram with the buckets that are not empty.
pub(super) async fn histograms(State(control): State<Arc<Control>>) -> Response {
    let totals = Totals::read(control.gateway.counters());
    let config = control.config();
    let histograms = totals.series(&config).map(|Series { name, labels, unit, snapshot }| {
        let labels: Map<String, Value> =
            labels.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
        json!({
            "name": name,
            "labels": labels,
            "unit": unit.name(),
            "count": snapshot.count(),
            "sum": snapshot.sum(),
            "buckets": snapshot.buckets().collect::<Vec<_>>(),
        })
    });
    let unix_now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Json(json!({
        "unix_ms": unix_now.as_millis() as u64,
        "histograms": histograms.collect::<Vec<_>>(),
    }))
    .into_response()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Since {
    /// Milliseconds since 1970: of intervals that ended later.
    since_ms: u64,
}

/// The answer: borrowed, as it may be of megabytes.
#[derive(Serialize)]
struct Intervals<'a> {
    interval_ms: u64,
    latency_rows_us: &'a [u64],
    intervals: Vec<&'a Interval>,
}

/// The intervals that are kept, the oldest first.
pub(super) async fn history(
    State(control): State<Arc<Control>>,
    Asked(Since { since_ms }): Asked<Since>,
) -> Response {
    let history = control.history();
    Json(Intervals {
        interval_ms: INTERVAL.as_millis() as u64,
        latency_rows_us: &LATENCY_ROWS_US,
        intervals: history.since(since_ms).collect(),
    })
    .into_response()
}
