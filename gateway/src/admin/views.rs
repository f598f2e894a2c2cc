//! `GET /api/v1/shards`, `routes`, `upstreams` and `closes`, `GET` and `PUT /api/v1/log`: what the
//! gateway is made of, and how each part is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Asked, refuse};
use crate::access::name_of;
use crate::config::{BackendKind, LogFormat};
use crate::control::Control;
use crate::families::shard_cpu_seconds;
use crate::histogram::Snapshot;
use crate::history::Delays;
use crate::log;
use crate::shard::inspect::UpstreamView;
use crate::shard::mailbox::Order;
use crate::upstream::{Standing, UpstreamName};

/// How long a shard is given to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn shards(State(control): State<Arc<Control>>) -> Json<Value> {
    let slots = control.config().server.slots_per_shard;
    let cpu: HashMap<u16, f64> = shard_cpu_seconds().into_iter().collect();
    let shards = control.gateway.counters().iter().enumerate().map(|(shard, counters)| {
        let cpu_seconds = cpu.get(&(shard as u16)).copied().unwrap_or(0.0);
        let metrics = counters.read();
        let mut turn = Snapshot::default();
        counters.recorder.turn.add_to(&mut turn);
        json!({
            "shard": shard,
            "clients": counters.clients.get(),
            "upstreams": counters.upstreams.get(),
            "slots": slots,
            "accepted": metrics.accepted,
            "messages_received": metrics.messages_received,
            "messages_relayed": metrics.messages_relayed,
            "frames_sent": metrics.frames_sent,
            "received_bytes": metrics.received_bytes,
            "starved": metrics.starved,
            "stalls": counters.recorder.stalls.get(),
            "cpu_ms": (cpu_seconds * 1e3) as u64,
            "turn": Delays::of(&turn),
        })
    });
    Json(json!({ "shards": shards.collect::<Vec<_>>() }))
}

pub(super) async fn routes(State(control): State<Arc<Control>>) -> Json<Value> {
    let config = control.config();
    let shared = control.gateway.shared();
    let describe = |route: &crate::route::Route| {
        let on_route = shared.route(route.index.0);
        json!({
            "route": name_of(route),
            "backend": config.backend(route).name,
            "clients": on_route.clients.taken(),
            "upstream_connections": on_route.upstreams.taken(),
            "connections_max": route.policy.connections_max,
            "retired": config.routes.is_retired(route.index),
        })
    };
    let live = config.routes.iter().map(describe);
    // Gone from the file: told of while there is anybody on them.
    let retired = config.routes.retired().filter(|route| {
        let on_route = shared.route(route.index.0);
        on_route.clients.taken() > 0 || on_route.upstreams.taken() > 0
    });
    let routes: Vec<Value> = live.chain(retired.map(describe)).collect();
    Json(json!({ "routes": routes }))
}

/// An upstream, as all shards together see it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct UpstreamLine {
    pub(crate) backend: String,
    /// As the file has it.
    pub(crate) url: String,
    pub(crate) address: String,
    pub(crate) weight: u32,
    /// Those being opened included.
    pub(crate) connections: u64,
    /// The worst that a shard says of it.
    pub(crate) state: &'static str,
    /// Shards that would send a new client there.
    pub(crate) shards_up: u16,
    pub(crate) shards: u16,
}

/// How the upstreams of the file are, in its order.
///
/// # Errors
///
/// A shard that gives no answer, in a sentence.
pub(crate) async fn upstream_lines(control: &Control) -> Result<Vec<UpstreamLine>, String> {
    let config = control.config();
    let shards = config.server.shards;
    let mut lines = Vec::new();
    for (number, backend) in config.live_backends() {
        let BackendKind::Websocket(websocket) = &backend.kind else { continue };
        // All at once, so that it takes as long as the slowest of them.
        let mut answers = Vec::new();
        for shard in 0..shards {
            let (reply, answer) = oneshot::channel();
            control.order(shard, Order::Upstreams { backend: number, reply }).await?;
            answers.push(answer);
        }
        let mut views: HashMap<UpstreamName, Vec<UpstreamView>> = HashMap::new();
        for (shard, answer) in answers.into_iter().enumerate() {
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
            let answer = answer.map_err(|_| format!("shard {shard} gives no answer"))?;
            for view in answer.map_err(|_| format!("shard {shard} has stopped"))? {
                views.entry(view.name).or_default().push(view);
            }
        }
        lines.extend(websocket.upstreams.iter().map(|upstream| {
            let name = UpstreamName::new(&upstream.url, &upstream.address);
            let views = views.get(&name).map_or(&[][..], Vec::as_slice);
            let up = views.iter().filter(|view| view.standing <= Standing::SlowStart);
            let worst = views.iter().map(|view| view.standing).max();
            UpstreamLine {
                backend: backend.name.clone(),
                url: upstream.url.to_string(),
                address: upstream.address.to_string(),
                weight: upstream.weight,
                connections: views.iter().map(|view| u64::from(view.connections)).sum(),
                state: worst.unwrap_or(Standing::Up).name(),
                shards_up: up.count() as u16,
                shards,
            }
        }));
    }
    Ok(lines)
}

pub(super) async fn upstreams(State(control): State<Arc<Control>>) -> Response {
    match upstream_lines(&control).await {
        Ok(lines) => Json(json!({ "upstreams": lines })).into_response(),
        Err(why) => refuse(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

pub(super) async fn closes(State(control): State<Arc<Control>>) -> Json<Value> {
    let closes = control.closes();
    let lines: Vec<_> = closes.newest().collect();
    Json(json!({ "closes": lines }))
}

pub(super) async fn log_options(State(control): State<Arc<Control>>) -> Json<Value> {
    let options = control.config().log.clone();
    Json(json!({
        "level": log::level(),
        "configured_level": options.level,
        "format": match options.format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        },
        "access": options.access,
        "access_lines_per_second": options.access_lines_per_second,
        "dropped_lines": log::dropped_lines(),
    }))
}

/// What can be changed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogChange {
    level: String,
}

pub(super) async fn set_log(
    control: State<Arc<Control>>,
    Asked(LogChange { level }): Asked<LogChange>,
) -> Response {
    if !log::LEVELS.contains(&level.as_str()) {
        let names = log::LEVELS.map(|level| format!("\"{level}\"")).join(", ");
        let why = format!("`level` is {level:?}: choose one of {names}");
        return refuse(StatusCode::BAD_REQUEST, &why);
    }
    let before = log::level();
    if before != level {
        // Under whichever of the two lets it through.
        tracing::warn!(
            "log: level {before} -> {level}, until it is ordered otherwise or changes in the file"
        );
        log::set_level(&level);
    }
    log_options(control).await.into_response()
}
