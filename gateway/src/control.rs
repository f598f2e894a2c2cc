//! The control thread: signals, reload, drain, health checks, the log, and the admin interface.
//!
//! ```text
//!   SIGTERM, SIGINT, `penstock drain`  -> drain    not ready; `drain_delay`; the shards stop; exit
//!   SIGHUP, `penstock reload`          -> reload   read, check, succeed; an order to each shard
//!   names, resolve.rs                  -> another list of upstreams, as by a reload
//!   outcomes of checks.rs              -> an order to each shard, a line in the log
//!   journals of the shards             -> lines in the log
//!   admin.rs                           -> all of the above, and questions
//! ```
//!
//! It is one tokio runtime on the main thread. It shares nothing with a shard but its inbox, its
//! counters and its journal, so nothing that is slow here is slow there.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::access::{AccessLog, Closes};
use crate::checks::{Changes, Checker, Outcome, targets};
use crate::config::succession::{Succession, succeed};
use crate::config::warnings::running_as_root;
use crate::config::{BackendKind, Config, Overrides};
use crate::history::{self, History};
use crate::interval_log;
use crate::metrics::{Cause, Metrics};
use crate::names::Escaped;
use crate::random::Random;
use crate::server::Gateway;
use crate::shard::drain::pace;
use crate::shard::mailbox::{Letter, Order};
use crate::troubles::{AcceptFailures, Troubles};
use crate::upstream::UpstreamSpec;
use crate::{admin, allocator, log, memory, resolve};

/// How often journals are read, and a drain is looked after.
const TICK: Duration = Duration::from_millis(100);

/// How long a shard whose inbox is full is given to take an order.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);

/// Outcomes of checks that wait to be passed on; the checks wait beyond it.
const OUTCOMES_MAX: usize = 1024;

/// Where the configuration came from, to be read again.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// The options of the command line, which go before the file's keys.
    pub overrides: Overrides,
}

/// The phase in the life of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It serves.
    Serving,
    /// It serves, and tells balancers that it will not for long.
    NotReady,
    /// It accepts nobody and asks its clients to leave.
    Draining {
        /// Clients at the beginning.
        clients: u64,
        /// When the last is asked to leave; what is left is cut off `stop_timeout` later.
        until: SystemTime,
    },
}

/// What the control thread knows, for those who ask it.
pub struct Control {
    /// The shards.
    pub gateway: Gateway,
    /// When it started to serve.
    pub started: Instant,
    source: Option<Source>,
    config: watch::Sender<Arc<Config>>,
    phase: watch::Sender<Phase>,
    drain: watch::Sender<bool>,
    /// The memory ledger.
    pub memory: memory::Keeper,
    access: std::sync::Mutex<AccessLog>,
    history: std::sync::Mutex<History>,
    closes: std::sync::Mutex<Closes>,
    troubles: std::sync::Mutex<(Troubles, AcceptFailures)>,
    /// Held from reading a file until every shard goes by it.
    reloading: Mutex<()>,
}

/// A reload that was done.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// The generation that runs now.
    pub generation: u64,
    /// What is different; empty when the file says what it said before.
    pub changes: Vec<String>,
}

/// Runs the gateway until it has been asked to stop and has done so.
///
/// `take_over`: beside a gateway that has the same listeners and admin socket, which it replaces.
pub fn run(config: Config, source: Option<Source>, take_over: bool) -> ExitCode {
    let writer = log::init(&config.log);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(|error| format!("no runtime for the control thread: {error}"));
    let result = result.and_then(|runtime| runtime.block_on(serve(config, source, take_over)));
    // Writes what the log still has, so that the reason is the last line.
    drop(writer);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("penstock: not started: {}", Escaped(&why));
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config, source: Option<Source>, take_over: bool) -> Result<(), String> {
    // Before anything else: a signal that comes while we start is kept until we look.
    let of = |kind| signal(kind).map_err(|error| format!("signals cannot be received: {error}"));
    let mut signals = Signals {
        terminate: of(SignalKind::terminate())?,
        interrupt: of(SignalKind::interrupt())?,
        hangup: of(SignalKind::hangup())?,
    };
    let admin = admin::listen(&config.admin, take_over).await?;
    let in_use_at_start = allocator::bytes_in_use();
    let gateway = Gateway::start_beside(config, take_over)?;
    // Of a gateway that runs: a start that is refused says why and nothing else.
    if rustix::process::geteuid().is_root() {
        warn!("{}", running_as_root());
    }
    warn_of(gateway.config(), source.as_ref());
    let control = Arc::new(Control {
        started: Instant::now(),
        source,
        config: watch::Sender::new(Arc::clone(gateway.config())),
        phase: watch::Sender::new(Phase::Serving),
        drain: watch::Sender::new(false),
        memory: memory::Keeper::new(in_use_at_start),
        access: std::sync::Mutex::new(AccessLog::new(&gateway.config().log, Instant::now())),
        history: std::sync::Mutex::default(),
        closes: std::sync::Mutex::default(),
        troubles: std::sync::Mutex::default(),
        reloading: Mutex::new(()),
        gateway,
    });
    tokio::spawn(check_health(Arc::clone(&control)));
    tokio::spawn(resolve::keep(Arc::clone(&control)));
    tokio::spawn(write_log(Arc::clone(&control)));
    tokio::spawn(history::keep(Arc::clone(&control)));
    tokio::spawn(memory::keep(Arc::clone(&control)));
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let interval_log = tokio::spawn(interval_log::keep(Arc::clone(&control), stopped));
    let admin = admin.serve(&control);
    control.gateway.greet(&admin.places());
    control.follow(&mut signals).await;
    drop(admin);
    drop(stop);
    // It has said what went wrong.
    drop(interval_log.await);
    control.write_journals();
    control.access().finish();
    info!("stopped: every connection is closed");
    println!("{}", summary(&control.gateway.metrics()));
    Ok(())
}

/// Writes down what is in order and may do harm.
fn warn_of(config: &Config, source: Option<&Source>) {
    for warning in &config.warnings.0 {
        match source.filter(|_| warning.line > 0) {
            Some(source) => warn!("{}:{}: {warning}", source.file.display(), warning.line),
            None => warn!("{warning}"),
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Control {
    /// The configuration that new requests go by.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// The same, to be told when there is another.
    pub fn configs(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// The phase in the life of the gateway.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Asks for an orderly stop; it goes on from here by itself. Readiness answers no when this returns.
    pub fn drain(&self) {
        self.leave_serving();
        self.drain.send_replace(true);
    }

    /// Serving is over; a later phase stays.
    fn leave_serving(&self) {
        self.phase.send_if_modified(|phase| {
            let serves = *phase == Phase::Serving;
            if serves {
                *phase = Phase::NotReady;
            }
            serves
        });
    }

    /// Does as it is told until every shard has stopped.
    async fn follow(self: &Arc<Self>, signals: &mut Signals) {
        let mut asked = self.drain.subscribe();
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                _ = signals.hangup.recv() => {
                    // Apart, as it may wait for DNS: a signal to stop is heard all the same.
                    let control = Arc::clone(self);
                    tokio::spawn(async move { drop(control.reload_and_log().await) });
                }
                _ = asked.wait_for(|asked| *asked) => break,
            }
        }
        let drained = self.drain_shards();
        tokio::pin!(drained);
        loop {
            tokio::select! {
                () = &mut drained => return,
                _ = signals.terminate.recv() => self.cut_off("SIGTERM"),
                _ = signals.interrupt.recv() => self.cut_off("SIGINT"),
                _ = signals.hangup.recv() => warn!("no reload: the gateway is stopping"),
            }
        }
    }

    /// Ends the process: whoever asks twice means it.
    fn cut_off(&self, signal: &str) -> ! {
        let clients: u64 = self.gateway.counters().iter().map(|it| it.clients.get()).sum();
        // Not by the log, which a thread writes that ends here, too.
        eprintln!(
            "penstock: {signal} while stopping: {clients} connected clients are cut off without a Close \
             frame, and the gateway ends with the exit code 1"
        );
        std::process::exit(1)
    }

    async fn drain_shards(&self) {
        let server = self.config().server.clone();
        self.leave_serving();
        if !server.drain_delay.is_zero() {
            info!(
                "asked to stop: readiness answers no from now on; clients are accepted and served for \
                 another {:?} (server.drain_delay_ms)",
                server.drain_delay
            );
            tokio::time::sleep(server.drain_delay).await;
        }
        // As a shard reckons, for the one that has the most.
        let clients = || self.gateway.counters().iter().map(|counters| counters.clients.get());
        let most = clients().max().unwrap_or(0);
        let window = pace(u32::try_from(most).unwrap_or(u32::MAX), server.drain_window);
        let until = SystemTime::now() + window;
        let clients: u64 = clients().sum();
        self.phase.send_replace(Phase::Draining { clients, until });
        warn!(
            "stopping: no client is accepted any more; {clients} connected clients are sent a Close frame \
             within {window:.1?} (server.drain_window_ms), and those that are still connected {:.1?} later \
             (server.stop_timeout_ms) are cut off; a second SIGTERM or SIGINT cuts all off at once",
            server.stop_timeout
        );
        self.gateway.ask_to_stop();
        while !self.gateway.has_stopped() {
            tokio::time::sleep(TICK / 10).await;
        }
    }

    /// Reads the file again and goes by it.
    ///
    /// # Errors
    ///
    /// What is wrong with the file, or what cannot change while the gateway runs: a line for each.
    /// Nothing has changed then.
    pub async fn reload(&self) -> Result<Reloaded, String> {
        let _one_at_a_time = self.reloading.lock().await;
        let Some(source) = self.source.clone() else {
            return Err("there is no file to read again: penstock runs its embedded \
                        configuration; start it with `penstock run FILE`"
                .to_owned());
        };
        if self.phase() != Phase::Serving {
            return Err("no reload: the gateway is stopping".to_owned());
        }
        // It may have to ask DNS.
        let read = move || Config::load_with(&source.file, &source.overrides);
        let read = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
        let new = read.map_err(|faults| faults.to_string())?;
        let old = self.config();
        // A shard that still goes by an earlier one could lead clients to numbers given away now.
        self.wait_for_generation(old.generation).await?;
        let shared = self.gateway.shared();
        let Succession { config, changes } = succeed(&old, new, |number| shared.is_in_use(number))
            .map_err(|refusal| refusal.to_string())?;
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        // Names may have been resolved anew since, to what is not the file's answer now.
        if changes.is_empty() && config.backends == old.backends {
            return Ok(Reloaded { generation: old.generation, changes });
        }
        let generation = self.take_on(config).await?;
        Ok(Reloaded { generation, changes })
    }

    /// Goes by another list of upstreams of a backend, if it is still the one that `before` was of.
    /// Returns whether it does.
    ///
    /// # Errors
    ///
    /// As [`Control::reload`].
    pub async fn take_on_upstreams(
        &self,
        backend: &str,
        before: &[UpstreamSpec],
        list: Vec<UpstreamSpec>,
    ) -> Result<bool, String> {
        let _one_at_a_time = self.reloading.lock().await;
        let mut config = Config::clone(&self.config());
        let live = config.backends.iter_mut().filter(|it| !it.retired && it.name == backend);
        let found = live.filter_map(|it| match &mut it.kind {
            BackendKind::Websocket(websocket) => Some(websocket),
            _ => None,
        });
        let Some(websocket) = found.into_iter().find(|it| it.upstreams == before) else {
            return Ok(false);
        };
        if self.phase() != Phase::Serving {
            return Ok(false);
        }
        websocket.upstreams = list;
        self.wait_for_generation(config.generation).await?;
        config.generation += 1;
        self.take_on(config).await?;
        Ok(true)
    }

    /// Has every shard go by a configuration that follows the present one; returns its generation.
    async fn take_on(&self, config: Config) -> Result<u64, String> {
        let generation = config.generation;
        self.gateway.shared().budget.set_bytes_max(config.server.memory_bytes_max);
        let config = Arc::new(config);
        // What was written down so far is of the numbers that the present one has.
        self.write_journals();
        // Before the shards: what they write down may be of numbers that only this one has.
        self.config.send_replace(Arc::clone(&config));
        for shard in 0..config.server.shards {
            self.order_config(shard, &config).await?;
        }
        self.wait_for_generation(generation).await?;
        Ok(generation)
    }

    /// All shards go by a configuration or none does, so this waits for as long as it takes.
    async fn order_config(&self, shard: u16, config: &Arc<Config>) -> Result<(), String> {
        while let Err(why) = self.order(shard, Order::Config(Arc::clone(config))).await {
            if self.gateway.has_stopped() {
                return Err("the gateway has stopped".to_owned());
            }
            warn!("reload: waiting: {why}");
        }
        Ok(())
    }

    async fn wait_for_generation(&self, generation: u64) -> Result<(), String> {
        let deadline = Instant::now() + ORDER_TIMEOUT;
        let behind = || {
            let counters = self.gateway.counters();
            counters.iter().position(|it| it.config_generation.get() < generation)
        };
        let mut pause = Duration::from_micros(50);
        while let Some(shard) = behind() {
            if Instant::now() > deadline {
                return Err(format!(
                    "shard {shard} has not taken the configuration on within {ORDER_TIMEOUT:?}: it \
                     will, as soon as it gets to its mail"
                ));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(TICK);
        }
        Ok(())
    }

    /// The same, and a word in the log.
    ///
    /// # Errors
    ///
    /// As [`Control::reload`].
    pub async fn reload_and_log(&self) -> Result<Reloaded, String> {
        let result = self.reload().await;
        match &result {
            Ok(Reloaded { generation, changes }) if changes.is_empty() => {
                info!(generation, "reload: the configuration is as it was");
            }
            Ok(Reloaded { generation, changes }) => {
                info!(generation, changes = changes.len(), "reload: the configuration has changed");
                warn_of(&self.config(), self.source.as_ref());
                changes.iter().for_each(|change| info!(generation, "reload: {change}"));
            }
            Err(why) => {
                error!("reload: nothing has changed, the configuration cannot be taken on");
                why.lines().for_each(|line| error!("reload: {line}"));
            }
        }
        result
    }

    /// Writes to a shard. While its inbox is full, this waits for a while.
    ///
    /// # Errors
    ///
    /// It takes none, or has stopped.
    pub async fn order(&self, shard: u16, order: Order) -> Result<(), String> {
        let deadline = Instant::now() + ORDER_TIMEOUT;
        let mut letter = Letter::Order(order);
        loop {
            match self.gateway.post(shard, letter) {
                Ok(()) => return Ok(()),
                Err(back) if Instant::now() < deadline => letter = back,
                Err(_) => return Err(format!("shard {shard} takes no orders: its inbox is full")),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn access(&self) -> std::sync::MutexGuard<'_, AccessLog> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted in the last intervals.
    pub fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last connections that ended, up to a tenth of a second ago.
    pub fn closes(&self) -> std::sync::MutexGuard<'_, Closes> {
        self.closes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_journals(&self) {
        let config = self.config();
        let (mut log, mut closes) = (self.access(), self.closes());
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let (troubles, accept_failures) = &mut *troubles;
        let (mut lost, mut troubles_lost) = (0, 0);
        for (shard, journal) in (0..=u16::MAX).zip(self.gateway.journals()) {
            while let Some(closed) = journal.pop() {
                log.write(shard, &closed, &config);
                closes.push(shard, closed);
            }
            lost += journal.take_lost();
            while let Some(trouble) = journal.pop_trouble() {
                troubles.push(trouble, &config);
            }
            troubles_lost += journal.take_troubles_lost();
            while let Some(failure) = journal.pop_accept_failure() {
                accept_failures.push(failure);
            }
        }
        log.end_of_tick(lost, Instant::now());
        closes.end_of_tick(&config);
        troubles.end_of_tick(troubles_lost, Instant::now());
        accept_failures.end_of_tick(&config, Instant::now());
    }
}

/// Keeps the checks that the configuration asks for going, and passes on what they find.
async fn check_health(control: Arc<Control>) {
    let random = match Random::from_kernel() {
        Ok(random) => random,
        Err(error) => return error!("no health checks: {error}"),
    };
    let (sender, mut outcomes) = mpsc::channel::<Outcome>(OUTCOMES_MAX);
    let mut checker = Checker::new(sender, random);
    let mut changes = Changes::default();
    let mut configs = control.config.subscribe();
    configs.mark_changed();
    loop {
        tokio::select! {
            changed = configs.changed() => {
                if changed.is_err() {
                    return;
                }
                let targets = targets(&configs.borrow_and_update());
                changes.set(&targets);
                checker.set(targets);
            }
            Some(outcome) = outcomes.recv() => {
                if let Some(line) = changes.on_outcome(&outcome) {
                    warn!("{line}");
                }
                let Some(ok) = outcome.finding.verdict() else { continue };
                let Outcome { backend, upstream, .. } = outcome;
                for shard in 0..control.config().server.shards {
                    // A shard that takes no orders now takes the next outcome.
                    let _ = control.order(shard, Order::Checked { backend, upstream, ok }).await;
                }
            }
        }
    }
}

/// Said once; the counter goes on.
const SIDS_MISSED: &str = "an upstream answered a request that opens a session of Engine.IO with no session \
                           that is understood: further requests of it may meet another upstream; \
                           `sticky_cookie = true` keeps browsers where they are, \
                           penstock_sids_missed_total counts on";

/// Makes lines of what the shards have written down.
async fn write_log(control: Arc<Control>) {
    let mut configs = control.config.subscribe();
    // As the file has it: what was ordered since stays until the file says something new.
    let mut level = configs.borrow_and_update().log.level.clone();
    let mut told = 0;
    let mut told_missed = false;
    loop {
        tokio::time::sleep(TICK).await;
        if !told_missed && control.gateway.counters().iter().any(|it| it.sids_missed.get() > 0) {
            told_missed = true;
            warn!("{SIDS_MISSED}");
        }
        if configs.has_changed().unwrap_or(false) {
            let options = &configs.borrow_and_update().log;
            control.access().set_options(options);
            if options.level != level {
                log::set_level(&options.level);
                level.clone_from(&options.level);
            }
        }
        control.write_journals();
        told = log::tell_dropped(told);
    }
}

/// What was counted, in a line per subject.
fn summary(metrics: &Metrics) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "counted since the start: connections accepted {}, upgraded to WebSocket {}, messages received {}, \
         messages relayed {}, frames sent {}, HTTP requests forwarded {}, failures of upstreams {}, bytes \
         received {}, receives without a free buffer {}, Engine.IO sessions learnt {}, sessions not known {}\n\
         slow members of rooms: messages dropped {}, messages conflated {}, gap markers sent {}, members \
         closed {}\nconnections closed, by cause:",
        metrics.accepted,
        metrics.upgraded,
        metrics.messages_received,
        metrics.messages_relayed,
        metrics.frames_sent,
        metrics.requests_forwarded,
        metrics.upstream_failures,
        metrics.received_bytes,
        metrics.starved,
        metrics.sids_learnt,
        metrics.sids_unknown,
        metrics.messages_dropped,
        metrics.messages_conflated,
        metrics.gap_markers_sent,
        metrics.closed(Cause::SlowConsumer),
    );
    let mut separator = " ";
    for cause in Cause::ALL {
        let count = metrics.closed(cause);
        if count > 0 {
            // Writing into a `String` cannot fail.
            let _ = write!(text, "{separator}{} {count}", cause.name());
            separator = ", ";
        }
    }
    if separator == " " {
        text.push_str(" none");
    }
    text
}
