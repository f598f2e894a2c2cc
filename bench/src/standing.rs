//! Clients that echo at a low fixed rate all the while something else happens to their server:
//! what do they see of it? A run is divided into periods, and a message belongs to the one in
//! which it was due.
//!
//! Open loop, as in `load.rs`: message k is due k/rate after the start, on client k modulo their
//! number, and its latency counts from then.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::engine::Engine;
use crate::histogram;
use crate::open_loop::{BATCH, Meter, Usage, put_saturation};
use crate::options::Common;
use crate::traffic::{Messages, Traffic};
use crate::websocket::{Frame, PONG};

/// Messages under way on one client; what comes due beyond is not sent.
const IN_FLIGHT_MAX: usize = 16_384;
/// What the kernel may not have taken of one client, in bytes; what comes due beyond is not sent.
const UNSENT_BYTES_MAX: usize = 64 * 1024;
/// Lost messages whose due time is kept, to count the time that they have been out.
const LOST_MAX: usize = 1_000_000;

/// The clients 0 to `count`, and what became of their messages.
pub(crate) struct Standing {
    start: Instant,
    rate: u32,
    core: Option<usize>,
    pids: Vec<u32>,
    talkers: Vec<Talker>,
    /// The first so many stand apart: their messages are in no period.
    apart: u32,
    /// The next number of the schedule; nothing is due once it has stopped.
    next: u64,
    is_stopped: bool,
    messages: Messages,
    periods: Vec<Period>,
    /// When the messages that will not come back were due, at most `LOST_MAX`.
    lost_due_ns: Vec<u64>,
    /// Under way on open connections, those apart not counted.
    pending: u64,
    /// The same of those apart.
    pub(crate) apart_pending: u64,
    pub(crate) faults: u64,
}

/// `due = back + lost`
struct Period {
    name: &'static str,
    from_ns: u64,
    meter: Meter,
    latency: Histogram<u64>,
    lag: Histogram<u64>,
    due: u64,
    back: u64,
    lost: u64,
}

/// One client.
#[derive(Default)]
pub(crate) struct Talker {
    open: bool,
    /// Messages sent on this connection, and come back on it, in order and unchanged.
    pub(crate) sent: u32,
    pub(crate) back: u32,
    /// Due and not sent, because too much was under way or unsent.
    pub(crate) held_back: u32,
    /// When each message under way was due, oldest first.
    awaited: VecDeque<u64>,
}

impl Standing {
    /// For the clients 0 to `count`, of which the first `apart` stand apart. Nothing is due
    /// before `start`.
    pub(crate) fn new(
        count: u32,
        apart: u32,
        rate: u32,
        traffic: &Traffic,
        common: &Common,
    ) -> Standing {
        Standing {
            start: Instant::now(),
            rate,
            core: common.cpu,
            pids: common.pids.clone(),
            talkers: (0..count).map(|_| Talker::default()).collect(),
            apart,
            next: 0,
            is_stopped: true,
            messages: Messages::new(traffic),
            periods: Vec::new(),
            lost_due_ns: Vec::new(),
            pending: 0,
            apart_pending: 0,
            faults: 0,
        }
    }

    /// Starts the schedule, now, with the first period.
    pub(crate) fn start(&mut self, period: &'static str) {
        self.start = Instant::now();
        self.is_stopped = self.talkers.is_empty();
        self.enter(period);
    }

    /// What is due from now on belongs to another period. There are a handful in a run.
    pub(crate) fn enter(&mut self, name: &'static str) {
        let from_ns = self.now_ns();
        self.periods.push(Period {
            name,
            from_ns,
            meter: Meter::read(self.core, &self.pids),
            latency: histogram::new(),
            lag: histogram::new(),
            due: 0,
            back: 0,
            lost: 0,
        });
    }

    /// Nothing comes due any more; the last period is over.
    pub(crate) fn stop(&mut self) {
        self.is_stopped = true;
        self.enter("end");
    }

    /// Now, in nanoseconds since the start.
    pub(crate) fn now_ns(&self) -> u64 {
        self.ns_of(Instant::now())
    }

    /// A moment, in nanoseconds since the start.
    pub(crate) fn ns_of(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.start).as_nanos() as u64
    }

    /// When the period that we are in began.
    pub(crate) fn period_began_ns(&self) -> u64 {
        self.periods.last().map_or(0, |period| period.from_ns)
    }

    /// Whether everything that was sent by those that do not stand apart is back.
    pub(crate) fn all_back(&self) -> bool {
        self.pending == 0
    }

    /// One of the clients.
    pub(crate) fn talker(&self, client: u32) -> &Talker {
        &self.talkers[client as usize]
    }

    /// Whether a client is one of these.
    pub(crate) fn has(&self, client: u32) -> bool {
        (client as usize) < self.talkers.len()
    }

    fn due_ns(&self, number: u64) -> u64 {
        (u128::from(number) * 1_000_000_000 / u128::from(self.rate)) as u64
    }

    /// How long until something is due.
    pub(crate) fn wait(&self) -> Duration {
        match self.is_stopped {
            true => Duration::MAX,
            false => Duration::from_nanos(self.due_ns(self.next).saturating_sub(self.now_ns())),
        }
    }

    /// Puts on the way what has come due, one batch of it.
    pub(crate) fn send_due(&mut self, engine: &mut Engine) {
        let now_ns = self.now_ns();
        for _ in 0..BATCH {
            let due_ns = self.due_ns(self.next);
            if self.is_stopped || due_ns > now_ns {
                return;
            }
            let client = (self.next % self.talkers.len() as u64) as u32;
            self.next += 1;
            self.send(engine, client, due_ns);
        }
    }

    fn send(&mut self, engine: &mut Engine, client: u32, due_ns: u64) {
        let is_apart = client < self.apart;
        if !is_apart {
            self.period_mut(due_ns).due += 1;
        }
        let talker = &mut self.talkers[client as usize];
        let has_room =
            talker.awaited.len() < IN_FLIGHT_MAX && engine.unsent_bytes(client) < UNSENT_BYTES_MAX;
        if !(talker.open && has_room) {
            talker.held_back += u32::from(talker.open);
            return self.lose(client, due_ns);
        }
        let messages = &mut self.messages;
        if !engine.say(client, |out| messages.write(client, talker.sent, out)) {
            return self.lose(client, due_ns);
        }
        talker.sent += 1;
        talker.awaited.push_back(due_ns);
        *if is_apart { &mut self.apart_pending } else { &mut self.pending } += 1;
        let lag_ns = self.now_ns().saturating_sub(due_ns);
        if !is_apart {
            histogram::record(&mut self.period_mut(due_ns).lag, lag_ns);
        }
    }

    fn lose(&mut self, client: u32, due_ns: u64) {
        if client >= self.apart {
            self.period_mut(due_ns).lost += 1;
            if self.lost_due_ns.len() < LOST_MAX {
                self.lost_due_ns.push(due_ns);
            }
        }
    }

    fn period_mut(&mut self, due_ns: u64) -> &mut Period {
        let periods = &mut self.periods;
        let index = periods.iter().rposition(|period| period.from_ns <= due_ns).unwrap_or(0);
        &mut periods[index]
    }

    /// A client's connection is open.
    pub(crate) fn on_open(&mut self, client: u32) {
        self.talkers[client as usize] = Talker { open: true, ..Talker::default() };
    }

    /// Takes what a server sends back: each message as it was, in order.
    pub(crate) fn on_frame(
        &mut self,
        client: u32,
        frame: &Frame<'_>,
        now: Instant,
    ) -> Result<(), String> {
        if frame.opcode == PONG {
            return Ok(());
        }
        let now_ns = self.ns_of(now);
        let talker = &mut self.talkers[client as usize];
        let is_next = self.messages.is_echo(frame, client, talker.back);
        let Some(due_ns) = talker.awaited.pop_front().filter(|_| is_next) else {
            self.faults += 1;
            return Err("an echo that is not the next of what was sent".into());
        };
        talker.back += 1;
        if client < self.apart {
            self.apart_pending -= 1;
        } else {
            self.pending -= 1;
            let period = self.period_mut(due_ns);
            period.back += 1;
            histogram::record(&mut period.latency, now_ns.saturating_sub(due_ns));
        }
        Ok(())
    }

    /// A client's connection is over: what was under way is lost.
    pub(crate) fn on_end(&mut self, client: u32) {
        let talker = &mut self.talkers[client as usize];
        talker.open = false;
        let awaited = std::mem::take(&mut talker.awaited);
        // The one of a faulty echo is not awaited any more, and counts as neither back nor lost.
        let under_way = u64::from(talker.sent - talker.back);
        if client < self.apart {
            self.apart_pending -= under_way;
        } else {
            self.pending -= under_way;
        }
        for due_ns in awaited {
            self.lose(client, due_ns);
        }
    }

    /// Counts what has not come back, with the time that it has been out until now.
    pub(crate) fn count_lost(&mut self) {
        let now_ns = self.now_ns();
        for client in self.apart..self.talkers.len() as u32 {
            let awaited = std::mem::take(&mut self.talkers[client as usize].awaited);
            awaited.into_iter().for_each(|due_ns| self.lose(client, due_ns));
        }
        for due_ns in std::mem::take(&mut self.lost_due_ns) {
            let period = self.period_mut(due_ns);
            histogram::record(&mut period.latency, now_ns.saturating_sub(due_ns));
        }
    }

    /// What was sent: figures for a report.
    pub(crate) fn messages_report(&self) -> Value {
        self.messages.report()
    }

    /// Messages lost in all periods.
    pub(crate) fn lost(&self) -> u64 {
        self.periods.iter().map(|period| period.lost).sum()
    }

    /// What was used in a period; `None` when there was none of this name.
    pub(crate) fn usage(&self, name: &str) -> Option<Usage> {
        let index = self.periods.iter().position(|period| period.name == name)?;
        Some(self.periods[index].meter.usage_until(&self.periods.get(index + 1)?.meter))
    }

    /// The figures of the periods of these names, in a report under their names; with `saturated`
    /// for all of them, as `open_loop::put_saturation` has it.
    pub(crate) fn put_periods(&self, report: &mut Map<String, Value>, names: &[&str]) {
        let mut reasons = Vec::new();
        for name in names {
            let Some(period) = self.periods.iter().find(|period| period.name == *name) else {
                continue;
            };
            let Some(usage) = self.usage(name) else { continue };
            let p99_ns = period.latency.value_at_quantile(0.99);
            if let Some(reason) = usage.saturation(&period.lag, p99_ns) {
                reasons.push(format!("{name}: {reason}"));
            }
            report.insert(
                (*name).to_owned(),
                json!({
                    "seconds": crate::proc::round(usage.seconds),
                    "due_count": period.due,
                    "back_count": period.back,
                    "lost_count": period.lost,
                    "latency_us": histogram::report(&period.latency),
                    "server": usage.server_report("message", period.back),
                    "tool": usage.tool_report(&period.lag, "message", period.back),
                }),
            );
        }
        let reasons = (!reasons.is_empty()).then(|| reasons.join("; "));
        put_saturation(report, reasons.as_deref());
    }

    /// The latencies by period.
    pub(crate) fn into_histograms(self) -> impl Iterator<Item = (&'static str, Histogram<u64>)> {
        self.periods.into_iter().map(|period| (period.name, period.latency))
    }
}
