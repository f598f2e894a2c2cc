//! Log lines out of outcomes: one when an upstream goes down, one when it is up again, and nothing
//! for all the checks in between.

use std::collections::BTreeMap;
use std::mem;

use crate::upstream::{Checked, HealthOptions, UpstreamName};

use super::{Finding, Outcome, Target};

/// What has been said of each upstream. Judges by the same rule as the groups of the shards, which
/// get the same outcomes, so that a line is true of all of them.
#[derive(Debug, Default)]
pub struct Changes {
    entries: BTreeMap<(u16, UpstreamName), Entry>,
    /// Checks in a row that were not hindered by us. A shortage is told again after as many as
    /// there are upstreams.
    unhindered: usize,
    hindered: bool,
}

#[derive(Debug)]
struct Entry {
    backend: String,
    /// Its URL, and its address where the URL does not say it.
    upstream: String,
    health: HealthOptions,
    checked: Checked,
}

impl Changes {
    /// The upstreams that are checked from now on. What is known of those that were there before
    /// stays, whatever number their backend has now.
    pub fn set(&mut self, targets: &[Target]) {
        let mut known: BTreeMap<(String, UpstreamName), Checked> = mem::take(&mut self.entries)
            .into_iter()
            .map(|((_, upstream), entry)| ((entry.backend, upstream), entry.checked))
            .collect();
        for target in targets {
            let backend = target.backend_name.clone();
            let checked = known.remove(&(backend.clone(), target.upstream)).unwrap_or_default();
            let upstream = label(target);
            let entry = Entry { backend, upstream, health: target.health, checked };
            self.entries.insert((target.backend, target.upstream), entry);
        }
    }

    /// The line to log, if this has changed anything. An outcome of somebody who is not checked any
    /// more changes nothing.
    pub fn on_outcome(&mut self, outcome: &Outcome) -> Option<String> {
        let count = self.entries.len();
        let entry = self.entries.get_mut(&(outcome.backend, outcome.upstream))?;
        if let Finding::Hindered(why) = &outcome.finding {
            self.unhindered = 0;
            return (!mem::replace(&mut self.hindered, true)).then(|| {
                format!(
                    "upstreams cannot be checked and stay as they are: {why}; raise the limit that \
                     it is about"
                )
            });
        }
        self.unhindered = self.unhindered.saturating_add(1);
        if self.unhindered > count {
            self.hindered = false;
        }
        let ok = outcome.finding.verdict()?;
        if !entry.checked.on_result(ok, &entry.health) {
            return None;
        }
        let Entry { backend, upstream, health, .. } = entry;
        Some(match &outcome.finding {
            Finding::Bad(why) => {
                let checks = counted(health.fall);
                format!("backend {backend}: {upstream} is down: {checks} failed, the last: {why}")
            }
            _ => {
                let checks = counted(health.rise);
                format!("backend {backend}: {upstream} is up again: {checks} passed")
            }
        })
    }
}

fn counted(checks: u32) -> String {
    match checks {
        0 | 1 => "a check".to_owned(),
        checks => format!("{checks} checks in a row"),
    }
}

fn label(target: &Target) -> String {
    let (url, address) = (target.url.to_string(), target.address.to_string());
    if url.contains(&address) { url } else { format!("{url} ({address})") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::checks::{CheckKind, CheckOptions};
    use crate::upstream::UpstreamAddress;

    fn target(backend: u16, backend_name: &str, url: &str, address: &str) -> Target {
        let url = url.parse().expect("a URL");
        let address = UpstreamAddress::Tcp(address.parse().expect("an address"));
        let second = Duration::from_secs(1);
        Target {
            backend,
            backend_name: backend_name.to_owned(),
            upstream: UpstreamName::new(&url, &address),
            url,
            address,
            other: None,
            options: CheckOptions {
                kind: CheckKind::Connect,
                path: None,
                host: None,
                interval: second,
                timeout: second,
            },
            path: String::new(),
            host: String::new(),
            health: HealthOptions { rise: 2, fall: 3, ..HealthOptions::default() },
        }
    }

    /// `+` is a good check, `!` one that was hindered, and a digit one that failed for this reason.
    fn lines(changes: &mut Changes, target: &Target, checks: &str) -> Vec<String> {
        let finding = |check| match check {
            '+' => Finding::Good(Duration::ZERO),
            '!' => Finding::Hindered("none left".to_owned()),
            why => Finding::Bad(format!("reason {why}")),
        };
        let outcome = |check| Outcome {
            backend: target.backend,
            upstream: target.upstream,
            finding: finding(check),
        };
        checks.chars().filter_map(|check| changes.on_outcome(&outcome(check))).collect()
    }

    #[test]
    fn a_line_when_it_changes() {
        let a = target(0, "chat", "ws://a.test:1", "192.0.2.1:1");
        let b = target(0, "chat", "ws://192.0.2.2:1", "192.0.2.2:1");
        let mut changes = Changes::default();
        changes.set(&[a.clone(), b.clone()]);
        assert_eq!(lines(&mut changes, &a, "+++12+12"), [""; 0]);
        assert_eq!(lines(&mut changes, &b, "12"), [""; 0]);
        let down = "backend chat: ws://a.test:1 (192.0.2.1:1) is down: 3 checks in a row failed, \
                    the last: reason 3";
        assert_eq!(lines(&mut changes, &a, "3456+7+8"), [down]);
        let down = "backend chat: ws://192.0.2.2:1 is down: 3 checks in a row failed, the last: \
                    reason 3";
        let up = "backend chat: ws://192.0.2.2:1 is up again: 2 checks in a row passed";
        assert_eq!(lines(&mut changes, &b, "34++12++"), [down, up]);
    }

    #[test]
    fn a_reload_forgets_only_who_is_gone() {
        let a = target(0, "chat", "ws://a.test:1", "192.0.2.1:1");
        let b = target(0, "chat", "ws://b.test:1", "192.0.2.2:1");
        let mut changes = Changes::default();
        changes.set(&[a.clone(), b.clone()]);
        assert_eq!(lines(&mut changes, &a, "123").len(), 1);
        assert_eq!(lines(&mut changes, &b, "123").len(), 1);
        // Their backend is the second now, and another has their number; one check is enough.
        let mut moved = Target { backend: 1, ..a.clone() };
        moved.health.rise = 1;
        let other = Target { backend_name: "other".to_owned(), ..a.clone() };
        changes.set(&[other.clone(), moved.clone()]);
        assert_eq!(lines(&mut changes, &b, "+++123"), [""; 0]);
        assert_eq!(lines(&mut changes, &other, "++12"), [""; 0]);
        let up = "backend chat: ws://a.test:1 (192.0.2.1:1) is up again: a check passed";
        assert_eq!(lines(&mut changes, &moved, "+"), [up]);
        changes.set(&[a.clone(), b.clone()]);
        // One that has returned starts anew, and is up.
        assert_eq!(lines(&mut changes, &b, "++++"), [""; 0]);
    }

    #[test]
    fn a_shortage_of_ours_is_told_once() {
        let a = target(0, "chat", "ws://a.test:1", "192.0.2.1:1");
        let b = target(0, "chat", "ws://b.test:1", "192.0.2.2:1");
        let mut changes = Changes::default();
        changes.set(&[a.clone(), b.clone()]);
        let line = "upstreams cannot be checked and stay as they are: none left; raise the limit \
                    that it is about";
        assert_eq!(lines(&mut changes, &a, "!!!!"), [line]);
        assert_eq!(lines(&mut changes, &b, "!1!2"), [""; 0]);
        // What was hindered neither counts nor breaks a row.
        assert_eq!(lines(&mut changes, &b, "!3").len(), 1);
        // It is over when more checks than there are upstreams could be made.
        assert_eq!(lines(&mut changes, &a, "+!+++"), [""; 0]);
        assert_eq!(lines(&mut changes, &a, "!"), [line]);
    }
}
