//! The access log: a line per client when its connection is over.
//!
//! Lines are bounded per second, so that a storm of closes does not fill a disk; those left out are
//! counted in a line of their own.

use std::time::Instant;

use tracing::{info, warn};

use crate::config::{BackendKind, Config, LogOptions};
use crate::journal::Closed;
use crate::upstream::UpstreamName;

/// Where the lines go out.
pub struct AccessLog {
    wanted: bool,
    lines_per_second: u64,
    /// Lines that may still be written in this second.
    left: u64,
    left_out: u64,
    second: Instant,
}

impl AccessLog {
    /// A log that has written nothing yet.
    pub fn new(options: &LogOptions) -> AccessLog {
        let mut log = AccessLog {
            wanted: false,
            lines_per_second: 0,
            left: 0,
            left_out: 0,
            second: Instant::now(),
        };
        log.set_options(options);
        log.left = log.lines_per_second;
        log
    }

    /// Goes by other options from the next second on.
    pub fn set_options(&mut self, options: &LogOptions) {
        self.wanted = options.access;
        self.lines_per_second = options.access_lines_per_second;
    }

    /// Writes a line, unless this second has had its share.
    pub fn write(&mut self, closed: &Closed, config: &Config) {
        if !self.wanted {
            return;
        }
        if self.left == 0 {
            self.left_out += 1;
            return;
        }
        self.left -= 1;
        let Closed { peer, client, state, route, upstream, cause, opened_at, closed_at, traffic } =
            closed;
        let duration_ms = closed_at.since(*opened_at).as_millis() as u64;
        let route = config.routes.get(crate::route::RouteIndex(*route));
        let upstream = upstream.and_then(|(backend, name)| url_of(config, backend, name));
        info!(
            target: "access",
            %client,
            %peer,
            cause = cause.name(),
            state,
            route = %format_args!("{}{}", route.host, route.path),
            backend = config.backend(route).name,
            upstream = upstream.as_deref().unwrap_or("-"),
            duration_ms,
            received_bytes = traffic.received_bytes,
            sent_bytes = traffic.sent_bytes,
            received_messages = traffic.received_messages,
            sent_messages = traffic.sent_messages,
            "closed"
        );
    }

    /// Begins another second when the last is over. `lost`: entries that no journal had room for.
    pub fn end_of_tick(&mut self, lost: u64) {
        if self.wanted {
            self.left_out += lost;
        }
        if self.second.elapsed().as_secs() == 0 {
            return;
        }
        self.second = Instant::now();
        self.left = self.lines_per_second;
        if self.left_out > 0 {
            warn!(
                target: "access",
                left_out = self.left_out,
                "more connections have ended than log.access_lines_per_second allows lines for"
            );
            self.left_out = 0;
        }
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
