//! Starts the shards of a [`Config`] and waits for a signal.

use std::process::ExitCode;

use crate::config::Config;

/// Runs until asked to stop.
pub fn run(config: Config) -> ExitCode {
    drop(config);
    ExitCode::FAILURE
}
