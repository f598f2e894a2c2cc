//! The clients that do nothing wrong: those that stay and echo or chat all the while, and
//! newcomers that connect, are served, and leave in order. Everything they see that is not right is
//! an error, with its reason.
//!
//! Messages are due at a fixed rate, as in `load.rs`, and a message carries when it was due: its
//! latency counts from then.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::kinds::Ground;
use crate::engine::{Ending, Engine, Reasons, Request, Scenario};
use crate::histogram;
use crate::websocket::{Frame, PONG, TEXT, encode_frame};

/// Members of a room.
const ROOM_MEMBERS: u32 = 10;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Relay,
    Echo,
    Rooms,
    /// A newcomer alone: asks an upstream to hang up, and has to be told so by a Close 1012.
    Hangup,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Relay => "relay",
            Role::Echo => "echo",
            Role::Rooms => "rooms",
            Role::Hangup => "hangup",
        }
    }
}

/// Before, during and after the attack.
pub(super) const PERIODS: [&str; 3] = ["before", "during", "after"];

/// What one period was like.
pub(super) struct Period {
    /// By role.
    pub(super) latency: Vec<(Role, Histogram<u64>)>,
    /// From a newcomer's connect until it was served.
    pub(super) served: Histogram<u64>,
    /// From asking an upstream to hang up until the client was told.
    pub(super) told: Histogram<u64>,
    /// How late the tool itself was.
    pub(super) lag: Histogram<u64>,
    pub(super) sent: u64,
    pub(super) newcomers: u64,
    pub(super) errors: Reasons,
    pub(super) newcomer_errors: Reasons,
}

impl Period {
    fn new(roles: &[Role]) -> Period {
        let latency = roles.iter().map(|role| (*role, histogram::new())).collect();
        let new = histogram::new;
        Period {
            latency,
            served: new(),
            told: new(),
            lag: new(),
            sent: 0,
            newcomers: 0,
            errors: Reasons::default(),
            newcomer_errors: Reasons::default(),
        }
    }

    /// The worst p99 of the roles, in nanoseconds.
    pub(super) fn p99_ns(&self) -> u64 {
        let p99 = |(_, histogram): &(Role, Histogram<u64>)| histogram.value_at_quantile(0.99);
        self.latency.iter().map(p99).max().unwrap_or(0)
    }

    pub(super) fn report(&self) -> Value {
        let mut report = Map::new();
        let mut all = histogram::new();
        for (role, latency) in &self.latency {
            all.add(latency).expect("histograms of one make");
            report.insert(format!("{}_us", role.name()), histogram::report_short(latency));
        }
        report.insert("latency_us".into(), histogram::report_short(&all));
        report.insert("newcomers_served_us".into(), histogram::report_short(&self.served));
        if !self.told.is_empty() {
            report.insert("told_of_lost_upstream_us".into(), histogram::report_short(&self.told));
        }
        report.insert("tool_lag_us".into(), histogram::report_short(&self.lag));
        report.insert("sent_count".into(), json!(self.sent));
        report.insert("newcomers_count".into(), json!(self.newcomers));
        report.insert("errors_by_reason".into(), self.errors.report());
        report.insert("newcomer_errors_by_reason".into(), self.newcomer_errors.report());
        Value::Object(report)
    }
}

#[derive(Default)]
struct State {
    is_open: bool,
    /// Sent, and back; of a member of a room, its own messages.
    sent: u32,
    back: u32,
    /// A newcomer's connect.
    begun_ns: u64,
    is_served: bool,
    /// How often it has come.
    round: u32,
}

/// The good clients. Those below `staying` stay, the others come and go.
pub(super) struct Good<'a> {
    ground: &'a Ground,
    roles: Vec<Role>,
    newcomer_roles: Vec<Role>,
    staying: u32,
    states: Vec<State>,
    start: Instant,
    rate: u32,
    next: u64,
    period: usize,
    pub(super) periods: Vec<Period>,
    /// Newcomers that may be opened, and when the next is due.
    free: VecDeque<u32>,
    next_newcomer_ns: u64,
    newcomer_interval_ns: u64,
    comes_and_goes: bool,
    to_close: Vec<u32>,
    /// Deliveries that rooms owe.
    deliveries_due: u64,
    deliveries: u64,
    pub(super) is_ending: bool,
}

impl<'a> Good<'a> {
    pub(super) fn new(
        ground: &'a Ground,
        staying: u32,
        newcomers: u32,
        rates: (u32, u32),
        hangs_up: bool,
    ) -> Good<'a> {
        let mut roles = Vec::new();
        let paths = [
            (&ground.relay, Role::Relay),
            (&ground.echo, Role::Echo),
            (&ground.rooms, Role::Rooms),
        ];
        roles.extend(paths.iter().filter(|(path, _)| !path.is_empty()).map(|(_, role)| *role));
        let mut newcomer_roles = roles.clone();
        if hangs_up && !ground.hangup.is_empty() {
            newcomer_roles.push(Role::Hangup);
        }
        Good {
            ground,
            periods: PERIODS.iter().map(|_| Period::new(&roles)).collect(),
            roles,
            newcomer_roles,
            staying,
            states: (0..staying + newcomers).map(|_| State::default()).collect(),
            start: Instant::now(),
            rate: rates.0,
            next: 0,
            period: 0,
            free: (staying..staying + newcomers).collect(),
            next_newcomer_ns: 0,
            newcomer_interval_ns: 1_000_000_000 / u64::from(rates.1.max(1)),
            comes_and_goes: false,
            to_close: Vec::new(),
            deliveries_due: 0,
            deliveries: 0,
            is_ending: false,
        }
    }

    fn role(&self, client: u32) -> Role {
        let roles = if client < self.staying { &self.roles } else { &self.newcomer_roles };
        roles[client as usize % roles.len()]
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Everybody who stays is open: the schedule begins.
    pub(super) fn begin(&mut self) {
        self.start = Instant::now();
        self.comes_and_goes = true;
    }

    pub(super) fn enter(&mut self, period: usize) {
        self.period = period;
    }

    /// Nobody comes any more, and nothing more is due.
    pub(super) fn stop(&mut self) {
        self.comes_and_goes = false;
    }

    /// Whether everything that was sent is back.
    pub(super) fn all_back(&self) -> bool {
        let staying = &self.states[..self.staying as usize];
        staying.iter().all(|state| !state.is_open || state.sent == state.back)
            && self.deliveries >= self.deliveries_due
    }

    /// Members of the room of a client that stays.
    fn room(&self, client: u32) -> u32 {
        client / self.roles.len() as u32 / ROOM_MEMBERS
    }

    fn members(&self, room: u32) -> u64 {
        let members = (0..self.staying)
            .filter(|client| self.role(*client) == Role::Rooms && self.room(*client) == room);
        members.filter(|client| self.states[*client as usize].is_open).count() as u64
    }

    /// Sends what is due, opens newcomers, and closes those that were served.
    pub(super) fn turn(&mut self, engine: &mut Engine) {
        for client in std::mem::take(&mut self.to_close) {
            engine.start_close(client);
        }
        if !self.comes_and_goes {
            return;
        }
        let now_ns = self.now_ns();
        for _ in 0..64 {
            let due_ns = self.next * 1_000_000_000 / u64::from(self.rate.max(1));
            if due_ns > now_ns || self.staying == 0 {
                break;
            }
            let client = (self.next % u64::from(self.staying)) as u32;
            self.next += 1;
            self.send(engine, client, due_ns, now_ns);
        }
        if now_ns >= self.next_newcomer_ns
            && let Some(client) = self.free.pop_front()
        {
            self.next_newcomer_ns += self.newcomer_interval_ns;
            let state = &mut self.states[client as usize];
            *state = State { begun_ns: now_ns, round: state.round + 1, ..State::default() };
            engine.open(client, Instant::now());
        }
    }

    /// How long until something is due.
    pub(super) fn wait(&self) -> Duration {
        if !self.comes_and_goes {
            return Duration::from_millis(20);
        }
        let due_ns = self.next * 1_000_000_000 / u64::from(self.rate.max(1));
        Duration::from_nanos(due_ns.saturating_sub(self.now_ns())).min(Duration::from_millis(20))
    }

    fn send(&mut self, engine: &mut Engine, client: u32, due_ns: u64, now_ns: u64) {
        if !self.states[client as usize].is_open {
            return; // Its end was counted.
        }
        let (role, room) = (self.role(client), self.room(client));
        let sequence = self.states[client as usize].sent;
        let text = text_of(client, sequence, due_ns, self.period);
        let said = engine.say(client, |out| match role {
            Role::Rooms => publish(out, &format!("good-{room}"), &text),
            _ => encode_frame(out, TEXT, text.as_bytes(), sequence.wrapping_mul(0x9E37_79B9)),
        });
        if said {
            self.states[client as usize].sent += 1;
            if role == Role::Rooms {
                self.deliveries_due += self.members(room);
            }
            let period = &mut self.periods[self.period];
            period.sent += 1;
            histogram::record(&mut period.lag, now_ns - due_ns);
        }
    }

    fn fail(&mut self, client: u32, reason: &str) {
        let role = self.role(client).name();
        let period = &mut self.periods[self.period];
        let is_newcomer = client >= self.staying;
        let errors = if is_newcomer { &mut period.newcomer_errors } else { &mut period.errors };
        errors.add(&format!("{role}: {reason}"));
    }

    /// Counts what did not come back.
    pub(super) fn count_lost(&mut self) {
        for client in 0..self.staying {
            let State { is_open, sent, back, .. } = self.states[client as usize];
            for _ in back..if is_open { sent } else { back } {
                self.fail(client, "a message did not come back");
            }
        }
        let came = self.periods.iter().all(|period| period.errors.total() == 0);
        if self.deliveries < self.deliveries_due && came {
            let missing = self.deliveries_due - self.deliveries;
            let errors = &mut self.periods[self.period].errors;
            errors.add(&format!("rooms: {missing} deliveries did not happen"));
        }
    }

    /// A newcomer was served.
    fn serve(&mut self, client: u32) {
        let took_ns = self.now_ns().saturating_sub(self.states[client as usize].begun_ns);
        self.states[client as usize].is_served = true;
        histogram::record(&mut self.periods[self.period].served, took_ns);
        self.to_close.push(client);
    }

    fn on_room_event(&mut self, client: u32, payload: &[u8]) -> Result<(), String> {
        let Ok(event) = serde_json::from_slice::<Value>(payload) else {
            return Err("an event that is not JSON".into());
        };
        if let Some(code) = event["error"]["code"].as_str() {
            let text = format!("refused: {code}");
            if client >= self.staying {
                return Err(text);
            }
            self.fail(client, &text);
            // A publish that was refused: counted, and not waited for.
            self.states[client as usize].back += 1;
            let members = self.members(self.room(client));
            self.deliveries_due = self.deliveries_due.saturating_sub(members);
            return Ok(());
        }
        if event["event"] != "message" {
            return Ok(());
        }
        if client >= self.staying {
            if !self.states[client as usize].is_served {
                self.serve(client);
            }
            return Ok(());
        }
        let Some((publisher, due_ns, period)) = event["data"].as_str().and_then(read_text) else {
            return Err("a message that nobody published".into());
        };
        self.deliveries += 1;
        if publisher == client {
            self.states[client as usize].back += 1;
        }
        self.record(Role::Rooms, due_ns, period);
        Ok(())
    }

    fn record(&mut self, role: Role, due_ns: u64, period: usize) {
        let took_ns = self.now_ns().saturating_sub(due_ns);
        let Some(period) = self.periods.get_mut(period) else { return };
        if let Some((_, latency)) = period.latency.iter_mut().find(|(own, _)| *own == role) {
            histogram::record(latency, took_ns);
        }
    }
}

fn text_of(client: u32, sequence: u32, due_ns: u64, period: usize) -> String {
    format!("{client}:{sequence}:{due_ns}:{period}:abcdefghijklmnopqrstuvwxyz")
}

/// The client, when the message was due, and its period.
fn read_text(text: &str) -> Option<(u32, u64, usize)> {
    let mut parts = text.split(':');
    let client = parts.next()?.parse().ok()?;
    let _sequence: u32 = parts.next()?.parse().ok()?;
    Some((client, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn publish(out: &mut Vec<u8>, room: &str, text: &str) {
    let json = format!(r#"{{"op":"publish","room":"{room}","data":"{text}"}}"#);
    encode_frame(out, TEXT, json.as_bytes(), 0x1357_9BDF);
}

fn join(out: &mut Vec<u8>, room: &str) {
    let json = format!(r#"{{"op":"join","room":"{room}"}}"#);
    encode_frame(out, TEXT, json.as_bytes(), 0x2468_ACE0);
}

impl Scenario for Good<'_> {
    fn request(&self, client: u32) -> Request<'_> {
        let path = match self.role(client) {
            Role::Relay => &self.ground.relay,
            Role::Echo => &self.ground.echo,
            Role::Rooms => &self.ground.rooms,
            Role::Hangup => &self.ground.hangup,
        };
        Request { path_suffix: Cow::Borrowed(path), ..Request::default() }
    }

    fn on_open(&mut self, client: u32, _now: Instant, out: &mut Vec<u8>) {
        let (role, is_newcomer) = (self.role(client), client >= self.staying);
        let room = if is_newcomer {
            format!("new-{client}-{}", self.states[client as usize].round)
        } else {
            format!("good-{}", self.room(client))
        };
        self.states[client as usize].is_open = true;
        if role == Role::Rooms {
            join(out, &room);
        }
        if is_newcomer {
            self.periods[self.period].newcomers += 1;
            match role {
                Role::Rooms => publish(out, &room, "hello"),
                _ => encode_frame(out, TEXT, b"hello", 0x1122_3344),
            }
        }
    }

    fn on_frame(
        &mut self,
        client: u32,
        frame: &Frame<'_>,
        _now: Instant,
        _out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let role = self.role(client);
        if frame.opcode == PONG {
            return Ok(());
        }
        if role == Role::Rooms {
            return self.on_room_event(client, frame.payload);
        }
        if client >= self.staying {
            if frame.payload != b"hello" {
                return Err("an echo that is not what was sent".into());
            }
            self.serve(client);
            return Ok(());
        }
        let text = std::str::from_utf8(frame.payload).ok();
        let Some((_, due_ns, period)) = text.and_then(read_text) else {
            return Err("an echo that is not what was sent".into());
        };
        let back = self.states[client as usize].back;
        if text != Some(&text_of(client, back, due_ns, period)) {
            return Err("an echo that is not the next of what was sent".into());
        }
        self.states[client as usize].back += 1;
        self.record(role, due_ns, period);
        Ok(())
    }

    fn on_end(&mut self, client: u32, ending: &Ending) {
        let now_ns = self.now_ns();
        let is_told = self.role(client) == Role::Hangup
            && matches!(ending, Ending::Early(reason) if reason == "Close frame 1012");
        if is_told {
            let took_ns = now_ns.saturating_sub(self.states[client as usize].begun_ns);
            histogram::record(&mut self.periods[self.period].told, took_ns);
        } else if !self.is_ending {
            match ending {
                Ending::Failed(reason) | Ending::Early(reason) => self.fail(client, reason),
                Ending::Closed if !self.states[client as usize].is_served => {
                    self.fail(client, "closed before it was served");
                }
                Ending::Closed | Ending::Aborted => {}
            }
        }
        self.states[client as usize].is_open = false;
    }

    fn on_free(&mut self, client: u32) {
        if client >= self.staying {
            self.free.push_back(client);
        }
    }
}
