//! What is asked of a gateway that runs, over its admin socket: a variant of [`Running`] per command,
//! and a file beside this one for what needs more than a request and its answer.

mod clients;
mod hist;
mod reading;
mod top;

use std::path::PathBuf;
use std::process::ExitCode;

use axum::http::{Method, StatusCode};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use gateway::admin::{self, client};
use gateway::log;
use gateway::names::{Escaped, escape_json};
use serde_json::Value;

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Running {
    /// Ask a running gateway to read its file again; connections stay
    Reload(Ask),
    /// Ask a running gateway to send its clients away in order, and to stop
    Drain(Ask),
    /// What a running gateway is up to, as JSON
    Status(Ask),
    /// The level of a running gateway's log, or another one from now on
    LogLevel(LogLevel),
    /// List clients of a running gateway
    Conns(clients::Conns),
    /// Close clients of a running gateway
    Close(clients::CloseClients),
    /// Percentiles of what a running gateway has measured
    Hist(hist::Hist),
    /// A running gateway, looked at every second
    Top(top::Top),
}

impl Running {
    /// Does it, and says what came of it.
    pub(crate) fn run(&self) -> ExitCode {
        match self {
            Running::Reload(ask) => ask.ask(Method::POST, "/api/v1/reload"),
            Running::Drain(ask) => ask.drain(),
            Running::Status(ask) => ask.ask(Method::GET, "/api/v1/status"),
            Running::LogLevel(log) => log.run(),
            Running::Conns(conns) => conns.list(),
            Running::Close(close) => close.close(),
            Running::Hist(hist) => hist.run(),
            Running::Top(top) => top.run(),
        }
    }
}

/// Which gateway.
#[derive(Args)]
pub(crate) struct Ask {
    /// The gateway's admin socket (admin.socket in its file)
    #[arg(long, value_name = "PATH", default_value_os_t = admin::default_socket())]
    socket: PathBuf,
}

/// `penstock log-level`.
#[derive(Args)]
pub(crate) struct LogLevel {
    #[command(flatten)]
    ask: Ask,
    /// The least important that is written, until the gateway ends or its file says another one
    #[arg(value_name = "LEVEL", value_parser = PossibleValuesParser::new(log::LEVELS))]
    level: Option<String>,
}

impl LogLevel {
    fn run(&self) -> ExitCode {
        let answer = match &self.level {
            Some(level) => self.ask.answer(Method::PUT, &format!("/api/v1/log?level={level}")),
            None => self.ask.answer(Method::GET, "/api/v1/log"),
        };
        match answer {
            Ok((status, body)) if status.is_success() => {
                let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
                println!("{}", answer["level"].as_str().unwrap_or_default());
                ExitCode::SUCCESS
            }
            Ok((status, body)) => tell(status, &body),
            Err(code) => code,
        }
    }
}

impl Ask {
    /// Asks, and says what the answer was: see [`tell`].
    fn ask(&self, method: Method, path: &str) -> ExitCode {
        match self.answer(method, path) {
            Ok((status, body)) => tell(status, &body),
            Err(code) => code,
        }
    }

    /// Orders an orderly end; the answer has no words of its own.
    fn drain(&self) -> ExitCode {
        match self.answer(Method::POST, "/api/v1/drain") {
            Ok((status, _)) if status.is_success() => {
                println!("draining; `penstock status` says until when, as long as it runs");
                ExitCode::SUCCESS
            }
            Ok((status, body)) => tell(status, &body),
            Err(code) => code,
        }
    }

    /// The answer; without one that has been said, and the program ends with this.
    fn answer(&self, method: Method, path: &str) -> Result<(StatusCode, Vec<u8>), ExitCode> {
        client::ask(&self.socket, method, path).map_err(|why| fail(&why))
    }
}

/// Says why the command was not done, in a line.
fn fail(why: &str) -> ExitCode {
    eprintln!("penstock: {}", Escaped(why));
    ExitCode::FAILURE
}

/// Says what an answer is: its changes or faults in a line each, else as it came.
fn tell(status: StatusCode, body: &[u8]) -> ExitCode {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let lines = |key: &str| -> Option<Vec<&str>> {
        answer.get(key)?.as_array().map(|lines| lines.iter().filter_map(Value::as_str).collect())
    };
    match (lines("changes"), lines("faults")) {
        (Some(changes), _) => {
            changes.iter().for_each(|change| println!("{}", Escaped(change)));
            let generation = &answer["config_generation"];
            println!("{} changes; configuration {generation} runs", changes.len());
        }
        (None, Some(faults)) => {
            faults.iter().for_each(|fault| eprintln!("{}", Escaped(fault)));
            eprintln!("penstock: nothing was done");
        }
        (None, None) => println!("{}", escape_json(String::from_utf8_lossy(body).trim_end())),
    }
    if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
