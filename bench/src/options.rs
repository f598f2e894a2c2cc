//! Arguments that commands share, and how numbers are read from a command line.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::kernel;
use crate::proc;
use crate::target::Target;
use crate::tls::{self, Security};
use crate::websocket;

/// What every command that makes connections takes.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Common {
    /// Take targets that are not on this machine.
    #[arg(long)]
    pub(crate) allow_remote: bool,
    /// Run on this CPU only.
    #[arg(long)]
    pub(crate) cpu: Option<usize>,
    /// The congestion control of our own sockets, such as "cubic"; the system's when not given.
    #[arg(long)]
    pub(crate) congestion: Option<CString>,
    /// The server's processes, for their memory and processor time, such as "120,121".
    #[arg(long = "pid", value_delimiter = ',', value_name = "PID")]
    pub(crate) pids: Vec<u32>,
    /// A systemd unit whose processes are the server, such as "penstock", or a cgroup, such as
    /// "/user.slice/x"; in addition to --pid.
    #[arg(long = "unit", value_name = "NAME")]
    pub(crate) units: Vec<String>,
    /// The children of these processes, and theirs, are the server as well.
    #[arg(long)]
    pub(crate) with_children: bool,
    /// A header to send along in the handshake, such as "Authorization: Bearer x"; give it once
    /// for each.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = websocket::header)]
    pub(crate) headers: Vec<String>,
    /// The subprotocols to offer, such as "mqtt"; the server has to accept one of them.
    #[arg(long = "subprotocol", value_name = "NAME,NAME", value_parser = websocket::subprotocols)]
    pub(crate) subprotocols: Option<String>,
    /// Offer permessage-deflate (RFC 7692), and use it with servers that accept.
    #[arg(long)]
    pub(crate) deflate: bool,
    /// With wss:// URLs, trust the authorities in this file (PEM) instead of the system's.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// With wss:// URLs, trust any certificate.
    #[arg(long, conflicts_with = "tls_ca")]
    pub(crate) tls_insecure: bool,
    /// Resume TLS sessions of earlier connections. Off, every client is a stranger to the server.
    #[arg(long, value_enum, default_value_t, value_name = "WHETHER")]
    pub(crate) tls_resume: Switch,
    /// The only version of TLS to speak; the newest that the server knows when not given.
    #[arg(long, value_enum, value_name = "VERSION")]
    pub(crate) tls_version: Option<tls::Version>,
}

/// On or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    #[default]
    Off,
}

impl Common {
    /// Keeps the calling thread on the CPU that was asked for.
    pub(crate) fn pin(&self) -> io::Result<()> {
        self.cpu.map_or(Ok(()), kernel::pin_to_cpu)
    }

    /// The server's processes as they are now: those that begin later are not looked at.
    pub(crate) fn processes(&self) -> io::Result<Vec<u32>> {
        let mut pids = self.pids.clone();
        for unit in &self.units {
            pids.extend(proc::unit_processes(Path::new("/sys/fs/cgroup"), unit)?);
        }
        if self.with_children {
            pids = proc::with_children(&pids);
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Reads a URL, with the caution that was asked for, and what is to be said in a handshake.
    pub(crate) fn target(&self, url: &str) -> io::Result<Target> {
        let mut target = Target::parse(url, self.allow_remote).map_err(io::Error::other)?;
        target.subprotocols = self.subprotocols.clone().unwrap_or_default();
        target.headers.clone_from(&self.headers);
        target.deflate = self.deflate;
        if target.is_secure {
            let wishes = tls::Wishes {
                authorities: self.tls_ca.as_deref(),
                // Only of this machine, unless remote targets were asked for: `parse` saw to it.
                insecure: self.tls_insecure,
                resume: self.tls_resume == Switch::On,
                version: self.tls_version,
            };
            target.security = Some(Security::new(target.host_name(), &wishes)?);
        }
        Ok(target)
    }
}

/// Files that a result is written to.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Files {
    /// Write the percentile distribution to this file, as HdrHistogram's plotter reads it.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) hgrm: Option<PathBuf>,
    /// Write the histograms to this file, as an HdrHistogram log (V2, compressed).
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) hlog: Option<PathBuf>,
    /// Write the whole result to this file, with histograms, intervals and the machine, as JSON.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) json: Option<PathBuf>,
    /// Write the result to this file as a page with charts, to be opened in a browser.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) html: Option<PathBuf>,
    /// What the result is called when it is compared with others.
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) label: Option<String>,
    /// Show no line on the terminal while a run goes on.
    #[arg(long, global = true)]
    pub(crate) quiet: bool,
}

impl Files {
    /// Those that were asked for.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.hgrm, &self.hlog, &self.json, &self.html].into_iter().flatten()
    }
}

/// Reads a time in seconds, such as "0.5" or "5s", up to a day.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    let seconds: f64 = number.parse().map_err(|_| "not a number of seconds")?;
    if (0.0..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("0 to 86400".into())
    }
}

/// Reads "5000/s" or "5000".
pub(crate) fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse() {
        Ok(0) | Err(_) => Err("a number per second, such as 5000/s".into()),
        Ok(rate) => Ok(rate),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line<T: Args> {
        #[command(flatten)]
        options: T,
    }

    /// The options of a command as they would be read from this line, words divided by spaces.
    #[track_caller]
    pub(crate) fn parse<T: Args>(line: &str) -> T {
        try_parse(line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// The same, or what a user would be told.
    pub(crate) fn try_parse<T: Args>(line: &str) -> Result<T, String> {
        let words = std::iter::once("penstock-bench").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        Ok(line.options)
    }

    #[test]
    fn numbers() {
        assert_eq!((rate("5000/s"), rate("7")), (Ok(5000), Ok(7)));
        assert!(rate("0").is_err() && rate("-1").is_err() && rate("5/m").is_err());
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("5s"), Ok(Duration::from_secs(5)));
        assert!(seconds("-1").is_err() && seconds("86401").is_err() && seconds("NaN").is_err());
    }

    #[test]
    fn processes_are_a_list() {
        assert_eq!(parse::<Common>("--pid 1,22").pids, [1, 22]);
        assert!(parse::<Common>("").pids.is_empty());
        assert_eq!(parse::<Common>("--pid 22,1,22").processes().unwrap(), [1, 22]);
    }
}
