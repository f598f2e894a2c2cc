//! The machine as far as the configuration depends on it.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::admin::token::Token;
use crate::families::memory_limit;

/// Finds the addresses of a name, or of an address, and a port: in any order, not an empty list.
pub type Resolve = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// What defaults are taken from and what values are held against. Tests bring their own, so that a
/// file means the same on every machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// CPUs we may run on (affinity and the control group's quota), at least 1.
    pub cpus: u16,
    /// `RLIMIT_NOFILE` as far as we may raise it. The kernel holds each table of direct
    /// descriptors against it.
    pub descriptors: u64,
    /// What the process can use: the limit of its control groups, or else the machine's memory. In
    /// bytes.
    pub memory_bytes: u64,
    /// Finds the addresses of `host` (a name or an address) and port.
    pub resolve: Resolve,
    /// Reads the token in a file.
    pub read_token: fn(&Path) -> Result<Token, String>,
    /// The permissions of the file of that name; `None`: there is none.
    pub mode: fn(&str) -> Option<u32>,
    /// The directory of systemd's credentials (`$CREDENTIALS_DIRECTORY`, systemd.exec(5)).
    pub credentials: Option<PathBuf>,
}

impl Machine {
    /// This machine and this process.
    pub fn here() -> Machine {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Machine {
            cpus: u16::try_from(cpus).unwrap_or(u16::MAX),
            descriptors: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            memory_bytes: memory_limit().unwrap_or(u64::MAX),
            resolve,
            read_token: Token::read,
            mode: |name| Some(std::fs::metadata(name).ok()?.permissions().mode()),
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        }
    }
}

impl Machine {
    /// Where a secret is: a whole path, or `credential:NAME`, one that systemd hands over
    /// (`LoadCredential=`).
    ///
    /// # Errors
    ///
    /// What is wrong with `text`, and what to do.
    pub fn secret_path(&self, text: &str) -> Result<PathBuf, String> {
        let Some(name) = text.strip_prefix("credential:") else {
            if text.starts_with('/') {
                return Ok(PathBuf::from(text));
            }
            return Err(
                "where that is depends on the directory that the gateway is started in; write \
                        the whole path of the file, or \"credential:NAME\" for one of systemd's"
                    .to_owned(),
            );
        };
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(
                "a credential has a name without slashes; write \"credential:NAME\"".to_owned()
            );
        }
        match &self.credentials {
            Some(directory) => Ok(directory.join(name)),
            None => Err(format!(
                "there are no credentials, as $CREDENTIALS_DIRECTORY is not set; start it under systemd \
                 with LoadCredential={name}:PATH, or write the path"
            )),
        }
    }
}

/// Raises `RLIMIT_NOFILE` to all we may have, as the tables that the configuration allows need it:
/// shells start programs with 1,024. Returns what holds now.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.current.unwrap_or(u64::MAX))
}

/// All addresses that the system's resolver names (getaddrinfo(3)), as every other program here sees
/// them: /etc/hosts, nsswitch.conf, and the cache that knows how long a record lives.
fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let found: Vec<SocketAddr> = (bare, port).to_socket_addrs()?.collect();
    match found.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
        false => Ok(found),
    }
}
