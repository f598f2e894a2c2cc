//! The shards as threads: started, written to, counted, and stopped.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::allocator;
use crate::config::{BackendKind, ClientNames, Config, Listener};
use crate::journal::Journal;
use crate::keyed_hash::HashKey;
use crate::limits::human_bytes;
use crate::listening::holder_of;
use crate::makers::MADE_BYTES;
use crate::memory_bound::{ItemSizes, memory_bound, memory_bound_total};
use crate::metrics::{Counters, Metrics};
use crate::names::Escaped;
use crate::random::Random;
use crate::ring::Ring;
use crate::ring::linux::{Claim, LinuxRing, Options, listen, monotonic_now};
use crate::shard::mailbox::{Inbox, Letter, Mailroom};
use crate::shard::{Setup, Shard};
use crate::shared::Shared;

/// The shards, running.
pub struct Gateway {
    config: Arc<Config>,
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    inboxes: Arc<[Inbox]>,
    counters: Vec<Arc<Counters>>,
    journals: Vec<Arc<Journal>>,
    threads: Vec<JoinHandle<()>>,
    /// What every shard has to receive into.
    buffers: String,
}

impl Gateway {
    /// Opens the listeners and starts the shards; returns once all of them serve.
    ///
    /// # Errors
    ///
    /// A sentence that says what could not be had, where, and what to do.
    pub fn start(config: Config) -> Result<Gateway, String> {
        Gateway::start_beside(config, false)
    }

    /// The same. With `take_over`, also beside another process of this user that listens on the same
    /// addresses: the kernel spreads new clients over both until that one has stopped.
    ///
    /// # Errors
    ///
    /// As [`Gateway::start`].
    pub fn start_beside(config: Config, take_over: bool) -> Result<Gateway, String> {
        let config = Arc::new(config);
        let shards = config.server.shards;
        let (listeners, addresses) = open_listeners(&config, take_over)?;
        let inboxes: Arc<[Inbox]> = (0..shards).map(|_| Inbox::default()).collect();
        let mut random = Random::from_kernel().map_err(|error| error.to_string())?;
        let shared = Arc::new(Shared::new(HashKey::draw(&mut random)));
        shared.budget.set_bytes_max(config.server.memory_bytes_max);
        let counters: Vec<Arc<Counters>> = (0..shards).map(|_| Arc::default()).collect();
        let journals: Vec<Arc<Journal>> = (0..shards).map(|_| Arc::default()).collect();
        let (ready, answers) = mpsc::channel();
        let mut threads = Vec::new();
        for (index, listeners) in (0..shards).zip(listeners) {
            let plan = Plan {
                index,
                config: Arc::clone(&config),
                shared: Arc::clone(&shared),
                inboxes: Arc::clone(&inboxes),
                counters: Arc::clone(&counters[usize::from(index)]),
                journal: Arc::clone(&journals[usize::from(index)]),
                listeners,
                ready: ready.clone(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || plan.run())
                .map_err(|error| format!("no thread for shard {index}: {error}"))?;
            threads.push(thread);
        }
        drop(ready);
        let mut buffers = String::new();
        for _ in 0..shards {
            match answers.recv() {
                Ok(Ok(description)) => buffers = description,
                Ok(Err(why)) => return Err(why),
                Err(_) => return Err("a shard ended before it served".into()),
            }
        }
        Ok(Gateway { config, shared, addresses, inboxes, counters, journals, threads, buffers })
    }

    /// Where it listens, in the order of the configuration; ports that the kernel chose are known.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The configuration that it started with.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Bytes of inboxes and journals, for the memory ledger.
    pub fn mailboxes_bytes(&self) -> usize {
        self.inboxes.iter().map(Inbox::held_bytes).sum::<usize>()
            + self.journals.iter().map(|journal| journal.held_bytes()).sum::<usize>()
    }

    /// What the shards count together.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// What each shard counts.
    pub fn counters(&self) -> &[Arc<Counters>] {
        &self.counters
    }

    /// What each shard has written down.
    pub fn journals(&self) -> &[Arc<Journal>] {
        &self.journals
    }

    /// What all of them have counted so far.
    pub fn metrics(&self) -> Metrics {
        let mut sum = Metrics::default();
        self.counters.iter().for_each(|counters| sum.merge(&counters.read()));
        sum
    }

    /// Leaves a letter in a shard's inbox. A full one gives it back.
    pub fn post(&self, shard: u16, letter: Letter) -> Result<(), Letter> {
        self.inboxes[usize::from(shard)].post(letter)
    }

    /// Asks every shard to stop: it asks its clients to leave and then ends.
    pub fn ask_to_stop(&self) {
        self.inboxes.iter().for_each(Inbox::stop);
    }

    /// Whether every shard has ended.
    pub fn has_stopped(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Asks every shard to stop, waits until they have, and returns what they counted.
    pub fn stop(mut self) -> Metrics {
        self.ask_to_stop();
        for thread in std::mem::take(&mut self.threads) {
            // In a release a panic has ended the process already.
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        self.metrics()
    }

    /// Says what runs, where it is asked (`admin`, in lines), and what to try when it is the embedded default.
    pub fn greet(&self, admin: &[String]) {
        let Config { server, listeners, .. } = &*self.config;
        let bound = memory_bound_total(&memory_bound(&self.config, &item_sizes()));
        println!(
            "penstock {}: {} shards of {} slots with {} each, at most {} in all",
            env!("CARGO_PKG_VERSION"),
            server.shards,
            server.slots_per_shard,
            self.buffers,
            human_bytes(bound),
        );
        for (listener, address) in listeners.iter().zip(&self.addresses) {
            println!("{}", listening_on(*address, &listener.name));
        }
        admin.iter().for_each(|place| println!("{}", Escaped(place)));
        let demo = self.config.backends.iter().find_map(|backend| match &backend.kind {
            BackendKind::Local(local) if local.demo_page => Some((&backend.name, local)),
            _ => None,
        });
        if let (Some((name, local)), Some(address)) = (demo, self.addresses.first()) {
            let query = match local.client_names {
                ClientNames::Trusted => "?user=ada",
                ClientNames::Refused => {
                    println!(
                        "everybody is a guest: `client_names` of backend {} is \"refused\" (without a \
                         file it is \"trusted\" where all listeners are on loopback)",
                        Escaped(name)
                    );
                    ""
                }
            };
            println!(
                "\nTry it: open http://{address}/ in two windows and chat,\n\
                 or: websocat 'ws://{address}/{query}'   and type\n    \
                 {{\"op\":\"join\",\"room\":\"lobby\"}}\n    \
                 {{\"op\":\"publish\",\"room\":\"lobby\",\"data\":\"hello\"}}\n\
                 docs/ROOMS.md has the rest; docs/penstock.toml puts it in front of what you have."
            );
        }
    }
}

/// `listening on 127.0.0.1:8080`, and the listener's name where that is another.
fn listening_on(address: SocketAddr, name: &str) -> String {
    match name.parse() == Ok(address) {
        true => format!("listening on {address}"),
        false => format!("listening on {address} ({})", Escaped(name)),
    }
}

/// What one thread needs to become a shard.
struct Plan {
    index: u16,
    config: Arc<Config>,
    shared: Arc<Shared>,
    inboxes: Arc<[Inbox]>,
    counters: Arc<Counters>,
    journal: Arc<Journal>,
    listeners: Vec<TcpListener>,
    ready: mpsc::Sender<Result<String, String>>,
}

impl Plan {
    fn run(self) {
        let Plan { index, config, shared, inboxes, counters, journal, listeners, ready } = self;
        allocator::claim_place();
        if config.server.pin {
            pin(index);
        }
        let options = Options {
            slots: config.server.slots_per_shard,
            buffers: config.server.receive_buffers,
            buffer_bytes: config.server.receive_buffer_bytes,
            incremental: config.server.incremental,
        };
        // The ring is made here, because only the thread that made it may use it.
        let made = LinuxRing::new(&options, listeners).map_err(|error| error.to_string());
        let random = Random::from_kernel().map_err(|error| error.to_string());
        let (ring, random) = match (made, random) {
            (Ok(ring), Ok(random)) => (ring, random),
            (Err(why), _) | (_, Err(why)) => {
                let _ = ready.send(Err(format!("shard {index}: {why}")));
                return;
            }
        };
        inboxes[usize::from(index)].set_waker(ring.waker());
        let (address, bytes) = ring.receive_memory();
        counters.memory.set_pool(address, bytes);
        let _ = ready.send(Ok(ring.describe_buffers()));
        let unix_now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let setup = Setup {
            index,
            config,
            shared,
            mail: Mailroom::new(index, inboxes),
            random,
            counters,
            journal,
            unix_origin_ms: (unix_now.as_millis() as u64)
                .saturating_sub(monotonic_now().0 / 1_000_000),
        };
        Shard::new(ring, setup).run();
    }
}

/// Keeps this thread on one of the CPUs it may run on. A shard that moves loses its caches; one
/// that cannot be pinned still works, so this is a warning.
fn pin(index: u16) {
    let pinned = sched_getaffinity(None).and_then(|allowed| {
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
        let mut one = CpuSet::new();
        one.set(cpus[usize::from(index) % cpus.len()]);
        sched_setaffinity(None, &one)
    });
    if let Err(error) = pinned {
        eprintln!("penstock: shard {index} is not pinned to a CPU: {error}");
    }
}

type Listeners = Vec<TcpListener>;

/// Every shard's listeners. They share their addresses, so a port that the kernel is to choose is
/// chosen once, by the first.
///
/// The first socket of a port takes it whole, so that a second gateway is refused, and not led half of
/// the clients: two that start at the same time cannot both listen.
fn open_listeners(
    config: &Config,
    take_over: bool,
) -> Result<(Vec<Listeners>, Vec<SocketAddr>), String> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let mut shards: Vec<Listeners> = (0..config.server.shards).map(|_| Vec::new()).collect();
    for listener in &config.listeners {
        let mut address = listener.address;
        // A listener on all addresses of a port and one on a single address share it.
        let is_ours = addresses.iter().any(|other| other.port() == address.port());
        let mut claim = if take_over || is_ours { Claim::Share } else { Claim::Whole };
        for shard in &mut shards {
            let socket = open_listener(config, listener, address, claim)?;
            claim = Claim::Share;
            address = socket.local_addr().map_err(|error| error.to_string())?;
            shard.push(socket);
        }
        addresses.push(address);
    }
    Ok((shards, addresses))
}

fn open_listener(
    config: &Config,
    listener: &Listener,
    address: SocketAddr,
    claim: Claim,
) -> Result<TcpListener, String> {
    let limits = &config.limits;
    let (send, receive) = (limits.send_buffer_bytes, limits.receive_buffer_bytes);
    listen(address, send as usize, receive as usize, claim).map_err(|error| {
        let holder = match error.kind() {
            io::ErrorKind::AddrInUse => holder_of(address),
            _ => None,
        };
        let name = &listener.name;
        match holder {
            Some(holder) => format!(
                "listener {name} cannot listen on {address}: {error}: {holder} listens there; stop it, \
                 choose another address, or start with --take-over if that gateway is to be replaced"
            ),
            None => {
                let advice = listen_advice(error.kind());
                format!("listener {name} cannot listen on {address}: {error}; {advice}")
            }
        }
    })
}

/// What to do when an address cannot be listened on.
pub fn listen_advice(why: io::ErrorKind) -> &'static str {
    match why {
        io::ErrorKind::AddrInUse => {
            "another program listens there (ss -ltnp tells which), or the port lies in \
             net.ipv4.ip_local_port_range and serves an outgoing connection"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE (the systemd unit grants it)"
        }
        io::ErrorKind::AddrNotAvailable => "this host has no such address (ip addr tells)",
        _ => "check the listener's address",
    }
}

/// What one of a kind takes in memory, for the sum printed at start.
pub fn item_sizes() -> ItemSizes {
    ItemSizes {
        slot_bytes: (size_of::<crate::conn::Conn>() + crate::timers::NODE_BYTES) as u64,
        room_bytes: ItemSizes::default().room_bytes + MADE_BYTES as u64,
        ..ItemSizes::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_told_by_its_address_and_a_name_of_its_own() {
        for (address, name, want) in [
            ("127.0.0.1:8080", "127.0.0.1:8080", "listening on 127.0.0.1:8080"),
            ("[::1]:8080", "[::1]:8080", "listening on [::1]:8080"),
            // The port that the kernel chose, and the name that metrics have.
            ("127.0.0.1:41000", "127.0.0.1:0", "listening on 127.0.0.1:41000 (127.0.0.1:0)"),
            ("0.0.0.0:80", "public", "listening on 0.0.0.0:80 (public)"),
            ("0.0.0.0:80", "a\u{202e}\n", r"listening on 0.0.0.0:80 (a\u{202e}\u{a})"),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(listening_on(address, name), want);
        }
    }
}
