//! Hostile clients of one kind beside good ones: what do the good ones see, and what does it cost
//! the server?
//!
//! The good ones run on the engine in this thread, the hostile ones in a thread of their own on
//! plain sockets, from other source addresses. `attack/kinds.rs` is the table of what they do.

mod good;
mod hostile;
mod kinds;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde_json::{Map, Value, json};

use crate::engine::{Engine, Settings};
use crate::kernel;
use crate::options::{self, Common};
use crate::outcome::{Outcome, Watch};
use crate::proc::{CpuTime, per, round, rss_bytes};
use crate::progress::{CLOSING, MEASURING, Sample};
use good::{Good, PERIODS};
use hostile::{Bounds, Done, Found};
use kinds::{Ground, KINDS, Kind};

/// Plays hostile clients of one kind beside good ones that echo and chat.
///
/// `--list` names the kinds. scripts/attack sets up a server for it and plays all of them.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// The kind of attack; see --list.
    #[arg(required_unless_present = "list")]
    kind: Option<String>,
    /// Names the kinds, with what each does.
    #[arg(long)]
    list: bool,
    /// The server, such as ws://127.0.0.1:8080; the paths below are put behind it.
    #[arg(long, default_value = "ws://127.0.0.1:8080")]
    url: String,
    /// Relayed to a server that echoes, and hangs up on a header it cannot read. Empty: none.
    #[arg(long, default_value = "/relay")]
    relay_path: String,
    /// Sends every message back. Empty: none.
    #[arg(long, default_value = "/echo")]
    echo_path: String,
    /// Speaks the protocol of the rooms. Empty: none.
    #[arg(long, default_value = "/rooms")]
    rooms_path: String,
    /// Relayed to a server that takes bodies and never answers.
    #[arg(long, default_value = "/sink")]
    sink_path: String,
    /// Relayed to a server that hangs up at the first message. Empty: none.
    #[arg(long, default_value = "")]
    hangup_path: String,
    /// The admin interface, which is asked whether it lives all the while.
    #[arg(long)]
    admin: Option<SocketAddr>,
    /// Hostile clients. Some kinds make several connections for each.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    hostile: u32,
    /// The addresses that they come from, 127.66.0.1 upwards. Some kinds have a number of their own.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=250))]
    hostile_addresses: u32,
    /// Bytes that all of them may send in a second: by default, a line of 1 Gbit/s.
    #[arg(long, default_value_t = 125_000_000)]
    hostile_bytes_per_second: u64,
    /// Good clients that stay, from 127.0.1.1 upwards.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    good: u32,
    /// Their messages a second, all together.
    #[arg(long, default_value = "1000/s", value_parser = options::rate)]
    rate: u32,
    /// Good clients that connect, are served once, and leave: so many a second.
    #[arg(long, default_value = "40/s", value_parser = options::rate)]
    newcomer_rate: u32,
    /// The good ones alone.
    #[arg(long = "before-seconds", default_value = "3", value_parser = options::seconds, value_name = "SECONDS")]
    before: Duration,
    /// The attack.
    #[arg(long = "attack-seconds", default_value = "8", value_parser = options::seconds, value_name = "SECONDS")]
    attack: Duration,
    /// The good ones alone again; the memory is read at the end.
    #[arg(long = "after-seconds", default_value = "10", value_parser = options::seconds, value_name = "SECONDS")]
    after: Duration,
    /// Ends that time as soon as the memory is back, though not before this.
    #[arg(long = "after-seconds-min", value_parser = options::seconds, value_name = "SECONDS")]
    after_min: Option<Duration>,
    /// Until a client is told that its upstream is gone: longer than limits.lost_window_ms.
    #[arg(long = "told-seconds-max", default_value = "3", value_parser = options::seconds, value_name = "SECONDS")]
    told_max: Duration,
    /// The most that the server may have resident.
    #[arg(long, default_value_t = 1 << 30)]
    rss_bytes_max: u64,
    /// Above it the attack is broken off, and above twice as much the server is killed.
    #[arg(long, default_value_t = 4 << 30)]
    rss_bytes_stop: u64,
    #[command(flatten)]
    common: Common,
}

/// What the p99 of the good ones may always be.
const P99_ALLOWED_NS: u64 = 20_000_000;
/// And how many times that without the attack.
const P99_TIMES_ALLOWED: u64 = 3;
/// How far above its start the memory may be at the end.
const RSS_BACK_BYTES: u64 = 20_000_000;
/// For a probe of the admin interface.
const PROBE_ALLOWED: Duration = Duration::from_secs(1);
/// What a connection that has failed may pour in, what fits into the kernel's buffers included.
const POURED_BYTES: u64 = 8_000_000;
const OPENING_TIMEOUT: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(5);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// Newcomers that are here at once, at most.
const NEWCOMERS: u32 = 120;

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    if options.list {
        let list = KINDS.iter().map(|kind| (kind.name.to_owned(), json!(kind.about)));
        return Ok(Outcome::of_figures(list.collect()));
    }
    let name = options.kind.as_deref().unwrap_or_default();
    let Some(kind) = KINDS.iter().find(|kind| kind.name == name) else {
        return Err(io::Error::other(format!("there is no attack {name}: see --list")));
    };
    let mut options = options.clone();
    options.common.pids = watch.begin(&options.common)?;
    let options = &options;
    let target = options.common.target(&options.url)?;
    let ground = Ground {
        host: target.host.clone(),
        relay: options.relay_path.clone(),
        echo: options.echo_path.clone(),
        rooms: options.rooms_path.clone(),
        sink: options.sink_path.clone(),
        hangup: options.hangup_path.clone(),
    };
    let attacked = match (kind.on_admin, options.admin) {
        (true, Some(admin)) => admin,
        (true, None) => return Err(io::Error::other(format!("{name} needs --admin"))),
        (false, _) => target.address,
    };
    kernel::wake_on_time();
    let newcomers = NEWCOMERS.min(options.good);
    let mut engine = Engine::new(Settings::new(
        vec![target.clone()],
        options.good + newcomers,
        &options.common,
    ))?;
    let rates = (options.rate, options.newcomer_rate);
    let hangs_up = name == "half-closes";
    let mut good = Good::new(&ground, options.good, newcomers, rates, hangs_up);
    open_staying(&mut engine, &mut good, options, watch)?;
    let started_at = SystemTime::now();
    let bounds = Bounds {
        connections: connections(options, kind),
        addresses: kind.addresses.unwrap_or(options.hostile_addresses),
        bytes_per_second: options.hostile_bytes_per_second,
        opens_per_second: kind.opens_min.max(kind.opens_each * f64::from(options.hostile)),
    };
    let done = Done::default();
    let probe_stop = AtomicBool::new(false);
    let mut seen = Seen::default();
    let (found, probed) = thread::scope(|scope| {
        let probe_stop = &probe_stop;
        let prober = options.admin.map(|admin| scope.spawn(move || probe(admin, probe_stop)));
        let attack = || hostile::run(kind, &ground, attacked, &bounds, &done);
        let begin = || scope.spawn(attack);
        let found = play(&mut engine, &mut good, options, watch, &done, &mut seen, begin);
        // Both end on a fault of the other as well, or the scope would wait for them.
        done.stop.store(true, Ordering::Relaxed);
        probe_stop.store(true, Ordering::Relaxed);
        let probed = prober.map(|prober| prober.join().expect("the probe does not panic"));
        found.map(|found| (found, probed))
    })?;
    watch.tick(&Sample::of(CLOSING, &engine.counts));
    good.is_ending = true;
    engine.close_all(&mut good, DRAIN)?;
    let bytes = done.bytes.load(Ordering::Relaxed);
    let probed = probed.as_ref();
    let report =
        Run { options, kind, good: &good, seen: &seen, found: &found, probed, bytes }.report();
    let mut histograms = Vec::new();
    for (period, name) in good.periods.into_iter().zip(PERIODS) {
        let mut all = crate::histogram::new();
        for (_, latency) in &period.latency {
            all.add(latency).expect("histograms of one make");
        }
        histograms.push((name.into(), all));
    }
    // What was seen during the attack is what to quote.
    histograms.swap(0, 1);
    Ok(Outcome { figures: report, histograms, started_at, measured: options.attack })
}

/// What was read of the server.
#[derive(Default)]
struct Seen {
    rss_start: Option<u64>,
    rss_peak: Option<u64>,
    rss_end: Option<u64>,
    /// From the end of the attack until the memory was back.
    back_after: Option<Duration>,
    /// Processor time in nanoseconds, and over how long.
    cpu_before: Option<(u64, Duration)>,
    cpu_during: Option<(u64, Duration)>,
    broken_off: bool,
    killed: bool,
    complete: bool,
}

fn connections(options: &Options, kind: &Kind) -> u32 {
    (options.hostile * kind.factor).min(kind.connections_max)
}

fn open_staying(
    engine: &mut Engine,
    good: &mut Good<'_>,
    options: &Options,
    watch: &Watch<'_>,
) -> io::Result<()> {
    let began = Instant::now();
    let mut next = 0;
    while engine.counts.opened + engine.counts.failed.total() < u64::from(options.good)
        && !watch.stopped()
        && began.elapsed() < OPENING_TIMEOUT
    {
        while next < options.good && engine.opening() < 64 {
            engine.open(next, Instant::now());
            next += 1;
        }
        engine.turn(good, Duration::from_millis(50))?;
        watch.tick(&Sample::of("opening", &engine.counts));
    }
    if engine.counts.opened < u64::from(options.good) && !watch.stopped() {
        let text = format!("opened {} of {}", engine.counts.opened, options.good);
        return Err(io::Error::other(format!("{text}: {}", engine.counts.failed.report())));
    }
    watch.ready()
}

/// Plays the periods; `attack` begins the attack.
fn play<'scope>(
    engine: &mut Engine,
    good: &mut Good<'_>,
    options: &Options,
    watch: &Watch<'_>,
    done: &Done,
    seen: &mut Seen,
    attack: impl FnOnce() -> thread::ScopedJoinHandle<'scope, io::Result<Found>>,
) -> io::Result<Found> {
    let pids = &options.common.pids;
    let cpu = || CpuTime::read_all(pids).map(|time| time.total_ns);
    // Half a second, unmeasured in memory and processor time, in which joins are answered.
    let settle = Duration::from_millis(500);
    let mut attack = Some(attack);
    let mut attacker = None;
    let mut period = 0;
    let mut began = Instant::now();
    let mut cpu_began = cpu();
    let mut sampled = Instant::now();
    let mut ending: Option<Instant> = None;
    seen.complete = true;
    while began.elapsed() < settle && !watch.stopped() {
        engine.turn(good, Duration::from_millis(20))?;
    }
    good.begin();
    began = Instant::now();
    loop {
        let in_period = began.elapsed();
        if watch.stopped() && ending.is_none() {
            seen.complete = false;
            good.stop();
            ending = Some(Instant::now());
        }
        if sampled.elapsed() >= SAMPLE_INTERVAL {
            sampled = Instant::now();
            if let Some(rss) = rss_bytes(pids) {
                on_memory(seen, options, done, rss, period, in_period);
            }
        }
        match period {
            _ if ending.is_some() => {}
            0 if in_period >= options.before => {
                seen.cpu_before = cpu().zip(cpu_began).map(|(now, then)| (now - then, in_period));
                seen.rss_start = rss_bytes(pids);
                seen.rss_peak = seen.rss_start;
                cpu_began = cpu();
                good.enter(1);
                attacker = attack.take().map(|attack| attack());
                (period, began) = (1, Instant::now());
            }
            1 if in_period >= options.attack || seen.broken_off => {
                done.stop.store(true, Ordering::Relaxed);
                seen.cpu_during = cpu().zip(cpu_began).map(|(now, then)| (now - then, in_period));
                good.enter(2);
                (period, began) = (2, Instant::now());
            }
            2 => {
                let may_end = options.after_min.is_some_and(|min| in_period >= min);
                if in_period >= options.after || (may_end && seen.back_after.is_some()) {
                    good.stop();
                    ending = Some(Instant::now());
                }
            }
            _ => {}
        }
        if let Some(since) = ending
            && ((good.all_back() && engine.opening() == 0) || since.elapsed() >= DRAIN)
        {
            break;
        }
        good.turn(engine);
        engine.turn(good, good.wait())?;
        watch.tick(&Sample::of(MEASURING, &engine.counts));
    }
    seen.rss_end = rss_bytes(pids);
    good.count_lost();
    done.stop.store(true, Ordering::Relaxed);
    match attacker {
        Some(attacker) => attacker.join().expect("the attack does not panic"),
        None => Ok(Found::default()),
    }
}

fn on_memory(
    seen: &mut Seen,
    options: &Options,
    done: &Done,
    rss: u64,
    period: usize,
    in_period: Duration,
) {
    if period > 0 {
        seen.rss_peak = seen.rss_peak.max(Some(rss));
    }
    let is_back = seen.rss_start.is_some_and(|start| rss <= start + RSS_BACK_BYTES);
    if period == 2 && seen.back_after.is_none() && is_back {
        seen.back_after = Some(in_period);
    }
    if rss > options.rss_bytes_stop {
        seen.broken_off = true;
        done.stop.store(true, Ordering::Relaxed);
    }
    // The machine is not to be lost for it.
    if rss > 2 * options.rss_bytes_stop && !seen.killed {
        seen.killed = true;
        for pid in &options.common.pids {
            let pid = i32::try_from(*pid).ok().and_then(rustix::process::Pid::from_raw);
            let _ =
                pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
    }
}

/// What probes of the admin interface saw.
#[derive(Default)]
struct Probed {
    count: u64,
    failed: u64,
    longest: Duration,
}

fn probe(admin: SocketAddr, stop: &AtomicBool) -> Probed {
    let mut probed = Probed::default();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let ask = || -> io::Result<bool> {
            let mut stream = TcpStream::connect_timeout(&admin, Duration::from_secs(10))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let head = "GET /api/v1/health/live HTTP/1.1\r\nHost: localhost\r\n";
            stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
            let mut answer = Vec::new();
            stream.take(64 * 1024).read_to_end(&mut answer)?;
            Ok(answer.starts_with(b"HTTP/1.1 200"))
        };
        probed.count += 1;
        probed.failed += u64::from(!ask().unwrap_or(false));
        probed.longest = probed.longest.max(began.elapsed());
        thread::sleep(Duration::from_millis(250));
    }
    probed
}

/// A run that is over: what was asked for, and what was seen.
struct Run<'r, 'g> {
    options: &'r Options,
    kind: &'r Kind,
    good: &'r Good<'g>,
    seen: &'r Seen,
    found: &'r Found,
    /// `None`: nobody asked how the server was.
    probed: Option<&'r Probed>,
    /// Bytes that hostile clients have sent.
    bytes: u64,
}

impl Run<'_, '_> {
    fn report(&self) -> Map<String, Value> {
        let Run { options, kind, good, seen, found, probed, bytes } = *self;
        let missed = self.missed();
        let mut report = Map::new();
        let mut put = |key: &str, value: Value| {
            report.insert(key.to_owned(), value);
        };
        put("scenario", json!("attack: hostile clients beside good ones"));
        put("kind", json!(kind.name));
        put("about", json!(kind.about));
        put("complete", json!(seen.complete));
        put("ok", json!(!seen.complete || missed.is_empty()));
        put("missed", json!(missed));
        put("good_count", json!(options.good));
        put("hostile_count", json!(options.hostile));
        for (period, name) in good.periods.iter().zip(PERIODS) {
            put(name, period.report());
        }
        put("rss_start_bytes", json!(seen.rss_start));
        put("rss_peak_bytes", json!(seen.rss_peak));
        put("rss_end_bytes", json!(seen.rss_end));
        let seconds = |time: Duration| round(time.as_secs_f64());
        put("rss_back_after_seconds", json!(seen.back_after.map(seconds)));
        put("broken_off_for_memory", json!(seen.broken_off));
        put("killed_for_memory", json!(seen.killed));
        let own = seen.cpu_during.zip(seen.cpu_before).map(|(during, before)| {
            let usual = before.0 as f64 * during.1.as_secs_f64() / before.1.as_secs_f64().max(1e-9);
            (during.0 as f64 - usual).max(0.0)
        });
        put("attack_cpu_seconds", json!(own.map(|ns| round(ns / 1e9))));
        put("attack_bytes", json!(bytes));
        put("attack_cpu_ns_per_byte", own.map_or(Value::Null, |ns| per(ns, bytes)));
        put(
            "hostile",
            json!({
                "connections": connections(options, kind),
                "opened_count": found.opened,
                "open_max": found.open_max,
                "resets_before_an_answer_count": found.resets,
                "endings": found.endings.report(),
            }),
        );
        if let Some(probed) = probed {
            put(
                "probe",
                json!({
                    "count": probed.count,
                    "failed_count": probed.failed,
                    "longest_ms": round(probed.longest.as_secs_f64() * 1e3),
                }),
            );
        }
        report
    }

    /// The criteria that were missed, as sentences.
    fn missed(&self) -> Vec<String> {
        let Run { options, kind, good, seen, found, probed, bytes } = *self;
        let mut missed = Vec::new();
        let errors: u64 = good.periods.iter().map(|period| period.errors.total()).sum();
        if errors > 0 {
            missed.push(format!("good clients saw {errors} errors"));
        }
        let newcomer_errors: u64 = good.periods.iter().map(|p| p.newcomer_errors.total()).sum();
        if newcomer_errors > 0 && kind.newcomers_judged {
            missed.push(format!("newcomers saw {newcomer_errors} errors"));
        }
        let (before, during) = (good.periods[0].p99_ns(), good.periods[1].p99_ns());
        if during > P99_ALLOWED_NS.max(P99_TIMES_ALLOWED * before) {
            let ms = |ns: u64| ns as f64 / 1e6;
            let late = ms(good.periods[1].lag.value_at_quantile(0.99));
            let text = format!("p99 {:.1} ms, before {:.1} ms", ms(during), ms(before));
            missed.push(format!("{text} (the tool itself was {late:.1} ms late)"));
        }
        let told = good.periods.iter().map(|period| period.told.max()).max().unwrap_or(0);
        if u128::from(told) > options.told_max.as_nanos() {
            missed.push(format!("told of a lost upstream after {:.1} s", told as f64 / 1e9));
        }
        if seen.broken_off {
            missed.push("broken off for memory".into());
        }
        let mb = |bytes: u64| bytes / 1_000_000;
        if let Some(peak) = seen.rss_peak.filter(|peak| *peak > options.rss_bytes_max) {
            missed.push(format!("{} MB resident", mb(peak)));
        }
        if let Some((start, end)) = seen.rss_start.zip(seen.rss_end)
            && end > start + RSS_BACK_BYTES
        {
            missed.push(format!("{} MB more resident after it", mb(end - start)));
        }
        if !options.common.pids.is_empty() && seen.rss_end.is_none() {
            missed.push("the server is gone".into());
        }
        // They are honest clients that come together, and are owed an answer.
        if kind.name == "backlog" && found.resets > 0 {
            missed.push(format!("{} connects were reset", found.resets));
        }
        if kind.name == "pouring" && bytes > found.opened * POURED_BYTES {
            missed.push(format!(
                "{} kB taken of each that pours",
                bytes / found.opened.max(1) / 1000
            ));
        }
        if let Some(probed) = probed
            && (probed.failed > 0 || probed.longest > PROBE_ALLOWED)
        {
            let longest = probed.longest.as_secs_f64();
            missed.push(format!("{} health probes failed, longest {longest:.1} s", probed.failed));
        }
        missed
    }
}
