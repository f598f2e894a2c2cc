//! `penstock conns` and `penstock close`: who is connected, and out.

use std::process::ExitCode;

use axum::http::Method;
use clap::Args;
use gateway::names::Escaped;
use serde_json::Value;

use super::{Ask, tell};

/// Which clients: each option narrows them.
#[derive(Args)]
struct Select {
    #[command(flatten)]
    ask: Ask,
    /// This one: SHARD-SLOT-GENERATION, as `penstock conns` shows it
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// On this route: as the log has it (*/chat/*), or its path (/chat/*)
    #[arg(long, value_name = "ROUTE")]
    route: Option<String>,
    /// On routes to this backend
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// At this upstream: its url as in the file
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// From this address or range
    #[arg(long, value_name = "CIDR")]
    address: Option<String>,
    /// With this name in the embedded rooms
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// In this room
    #[arg(long, value_name = "NAME")]
    room: Option<String>,
    /// In this state: head, echo, rooms, connecting, refusing, forwarding, relay, proxy_header
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Open for so many milliseconds at least
    #[arg(long, value_name = "N")]
    age_min_ms: Option<u64>,
    /// Silent for so many milliseconds at least
    #[arg(long, value_name = "N")]
    idle_min_ms: Option<u64>,
    /// With so many bytes that wait to be sent at least
    #[arg(long, value_name = "N")]
    outbox_bytes_min: Option<u64>,
    /// So many at most
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// `penstock conns`.
#[derive(Args)]
pub(crate) struct Conns {
    #[command(flatten)]
    select: Select,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "NEXT")]
    after: Option<String>,
    /// As JSON, with all there is
    #[arg(long)]
    json: bool,
}

/// `penstock close`.
#[derive(Args)]
pub(crate) struct CloseClients {
    #[command(flatten)]
    select: Select,
    /// Everybody
    #[arg(long)]
    all: bool,
    /// The code of the Close frame
    #[arg(long, value_name = "CODE", default_value_t = 1012)]
    code: u16,
    /// Its reason; with 1012 and without one, clients are told when to come back
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

impl Select {
    /// As a query.
    fn query(&self) -> form_urlencoded::Serializer<'static, String> {
        let Select { ask: _, id, route, backend, upstream, address, user, room, state, .. } = self;
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let numbers = [
            ("age_min_ms", number(self.age_min_ms)),
            ("idle_min_ms", number(self.idle_min_ms)),
            ("outbox_bytes_min", number(self.outbox_bytes_min)),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ];
        let texts = [
            ("id", id),
            ("route", route),
            ("backend", backend),
            ("upstream", upstream),
            ("address", address),
            ("user", user),
            ("room", room),
            ("state", state),
        ];
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (key, value) in texts.into_iter().filter_map(|(key, it)| Some((key, it.as_ref()?))) {
            query.append_pair(key, value);
        }
        for (key, value) in numbers.iter().filter_map(|(key, it)| Some((key, it.as_ref()?))) {
            query.append_pair(key, value);
        }
        query
    }
}

impl Conns {
    pub(super) fn list(&self) -> ExitCode {
        let mut query = self.select.query();
        if let Some(after) = &self.after {
            query.append_pair("after", after);
        }
        let path = format!("/api/v1/connections?{}", query.finish());
        if self.json {
            return self.select.ask.ask(Method::GET, &path);
        }
        let answer = match self.select.ask.answer(Method::GET, &path) {
            Ok((status, body)) if status.is_success() => body,
            Ok((status, body)) => return tell(status, &body),
            Err(code) => return code,
        };
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let text = |value: &Value| match value {
            Value::String(text) => Escaped(text).to_string(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        };
        println!(
            "{:<14} {:<10} {:<24} {:<16} {:<12} {:>9} {:>9} {:>8} {:>8} {:>9} UPSTREAM",
            "ID", "STATE", "CLIENT", "USER", "BACKEND", "AGE_MS", "IDLE_MS", "IN", "OUT", "OUTBOX"
        );
        for it in answer["connections"].as_array().into_iter().flatten() {
            let traffic = &it["traffic"];
            println!(
                "{:<14} {:<10} {:<24} {:<16} {:<12} {:>9} {:>9} {:>8} {:>8} {:>9} {}",
                text(&it["id"]),
                text(&it["state"]),
                text(&it["client"]),
                text(&it["rooms"]["user"]),
                text(&it["backend"]),
                text(&it["age_ms"]),
                text(&it["idle_ms"]),
                text(&traffic["received_messages"]),
                text(&traffic["sent_messages"]),
                text(&it["outbox_bytes"]),
                text(&it["upstream"]),
            );
        }
        if let Some(next) = answer["next"].as_str() {
            println!("there are more: --after {next}");
        }
        ExitCode::SUCCESS
    }
}

impl CloseClients {
    pub(super) fn close(&self) -> ExitCode {
        let mut query = self.select.query();
        query.append_pair("all", if self.all { "true" } else { "false" });
        query.append_pair("code", &self.code.to_string());
        query.append_pair("reason", &self.reason);
        let path = format!("/api/v1/connections/close?{}", query.finish());
        self.select.ask.ask(Method::POST, &path)
    }
}
