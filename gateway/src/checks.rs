//! Active health checks: asks every upstream at an interval how it is.
//!
//! ```text
//!   targets(&config) -> Checker::set -> a task per upstream -> Outcome -> the control thread
//!                                                                 |-> Changes: a log line
//!                                                                 +-> every shard, by mail:
//!                                                                     Group::on_check_result
//! ```
//!
//! A check says one thing, good or bad; `upstream/health.rs` makes up and down of several. All this
//! runs on the control thread's runtime and shares nothing with the data path.
//!
//! Read on in `checks/options.rs` (what is asked and expected), `probe.rs` (one check),
//! `changes.rs` (what is logged).

mod changes;
mod options;
mod probe;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::config::{BackendKind, Config};
use crate::random::Random;
use crate::upstream::{HealthOptions, Mode, UpstreamAddress, UpstreamName, UpstreamUrl};

pub use changes::Changes;
pub use options::{CheckKind, CheckOptions, StatusSet, check_host, check_path};

/// Checks that go on at the same time, each with a descriptor and up to 64 KiB of an answer (1 MiB
/// where a WebSocket server greets with so much). The others wait for their turn, so that a thousand
/// upstreams that do not answer make checks late, not the process short of descriptors.
const CHECKS_MAX: usize = 256;

/// The first checks of targets that come together are so far apart, or an interval all together
/// where that is shorter.
const SPREAD: Duration = Duration::from_millis(10);

/// An upstream that is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The index of its backend in [`Config::backends`].
    pub backend: u16,
    /// The name of that, for the log.
    pub backend_name: String,
    /// Its name in every group.
    pub upstream: UpstreamName,
    /// The URL as the operator wrote it.
    pub url: UpstreamUrl,
    /// Where it is.
    pub address: UpstreamAddress,
    /// Where it is otherwise.
    pub other: Option<UpstreamAddress>,
    /// How it is checked.
    pub options: CheckOptions,
    /// What is asked for: the path of `options`, or what stands for it.
    pub path: String,
    /// The `Host` header: the host of `options`, or what stands for it.
    pub host: String,
    /// How many checks make it up and down.
    pub health: HealthOptions,
}

/// Everybody who is to be checked: the upstreams of backends with checks, but not the disabled ones.
pub fn targets(config: &Config) -> Vec<Target> {
    let mut targets = Vec::new();
    // There are at most `BACKENDS_MAX` of them.
    for (backend, it) in (0_u16..).zip(&config.backends) {
        let BackendKind::Websocket(websocket) = &it.kind else { continue };
        let Some(options) = &websocket.check else { continue };
        for spec in websocket.upstreams.iter().filter(|spec| spec.mode != Mode::Disabled) {
            // What a client would be let in by, whatever it asks for.
            let replaced = match options.kind {
                CheckKind::Websocket => spec.url.path().or(websocket.path.as_deref()),
                _ => None,
            };
            let path = options.path.as_deref().or(replaced).unwrap_or("/").to_owned();
            targets.push(Target {
                backend,
                backend_name: it.name.clone(),
                upstream: UpstreamName::new(&spec.url, &spec.address),
                url: spec.url.clone(),
                address: spec.address.clone(),
                other: spec.other.clone(),
                options: options.clone(),
                path,
                host: options.host.clone().unwrap_or_else(|| spec.url.host_header()),
                health: websocket.options.health,
            });
        }
    }
    targets
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// [`Target::backend`].
    pub backend: u16,
    /// [`Target::upstream`].
    pub upstream: UpstreamName,
    /// Good or bad.
    pub finding: Finding,
}

/// Good or bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It answered as it should, so long after the beginning of the check.
    Good(Duration),
    /// It did not. What was wrong, in words for the log; nothing in it is the upstream's own text.
    Bad(String),
    /// The check could not be made for a reason of ours, such as no descriptor; this says nothing
    /// of the upstream. In words for the log.
    Hindered(String),
}

impl Finding {
    /// What to tell the groups: `Group::on_check_result(id, ok, now)`. `None`: nothing.
    pub fn verdict(&self) -> Option<bool> {
        match self {
            Finding::Good(_) => Some(true),
            Finding::Bad(_) => Some(false),
            Finding::Hindered(_) => None,
        }
    }
}

/// A task per target. Dropping it ends them all.
pub struct Checker {
    outcomes: Sender<Outcome>,
    turns: Arc<Semaphore>,
    random: Random,
    running: Vec<Running>,
}

/// A target and its task, which ends with this.
struct Running {
    target: Target,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Checker {
    /// Checks nobody yet. Outcomes go to `outcomes`; where that is full, the checks wait, and where
    /// nobody receives any more, they end.
    pub fn new(outcomes: Sender<Outcome>, random: Random) -> Checker {
        let turns = Arc::new(Semaphore::new(CHECKS_MAX));
        Checker { outcomes, turns, random, running: Vec::new() }
    }

    /// Checks these from now on: goes on with those that it has, to the letter, stops the others and
    /// starts the new ones. Of one that is stopped there may still be an outcome in the channel.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn set(&mut self, targets: Vec<Target>) {
        let mut before: BTreeMap<(u16, UpstreamName), Running> = mem::take(&mut self.running)
            .into_iter()
            .map(|running| ((running.target.backend, running.target.upstream), running))
            .collect();
        let mut new = Vec::new();
        for target in targets {
            match before.remove(&(target.backend, target.upstream)) {
                Some(running) if running.target == target => self.running.push(running),
                _ => new.push(target),
            }
        }
        drop(before);
        let count = new.len();
        for (index, target) in new.into_iter().enumerate() {
            let delay = first_delay(index, count, target.options.interval);
            let random = self.random.split();
            let (turns, outcomes) = (Arc::clone(&self.turns), self.outcomes.clone());
            let task = tokio::spawn(run(target.clone(), delay, random, turns, outcomes));
            self.running.push(Running { target, task });
        }
    }

    /// Those that are being checked.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.running.iter().map(|running| &running.target)
    }
}

/// Checks one target until it is aborted or nobody wants to know.
async fn run(
    target: Target,
    delay: Duration,
    mut random: Random,
    turns: Arc<Semaphore>,
    outcomes: Sender<Outcome>,
) {
    let mut next = Instant::now() + delay;
    loop {
        sleep_until(next).await;
        let finding = {
            // The semaphore is never closed.
            let Ok(_turn) = turns.acquire().await else { return };
            // From the beginning, so that the interval holds whatever the check takes; from its own
            // beginning, so that checks which were held up do not come in a burst.
            next = Instant::now() + jittered(target.options.interval, random.next_u64());
            probe::check(&target, &mut random).await
        };
        let outcome = Outcome { backend: target.backend, upstream: target.upstream, finding };
        if outcomes.send(outcome).await.is_err() {
            return;
        }
    }
}

/// When the first check of the `index`-th of `count` new targets begins.
fn first_delay(index: usize, count: usize, interval: Duration) -> Duration {
    // A configuration has at most `BACKENDS_MAX * UPSTREAMS_MAX` of them, which is 2^20.
    let share = interval / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    SPREAD.min(share).saturating_mul(u32::try_from(index).unwrap_or(u32::MAX))
}

/// The interval, give or take a tenth, so that gateways that were started together do not go on
/// asking together.
fn jittered(interval: Duration, random: u64) -> Duration {
    let tenth = u64::try_from(interval.as_nanos() / 10).unwrap_or(u64::MAX / 4);
    let offset = (u128::from(random) * u128::from(2 * tenth)) >> 64;
    interval - Duration::from_nanos(tenth) + Duration::from_nanos(offset as u64)
}
