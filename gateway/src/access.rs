//! The access log: a line per client when its connection is over.
//!
//! Lines are bounded per second, so that a storm of closes does not fill a disk; those left out are
//! counted in a line of their own. All lines and all that were left out are together what the counters
//! of close causes say.
//!
//! Nothing that a client has chosen gets into a line, but its address where a trusted proxy names it:
//! no path, no query, no header. There is no secret to be kept out, and no way to forge a line.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tracing::{field, info, warn};

use crate::config::{BackendKind, Config, LogOptions};
use crate::journal::{Closed, Traffic};
use crate::ring::linux::monotonic_now;
use crate::route::{HostPattern, Route, RouteIndex};
use crate::upstream::UpstreamName;

/// Connections that are over and still to be asked about.
pub const CLOSES_KEPT: usize = 256;

/// Where the lines go out.
#[derive(Debug)]
pub struct AccessLog {
    wanted: bool,
    lines: Lines,
}

/// How many lines may still be written in a second, and how many were not.
#[derive(Debug)]
struct Lines {
    per_second: u64,
    left: u64,
    left_out: u64,
    second: Instant,
}

impl AccessLog {
    /// A log that has written nothing yet.
    pub fn new(options: &LogOptions, now: Instant) -> AccessLog {
        let per_second = options.access_lines_per_second;
        AccessLog { wanted: options.access, lines: Lines::new(per_second, now) }
    }

    /// Goes by other options from the next second on.
    pub fn set_options(&mut self, options: &LogOptions) {
        self.wanted = options.access;
        self.lines.per_second = options.access_lines_per_second;
    }

    /// Writes a line, unless this second has had its share.
    pub fn write(&mut self, shard: u16, closed: &Closed, config: &Config) {
        if self.wanted && self.lines.take() {
            Line::new(shard, closed, config).write();
        }
    }

    /// Begins another second when the last is over. `lost`: entries that no journal had room for.
    pub fn end_of_tick(&mut self, lost: u64, now: Instant) {
        if self.wanted {
            self.lines.left_out += lost;
        }
        write_left_out(self.lines.turn(now));
    }

    /// Says what was left out and has not been told, as nothing follows.
    pub fn finish(&mut self) {
        write_left_out(std::mem::take(&mut self.lines.left_out));
    }
}

impl Lines {
    fn new(per_second: u64, now: Instant) -> Lines {
        Lines { per_second, left: per_second, left_out: 0, second: now }
    }

    /// Whether another line may be written; if not, it is counted.
    fn take(&mut self) -> bool {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.left_out += 1;
                false
            }
        }
    }

    /// Begins another second when the last is over. Returns what was left out since the one before.
    fn turn(&mut self, now: Instant) -> u64 {
        if now.saturating_duration_since(self.second) < Duration::from_secs(1) {
            return 0;
        }
        self.second = now;
        self.left = self.per_second;
        std::mem::take(&mut self.left_out)
    }
}

/// What is said of a client whose connection is over, in the operator's words.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// SHARD-SLOT-GENERATION, as it was listed under while it was open.
    pub id: String,
    /// Why: [`Cause::name`](crate::metrics::Cause::name).
    pub cause: &'static str,
    /// The key of the limit that it was over, if something of it was too big.
    pub limit: Option<&'static str>,
    /// The bytes that this allows on its route.
    pub bound: Option<u64>,
    /// The side that ended the connection.
    pub initiator: &'static str,
    /// The state that the connection was in: see [`State::name`](crate::conn::State::name).
    pub state: &'static str,
    /// The HTTP status that it got last; 101 for a WebSocket.
    pub status: Option<u16>,
    /// Of the first Close frame.
    pub close_code: Option<u16>,
    /// Whom it was for.
    pub client: IpAddr,
    /// Where it came from.
    pub peer: SocketAddr,
    /// The route of its last request.
    pub route: Option<String>,
    /// The backend of that.
    pub backend: Option<String>,
    /// The upstream that it was at last, unless that has left the file.
    pub upstream: Option<String>,
    /// Since the accept; of a WebSocket since its upgrade.
    pub duration_ms: u64,
    /// The bytes and messages of the connection.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Its requests.
    pub requests: u16,
}

impl Line {
    /// Of an entry of the journal of `shard`; `config` is the one that entries are of now.
    pub fn new(shard: u16, closed: &Closed, config: &Config) -> Line {
        let route = closed.route.map(|route| config.routes.get(RouteIndex(route)));
        let upstream = closed.upstream;
        // An earlier request may have been with an upstream of another backend.
        let upstream =
            upstream.filter(|(backend, _)| route.is_some_and(|it| it.backend == *backend));
        let upstream = upstream.and_then(|(backend, name)| url_of(config, backend, name));
        let (status, close_code) = answers(closed.code);
        let unix_now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = unix_now.saturating_sub(monotonic_now().since(closed.closed_at));
        Line {
            unix_ms: at.as_millis() as u64,
            id: format!("{shard}-{}-{}", closed.id.slot, closed.id.generation),
            cause: closed.cause.name(),
            limit: closed.limit.map(|(key, _)| key),
            bound: closed.limit.map(|(_, bytes)| bytes),
            initiator: closed.cause.initiator().name(),
            state: closed.state,
            status,
            close_code,
            client: closed.client,
            peer: closed.peer,
            route: route.map(name_of),
            backend: route.map(|route| config.backend(route).name.clone()),
            upstream,
            duration_ms: closed.closed_at.since(closed.opened_at).as_millis() as u64,
            traffic: closed.traffic,
            requests: closed.requests,
        }
    }

    fn write(&self) {
        info!(
            target: "access",
            cause = %self.cause,
            limit = self.limit,
            bound = self.bound,
            initiator = %self.initiator,
            state = %self.state,
            status = self.status,
            close_code = self.close_code,
            client = %self.client,
            peer = %self.peer,
            route = self.route.as_ref().map(field::display),
            backend = self.backend.as_ref().map(field::display),
            upstream = self.upstream.as_ref().map(field::display),
            duration_ms = self.duration_ms,
            received_bytes = self.traffic.received_bytes,
            sent_bytes = self.traffic.sent_bytes,
            received_messages = self.traffic.received_messages,
            sent_messages = self.traffic.sent_messages,
            requests = self.requests,
            id = %self.id,
            "closed"
        );
    }
}

/// The last connections that ended, of all shards together.
#[derive(Debug, Default)]
pub struct Closes {
    /// Not looked at since they were taken out of the journals.
    new: Vec<(u16, Closed)>,
    /// The oldest first.
    lines: VecDeque<Line>,
}

impl Closes {
    /// Takes an entry of the journal of `shard`.
    pub fn push(&mut self, shard: u16, closed: Closed) {
        if self.new.len() == 2 * CLOSES_KEPT {
            self.keep_newest();
        }
        self.new.push((shard, closed));
    }

    /// Makes lines of what was taken.
    pub fn end_of_tick(&mut self, config: &Config) {
        self.keep_newest();
        for (shard, closed) in self.new.drain(..) {
            self.lines.push_back(Line::new(shard, &closed, config));
        }
        self.lines.drain(..self.lines.len().saturating_sub(CLOSES_KEPT));
    }

    /// Journals come one after the other, and the last is not newer than the first.
    fn keep_newest(&mut self) {
        self.new.sort_by_key(|(_, closed)| closed.closed_at);
        self.new.drain(..self.new.len().saturating_sub(CLOSES_KEPT));
    }

    /// The last [`CLOSES_KEPT`], the newest first.
    pub fn newest(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().rev()
    }
}

fn write_left_out(count: u64) {
    if count > 0 {
        warn!(
            target: "access",
            left_out = count,
            "more connections have ended than log.access_lines_per_second allows lines for"
        );
    }
}

/// The status that a client was answered with, and the code of the first Close frame, of
/// [`Conn::code`](crate::conn::Conn::code). Statuses end below 1000, where codes begin (RFC 6455 §7.4.2);
/// who has got as far as a Close frame was answered with 101.
fn answers(code: u16) -> (Option<u16>, Option<u16>) {
    match code {
        0 => (None, None),
        1..1000 => (Some(code), None),
        1000.. => (Some(101), Some(code)),
    }
}

/// A route as it is told from others, without spaces.
pub(crate) fn name_of(route: &Route) -> String {
    let Route { host, path, subprotocol, .. } = route;
    let protocol = subprotocol.as_ref().map(|name| format!("+{name}")).unwrap_or_default();
    match host {
        HostPattern::Any => format!("*{path}{protocol}"),
        host => format!("{host}{path}{protocol}"),
    }
}

/// What the operator calls an upstream; `None` when it is not in the list any more.
pub fn url_of(config: &Config, backend: u16, name: UpstreamName) -> Option<String> {
    let BackendKind::Websocket(websocket) = &config.backends.get(usize::from(backend))?.kind else {
        return None;
    };
    let mut upstreams = websocket.upstreams.iter();
    let found = upstreams.find(|it| UpstreamName::new(&it.url, &it.address) == name)?;
    Some(found.url.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::ConnId;
    use crate::time::Time;

    /// So many lines in a row; how many may be written.
    fn take(lines: &mut Lines, count: u64) -> u64 {
        (0..count).filter(|_| lines.take()).count() as u64
    }

    #[test]
    fn a_second_has_so_many_lines_and_the_others_are_counted() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut lines = Lines::new(10, start);
        assert_eq!(take(&mut lines, 25), 10);
        assert_eq!(lines.turn(at(999)), 0, "the second is not over");
        assert_eq!(take(&mut lines, 5), 0);
        assert_eq!(lines.turn(at(1000)), 20);
        assert_eq!(lines.turn(at(2000)), 0, "they are told once");
        // What one second does not use is not saved for the next.
        assert_eq!(lines.turn(at(60_000)), 0);
        assert_eq!(take(&mut lines, 11), 10);
        // A clock that stands still, or a caller that mixes two readings up.
        assert_eq!(lines.turn(start), 0);
        assert_eq!(take(&mut lines, 1), 0);
    }

    fn closed(slot: u32, at: u64) -> Closed {
        Closed::of_test(ConnId { slot, generation: 7 }, Time(at))
    }

    #[test]
    fn the_last_closes_are_kept_whichever_shard_they_are_of() {
        let config = Config::embedded();
        let mut closes = Closes::default();
        // Shard 0 closed later than shard 1, and is looked at first.
        let kept = CLOSES_KEPT as u32;
        for slot in 0..3 * kept {
            closes.push(0, closed(slot, 1_000_000 + u64::from(slot)));
        }
        for slot in 0..3 * kept {
            closes.push(1, closed(slot, u64::from(slot)));
        }
        assert!(closes.new.len() <= 2 * CLOSES_KEPT, "they are bounded meanwhile");
        closes.end_of_tick(&config);
        let ids: Vec<&str> = closes.newest().map(|line| line.id.as_str()).collect();
        let want: Vec<String> =
            (2 * kept..3 * kept).rev().map(|slot| format!("0-{slot}-7")).collect();
        assert_eq!(ids, want);
        // The next tick takes the place of the oldest.
        closes.push(1, closed(9, 2_000_000));
        closes.end_of_tick(&config);
        let ids: Vec<&str> = closes.newest().map(|line| line.id.as_str()).collect();
        assert_eq!((ids.len(), ids[0], ids[1]), (CLOSES_KEPT, "1-9-7", want[0].as_str()));
    }

    #[test]
    fn other_options_hold_from_the_next_second_on() {
        let start = Instant::now();
        let mut options = Config::embedded().log;
        options.access_lines_per_second = 3;
        let mut log = AccessLog::new(&options, start);
        options.access_lines_per_second = 5;
        log.set_options(&options);
        assert_eq!(take(&mut log.lines, 10), 3);
        log.end_of_tick(2, start + Duration::from_millis(100));
        assert_eq!(log.lines.left_out, 9, "what no journal had room for counts as well");
        log.end_of_tick(0, start + Duration::from_secs(1));
        assert_eq!(log.lines.left_out, 0);
        assert_eq!(take(&mut log.lines, 10), 5);
        log.finish();
        assert_eq!(log.lines.left_out, 0);
        // Who wants no lines misses none.
        options.access = false;
        log.set_options(&options);
        log.end_of_tick(7, start + Duration::from_secs(1));
        assert_eq!(log.lines.left_out, 0);
    }

    #[test]
    fn a_code_says_what_it_is() {
        for (code, want) in [
            (0, (None, None)),
            (404, (Some(404), None)),
            (999, (Some(999), None)),
            (1000, (Some(101), Some(1000))),
            (4999, (Some(101), Some(4999))),
        ] {
            assert_eq!(answers(code), want, "{code}");
        }
    }

    #[test]
    fn a_route_is_one_word() {
        let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nbackend = \"e\"\n\
                    [[route]]\nbackend = \"e\"\nhost = \"*.example.org\"\npath = \"/a/*\"\n\
                    subprotocol = \"v2\"\n[backend.e]\nkind = \"echo\"\n";
        let config = Config::parse("test", text).expect("it is in order");
        let names: Vec<String> =
            (0..2).map(|index| name_of(config.routes.get(RouteIndex(index)))).collect();
        assert_eq!(names, ["*.example.org/a/*+v2", "*/*"]);
    }
}
