//! Names of upstreams are resolved again at an interval, as what they mean moves without a reload: pods
//! come and go, and a provider changes the address of a balancer.
//!
//! The system's resolver is asked (getaddrinfo(3)), so that a name means here what it means to every
//! other program of the machine. It tells no time to live. The cache behind it (systemd-resolved, a
//! node's DNS cache) knows that, and answers a question that comes sooner. A resolver of our own would
//! know it too, and would not know nsswitch.conf.
//!
//! A list that has changed is taken on as a reload's is: an upstream whose address is still there keeps
//! its connections, its health and its counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::config::{BackendKind, Config, Machine, Websocket};
use crate::control::Control;
use crate::upstream::UpstreamSpec;

/// Resolves the names of all backends, each at its interval, one backend after the other: while a
/// resolver hangs, the others' addresses stay what they are.
pub async fn keep(control: Arc<Control>) {
    let mut configs = control.configs();
    configs.mark_changed();
    // By the names of the backends.
    let mut due: BTreeMap<String, Instant> = BTreeMap::new();
    let mut failing: BTreeSet<String> = BTreeSet::new();
    loop {
        let next = due.values().min().copied();
        tokio::select! {
            changed = configs.changed() => {
                if changed.is_err() {
                    return;
                }
                let config = Arc::clone(&configs.borrow_and_update());
                due = schedule(&config, &due);
                failing.retain(|backend| due.contains_key(backend));
            }
            () = until(next) => {
                let now = Instant::now();
                let Some(backend) = longest_due(&due, now) else { continue };
                let config = control.config();
                let Some(websocket) = websocket_of(&config, &backend) else { continue };
                due.insert(backend.clone(), now + websocket.resolve_interval);
                resolve(&control, &backend, websocket, &mut failing).await;
            }
        }
    }
}

/// The backend that has been due for the longest. A resolver that takes longer than the interval of one
/// backend makes that one due again at once, and the others have their turn all the same.
fn longest_due(due: &BTreeMap<String, Instant>, now: Instant) -> Option<String> {
    let (backend, _) = due.iter().filter(|(_, at)| **at <= now).min_by_key(|(_, at)| **at)?;
    Some(backend.clone())
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// When each backend with names is due: as before, or an interval from now.
fn schedule(config: &Config, before: &BTreeMap<String, Instant>) -> BTreeMap<String, Instant> {
    let now = Instant::now();
    let of = |name: &String, websocket: &Websocket| {
        let fresh = now + websocket.resolve_interval;
        (name.clone(), before.get(name).map_or(fresh, |at| fresh.min(*at)))
    };
    let backends = config.live_backends().filter_map(|(_, backend)| match &backend.kind {
        BackendKind::Websocket(websocket) if websocket.has_names() => {
            Some(of(&backend.name, websocket))
        }
        _ => None,
    });
    backends.collect()
}

fn websocket_of<'a>(config: &'a Config, name: &str) -> Option<&'a Websocket> {
    let mut backends = config.live_backends().map(|(_, backend)| backend);
    match &backends.find(|backend| backend.name == name)?.kind {
        BackendKind::Websocket(websocket) => Some(websocket),
        _ => None,
    }
}

/// Resolves the names of one backend, and goes by what has changed.
async fn resolve(
    control: &Control,
    backend: &str,
    websocket: &Websocket,
    failing: &mut BTreeSet<String>,
) {
    let list = match ask(websocket.clone()).await {
        Ok(list) => list,
        Err(why) => {
            // Said once, not at every interval.
            if failing.insert(backend.to_owned()) {
                warn!("backend \"{backend}\": {why}; it goes on with the addresses that it has");
            }
            return;
        }
    };
    if failing.remove(backend) {
        info!("backend \"{backend}\": its names resolve again");
    }
    let before = &websocket.upstreams;
    if list == *before {
        return;
    }
    let lines = differences(before, &list);
    match control.take_on_upstreams(backend, before, list).await {
        Ok(true) => lines.iter().for_each(|line| info!("backend \"{backend}\": {line}")),
        Ok(false) => {} // The file says something else meanwhile, or we are stopping.
        Err(why) => warn!("backend \"{backend}\": its new addresses are not taken on yet: {why}"),
    }
}

/// Asks on a thread of its own: a resolver may take half a minute over it, which must not hold up the
/// end of the process either.
async fn ask(websocket: Websocket) -> Result<Vec<UpstreamSpec>, String> {
    let (sender, answer) = oneshot::channel();
    let work = move || drop(sender.send(websocket.resolved_again(Machine::here().resolve)));
    std::thread::Builder::new()
        .name("resolver".to_owned())
        .spawn(work)
        .map_err(|error| format!("no thread to resolve names: {error}"))?;
    answer.await.unwrap_or_else(|_| Err("the resolver gave up".to_owned()))
}

/// The upstreams that have come and gone, a line each.
fn differences(before: &[UpstreamSpec], after: &[UpstreamSpec]) -> Vec<String> {
    let gone = before.iter().filter(|spec| !after.contains(spec));
    let come = after.iter().filter(|spec| !before.contains(spec));
    let gone = gone.map(|spec| format!("{} is at {} no more", spec.url, spec.address));
    let come = come.map(|spec| format!("{} is at {} now", spec.url, spec.address));
    come.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A resolver takes a second over each, and the first by name is due again before that.
    #[test]
    fn a_slow_resolver_leaves_nobody_out() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut due: BTreeMap<String, Instant> =
            ["a", "b", "c"].map(|name| (name.to_owned(), at(100))).into();
        assert_eq!(longest_due(&due, at(99)), None);
        let mut order = String::new();
        for second in 1..=6 {
            let now = at(1000 * second);
            let backend = longest_due(&due, now).expect("all are due");
            order += &backend;
            due.insert(backend, now + Duration::from_millis(100));
        }
        assert_eq!(order, "abcabc");
    }
}
