//! `GET /api/v1/memory`: the memory ledger.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::control::Control;
use crate::memory;

/// A ledger that is younger is good enough: asking often costs no more than this.
const AGE_MAX: Duration = Duration::from_secs(1);

pub(super) async fn ledger(State(control): State<Arc<Control>>) -> Response {
    match memory::measure(&control, AGE_MAX).await {
        Ok(()) => Json(memory::ledger(&control)).into_response(),
        Err(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "faults": [why] }))).into_response()
        }
    }
}
