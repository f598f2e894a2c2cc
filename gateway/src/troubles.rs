//! A warning when an upstream has failed a client: which one, and over what; and when clients cannot be
//! accepted.
//!
//! A line per upstream and second at most: what is more in that second is counted in the next line. Of
//! what happens within one second an ejection is told first, as it is what the rest has led to.
//!
//! The number of a backend may mean another one after a reload, so nothing is kept by it: an entry of a
//! journal is named when it is taken, by the configuration that it is of.

use std::collections::BTreeMap;
use std::mem;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::access::url_of;
use crate::config::Config;
use crate::journal::Trouble;
use crate::ring::Failure;
use crate::upstream::UpstreamName;

/// From one line of an upstream to its next.
const PACE: Duration = Duration::from_secs(1);

/// What is to be said, and when each upstream was last spoken of. There are no more entries than
/// upstreams that were in trouble in the last second.
#[derive(Debug, Default)]
pub struct Troubles {
    entries: BTreeMap<(String, UpstreamName), Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    /// What the operator calls the upstream.
    url: Option<String>,
    told_at: Option<Instant>,
    worst: Option<Trouble>,
    /// Beside `worst`.
    more: u64,
}

impl Troubles {
    /// Takes an entry of a journal; `config` is the one that entries are of now.
    pub fn push(&mut self, trouble: Trouble, config: &Config) {
        let (number, name) = trouble.upstream;
        let backend = config.backends.get(usize::from(number));
        let backend = backend.map_or("?", |it| it.name.as_str()).to_owned();
        let of_upstream = || Entry { url: url_of(config, number, name), ..Entry::default() };
        let entry = self.entries.entry((backend, name)).or_insert_with(of_upstream);
        match &entry.worst {
            None => entry.worst = Some(trouble),
            Some(worst) => {
                entry.more += 1;
                if trouble.is_ejection && !worst.is_ejection {
                    entry.worst = Some(trouble);
                }
            }
        }
    }

    /// Writes the lines that are due. `lost`: entries that no journal had room for.
    pub fn end_of_tick(&mut self, lost: u64, now: Instant) {
        for line in self.lines(now) {
            warn!("{line}");
        }
        if lost > 0 {
            warn!(left_out = lost, "upstreams have failed more clients than there is room to note");
        }
    }

    fn lines(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        self.entries.retain(|(backend, _), entry| {
            let is_due = entry.told_at.is_none_or(|told_at| now >= told_at + PACE);
            match entry.worst.take_if(|_| is_due) {
                Some(trouble) => {
                    entry.told_at = Some(now);
                    let more = mem::take(&mut entry.more);
                    lines.push(line(backend, entry.url.as_deref(), &trouble, more));
                    true
                }
                None => !is_due,
            }
        });
        lines
    }
}

/// Accepts that have failed, whichever the listener.
#[derive(Debug, Default)]
pub struct AcceptFailures {
    told_at: Option<Instant>,
    last: Option<(usize, Failure)>,
    /// Those in no line yet.
    count: u64,
}

impl AcceptFailures {
    /// Takes an entry of a journal.
    pub fn push(&mut self, failure: (usize, Failure)) {
        self.last = Some(failure);
        self.count += 1;
    }

    /// Writes the line, if one is due: one a second at most.
    pub fn end_of_tick(&mut self, config: &Config, now: Instant) {
        if let Some(line) = self.line(config, now) {
            warn!("{line}");
        }
    }

    fn line(&mut self, config: &Config, now: Instant) -> Option<String> {
        let is_due = self.told_at.is_none_or(|told_at| now >= told_at + PACE);
        let (listener, failure) = self.last.take_if(|_| is_due)?;
        self.told_at = Some(now);
        let count = mem::take(&mut self.count);
        let address = config.listeners.get(listener).map(|it| it.address.to_string());
        let address = address.as_deref().unwrap_or("a listener");
        let advice = match failure {
            Failure::TableFull => "raise LimitNOFILE, or fs.file-max of the machine",
            _ => "clients wait in its backlog",
        };
        let more =
            if count > 1 { format!(" (and {} more like it)", count - 1) } else { String::new() };
        Some(format!("{address}: no client can be accepted: {failure}; {advice}{more}"))
    }
}

fn line(backend: &str, url: Option<&str>, trouble: &Trouble, more: u64) -> String {
    let url = url.unwrap_or("an upstream that has left the list");
    let what = if trouble.is_ejection { " is ejected" } else { "" };
    let more = if more > 0 { format!(" (and {more} more like it)") } else { String::new() };
    format!("backend {backend}: {url}{what}: {}{more}", trouble.why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BackendKind;

    /// A backend of this name with upstreams at ports 1 and 2.
    fn config_of(name: &str) -> Config {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nbackend = \"{name}\"\n\
             [backend.{name}]\nkind = \"websocket\"\n\
             [[backend.{name}.upstream]]\nurl = \"ws://127.0.0.1:1\"\n\
             [[backend.{name}.upstream]]\nurl = \"ws://127.0.0.1:2\"\n"
        );
        Config::parse("test", &text).expect("it is in order")
    }

    /// Of the upstream at this index of the backend with the number 0.
    fn trouble(config: &Config, index: usize, is_ejection: bool, why: &str) -> Trouble {
        let BackendKind::Websocket(websocket) = &config.backends[0].kind else { unreachable!() };
        let spec = &websocket.upstreams[index];
        let upstream = (0, UpstreamName::new(&spec.url, &spec.address));
        Trouble { upstream, is_ejection, why: why.into() }
    }

    #[test]
    fn one_line_a_second_of_accepts_that_fail() {
        let text = "[[listener]]\naddress = \"127.0.0.1:7\"\n[[route]]\nbackend = \"echo\"\n\
                    [backend.echo]\nkind = \"echo\"\n";
        let config = Config::parse("test", text).expect("it is in order");
        let (mut failures, start) = (AcceptFailures::default(), Instant::now());
        let mut at = |ms, count| {
            (0..count).for_each(|_| failures.push((0, Failure::TableFull)));
            failures.line(&config, start + Duration::from_millis(ms))
        };
        let line = "127.0.0.1:7: no client can be accepted: descriptor table full; raise LimitNOFILE, \
                    or fs.file-max of the machine";
        assert_eq!(at(0, 1).as_deref(), Some(line));
        assert_eq!(at(100, 1), None);
        assert_eq!(at(999, 8), None);
        assert_eq!(at(1000, 1), Some(format!("{line} (and 9 more like it)")));
        assert_eq!(at(5000, 0), None);
    }

    #[test]
    fn a_line_per_upstream_and_second() {
        let config = config_of("app");
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let push = |troubles: &mut Troubles, index, is_ejection, why| {
            troubles.push(trouble(&config, index, is_ejection, why), &config);
        };
        push(&mut troubles, 0, false, "refused");
        let first = "backend app: ws://127.0.0.1:1: refused";
        assert_eq!(troubles.lines(at(0)), [first]);
        push(&mut troubles, 0, false, "refused");
        push(&mut troubles, 0, true, "refused, the third");
        push(&mut troubles, 0, false, "refused");
        push(&mut troubles, 1, false, "late");
        assert_eq!(troubles.lines(at(100)), ["backend app: ws://127.0.0.1:2: late"]);
        assert_eq!(troubles.lines(at(999)), [""; 0]);
        let second =
            "backend app: ws://127.0.0.1:1 is ejected: refused, the third (and 2 more like it)";
        assert_eq!(troubles.lines(at(1000)), [second]);
        assert_eq!(troubles.lines(at(2000)), [""; 0]);
        assert!(troubles.entries.is_empty());
    }

    /// Backend 0 is another one after a reload, with an upstream at the same address.
    #[test]
    fn a_number_that_is_given_away_takes_no_trouble_along() {
        let (old, new) = (config_of("gone"), config_of("new"));
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        troubles.push(trouble(&old, 0, false, "refused"), &old);
        assert_eq!(troubles.lines(start).len(), 1);
        // These wait for their second to end.
        troubles.push(trouble(&old, 0, false, "late"), &old);
        troubles.push(trouble(&new, 0, false, "refused"), &new);
        assert_eq!(troubles.lines(start), ["backend new: ws://127.0.0.1:1: refused"]);
        assert_eq!(troubles.lines(start + PACE), ["backend gone: ws://127.0.0.1:1: late"]);
    }
}
