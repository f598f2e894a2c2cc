//! A gateway of one to three shards in a simulated network, and what has to hold in all of it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gateway::config::{BackendKind, Config};
use gateway::keyed_hash::HashKey;
use gateway::memory::Holder;
use gateway::metrics::{Cause, Counter, Counters, Metrics};
use gateway::policy::Policy;
use gateway::random::Random as Keys;
use gateway::ring::sim::{Faults, Leftovers, Network, Peer, Random, SimRing};
use gateway::rooms::SlowLimits;
use gateway::route::{Route, Routes};
use gateway::shard::mailbox::{Inbox, Mailroom};
use gateway::shard::{Setup, Shard};
use gateway::shared::Shared;
use gateway::time::Time;

/// Where the upstream servers listen.
pub(crate) const UPSTREAM: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9000);

/// What a seed has picked.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) faults: Faults,
    pub(crate) shards: u16,
    pub(crate) slots: u32,
    pub(crate) buffers: u16,
    pub(crate) buffer_bytes: u32,
    pub(crate) stop_timeout: Duration,
    pub(crate) drain_window: Duration,
    pub(crate) drain_message: String,
    pub(crate) limits: gateway::limits::Limits,
    /// Of the rooms.
    pub(crate) slow: SlowLimits,
}

impl Plan {
    /// A plan with tables for `clients` clients of which each takes `slots_each`; sometimes tight.
    pub(crate) fn pick(seed: u64, dice: &mut Random, clients: u64, slots_each: u64) -> Plan {
        let tight = dice.below(4) == 0;
        let roomy = clients * slots_each * 2 + 4;
        let slots = if tight { 2 + dice.below(roomy / 4) } else { roomy + dice.below(20) };
        let tiny = dice.below(4) == 0;
        let buffers = if tiny { 1 << dice.below(3) } else { 4 << dice.below(3) };
        let buffer_bytes = match dice.below(3) {
            0 => 16 + dice.below(200),
            1 => 1024,
            _ => 16 * 1024,
        };
        let mut limits = gateway::limits::Limits { ..Default::default() };
        limits.handshake_timeout = Duration::from_secs(60);
        limits.connect_timeout = Duration::from_secs(5);
        if dice.below(2) == 0 {
            limits.ping_interval = Duration::from_millis(200 + dice.below(3000));
        }
        Plan {
            faults: Faults::from_seed(seed),
            shards: 1 + dice.below(3) as u16,
            slots: slots as u32,
            buffers: buffers as u16,
            buffer_bytes: buffer_bytes as u32,
            stop_timeout: Duration::from_secs(10),
            drain_window: Duration::from_secs(30),
            drain_message: String::new(),
            limits,
            slow: SlowLimits::default(),
        }
    }
}

/// The gateway, its network, and the dice of the test (the network has its own).
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) network: Network,
    pub(crate) dice: RefCell<Random>,
    pub(crate) shards: Vec<Shard<SimRing>>,
    pub(crate) inboxes: Arc<[Inbox]>,
    pub(crate) counters: Vec<Arc<Counters>>,
    pub(crate) shared: Arc<Shared>,
    /// As the shards began.
    pub(crate) config: Arc<Config>,
    rounds: u64,
    connects: Cell<u64>,
}

const CONFIG: &str = r#"
[[listener]]
address = "127.0.0.1:0"
[[route]]
path = "/echo"
backend = "echo"
[[route]]
path = "/rooms"
backend = "rooms"
[[route]]
path = "/relay/*"
backend = "upstream"
[backend.echo]
kind = "echo"
[backend.rooms]
kind = "local"
[backend.upstream]
kind = "websocket"
url = "ws://127.0.0.1:9000"
[[route]]
path = "/sids/*"
backend = "sids"
[backend.sids]
kind = "websocket"
balance = "round-robin"
[[backend.sids.upstream]]
url = "ws://127.0.0.1:9001"
[[backend.sids.upstream]]
url = "ws://127.0.0.1:9002"
[[backend.sids.upstream]]
url = "ws://127.0.0.1:9003"
"#;

/// Rounds in which some ring has something to do, one after the other, at which it counts as
/// spinning.
const AWAKE_ROUNDS_MAX: u32 = 50_000;

/// Rounds of one scenario.
const ROUNDS_MAX: u64 = 2_000_000;

impl World {
    pub(crate) fn new(seed: u64, plan: Plan, dice: Random) -> World {
        let network = Network::new(seed, plan.faults);
        if std::env::var_os("PENSTOCK_SIM_NARRATE").is_some() {
            network.narrate();
        }
        let mut config = Config::parse("sim", CONFIG).unwrap_or_else(|faults| panic!("{faults}"));
        config.server.shards = plan.shards;
        config.server.slots_per_shard = plan.slots;
        config.server.receive_buffers = plan.buffers;
        config.server.receive_buffer_bytes = plan.buffer_bytes;
        config.server.stop_timeout = plan.stop_timeout;
        config.server.drain_window = plan.drain_window;
        config.server.drain_message = plan.drain_message.clone();
        config.limits = plan.limits.clone();
        for backend in &mut config.backends {
            if let BackendKind::Local(local) = &mut backend.kind {
                local.rooms.slow = plan.slow;
            }
        }
        let policy = Policy::of(&config.limits);
        let routes = config.routes.iter().cloned();
        let routes = routes.map(|route| Route { policy: policy.clone(), ..route });
        config.routes = Routes::new(routes.collect());
        let config = Arc::new(config);
        let inboxes: Arc<[Inbox]> = (0..plan.shards).map(|_| Inbox::default()).collect();
        let homes = HashKey::draw(&mut Keys::new([seed, u64::MAX]));
        let shared = Arc::new(Shared::new(homes));
        let counters: Vec<Arc<Counters>> = (0..plan.shards).map(|_| Arc::default()).collect();
        let shards = (0..plan.shards).map(|index| {
            let ring = network.ring(plan.slots, plan.buffers, plan.buffer_bytes, 1);
            inboxes[usize::from(index)].set_waker(gateway::ring::Ring::waker(&ring));
            let setup = Setup {
                index,
                config: Arc::clone(&config),
                shared: Arc::clone(&shared),
                mail: Mailroom::new(index, Arc::clone(&inboxes)),
                random: Keys::new([seed, u64::from(index)]),
                counters: Arc::clone(&counters[usize::from(index)]),
                journal: Arc::default(),
                unix_origin_ms: 1_700_000_000_000,
            };
            let mut shard = Shard::new(ring, setup);
            shard.start();
            shard
        });
        let shards = shards.collect();
        network.listen(UPSTREAM);
        let dice = RefCell::new(dice);
        World {
            plan,
            network,
            dice,
            shards,
            inboxes,
            counters,
            shared,
            config,
            rounds: 0,
            connects: Cell::new(0),
        }
    }

    pub(crate) fn connect(&self, shard: u64) -> Peer {
        self.connects.set(self.connects.get() + 1);
        self.network.connect(shard as usize % self.shards.len(), 0)
    }

    /// One of several clients of one address.
    pub(crate) fn connect_from(&self, shard: u64, client: SocketAddr) -> Peer {
        self.connects.set(self.connects.get() + 1);
        self.network.connect_from(shard as usize % self.shards.len(), 0, client)
    }

    pub(crate) fn now(&self) -> Time {
        self.network.now()
    }

    /// Turns every shard, lets `round` play everybody else, and moves time on when nobody has
    /// anything to do. `round` answers `None` when the scenario is over, and otherwise when it
    /// wants to be called again at the latest. Returns whether it was over within `limit`.
    pub(crate) fn run(
        &mut self,
        limit: Duration,
        mut round: impl FnMut(&mut World) -> Option<Time>,
    ) -> bool {
        let end = self.now() + limit;
        let mut awake_rounds = 0;
        let mut idle = false;
        while self.now() < end {
            for shard in &mut self.shards {
                shard.turn();
            }
            self.rounds += 1;
            assert!(self.rounds < ROUNDS_MAX, "no end of rounds");
            if self.rounds.is_multiple_of(8) {
                self.check_records();
            }
            let Some(wake) = round(self) else { return true };
            // Mail that was posted to a shard after its turn is found in its next one. A thread
            // would have been woken by it; here all have to be idle for two rounds before time
            // moves.
            let idle_before = std::mem::replace(&mut idle, self.network.jump(self.now()));
            if idle && idle_before {
                self.network.jump(wake.min(end));
                idle = false;
            }
            awake_rounds = if idle || idle_before { 0 } else { awake_rounds + 1 };
            assert!(awake_rounds < AWAKE_ROUNDS_MAX, "no ring sleeps: something spins");
        }
        false
    }

    /// What an outbox may hold: reading stops from who fills it at 256 KiB; what was received by
    /// then still comes, a turn's events of a buffer each, and a message that was assembled.
    fn check_records(&mut self) {
        const PAUSE_AT_BYTES: usize = 256 * 1024;
        let received = 64 * self.plan.buffer_bytes as usize;
        let limits = &self.plan.limits;
        let bound = PAUSE_AT_BYTES + 2 * received + 2 * limits.message_bytes_max;
        let bound = bound.max(limits.outbox_bytes_max);
        for shard in &self.shards {
            let records: Vec<_> = shard.records().collect();
            assert!(records.iter().cloned().eq(shard.records()));
            assert_eq!(records.len(), shard.open() as usize);
            for record in &records {
                assert!(record.outbox_bytes <= bound, "{record:?} of {bound}");
            }
        }
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let mut sum = Metrics::default();
        self.shards.iter().for_each(|shard| sum.merge(&shard.metrics()));
        sum
    }

    /// After everybody has gone: waits until the gateway has noticed, and looks at what is left.
    pub(crate) fn finish(mut self) -> u64 {
        self.network.set_faults(Faults::none());
        let limit = Duration::from_secs(400);
        let gone = self.run(limit, |world| {
            // Shards go on connecting to upstreams for clients that are gone.
            while world.network.accept(UPSTREAM).is_some() {}
            let stopping = world.inboxes.iter().any(Inbox::stop_asked);
            let waiting = !stopping && world.metrics().accepted < world.connects.get();
            let open = world.shards.iter().any(|shard| shard.open() > 0);
            (open || waiting).then_some(Time::NEVER)
        });
        if !gone {
            let records: Vec<_> = self.shards.iter().flat_map(Shard::records).collect();
            panic!("still there: {:?} {records:#?}", self.metrics());
        }
        self.check_left();
        self.network.digest()
    }

    /// Shards without connections hold nothing.
    pub(crate) fn check_left(&mut self) {
        // A turn more, for what came home during the last.
        self.shards.iter_mut().for_each(Shard::turn);
        let rooms: u64 = self.counters.iter().map(|counters| counters.rooms.get()).sum();
        assert_eq!(self.shared.makers.rooms() as u64, rooms, "each room counts with its maker");
        for (index, shard) in self.shards.iter().enumerate() {
            assert_eq!(self.network.leftovers(index), Leftovers::default(), "ring {index}");
            let metrics = shard.metrics();
            let closed: u64 = Cause::ALL.iter().map(|cause| metrics.closed(*cause)).sum();
            assert_eq!(metrics.accepted, closed, "{metrics:?}");
            let Counters { clients, upstreams, slow_consumers, waiting, subscriptions, .. } =
                &*self.counters[index];
            let gauges = [clients, upstreams, slow_consumers, waiting, subscriptions];
            assert_eq!(gauges.map(Counter::get), [0; 5], "gauges of shard {index}");
            let held = shard.held();
            for holder in Holder::ALL {
                let is_of_connections = matches!(
                    holder,
                    Holder::RequestHeads
                        | Holder::EarlyBytes
                        | Holder::Handshakes
                        | Holder::Assembly
                        | Holder::Outboxes
                        | Holder::Rates
                );
                assert!(!is_of_connections || held.get(holder) == 0, "{holder:?} in {held:?}");
            }
        }
    }
}

/// Prints which seed failed and how to run it alone.
struct Blame {
    scenario: &'static str,
    seed: u64,
}

impl Drop for Blame {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Blame { scenario, seed } = self;
            eprintln!(
                "failed: PENSTOCK_SIM_SEED={seed} cargo test -p gateway --test sim {scenario}"
            );
        }
    }
}

/// Plays a scenario for every seed that is asked for; the first one twice.
pub(crate) fn for_seeds(scenario: &'static str, play: impl Fn(u64) -> u64) {
    let number = |name: &str| std::env::var(name).ok().map(|it| it.parse().expect("a number"));
    let seeds = match number("PENSTOCK_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PENSTOCK_SIM_SEEDS").unwrap_or(200),
    };
    for seed in seeds.clone() {
        let _blame = Blame { scenario, seed };
        let digest = play(seed);
        if seed == seeds.start {
            assert_eq!(digest, play(seed), "the same seed gave another run");
        }
    }
}
