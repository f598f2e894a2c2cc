//! What scenarios at a fixed rate share: when each message is due, and whether the tool itself kept
//! up, for otherwise the result is about the tool.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::histogram;
use crate::kernel;
use crate::proc::{CoreTime, CpuTime, per, round};
use crate::progress::MEASURING;

/// Messages are numbered from 0; number k is due `k / rate` after the start, whatever became of
/// those before it. Times are nanoseconds since the start.
pub(crate) struct Schedule {
    start: Instant,
    rate: u32,
    warm_up_ns: u64,
    end_ns: u64,
    /// The first number that is never due.
    count: u64,
    /// The first number that was not handed out yet.
    next: u64,
}

/// Messages handed out in one turn. They are sent together at its end, so more would make the
/// first ones wait for the last.
pub(crate) const BATCH: usize = 32;

impl Schedule {
    /// A schedule that starts now.
    pub(crate) fn new(rate: u32, warm_up: Duration, measured: Duration) -> Schedule {
        let end_ns = (warm_up + measured).as_nanos() as u64;
        let count = (u128::from(end_ns) * u128::from(rate)).div_ceil(1_000_000_000) as u64;
        let warm_up_ns = warm_up.as_nanos() as u64;
        Schedule { start: Instant::now(), rate, warm_up_ns, end_ns, count, next: 0 }
    }

    /// Now, as the schedule counts.
    pub(crate) fn now_ns(&self) -> u64 {
        self.ns_of(Instant::now())
    }

    /// A moment, as the schedule counts.
    pub(crate) fn ns_of(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.start).as_nanos() as u64
    }

    /// When a message is due.
    pub(crate) fn due_ns(&self, number: u64) -> u64 {
        // A division of 128 bits takes tens of nanoseconds, several times a message.
        match number.checked_mul(1_000_000_000) {
            Some(product) => product / u64::from(self.rate),
            None => (u128::from(number) * 1_000_000_000 / u128::from(self.rate)) as u64,
        }
    }

    /// Whether a message due at this time counts; those of the warm-up do not.
    pub(crate) fn is_measured(&self, due_ns: u64) -> bool {
        due_ns >= self.warm_up_ns
    }

    /// Hands out the next message, if it is due.
    pub(crate) fn next_due(&mut self, now_ns: u64) -> Option<u64> {
        let number = self.next;
        let is_due = number < self.count && self.due_ns(number) <= now_ns;
        is_due.then(|| {
            self.next += 1;
            number
        })
    }

    /// How long until the next message is due.
    fn wait(&self, now_ns: u64) -> Option<Duration> {
        let due_ns = (self.next < self.count).then(|| self.due_ns(self.next))?;
        Some(Duration::from_nanos(due_ns.saturating_sub(now_ns)))
    }

    /// Nothing is due any more that is not due yet.
    fn stop(&mut self, now_ns: u64) {
        let due = (u128::from(now_ns) * u128::from(self.rate) / 1_000_000_000) as u64 + 1;
        self.count = self.count.min(due).max(self.next);
        self.end_ns = self.end_ns.min(now_ns);
    }

    /// Whether every message was handed out.
    fn is_over(&self) -> bool {
        self.next == self.count
    }

    /// The numbers that were due and never handed out: the tool did not get there.
    pub(crate) fn not_handed_out(&self) -> std::ops::Range<u64> {
        self.next..self.count
    }

    /// Whether something that happened now belongs to the throughput of the measured time.
    pub(crate) fn is_in_time(&self, now_ns: u64) -> bool {
        (self.warm_up_ns..self.end_ns).contains(&now_ns)
    }

    /// When the warm-up is over.
    fn warm_up_ns(&self) -> u64 {
        self.warm_up_ns
    }

    /// When the last message has been due.
    fn end_ns(&self) -> u64 {
        self.end_ns
    }

    /// How long the measured time is, or was when it was stopped.
    pub(crate) fn measured(&self) -> Duration {
        Duration::from_nanos(self.end_ns.saturating_sub(self.warm_up_ns))
    }
}

/// How far a run has come: warm-up, measured time, and waiting for what is under way.
pub(crate) struct Course {
    core: Option<usize>,
    pids: Vec<u32>,
    began: Option<Meter>,
    ended: Option<Meter>,
    /// When `goes_on` was asked.
    pub(crate) now_ns: u64,
    /// Whether nothing has ended it early.
    pub(crate) complete: bool,
}

/// How long what is under way may take at the end.
const DRAIN_NS_MAX: u64 = 5_000_000_000;
/// How long a wait may keep us from looking at the stop flag.
const TURN: Duration = Duration::from_millis(50);

impl Course {
    /// `core` is the one we are kept on, `pids` the server.
    pub(crate) fn new(core: Option<usize>, pids: &[u32]) -> Course {
        Course { core, pids: pids.to_vec(), began: None, ended: None, now_ns: 0, complete: true }
    }

    /// Takes note of the time, and of whether to `stop`; says whether the run goes on. It does until
    /// `all_back`, but not for long after the last message was due.
    pub(crate) fn goes_on(&mut self, schedule: &mut Schedule, stop: bool, all_back: bool) -> bool {
        let now_ns = schedule.now_ns();
        self.now_ns = now_ns;
        if self.complete && stop && self.ended.is_none() {
            self.complete = false;
            schedule.stop(now_ns);
        }
        if self.began.is_none() && now_ns >= schedule.warm_up_ns() {
            self.began = Some(Meter::read(self.core, &self.pids));
        }
        if self.ended.is_none() && now_ns >= schedule.end_ns() {
            self.ended = Some(Meter::read(self.core, &self.pids));
        }
        let is_over = schedule.is_over() && all_back && self.ended.is_some();
        !is_over && now_ns < schedule.end_ns() + DRAIN_NS_MAX
    }

    /// How long to wait when nothing happens.
    pub(crate) fn wait(&self, schedule: &Schedule) -> Duration {
        let now_ns = schedule.now_ns();
        let until_due = schedule.wait(now_ns).unwrap_or(TURN);
        let until_end = match self.ended {
            None => Duration::from_nanos(schedule.end_ns().saturating_sub(now_ns)),
            Some(_) => TURN,
        };
        until_due.min(until_end).min(TURN)
    }

    /// What the run is at, and how long that still takes.
    pub(crate) fn phase(&self, schedule: &Schedule) -> (&'static str, Option<Duration>) {
        let until = |end_ns: u64| Duration::from_nanos(end_ns.saturating_sub(schedule.now_ns()));
        match (&self.began, &self.ended) {
            (None, _) => ("warm-up", Some(until(schedule.warm_up_ns()))),
            (_, None) => (MEASURING, Some(until(schedule.end_ns()))),
            _ => ("waiting for what is under way", None),
        }
    }

    /// What was used in the measured time: nothing, when it was stopped before.
    pub(crate) fn usage(self) -> Usage {
        let ended = self.ended.unwrap_or_else(|| Meter::read(self.core, &self.pids));
        self.began.as_ref().unwrap_or(&ended).usage_until(&ended)
    }
}

/// How long the tool sleeps between turns, whatever happens meanwhile: nothing, until its thread has
/// little time to spare.
///
/// A thread that is woken for each message spends most of its time on being woken. When it sleeps for
/// some microseconds instead, what has happened meanwhile is done in one turn, and those who answer
/// have nobody to wake. The price is that a message is sent, and its answer seen, later by as much; so
/// it is paid only where the alternative is to fall behind altogether.
pub(crate) struct Pace {
    sleep: Duration,
    longest: Duration,
    since: (Instant, Duration),
    turns: u32,
}

/// Sleeps grow and shrink in these steps, and up to here.
const SLEEP_STEP: Duration = Duration::from_micros(5);
const SLEEP_MAX: Duration = Duration::from_micros(50);
/// Looked at each time that so much has passed; on the clock, that is looked at every 64th turn.
const PACE_INTERVAL: Duration = Duration::from_millis(20);
/// The thread's share of a core above which sleeps grow, and below which they shrink.
const BUSY_SHARE: f64 = 0.85;
const IDLE_SHARE: f64 = 0.60;

impl Pace {
    /// No sleep.
    pub(crate) fn new() -> Pace {
        let since = (Instant::now(), kernel::own_thread_cpu_time());
        Pace { sleep: Duration::ZERO, longest: Duration::ZERO, since, turns: 0 }
    }

    /// How long to sleep before the next turn. Ask once a turn.
    pub(crate) fn sleep(&mut self) -> Duration {
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(64) && self.since.0.elapsed() >= PACE_INTERVAL {
            let now = (Instant::now(), kernel::own_thread_cpu_time());
            let passed = now.0.duration_since(self.since.0).as_secs_f64();
            self.adapt(now.1.saturating_sub(self.since.1).as_secs_f64() / passed);
            self.since = now;
        }
        self.sleep
    }

    fn adapt(&mut self, busy: f64) {
        if busy > BUSY_SHARE {
            self.sleep = (self.sleep + SLEEP_STEP).min(SLEEP_MAX);
        } else if busy < IDLE_SHARE {
            self.sleep = self.sleep.saturating_sub(SLEEP_STEP);
        }
        self.longest = self.longest.max(self.sleep);
    }

    /// The longest sleep so far.
    pub(crate) fn longest(&self) -> Duration {
        self.longest
    }
}

/// Processor time and clock at one moment.
pub(crate) struct Meter {
    at: Instant,
    thread: Duration,
    core: Option<CoreTime>,
    server: Option<CpuTime>,
}

impl Meter {
    /// Now. `core` is the one we are kept on, `pids` the server.
    pub(crate) fn read(core: Option<usize>, pids: &[u32]) -> Meter {
        Meter {
            at: Instant::now(),
            thread: kernel::own_thread_cpu_time(),
            core: core.and_then(CoreTime::read),
            server: CpuTime::read_all(pids),
        }
    }

    /// What passed between two readings.
    pub(crate) fn usage_until(&self, end: &Meter) -> Usage {
        let seconds = end.at.duration_since(self.at).as_secs_f64();
        let thread_seconds = end.thread.saturating_sub(self.thread).as_secs_f64();
        let core = self.core.as_ref().zip(end.core.as_ref());
        Usage {
            seconds,
            thread_seconds,
            core_busy: core.and_then(|(before, after)| after.busy_since(before)),
            server: self.server.zip(end.server),
        }
    }
}

/// What was used in the measured time.
pub(crate) struct Usage {
    pub(crate) seconds: f64,
    thread_seconds: f64,
    /// Of the core that we are kept on, by whomever; 0 to 1.
    pub(crate) core_busy: Option<f64>,
    server: Option<(CpuTime, CpuTime)>,
}

#[cfg(test)]
impl Usage {
    /// So busy, for tests.
    pub(crate) fn of(thread: f64, core_busy: Option<f64>, server: Option<f64>) -> Usage {
        let server = server.map(|busy| CpuTime::between(busy * 2.0));
        Usage { seconds: 2.0, thread_seconds: 2.0 * thread, core_busy, server }
    }
}

impl Usage {
    /// The processor time of our thread.
    pub(crate) fn tool_seconds(&self) -> f64 {
        self.thread_seconds
    }

    /// How busy our thread was, 0 to 1.
    pub(crate) fn thread_busy(&self) -> f64 {
        if self.seconds > 0.0 { self.thread_seconds / self.seconds } else { 0.0 }
    }

    /// How busy the server was, in cores: above 1 when it ran on several.
    pub(crate) fn server_busy(&self) -> Option<f64> {
        let (before, after) = self.server.as_ref()?;
        Some((after.total_ns - before.total_ns) as f64 / 1e9 / self.seconds.max(1e-9))
    }

    /// The server's processor time for each of `count` things, in microseconds.
    pub(crate) fn server_us_per(&self, count: u64) -> Value {
        let Some((before, after)) = &self.server else { return Value::Null };
        per((after.total_ns - before.total_ns) as f64 / 1e3, count)
    }

    /// The server's processor time, in all and for each of `count` things of the name `unit`.
    pub(crate) fn server_report(&self, unit: &str, count: u64) -> Value {
        let Some((before, after)) = &self.server else { return Value::Null };
        let mut report = Map::new();
        report.insert(format!("cpu_us_per_{unit}"), self.server_us_per(count));
        let busy = self.server_busy().map_or(Value::Null, |busy| round(100.0 * busy));
        report.insert("cpu_busy_percent".into(), busy);
        report.insert("cpu".into(), after.report_since(before));
        Value::Object(report)
    }

    /// How the tool itself fared.
    pub(crate) fn tool_report(&self, lag: &Histogram<u64>, unit: &str, count: u64) -> Value {
        let mut report = Map::new();
        report.insert("lag_us".into(), histogram::report(lag));
        report.insert(format!("cpu_us_per_{unit}"), per(self.thread_seconds * 1e6, count));
        report.insert("thread_busy_percent".into(), round(100.0 * self.thread_busy()));
        let core = self.core_busy.map_or(Value::Null, |busy| round(100.0 * busy));
        report.insert("core_busy_percent".into(), core);
        Value::Object(report)
    }

    /// What the tool had no time to spare of, if anything.
    pub(crate) fn busy_reasons(&self) -> Vec<String> {
        if self.thread_busy() > 0.95 {
            return vec![format!("its thread was busy {:.1} %", 100.0 * self.thread_busy())];
        }
        let core = self.core_busy.filter(|busy| *busy > 0.95);
        core.iter().map(|busy| format!("its core was busy {:.1} %", 100.0 * busy)).collect()
    }

    /// Why the result is about the tool rather than the server, if it is: it sent late, or had no
    /// processor time to spare.
    pub(crate) fn saturation(&self, lag: &Histogram<u64>, p99_ns: u64) -> Option<String> {
        let mut reasons = Vec::new();
        let lag_ns = lag.value_at_quantile(0.999);
        if !lag.is_empty() && lag_ns > p99_ns / 10 {
            reasons.push(format!(
                "p99.9 of its own lag is {:.1} us, above a tenth of the p99 of {:.1} us",
                lag_ns as f64 / 1e3,
                p99_ns as f64 / 1e3
            ));
        }
        reasons.extend(self.busy_reasons());
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// Puts `saturated` and the reason into a report, where `report::text` looks for them.
pub(crate) fn put_saturation(report: &mut Map<String, Value>, reason: Option<&str>) {
    report.insert("saturated".into(), json!(reason.is_some()));
    report.insert("saturated_reason".into(), json!(reason));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn messages_come_due_evenly_and_in_order() {
        let mut schedule = Schedule::new(3, SECOND, SECOND);
        assert_eq!(schedule.not_handed_out(), 0..6);
        assert_eq!(
            [0, 1, 2, 3].map(|k| schedule.due_ns(k)),
            [0, 333_333_333, 666_666_666, 1_000_000_000]
        );
        assert_eq!((schedule.next_due(0), schedule.next_due(0)), (Some(0), None));
        assert_eq!(schedule.wait(333_333_332), Some(Duration::from_nanos(1)));
        // Late, but none is left out.
        let late: Vec<u64> = std::iter::from_fn(|| schedule.next_due(1_500_000_000)).collect();
        assert_eq!(late, [1, 2, 3, 4]);
        assert!(
            !schedule.is_measured(schedule.due_ns(2)) && schedule.is_measured(schedule.due_ns(3))
        );
        assert_eq!(schedule.next_due(u64::MAX), Some(5));
        assert!(schedule.is_over() && schedule.next_due(u64::MAX).is_none());
        assert_eq!(schedule.wait(0), None);
    }

    #[test]
    fn what_was_due_when_it_stopped_stays_due() {
        let mut schedule = Schedule::new(1000, Duration::ZERO, SECOND);
        assert_eq!(schedule.next_due(0), Some(0));
        schedule.stop(10_000_000);
        assert_eq!((schedule.not_handed_out(), schedule.end_ns()), (1..11, 10_000_000));
        assert_eq!(schedule.measured(), Duration::from_millis(10));
        // To stop after the end changes nothing.
        let mut schedule = Schedule::new(1000, Duration::ZERO, SECOND);
        schedule.stop(5_000_000_000);
        assert_eq!((schedule.not_handed_out(), schedule.end_ns()), (0..1000, 1_000_000_000));
    }

    #[test]
    fn a_busy_tool_sleeps_between_turns_and_an_idle_one_does_not() {
        let mut pace = Pace::new();
        pace.adapt(0.84);
        assert_eq!(pace.sleep, Duration::ZERO);
        (0..3).for_each(|_| pace.adapt(0.86));
        assert_eq!(pace.sleep, 3 * SLEEP_STEP);
        // Between the two it stays, or it would swing.
        pace.adapt(0.7);
        assert_eq!(pace.sleep, 3 * SLEEP_STEP);
        (0..100).for_each(|_| pace.adapt(1.0));
        assert_eq!(pace.sleep, SLEEP_MAX);
        (0..100).for_each(|_| pace.adapt(0.1));
        assert_eq!((pace.sleep, pace.longest()), (Duration::ZERO, SLEEP_MAX));
    }

    #[test]
    fn saturation_is_told_with_its_reason() {
        let check = |lag_us: u64, thread: f64, core: Option<f64>, want: &[&str]| {
            let mut lag = histogram::new();
            histogram::record(&mut lag, lag_us * 1000);
            let usage = Usage::of(thread, core, None);
            let reason = usage.saturation(&lag, 1_000_000);
            assert_eq!(reason.is_some(), !want.is_empty(), "{reason:?}");
            let reason = reason.unwrap_or_default();
            assert!(want.iter().all(|part| reason.contains(part)), "{reason}");
        };
        check(99, 0.94, Some(0.94), &[]);
        check(110, 0.5, None, &["p99.9 of its own lag is 110"]);
        check(10, 0.96, None, &["thread was busy 96.0 %"]);
        check(10, 0.5, Some(0.97), &["core was busy 97.0 %"]);
        check(200, 0.99, Some(0.99), &["lag", "; its thread"]);
    }
}
