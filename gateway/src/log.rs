//! Where the control thread's words go: standard error, for people or for programs. Shards never
//! write; what they have to say goes through the journal.

use std::io::stderr;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;

use crate::config::{LogFormat, LogOptions};

/// Sets the log up, once in the life of a process; later calls change nothing.
pub fn init(options: &LogOptions) {
    let level = match options.level.as_str() {
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "debug" => LevelFilter::DEBUG,
        _ => LevelFilter::INFO,
    };
    let builder = fmt().with_writer(stderr).with_max_level(level).with_ansi(false);
    // The journal of systemd stamps each line itself.
    let stamped = std::env::var_os("JOURNAL_STREAM").is_none();
    let result = match (options.format, stamped) {
        (LogFormat::Json, _) => builder.json().flatten_event(true).try_init(),
        (LogFormat::Text, true) => builder.try_init(),
        (LogFormat::Text, false) => builder.without_time().try_init(),
    };
    // It fails when there is one already, as in a test with two gateways.
    drop(result);
}
