//! Where the control thread's words go: standard error, for people or for programs. Shards never
//! write; what they have to say goes through the journal.
//!
//! A thread of its own writes. Whoever reads standard error may stop doing so (a pager, a container's
//! log driver), and then a write takes for ever; signals and the admin interface must not wait for it.
//! Lines that find [`LINES_MAX`] others waiting are dropped and counted.

use std::borrow::Cow;
use std::io::{self, Write, stderr};
use std::sync::OnceLock;

use tracing::warn;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{LogFormat, LogOptions};
use crate::names::{Escaped, escape_json};

/// The levels, from the fewest lines to the most.
pub const LEVELS: [&str; 4] = ["error", "warn", "info", "debug"];

/// Lines that wait to be written: seconds of the most that the access log writes by default.
const LINES_MAX: usize = 8192;

/// What can be asked of the log once it is there.
struct Log {
    level: reload::Handle<LevelFilter, Registry>,
    dropped: ErrorCounter,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Writes what is left when it is dropped, for a second at most.
#[must_use]
pub struct Writer {
    _worker: Option<WorkerGuard>,
}

/// Sets the log up, once in the life of a process; later calls change nothing.
pub fn init(options: &LogOptions) -> Writer {
    if LOG.get().is_some() {
        return Writer { _worker: None };
    }
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX);
    let (writer, worker) = builder.thread_name("log").finish(stderr());
    let dropped = writer.error_counter();
    let (filter, level) = reload::Layer::new(filter_of(&options.level));
    let escape: fn(&str) -> Cow<'_, str> = match options.format {
        LogFormat::Json => escape_json,
        LogFormat::Text => |line| Escaped(line).to_string().into(),
    };
    let lines = fmt::layer().with_writer(Lines { writer, escape }).with_ansi(false);
    // The journal of systemd stamps each line itself.
    let stamped = std::env::var_os("JOURNAL_STREAM").is_none();
    let lines = match (options.format, stamped) {
        (LogFormat::Json, _) => lines.json().flatten_event(true).boxed(),
        (LogFormat::Text, true) => lines.boxed(),
        (LogFormat::Text, false) => lines.without_time().boxed(),
    };
    // It fails when there is one already, as in a test with two gateways.
    match tracing_subscriber::registry().with(filter).with(lines).try_init() {
        Ok(()) => {
            let _ = LOG.set(Log { level, dropped });
            Writer { _worker: Some(worker) }
        }
        Err(_) => Writer { _worker: None },
    }
}

/// Makes each event one line, whatever a configuration or a client has put into it.
#[derive(Clone)]
struct Lines<W> {
    writer: W,
    escape: fn(&str) -> Cow<'_, str>,
}

impl<'a> MakeWriter<'a> for Lines<NonBlocking> {
    type Writer = Lines<NonBlocking>;

    fn make_writer(&'a self) -> Lines<NonBlocking> {
        self.clone()
    }
}

impl<W: Write> Write for Lines<W> {
    /// `event`: a whole one with the newline at its end, as [`fmt`] writes them.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        self.writer.write_all(format!("{}\n", (self.escape)(line)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The level with this name, one of [`LEVELS`].
fn filter_of(level: &str) -> LevelFilter {
    match level {
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "debug" => LevelFilter::DEBUG,
        _ => LevelFilter::INFO,
    }
}

/// The name of the level that holds now.
pub fn level() -> &'static str {
    let level = LOG.get().and_then(|log| log.level.clone_current()).unwrap_or(LevelFilter::OFF);
    match level {
        LevelFilter::OFF => "off",
        LevelFilter::ERROR => "error",
        LevelFilter::WARN => "warn",
        LevelFilter::INFO => "info",
        _ => "debug",
    }
}

/// From here on the least important that is written is of this level, one of [`LEVELS`].
pub fn set_level(level: &str) {
    if let Some(log) = LOG.get() {
        // It fails when the log is gone, which is never before the process.
        let _ = log.level.reload(filter_of(level));
    }
}

/// Lines that were dropped since the start.
pub fn dropped_lines() -> u64 {
    LOG.get().map_or(0, |log| log.dropped.dropped_lines() as u64)
}

/// Says how many lines were dropped since `told`, and returns what has been told then. It may itself
/// be dropped, and is said again.
pub(crate) fn tell_dropped(told: u64) -> u64 {
    let dropped = dropped_lines();
    if dropped == told {
        return told;
    }
    warn!(dropped = dropped - told, "lines of the log were dropped: whoever reads it is too slow");
    // This one is not counted with those that it tells of.
    if dropped_lines() == dropped { dropped } else { told }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let text: fn(&str) -> Cow<'_, str> = |line| Escaped(line).to_string().into();
        for (escape, event, want) in [
            (
                text,
                "WARN backend é\u{202e}: a\nb\u{1b}[2J\n",
                "WARN backend é\\u{202e}: a\\u{a}b\\u{1b}[2J\n",
            ),
            (escape_json, "{\"message\":\"a\\n\u{2066}b\"}\n", "{\"message\":\"a\\n\\u2066b\"}\n"),
        ] {
            let mut lines = Lines { writer: Vec::new(), escape };
            lines.write_all(event.as_bytes()).expect("a list takes all");
            assert_eq!(String::from_utf8_lossy(&lines.writer), want);
        }
    }
}
