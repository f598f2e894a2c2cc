//! `GET /api/v1/connections` and `POST /api/v1/connections/close`: who is here, and out.
//!
//! Shards are asked one after the other, a stretch of their tables at a time, so that no turn gets
//! longer by it than looking at a few thousand slots takes.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::Asked;
use crate::access::name_of;
use crate::client_address::{Cidr, CidrSet};
use crate::config::{BackendKind, Config};
use crate::conn::{self, ConnId};
use crate::control::Control;
use crate::names;
use crate::shard::inspect::{Close, Filter, Found, Inspect, Page};
use crate::shard::mailbox::Order;
use crate::upstream::UpstreamName;

/// Clients in one answer.
const LIMIT_MAX: usize = 10_000;
const LIMIT_DEFAULT: usize = 100;

/// A reason in a Close frame (RFC 6455 §5.5: 125 bytes, two of them the code).
const REASON_BYTES_MAX: usize = 123;

/// What can be asked for; each narrows the answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Selection {
    id: Option<String>,
    route: Option<String>,
    backend: Option<String>,
    upstream: Option<String>,
    address: Option<String>,
    user: Option<String>,
    room: Option<String>,
    state: Option<String>,
    age_min_ms: u64,
    idle_min_ms: u64,
    outbox_bytes_min: usize,
    limit: Option<usize>,
    /// `next` of the answer before.
    after: Option<String>,
    /// To close everybody this has to be said.
    all: bool,
    code: Option<u16>,
    reason: Option<String>,
}

pub(super) async fn list(
    State(control): State<Arc<Control>>,
    Asked(selection): Asked<Selection>,
) -> Response {
    if selection.all || selection.code.is_some() || selection.reason.is_some() {
        return refuse("`all`, `code` and `reason` are for closing");
    }
    let limit = selection.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return refuse(&format!("`limit` is {limit}: choose a number from 1 to {LIMIT_MAX}"));
    }
    match visit(&control, &selection, limit, None).await {
        Ok((clients, next)) => {
            let config = control.config();
            let clients: Vec<Value> =
                clients.iter().map(|(shard, found)| describe(&config, *shard, found)).collect();
            Json(json!({ "connections": clients, "next": next })).into_response()
        }
        Err(why) => refuse(&why),
    }
}

pub(super) async fn close(
    State(control): State<Arc<Control>>,
    Asked(selection): Asked<Selection>,
) -> Response {
    let code = selection.code.unwrap_or(1012);
    let reason = selection.reason.clone().unwrap_or_default();
    if !(code == 1000 || (1001..=1014).contains(&code) || (3000..5000).contains(&code))
        || matches!(code, 1004..=1006)
    {
        return refuse(&format!(
            "`code` is {code}: a Close frame may carry 1000 to 1003, 1007 to 1014 and 3000 to 4999 \
             (RFC 6455 §7.4)"
        ));
    }
    if reason.len() > REASON_BYTES_MAX {
        let len = reason.len();
        return refuse(&format!("`reason` has {len} bytes: at most {REASON_BYTES_MAX} fit"));
    }
    if selection.after.is_some() {
        return refuse("`after` is for lists: all that match are closed, up to `limit`");
    }
    if !(selection.all || selection.narrows()) {
        return refuse("who is to be closed? Name a property, or say `all=true` (--all)");
    }
    let limit = selection.limit.unwrap_or(usize::MAX);
    let close = Close { code, reason };
    match visit(&control, &selection, limit, Some(&close)).await {
        Ok((clients, _)) => Json(json!({ "closed": clients.len() })).into_response(),
        Err(why) => refuse(&why),
    }
}

/// One client, and its connection to the upstream where there is one.
pub(super) async fn one(State(control): State<Arc<Control>>, Path(id): Path<String>) -> Response {
    let selection = Selection { id: Some(id), ..Selection::default() };
    match visit(&control, &selection, 1, None).await {
        Ok((clients, _)) => match clients.first() {
            Some((shard, found)) => {
                Json(describe(&control.config(), *shard, found)).into_response()
            }
            None => {
                super::refuse(StatusCode::NOT_FOUND, "no client has this id, or has it any more")
            }
        },
        Err(why) => refuse(&why),
    }
}

fn refuse(why: &str) -> Response {
    super::refuse(StatusCode::BAD_REQUEST, why)
}

impl Selection {
    fn narrows(&self) -> bool {
        let Selection { id, route, backend, upstream, address, user, room, state, .. } = self;
        [id, route, backend, upstream, address, user, room, state].iter().any(|it| it.is_some())
            || self.age_min_ms > 0
            || self.idle_min_ms > 0
            || self.outbox_bytes_min > 0
    }

    /// The shards to ask, where in the first of them to begin, and for whom.
    fn filter(&self, config: &Config) -> Result<(u16, u32, Filter), String> {
        let mut filter = Filter {
            user: one_spelling(&self.user),
            room: one_spelling(&self.room),
            state: self.state.clone(),
            age_min: Duration::from_millis(self.age_min_ms),
            idle_min: Duration::from_millis(self.idle_min_ms),
            outbox_bytes_min: self.outbox_bytes_min,
            ..Filter::default()
        };
        if let Some(state) = &self.state
            && !conn::State::OF_CLIENTS.contains(&state.as_str())
        {
            let states = conn::State::OF_CLIENTS.join(", ");
            return Err(format!("`state` is {state:?}: no client is in that; choose {states}"));
        }
        if let Some(text) = &self.address {
            let range: Cidr =
                text.parse().map_err(|why| format!("`address` is \"{text}\": {why}"))?;
            filter.address = Some(CidrSet::new(&[range]));
        }
        if let Some(url) = &self.upstream {
            filter.upstream = Some(find_upstream(config, url).ok_or_else(|| {
                format!(
                    "`upstream` is \"{url}\": no backend has it; write its url as the file does"
                )
            })?);
        }
        if self.route.is_some() || self.backend.is_some() {
            let names = |route: &&crate::route::Route| {
                self.route.as_ref().is_none_or(|wanted| {
                    *wanted == name_of(route) || *wanted == route.path.to_string()
                }) && self.backend.as_ref().is_none_or(|it| *it == config.backend(route).name)
            };
            // Those that are gone from the file may have clients still.
            let routes = config.routes.iter().chain(config.routes.retired());
            filter.routes = routes.filter(names).map(|route| route.index.0).collect();
            if filter.routes.is_empty() {
                return Err(
                    "no route has this `route` or `backend`; write a route as the log and \
                            /api/v1/routes have it, like */chat/*, or its path"
                        .to_owned(),
                );
            }
        }
        let (mut shard, mut from) = (0, 0);
        if let Some(text) = &self.after {
            let parsed = text.split_once('-').and_then(|(shard, slot)| {
                Some((shard.parse::<u16>().ok()?, slot.parse::<u32>().ok()?))
            });
            (shard, from) = parsed.ok_or("`after` is not the `next` of an answer")?;
        }
        if let Some(text) = &self.id {
            let numbers: Vec<u32> = text.split('-').filter_map(|it| it.parse().ok()).collect();
            let [of_shard, slot, generation] = numbers[..] else {
                return Err(format!("`id` is \"{text}\": not of the form SHARD-SLOT-GENERATION"));
            };
            shard = u16::try_from(of_shard).unwrap_or(u16::MAX);
            filter.id = Some(ConnId { slot, generation });
        }
        Ok((shard, from, filter))
    }
}

/// A name as rooms keep it, however the operator's keyboard spells it.
fn one_spelling(name: &Option<String>) -> Option<String> {
    name.as_deref().map(|name| names::one_spelling(name).into_owned())
}

/// The upstream with this URL, be it in one backend or in several.
fn find_upstream(config: &Config, url: &str) -> Option<UpstreamName> {
    let groups = config.backends.iter().filter_map(|backend| match &backend.kind {
        BackendKind::Websocket(websocket) => Some(&websocket.upstreams),
        _ => None,
    });
    let mut upstreams = groups.flatten();
    let found = upstreams.find(|upstream| upstream.url.to_string() == url)?;
    Some(UpstreamName::new(&found.url, &found.address))
}

/// Goes through the tables. Returns whom it met, and where another question would go on.
async fn visit(
    control: &Control,
    selection: &Selection,
    limit: usize,
    close: Option<&Close>,
) -> Result<(Vec<(u16, Found)>, Option<String>), String> {
    let config = control.config();
    let (mut shard, mut from, filter) = selection.filter(&config)?;
    let mut met = Vec::new();
    while shard < config.server.shards {
        if met.len() >= limit {
            return Ok((met, Some(format!("{shard}-{from}"))));
        }
        let (reply, answer) = oneshot::channel();
        let inspect = Inspect {
            from,
            filter: filter.clone(),
            limit: limit - met.len(),
            close: close.cloned(),
            reply,
        };
        control.order(shard, Order::Inspect(Box::new(inspect))).await?;
        let answer = answer.await.map_err(|_| format!("shard {shard} has stopped"))?;
        let Page { clients, next } = answer;
        met.extend(clients.into_iter().map(|found| (shard, found)));
        match next {
            Some(slot) => from = slot,
            None if filter.id.is_some() => break,
            None => (shard, from) = (shard + 1, 0),
        }
    }
    Ok((met, None))
}

fn describe(config: &Config, shard: u16, found: &Found) -> Value {
    let record = &found.record;
    let mut value = serde_json::to_value(found).unwrap_or_default();
    let route = config.routes.get(crate::route::RouteIndex(record.route));
    value["id"] = json!(format!("{shard}-{}-{}", record.slot, record.generation));
    value["shard"] = json!(shard);
    value["route"] = json!(name_of(route));
    if found.upstream_side.is_some() {
        value["upstream_side"]["route"] = value["route"].clone();
    }
    value["backend"] = json!(config.backend(route).name);
    value["upstream"] = json!(
        found.upstream.and_then(|(backend, name)| { crate::access::url_of(config, backend, name) })
    );
    value
}
