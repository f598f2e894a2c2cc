//! How a configuration follows the one that runs.
//!
//! A reload does not look at connections, of which there may be millions: they keep the numbers of
//! their route and of their backend, and [`succeed`] sees to it that those mean the same in the new
//! configuration. What is gone from the file keeps its number, retired, until nobody is on it.
//!
//! What a running gateway cannot take on is refused as a whole:
//!
//! | Key | Why |
//! | --- | --- |
//! | all of `[server]` but `stop_timeout_ms`, `drain_*` and `memory_bytes_max` | threads, rings and tables are made at the start |
//! | names and addresses of listeners | the sockets are opened at the start |
//! | `[admin]` but its token and `open`, `log.format` | they are set up at the start |
//! | `limits.send_buffer_bytes`, `limits.receive_buffer_bytes` | the listeners have them already |
//!
//! Everything else can change: the limits and policies are looked up when they are needed, rooms
//! take on theirs ([`Rooms::set_limits`](crate::rooms::Rooms::set_limits)), and so do groups of
//! upstreams ([`Group::reconfigure`](crate::upstream::Group::reconfigure)). A key that is new in
//! `[server]` counts as one that cannot change until it is named here.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fmt;

pub use super::keys::Change;

use super::{Backend, Config, Listener};
use crate::limits::BACKEND_NUMBERS_MAX;
use crate::names::Escaped;
use crate::route::{Route, RouteIndex, Routes};

/// A configuration that can take the place of the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The new one, with the numbers of the old, and the generation after its.
    pub config: Config,
    /// What is different, for the log; empty when nothing is.
    pub changes: Vec<Change>,
}

/// Why a configuration cannot take the place of the one that runs; displayed as a line per reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Each a sentence: which key, its values, why, and what to do. Never empty.
    pub list: Vec<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.list.iter().enumerate() {
            let end = if index > 0 { "\n" } else { "" };
            write!(f, "{end}{}", Escaped(reason))?;
        }
        Ok(())
    }
}

impl Error for Refusal {}

/// What connections keep the number of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// A route's.
    Route(RouteIndex),
    /// A backend's.
    Backend(u16),
}

/// Makes of `new`, as it was read, what follows `old`.
///
/// Routes keep their numbers as [`Routes::succeed`] has it. A backend keeps its number, and one
/// that was retired gets it back, by its name and kind ([`Backend::is_same`]); one without gets a
/// number that was retired before and is not `in_use`, or a new one. Listeners keep their order.
///
/// `in_use` is asked about numbers that are retired in `old`, and is true while a connection of any
/// shard has the number, or mail or rooms of it are about. All shards must have taken on `old` by
/// then: one that still goes by an earlier configuration could lead a client to such a number.
///
/// # Errors
///
/// All that cannot change in a running gateway, or that there is no number left.
pub fn succeed(
    old: &Config,
    new: Config,
    in_use: impl Fn(Number) -> bool,
) -> Result<Succession, Refusal> {
    let changes = changes(old, &new);
    let mut list: Vec<String> = changes.iter().filter_map(fixed).collect();
    list.extend(fixed_listeners(&old.listeners, &new.listeners));

    let backends = succeed_backends(old, &new.backends, &in_use);
    let routes = backends.as_ref().map_err(Clone::clone).and_then(|(_, numbers)| {
        let renumber =
            |route: &Route| Route { backend: numbers[usize::from(route.backend)], ..route.clone() };
        let routes = Routes::new(new.routes.iter().map(renumber).collect());
        old.routes.succeed(&routes, |index| in_use(Number::Route(index)))
    });
    let (routes, backends) = match (routes, backends) {
        (Ok(routes), Ok((backends, _))) if list.is_empty() => (routes, backends),
        (Err(why), _) => {
            list.push(why);
            return Err(Refusal { list });
        }
        _ => return Err(Refusal { list }),
    };
    let mut listeners = new.listeners;
    // Sockets and completions go by their place.
    listeners.sort_by_key(|listener| {
        old.listeners.iter().position(|before| before.name == listener.name)
    });
    let generation = old.generation + 1;
    let config = Config { listeners, routes, backends, generation, ..new };
    Ok(Succession { config, changes })
}

/// How `new` differs from `old` in the words of the file, a line each. What the order of the file
/// is, and whether a default is written out, makes no difference.
pub fn changes(old: &Config, new: &Config) -> Vec<Change> {
    old.keys.changes(&new.keys)
}

/// Why `change` needs a restart; `None`: it does not.
fn fixed(change: &Change) -> Option<String> {
    let key = change.key?;
    let why = match (change.section.as_str(), key) {
        ("server", "stop_timeout_ms" | "drain_delay_ms" | "drain_window_ms" | "drain_message") => {
            return None;
        }
        ("server", "memory_bytes_max") => return None,
        ("server", "shards") => {
            "each shard is a thread with connections, and rooms have their place by the number of \
             shards"
        }
        ("server", "slots_per_shard") => "the tables of connections are made at the start",
        ("server", "receive_buffers" | "receive_buffer_bytes" | "incremental") => {
            "the kernel was given the receive buffers at the start"
        }
        ("server", "pin") => "threads get their CPUs at the start",
        ("server", _) => "[server] is what the process is made of at the start",
        ("admin", "token_file" | "open" | "aliases" | "hosts") => return None,
        ("admin", _) => "the socket is open already",
        ("log", "format") => "the log is set up at the start",
        ("limits", "send_buffer_bytes" | "receive_buffer_bytes") => {
            "listeners and connections have their socket buffers already"
        }
        _ => return None,
    };
    let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
    Some(format!(
        "`{}.{key}` is {} and would become {}: {why}; restart for this change, or put it back",
        change.section,
        word(&change.from),
        word(&change.to)
    ))
}

/// What has come, gone or moved of the listeners.
fn fixed_listeners(old: &[Listener], new: &[Listener]) -> Vec<String> {
    const WHY: &str =
        "the sockets are opened at the start; restart for this change, or put it back";
    let mut list = Vec::new();
    let find = |listeners: &[Listener], name: &str| {
        listeners.iter().find(|listener| listener.name == name).map(|listener| listener.address)
    };
    for Listener { name, address, .. } in new {
        match find(old, name) {
            None => list.push(format!("listener \"{name}\" at {address} is new: {WHY}")),
            Some(before) if before != *address => list.push(format!(
                "`address` of listener \"{name}\" is {before} and would become {address}: {WHY}"
            )),
            Some(_) => {}
        }
    }
    for Listener { name, address, .. } in old {
        if find(new, name).is_none() {
            list.push(format!("listener \"{name}\" at {address} would be gone: {WHY}"));
        }
    }
    list
}

/// The backends by number, and the number of each of `new`. The error is a sentence.
fn succeed_backends(
    old: &Config,
    new: &[Backend],
    in_use: impl Fn(Number) -> bool,
) -> Result<(Vec<Backend>, Vec<u16>), String> {
    let numbers = 0..=u16::MAX;
    let known: HashMap<_, u16> =
        old.backends.iter().map(Backend::identity).zip(numbers.clone()).collect();
    let kept: HashSet<u16> =
        new.iter().filter_map(|backend| known.get(&backend.identity()).copied()).collect();
    // Whoever is on a retired route still finds its backend by it.
    let held: HashSet<u16> = old
        .routes
        .retired()
        .filter(|route| in_use(Number::Route(route.index)))
        .map(|route| route.backend)
        .collect();
    let mut free = numbers.clone().zip(&old.backends).filter_map(|(number, backend)| {
        let is_free = backend.retired && !kept.contains(&number) && !held.contains(&number);
        (is_free && !in_use(Number::Backend(number))).then_some(number)
    });

    let mut slots = old.backends.clone();
    for slot in &mut slots {
        slot.retired = true;
    }
    let mut given = Vec::with_capacity(new.len());
    for backend in new {
        let number = known.get(&backend.identity()).copied().or_else(|| free.next());
        let number = match number {
            Some(number) => {
                slots[usize::from(number)] = backend.clone();
                number
            }
            None if slots.len() < BACKEND_NUMBERS_MAX => {
                slots.push(backend.clone());
                (slots.len() - 1) as u16
            }
            None => {
                return Err(format!(
                    "all {BACKEND_NUMBERS_MAX} numbers of backends are taken by {} backends of the \
                     file and by backends that are gone but have connections; reload again when \
                     those have ended, or restart",
                    new.len()
                ));
            }
        };
        given.push(number);
    }
    Ok((slots, given))
}

#[cfg(test)]
mod tests;
