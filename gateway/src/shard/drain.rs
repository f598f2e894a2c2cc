//! Clients are asked to leave at a pace: because the gateway stops, or their upstream is emptied.
//!
//! ```text
//!   start_sweep --> sweep, turn by turn over the slots --> evict: 1012, `retry-after=<ms>`
//! ```
//!
//! A sweep walks the table once while its window lasts, so that clients go evenly and come back
//! evenly. Where few are concerned it is over sooner. At its end it is forgotten: who comes later is
//! not let in, or is somewhere else. A client that was on its way to an upstream when this began to be
//! emptied is asked as soon as it is there (`leave_emptied`). Where the reason for a sweep goes, as the
//! upstream serves again, the sweep ends.
//!
//! Clients whose upstream has died are not swept, as each of them learns of it by itself: the first is
//! told at once, and each after it a step later (`orphan`).

use std::time::Duration;

use super::Shard;
use crate::config::{BackendKind, Clients};
use crate::conn::{Conn, ConnId, Counted, Goodbye, Phase, Side, State};
use crate::metrics::Cause;
use crate::ring::Ring;
use crate::time::Time;
use crate::upstream::{Health, Mode, UpstreamId};
use crate::ws::frame::Opcode;

/// A shard's clients leave no slower than this, however long the window.
const CLIENTS_PER_SECOND_MIN: u32 = 500;

/// Slots looked at in one turn by all sweeps together; with more to do the next turn follows at once.
const SLOTS_PER_TURN: u32 = 4096;

/// How often a sweep goes on that keeps up with its window.
const PACE: Duration = Duration::from_millis(10);

/// The code of all who may come back at once, or nearly (IANA's registry of close codes: "Service
/// Restart").
const SERVICE_RESTART: u16 = 1012;

/// To those who are drained.
const MOVE_ON: Goodbye =
    Goodbye { cause: Cause::Drain, code: SERVICE_RESTART, reason: String::new() };

/// Clients on their way out.
pub(super) struct Sweep {
    whom: Whom,
    started: Time,
    window: Duration,
    /// The next slot.
    next: u32,
    /// Behind the last slot.
    end: u32,
}

impl Sweep {
    /// Whether it is of clients of an upstream of this backend.
    pub(super) fn is_of_backend(&self, backend: usize) -> bool {
        matches!(self.whom, Whom::Upstream(counted) if usize::from(counted.backend) == backend)
    }
}

/// Who has to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// Everybody.
    Everybody,
    /// The clients of one upstream.
    Upstream(Counted),
}

/// An upstream that lost connections just now.
pub(super) struct Loss {
    upstream: Counted,
    /// When the next of its clients is told.
    next: Time,
    /// From one of them to the next.
    step: Duration,
}

/// How far a stop has got.
#[derive(Default)]
pub(super) struct Cutting {
    /// The listeners are closed.
    is_deaf: bool,
    /// Behind the deadline: the next slot of this pass over the table.
    next: u32,
    /// This pass has found a connection that was not being closed.
    found: bool,
    /// A whole pass has found none.
    is_over: bool,
}

/// The time in which `clients` of one shard leave when they are given `window`.
pub fn pace(clients: u32, window: Duration) -> Duration {
    window.min(Duration::from_secs(1) * clients / CLIENTS_PER_SECOND_MIN)
}

impl<R: Ring> Shard<R> {
    /// Begins to ask clients to leave. Those of an upstream who are being asked go on leaving at
    /// their old pace.
    pub(super) fn start_sweep(&mut self, whom: Whom, window: Duration) {
        if self.sweeps.iter().any(|sweep| sweep.whom == whom) {
            return;
        }
        let clients = match whom {
            Whom::Everybody => self.table.clients(),
            Whom::Upstream(counted) => self.connections_at(counted),
        };
        self.sweeps.push(Sweep {
            whom,
            started: self.now,
            window: pace(clients, window),
            next: 0,
            end: self.table.slots_used(),
        });
    }

    /// The connections of this shard to an upstream.
    fn connections_at(&self, Counted { backend, upstream }: Counted) -> u32 {
        let group = self.groups[usize::from(backend)].as_ref();
        group.map_or(0, |group| group.connections(upstream))
    }

    /// When the next clients are to be asked.
    pub(super) fn next_sweep(&self) -> Time {
        if self.sweeps.is_empty() { Time::NEVER } else { self.sweep_at }
    }

    /// Asks those to leave whose turn has come.
    pub(super) fn sweep(&mut self) {
        if self.next_sweep() > self.now {
            return;
        }
        let mut sweeps = std::mem::take(&mut self.sweeps);
        sweeps.retain(|sweep| match sweep.whom {
            Whom::Everybody => true,
            Whom::Upstream(counted) => self.is_emptied(counted),
        });
        self.sweeps = sweeps;
        let mut left = SLOTS_PER_TURN;
        for index in 0..self.sweeps.len() {
            let Sweep { whom, started, window, next, end } = self.sweeps[index];
            let elapsed = self.now.since(started);
            let due = if elapsed >= window {
                end
            } else {
                (u128::from(end) * elapsed.as_nanos() / window.as_nanos()) as u32
            };
            let stop = due.min(next + left).max(next);
            left -= stop - next;
            self.sweeps[index].next = stop;
            for slot in next..stop {
                if let Some(id) = self.table.id_at(slot)
                    && self.is_swept(id, whom)
                {
                    self.evict(id, &MOVE_ON);
                }
            }
        }
        self.sweeps.retain(|sweep| sweep.next < sweep.end);
        self.sweep_at = if left == 0 { self.now } else { self.now + PACE };
    }

    fn is_swept(&self, id: ConnId, whom: Whom) -> bool {
        let conn = &self.table[id];
        conn.side == Side::Client
            && match whom {
                Whom::Everybody => true,
                // An HTTP client may be with another by now, and its request is soon over.
                Whom::Upstream(counted) => {
                    conn.counted == Some(counted) && matches!(conn.state, State::Relay(_))
                }
            }
    }

    /// Whether the clients of an upstream have to leave it: it takes no more of them, and the operator
    /// wants them to move then. When health counts for nobody (`Group::panics`) it is no reason, as
    /// there is nowhere to move to.
    fn is_emptied(&self, counted: Counted) -> bool {
        let Counted { backend, upstream } = counted;
        let backend = usize::from(backend);
        let Some(group) = self.groups[backend].as_ref() else { return false };
        let BackendKind::Websocket(websocket) = &self.config.backends[backend].kind else {
            return false;
        };
        match group.get(upstream) {
            Some(it) if it.spec().mode == Mode::Active => {
                websocket.down_clients == Clients::Move
                    && it.health(self.now) == Health::Down
                    && !group.panics(self.now)
            }
            Some(_) | None => websocket.drained_clients == Clients::Move,
        }
    }

    /// The upstreams of a backend whose clients have to leave.
    pub(super) fn emptied(&self, backend: u16) -> Vec<UpstreamId> {
        let group = self.groups.get(usize::from(backend)).and_then(Option::as_ref);
        let ids = group.into_iter().flat_map(|group| {
            group.upstreams().iter().map(|it| it.id()).chain(group.leaving().map(|(id, _)| id))
        });
        ids.filter(|upstream| self.is_emptied(Counted { backend, upstream: *upstream })).collect()
    }

    /// A client has been let in: where its upstream is being emptied, it has come too late.
    pub(super) fn leave_emptied(&mut self, client: ConnId) {
        let Some(conn) = self.table.get(client).filter(|conn| conn.phase == Phase::Open) else {
            return;
        };
        if conn.counted.is_some_and(|counted| self.is_emptied(counted)) {
            self.evict(client, &MOVE_ON);
        }
    }

    /// Asks one client to leave.
    pub(super) fn evict(&mut self, id: ConnId, goodbye: &Goodbye) {
        if self.table[id].phase != Phase::Open {
            return;
        }
        let cause = goodbye.cause;
        self.unthrottle(id);
        match self.table[id].state {
            State::Echo(_) | State::Rooms(_) => {
                self.announce(id, cause);
                let reason = self.reason_of(goodbye);
                self.start_leave(id, cause, goodbye.code, &reason);
            }
            State::Relay(_) => self.evict_relay(id, goodbye),
            State::Connecting(_) if self.refusing_upstream_of(id).is_some() => {
                // It is being answered already; nothing else may stand in that answer.
            }
            State::Connecting(_) => self.refuse(id, 503, cause, why_no_answer(cause)),
            State::ProxyHeader(_) | State::Head(_) | State::None => self.start_close(id, cause),
            State::Forwarding(_) => self.stop_forwarding(id, cause, why_no_answer(cause)),
            // Upstreams that have not accepted go with their clients.
            State::Handshaking(_) | State::Refusing(_) | State::Answering(_) => {}
        }
    }

    /// Both sides of a relay are told where a frame of ours may stand. Where it may not, in the
    /// middle of a frame, this is tried again when that frame has passed (`relayed`), and given up when
    /// nothing has passed for `close_timeout` (`relay_deadline`). A client that is in its closing
    /// handshake leaves by that; one that has been asked before leaves as it was asked first.
    fn evict_relay(&mut self, client: ConnId, goodbye: &Goodbye) {
        let patience = self.now + self.config.limits.close_timeout;
        let conn = &mut self.table[client];
        let leaves = leaves_by_itself(conn);
        let State::Relay(relay) = &mut conn.state else { return };
        let upstream = relay.other;
        if leaves {
            return;
        }
        relay.goodbye.get_or_insert_with(|| Box::new(goodbye.clone()));
        for id in [client, upstream] {
            if let Some(conn) = self.table.get_mut(id)
                && !conn.flags.evicted
            {
                conn.flags.evicted = true;
                conn.cause.get_or_insert(goodbye.cause);
                // An orphan has one already, which is sooner than a client that is not read ends its
                // frame.
                if !conn.flags.orphan {
                    conn.deadline = patience;
                    self.timers.set(id.slot, patience);
                }
            }
            self.unthrottle(id);
        }
        self.evict_join(client, upstream);
    }

    /// Goes on with a relay that has to end, where both sides are at the end of a frame.
    pub(super) fn evict_join(&mut self, client: ConnId, upstream: ConnId) {
        let leaves = self.table.get(client).is_some_and(leaves_by_itself);
        if !leaves && self.may_inject(upstream) && self.may_inject(client) {
            self.end_evicted(client, upstream);
        }
    }

    /// The end of a relay whose client was asked to leave. Whichever side is not in the middle of a
    /// frame is told.
    pub(super) fn end_evicted(&mut self, client: ConnId, upstream: ConnId) {
        let goodbye = self.table.get_mut(client).and_then(|conn| match &mut conn.state {
            State::Relay(relay) if conn.phase == Phase::Open => relay.goodbye.take(),
            _ => None,
        });
        if let Some(goodbye) = goodbye {
            // A message may not stand among the frames of another (RFC 6455 §5.4).
            if self.is_between_messages(upstream) {
                self.announce(client, goodbye.cause);
            }
            let reason = self.reason_of(&goodbye);
            self.fail_client(client, upstream, goodbye.cause, goodbye.code, &reason);
        }
        self.fail_upstream(upstream, client, 1001);
    }

    /// What the Close frame to a client says.
    fn reason_of(&mut self, goodbye: &Goodbye) -> String {
        match (goodbye.code, goodbye.reason.as_str()) {
            (SERVICE_RESTART, "") => self.retry_hint(),
            (_, reason) => reason.to_owned(),
        }
    }

    /// The operator's word to clients that are drained, for those who listen to it.
    fn announce(&mut self, id: ConnId, cause: Cause) {
        let config = std::sync::Arc::clone(&self.config);
        let is_drained = cause == Cause::Drain && !self.table[id].flags.close_sent;
        if is_drained && !config.server.drain_message.is_empty() {
            self.send_frame(id, Opcode::Text, config.server.drain_message.as_bytes());
        }
    }

    /// What a client is told in the reason of its Close frame: when to come back. Drawn, so that
    /// those who leave together do not come together.
    pub(super) fn retry_hint(&mut self) -> String {
        let most = self.config.limits.retry_after_max.as_millis() as u64;
        format!("retry-after={}", self.random.next_u64() % (most + 1))
    }

    /// The upstream of a client has gone without a Close frame: the client is told, after a moment
    /// in which it is not read, so that a message is either passed on or not taken.
    pub(super) fn orphan(&mut self, client: ConnId, upstream: ConnId) {
        let between_frames = self.may_inject(upstream);
        let Some(conn) = self.table.get_mut(client).filter(|conn| conn.phase == Phase::Open) else {
            return;
        };
        conn.cause.get_or_insert(Cause::BackendGone);
        if conn.flags.close_received {
            // It has said goodbye itself, and what an upstream does that answers by hanging up is no
            // reason to come back.
            return self.start_finish(client, Cause::ClientClose);
        }
        // Only a client that waits takes a step of the pace. One that has left already, or cannot be
        // told, would make those behind it wait for nobody.
        if conn.flags.read_done || !between_frames {
            return self.fail_orphan(client, upstream);
        }
        let delay = self.next_loss(upstream);
        if delay.is_zero() {
            return self.fail_orphan(client, upstream);
        }
        let conn = &mut self.table[client];
        conn.flags.orphan = true;
        conn.deadline = self.now + delay;
        self.timers.set(client.slot, conn.deadline);
        self.pause(client);
    }

    /// How long the client of an upstream that was lost is kept: nothing for the first, so that one
    /// connection that breaks is told at once, and then a step more for each. The steps are as wide as
    /// it takes for all that are there to go evenly. `lost_window` is the longest delay: connections that
    /// go on being lost behind it share its end.
    fn next_loss(&mut self, upstream: ConnId) -> Duration {
        let (now, window) = (self.now, self.config.limits.lost_window);
        let Some(counted) = self.table.get(upstream).and_then(|conn| conn.counted) else {
            return Duration::ZERO;
        };
        // There are no more of them than upstreams.
        self.losses.retain(|loss| loss.next > now);
        if let Some(loss) = self.losses.iter_mut().find(|loss| loss.upstream == counted) {
            let delay = loss.next.since(now);
            loss.next = (loss.next + loss.step).min(now + window);
            return delay;
        }
        let clients = self.connections_at(counted).max(1);
        let step = pace(clients, window) / clients;
        self.losses.push(Loss { upstream: counted, next: now + step, step });
        Duration::ZERO
    }

    /// Tells a client that its upstream has gone.
    pub(super) fn fail_orphan(&mut self, client: ConnId, upstream: ConnId) {
        let reason = self.retry_hint();
        self.fail_client(client, upstream, Cause::BackendGone, SERVICE_RESTART, &reason);
    }

    /// Asked to stop: accepts no more, asks everybody to leave, and `stop_timeout` after that
    /// closes what is left.
    pub(super) fn stop_join(&mut self) {
        if self.stop_deadline.is_some() && !self.is_accepting() && !self.cutting.is_deaf {
            // A client that were left in the backlog would wait for all the others.
            self.cutting.is_deaf = true;
            self.ring.stop_listening();
        }
        match self.stop_deadline {
            None => {
                let window = self.config.server.drain_window;
                let paced = pace(self.table.clients(), window);
                self.stop_deadline = Some(self.now + paced + self.config.server.stop_timeout);
                self.stop_accepting();
                self.start_sweep(Whom::Everybody, window);
            }
            Some(deadline) if self.now >= deadline => self.cut_off(),
            Some(_) => {}
        }
    }

    /// The stop deadline has passed: closes what is left, so many slots a turn.
    fn cut_off(&mut self) {
        if self.cutting.is_over {
            return;
        }
        let end = self.table.slots_used();
        let stop = end.min(self.cutting.next.saturating_add(SLOTS_PER_TURN));
        for slot in self.cutting.next..stop {
            let id = self.table.id_at(slot);
            if let Some(id) = id.filter(|id| self.table[*id].phase < Phase::Closing) {
                self.cutting.found = true;
                self.start_close(id, Cause::Drain);
            }
        }
        self.cutting.next = stop;
        if stop == end {
            // A client that was cut off late in a pass may have got an upstream meanwhile, in a slot
            // that the pass had left behind. So the last pass is one that finds nobody.
            self.cutting.is_over = !self.cutting.found;
            (self.cutting.next, self.cutting.found) = (0, false);
        }
    }

    /// Whether the next turn goes on with [`Shard::cut_off`].
    pub(super) fn may_cut_off(&self) -> bool {
        !self.cutting.is_over && self.stop_deadline.is_some_and(|deadline| deadline <= self.now)
    }

    /// Whether we have been asked to stop and nothing is left.
    pub fn is_drained(&self) -> bool {
        self.stop_deadline.is_some() && self.table.open() == 0 && !self.is_accepting()
    }
}

/// Whether a client of a relay is in its closing handshake already.
fn leaves_by_itself(conn: &Conn) -> bool {
    conn.flags.close_sent || conn.flags.close_received
}

/// What a client is told whose request is not answered.
fn why_no_answer(cause: Cause) -> &'static str {
    match cause {
        Cause::AdminClose => "the operator has closed this connection",
        _ => "the gateway is stopping",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
[server]
shards = 1
slots_per_shard = 10_000
[[listener]]
address = "127.0.0.1:0"
[[route]]
backend = "echo"
[backend.echo]
kind = "echo"
"#;

    /// However many turns a table takes, none of them waits; unless the window has time for it.
    #[test]
    fn a_sweep_that_is_late_goes_on_at_once() {
        for (window, turns) in [(Duration::ZERO, 3), (5 * PACE, 6)] {
            let mut shard = Shard::of_test(CONFIG, 10_000);
            let (whom, started) = (Whom::Everybody, shard.now);
            let (next, end) = (0, 2 * SLOTS_PER_TURN + 1);
            shard.sweeps.push(Sweep { whom, started, window, next, end });
            for turn in 1..=turns {
                assert!(!shard.sweeps.is_empty(), "turn {turn} in {window:?}");
                shard.now = shard.next_sweep().max(shard.now);
                shard.sweep();
            }
            assert!(shard.sweeps.is_empty(), "{window:?}");
            assert_eq!(shard.now, started + window);
        }
    }

    /// Behind the stop deadline a turn looks at so many slots and no more, and once nobody is left to
    /// be closed it looks at none; the listeners are closed once.
    #[test]
    fn cutting_off_goes_through_the_table_once_a_part_a_turn() {
        let mut shard = Shard::of_test(CONFIG, 10_000);
        let peer = ([192, 0, 2, 1], 5).into();
        let last = shard.table.occupy(2 * SLOTS_PER_TURN, Side::Client, peer, shard.now);
        shard.table.vacate(last);
        shard.stop_deadline = Some(shard.now);
        let mut steps = Vec::new();
        for _ in 0..5 {
            steps.push((shard.cutting.next, shard.may_cut_off()));
            shard.stop_join();
        }
        let (one, two) = (SLOTS_PER_TURN, 2 * SLOTS_PER_TURN);
        assert_eq!(steps, [(0, true), (one, true), (two, true), (0, false), (0, false)]);
        assert!(shard.cutting.is_deaf);
    }

    /// A client that has left takes no step of the pace; of those that wait, however many they are, none
    /// waits beyond the window.
    #[test]
    fn a_pace_of_losses_is_for_who_waits_and_has_an_end() {
        let config =
            CONFIG.replace("kind = \"echo\"", "kind = \"websocket\"\nurl = \"ws://127.0.0.1:9\"");
        let mut shard = Shard::of_test(&config, 10_000);
        let (peer, now) = (([192, 0, 2, 1], 5).into(), shard.now);
        let window = shard.config.limits.lost_window;
        let upstream = shard.table.occupy(0, Side::Upstream, peer, now);
        let group = shard.groups[0].as_mut().expect("a group");
        let counted = Counted { backend: 0, upstream: group.upstreams()[0].id() };
        (0..1000).for_each(|_| group.on_picked(counted.upstream));
        shard.table[upstream].counted = Some(counted);
        for slot in 1..2000 {
            let client = shard.table.occupy(slot, Side::Client, peer, now);
            shard.table[client].flags.read_done = true;
            shard.orphan(client, upstream);
        }
        assert!(shard.losses.is_empty());
        let delays: Vec<Duration> = (0..5000).map(|_| shard.next_loss(upstream)).collect();
        assert!(delays.is_sorted() && delays[0].is_zero() && delays[1] > Duration::ZERO);
        assert_eq!(delays.last(), Some(&window));
    }
}
