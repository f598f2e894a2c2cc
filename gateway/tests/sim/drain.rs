//! Clients are asked to leave, and upstreams die: who is told when, and that nobody is left.

use std::sync::Arc;
use std::time::Duration;

use gateway::config::{BackendKind, Clients, Config, Websocket};
use gateway::ring::sim::{Fault, Faults, Random};
use gateway::shard::drain::pace;
use gateway::shard::mailbox::{Letter, Order};
use gateway::time::Time;
use gateway::upstream::{Mode, UpstreamName};

use crate::client::{
    CLOSE, CONTINUATION, Client, End, Farewell, Frame, Line, Manners, TEXT, head_of, masked,
    read_frame, switching, unmasked,
};
use crate::sids::UPSTREAMS;
use crate::world::{Plan, World, for_seeds};

const SECOND: Duration = Duration::from_secs(1);

/// A connection to one of three upstreams, which accepts whoever comes.
struct Server {
    line: Line,
    at: usize,
    parsed: usize,
    /// Has accepted, and says this behind its 101.
    script: Option<Vec<Vec<u8>>>,
    ends: bool,
}

impl Server {
    fn play(&mut self, now: Time, dice: &mut Random) -> Time {
        let wake = self.line.play(now, dice);
        if let Some(script) = &mut self.script {
            let Some(head) = head_of(&self.line.received) else { return wake };
            self.parsed = head.len();
            self.line.queue.push_back(switching(&head));
            self.line.queue.extend(std::mem::take(script));
            self.script = None;
            return now;
        }
        let mut wake = wake;
        while let Some((frame, len)) = read_frame(&self.line.received[self.parsed..], true) {
            self.parsed += len;
            if frame.opcode == CLOSE && !self.ends && self.line.is_open() && !self.line.half_closed
            {
                self.ends = true;
                self.line.queue.push_back(unmasked(true, CLOSE, &frame.payload));
                self.line.farewell = Farewell::Drop;
                wake = now;
            }
        }
        wake
    }

    /// Ends it without a Close frame.
    fn die(&mut self, farewell: Farewell) {
        self.line.farewell = farewell;
        self.line.cut_at = self.line.sent;
    }
}

fn accept(
    world: &World,
    servers: &mut Vec<Server>,
    mut script: impl FnMut(&mut Line) -> Vec<Vec<u8>>,
) {
    for (at, address) in UPSTREAMS.into_iter().enumerate() {
        while let Some(peer) = world.network.accept(address) {
            let mut line = Line::new(peer, Manners::PROMPT, Farewell::Wait);
            let script = Some(script(&mut line));
            servers.push(Server { line, at, parsed: 0, script, ends: false });
        }
    }
}

/// The upstreams of the world, as the configuration has them.
fn websocket(config: &mut Config) -> &mut Websocket {
    let kinds = config.backends.iter_mut().filter(|it| it.name == "sids").map(|it| &mut it.kind);
    match kinds.into_iter().next() {
        Some(BackendKind::Websocket(websocket)) => websocket,
        _ => unreachable!("the world has them"),
    }
}

fn order_config(world: &World, config: &Config) {
    let config = Arc::new(config.clone());
    for inbox in world.inboxes.iter() {
        assert!(inbox.post(Letter::Order(Order::Config(Arc::clone(&config)))).is_ok());
    }
}

/// A good network and a roomy gateway.
fn plan(seed: u64, clients: u64) -> (Plan, Random) {
    let mut dice = Random::new(seed ^ 0xd8a1);
    let mut plan = Plan::pick(seed, &mut dice, clients, 2);
    plan.faults = Faults::none();
    plan.slots = (clients * 4 + 64) as u32;
    plan.buffers = 16;
    plan.buffer_bytes = 16 * 1024;
    plan.limits.ping_interval = Duration::ZERO;
    (plan, dice)
}

/// How late a client may be told: a step of the sweep or of the wheel, the network, a round or two.
const SLACK: Duration = Duration::from_millis(250);

/// They leave evenly over the window, or at 500 a second and shard where that is sooner.
#[test]
fn everybody_leaves_evenly() {
    for (seed, (count, window)) in
        [(1, 0), (40, 10_000), (200, 0), (300, 100), (300, 60_000), (0, 1000)]
            .into_iter()
            .enumerate()
    {
        let window = Duration::from_millis(window);
        let (mut plan, dice) = plan(seed as u64, count);
        plan.drain_window = window;
        let mut world = World::new(seed as u64, plan, dice);
        let shards = world.shards.len() as u64;
        let mut clients: Vec<(Client, Option<Time>)> = (0..count)
            .map(|who| {
                let line = Line::new(world.connect(who), Manners::PROMPT, Farewell::Wait);
                (Client::new(line, "/echo"), None)
            })
            .collect();
        let mut asked_at = None;
        assert!(world.run(300 * SECOND, |world| {
            let now = world.now();
            let dice = &mut *world.dice.borrow_mut();
            let mut wake = Time::NEVER;
            for (client, left_at) in &mut clients {
                wake = wake.min(client.play(now, dice));
                if left_at.is_none() && client.close().is_some() {
                    assert_eq!(client.close_code(), Some(1012));
                    *left_at = Some(now);
                }
            }
            if asked_at.is_none() && clients.iter().all(|(client, _)| client.is_upgraded()) {
                asked_at = Some(now);
                world.inboxes.iter().for_each(|inbox| inbox.stop());
                return Some(now);
            }
            let drained = world.shards.iter().all(|shard| shard.is_drained());
            let all = clients.iter().all(|(client, _)| !client.line.is_open());
            (!drained || !all).then_some(wake)
        }));
        let asked_at = asked_at.expect("all were there");
        for shard in 0..shards {
            let of_shard = clients.iter().skip(shard as usize).step_by(shards as usize);
            let mut times: Vec<Duration> = of_shard
                .map(|(_, left_at)| left_at.expect("everybody was asked").since(asked_at))
                .collect();
            times.sort_unstable();
            let paced = pace(times.len() as u32, window);
            for (index, time) in times.iter().enumerate() {
                let due = paced * index as u32 / times.len() as u32;
                let late = *time + Duration::from_millis(20) > due && *time < due + SLACK;
                assert!(late, "{count} in {window:?}: {index} of {} at {time:?}", times.len());
            }
        }
        clients.clear();
        world.finish();
    }
}

/// One that dies alone is told of at once; of many, one after the other. Those of other upstreams see
/// nothing, and what an orphan does meanwhile is its own affair.
#[test]
fn the_clients_of_a_dead_upstream_are_told_one_after_the_other() {
    for (seed, count) in [(1, 3), (2, 90), (3, 600)] {
        let (mut plan, dice) = plan(seed, count);
        plan.shards = 1;
        plan.limits.lost_window = Duration::from_millis(300);
        let mut world = World::new(seed, plan, dice);
        UPSTREAMS.into_iter().for_each(|address| world.network.listen(address));
        let mut clients: Vec<(Client, Option<Time>)> = (0..count)
            .map(|who| {
                let line = Line::new(world.connect(0), Manners::PROMPT, Farewell::Wait);
                (Client::new(line, &format!("/sids/{who}")), None)
            })
            .collect();
        let mut servers = Vec::new();
        let (mut died_at, mut left) = (None, 0);
        assert!(world.run(300 * SECOND, |world| {
            let now = world.now();
            accept(world, &mut servers, |_| Vec::new());
            let dice = &mut *world.dice.borrow_mut();
            let mut wake = Time::NEVER;
            let open = |clients: &[(Client, Option<Time>)]| {
                clients.iter().filter(|(client, _)| client.line.is_open()).count() as u64
            };
            if died_at.is_none() && clients.iter().all(|(client, _)| client.is_upgraded()) {
                died_at = Some(now);
                for server in servers.iter_mut().filter(|server| server.at == 1) {
                    server.die(if dice.below(2) == 0 { Farewell::Reset } else { Farewell::Drop });
                }
                wake = now;
            }
            for server in &mut servers {
                wake = wake.min(server.play(now, dice));
            }
            for (client, left_at) in &mut clients {
                wake = wake.min(client.play(now, dice));
                if left_at.is_none() && client.close().is_some() {
                    assert_eq!(client.close_code(), Some(1012));
                    *left_at = Some(now);
                    left += 1;
                }
            }
            let done = died_at.is_some_and(|at| now > at + 5 * SECOND);
            let end = died_at.map_or(Time::NEVER, |at| at + 6 * SECOND);
            if done {
                assert_eq!(open(&clients), count - left);
            }
            (!done).then_some(wake.min(end))
        }));
        assert_eq!(left, count / 3, "{left} of {count}");
        let mut times: Vec<Duration> = clients
            .iter()
            .filter_map(|(_, left_at)| Some(left_at.as_ref()?.since(died_at?)))
            .collect();
        times.sort_unstable();
        let paced = pace(left as u32, Duration::from_millis(300));
        for (index, time) in times.iter().enumerate() {
            let due = paced * index as u32 / times.len() as u32;
            let even = *time + Duration::from_millis(20) > due && *time < due + SLACK;
            assert!(even, "{count}: {index} of {} at {time:?}, due {due:?}", times.len());
        }
        drop((clients, servers));
        world.finish();
    }
}

/// What the operator, the checks and the servers do, one after the other.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// This upstream gets this mode.
    Mode(usize, Mode),
    /// It is taken off the list, or put back.
    Listed(usize, bool),
    Policy(Clients, Clients),
    /// A check of it has ended, three times.
    Checked(usize, bool),
    /// All its connections end.
    Dies(usize),
    /// One client goes.
    Leaves(usize),
    Stop,
}

fn event(dice: &mut Random, clients: u64) -> Event {
    let at = dice.below(3) as usize;
    let mode = [Mode::Active, Mode::Draining, Mode::Disabled][dice.below(3) as usize];
    let policy = |dice: &mut Random| [Clients::Stay, Clients::Move][dice.below(2) as usize];
    match dice.below(8) {
        0 | 1 => Event::Mode(at, mode),
        2 => Event::Listed(at, dice.below(2) == 0),
        3 => Event::Policy(policy(dice), policy(dice)),
        4 | 5 => Event::Checked(at, dice.below(2) == 0),
        6 => Event::Dies(at),
        _ => Event::Leaves(dice.below(clients) as usize),
    }
}

#[test]
fn drain() {
    for_seeds("drain", play);
}

fn play(seed: u64) -> u64 {
    let mut dice = Random::new(seed ^ 0xd8a2);
    let count = 1 + dice.below(14);
    let mut plan = Plan::pick(seed, &mut dice, count, 2);
    let calm = dice.below(2) == 0;
    if calm {
        plan.faults = Faults::none();
        plan.slots = plan.slots.max(count as u32 * 4 + 16);
    } else if dice.below(2) == 0 {
        plan.faults = plan.faults.with(Fault::Reset, 0);
    }
    plan.limits.ping_interval = Duration::ZERO;
    plan.limits.lost_window = Duration::from_millis(dice.below(3000));
    plan.drain_window = Duration::from_millis(dice.below(2) * dice.below(5000));
    plan.stop_timeout = Duration::from_millis(dice.below(10_000));
    if dice.below(2) == 0 {
        plan.drain_message = "bye".to_owned();
    }
    let (window, stop_timeout) = (plan.drain_window, plan.stop_timeout);
    let mut events: Vec<(Time, Event)> = (0..dice.below(12))
        .map(|_| (Time(0) + Duration::from_micros(dice.below(4_000_000)), event(&mut dice, count)))
        .collect();
    if dice.below(2) == 0 {
        events.push((Time(0) + Duration::from_micros(dice.below(6_000_000)), Event::Stop));
    }
    events.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let comes: Vec<Time> = (0..count)
        .map(|_| Time(0) + Duration::from_micros(dice.below(2) * dice.below(4_000_000)))
        .collect();
    let mut world = World::new(seed, plan, dice);
    UPSTREAMS.into_iter().for_each(|address| world.network.listen(address));
    let mut config = Config::clone(&world.config);
    let all = websocket(&mut config).upstreams.clone();
    let mut listed = [true; 3];
    let mut clients: Vec<Option<Client>> = (0..count).map(|_| None).collect();
    let mut servers: Vec<Server> = Vec::new();
    let mut stopped_at = None;
    // Longer than any window, and then any patience, of a closing handshake that follows another.
    let quiet = 40 * SECOND;
    let mut last_at = Time(0) + 4 * SECOND;
    let done = world.run(3600 * SECOND, |world| {
        let now = world.now();
        let mut wake = Time::NEVER;
        while let Some((at, event)) = events.last().copied() {
            if at > now {
                wake = wake.min(at);
                break;
            }
            events.pop();
            last_at = now.max(last_at);
            wake = now;
            let dice = &mut *world.dice.borrow_mut();
            let mut list: Vec<_> = (0..3)
                .map(|at| {
                    (
                        at,
                        websocket(&mut config)
                            .upstreams
                            .iter()
                            .find(|it| it.address == all[at].address)
                            .cloned(),
                    )
                })
                .collect();
            match event {
                Event::Mode(at, mode) => {
                    if let Some(spec) = &mut list[at].1 {
                        spec.mode = mode;
                    }
                }
                Event::Listed(at, is_listed) => {
                    listed[at] = is_listed || listed.iter().filter(|it| **it).count() == 1;
                    let spec = list[at].1.take().unwrap_or_else(|| all[at].clone());
                    list[at].1 = listed[at].then_some(spec);
                }
                Event::Policy(drained, down) => {
                    websocket(&mut config).drained_clients = drained;
                    websocket(&mut config).down_clients = down;
                }
                Event::Checked(at, ok) => {
                    let backend = config.backends.iter().position(|it| it.name == "sids");
                    let backend = backend.expect("it is there") as u16;
                    let upstream = UpstreamName::new(&all[at].url, &all[at].address);
                    for inbox in world.inboxes.iter() {
                        for _ in 0..3 {
                            let order = Order::Checked { backend, upstream, ok };
                            assert!(inbox.post(Letter::Order(order)).is_ok());
                        }
                    }
                }
                Event::Dies(at) => {
                    for server in servers.iter_mut().filter(|server| server.at == at) {
                        let ways = [Farewell::Reset, Farewell::Drop, Farewell::HalfClose];
                        server.die(ways[dice.below(3) as usize]);
                    }
                }
                Event::Leaves(who) => {
                    if let Some(client) = &mut clients[who] {
                        let ways = [Farewell::Reset, Farewell::Drop, Farewell::HalfClose];
                        client.line.farewell = ways[dice.below(3) as usize];
                        client.line.cut_at = client.line.sent;
                    }
                }
                Event::Stop => {
                    stopped_at = Some(now);
                    world.inboxes.iter().for_each(|inbox| inbox.stop());
                }
            }
            if matches!(event, Event::Mode(..) | Event::Listed(..) | Event::Policy(..)) {
                websocket(&mut config).upstreams = list.into_iter().filter_map(|it| it.1).collect();
                config.generation += 1;
                order_config(world, &config);
            }
        }
        for (who, client) in clients.iter_mut().enumerate() {
            if client.is_none() && comes[who] <= now && stopped_at.is_none() {
                let dice = &mut *world.dice.borrow_mut();
                let manners = Manners::pick_polite(dice);
                let line = Line::new(world.connect(who as u64), manners, Farewell::Wait);
                let mut new = Client::new(line, &format!("/sids/{who}"));
                for number in 0..dice.below(6) {
                    let payload = vec![b'x'; (number * 30) as usize];
                    new.line.queue.push_back(masked(dice, true, TEXT, &payload));
                }
                if dice.below(8) == 0 {
                    // The beginning of a frame that does not go on.
                    let frame = masked(dice, true, TEXT, &[b'x'; 50]);
                    new.line.queue.push_back(frame[..dice.below(50) as usize].to_vec());
                    new.ponging = false;
                }
                *client = Some(new);
            } else if client.is_none() && stopped_at.is_none() {
                wake = wake.min(comes[who]);
            }
        }
        {
            let dice = &mut *world.dice.borrow_mut();
            accept(world, &mut servers, |line| {
                line.manners = Manners::pick_polite(dice);
                script(dice)
            });
        }
        let dice = &mut *world.dice.borrow_mut();
        for server in &mut servers {
            wake = wake.min(server.play(now, dice));
        }
        for client in clients.iter_mut().flatten() {
            wake = wake.min(client.play(now, dice));
        }
        if stopped_at.is_some() {
            let drained = world.shards.iter().all(|shard| shard.is_drained());
            return (!drained).then_some(wake);
        }
        let end = last_at + quiet;
        (!events.is_empty() || now < end).then_some(wake.min(end))
    });
    assert!(done, "it does not end");
    println!("{:?}\n{:?}", world.plan, world.metrics());
    if let Some(stopped_at) = stopped_at {
        let took = world.now().since(stopped_at);
        let most = pace(count as u32, window) + stop_timeout + 5 * SECOND;
        assert!(took < most, "{took:?} of {most:?}");
        world.check_left();
    }
    for (who, client) in clients.iter().enumerate() {
        if let Some(client) = client {
            check_frames(who, client);
        }
    }
    // Where the last word was that they move, nobody is left.
    let moved = websocket(&mut config).drained_clients == Clients::Move;
    if calm && moved && stopped_at.is_none() {
        for (at, known) in all.iter().enumerate() {
            let specs = &websocket(&mut config).upstreams;
            let spec = specs.iter().find(|it| it.address == known.address);
            let serves = spec.is_some_and(|spec| spec.mode == Mode::Active);
            let left = servers.iter().filter(|it| it.at == at && it.line.end == End::Open).count();
            assert!(serves || left == 0, "{left} at {at}");
        }
    }
    drop((clients, servers));
    world.finish()
}

/// What an upstream says: whole messages, fragments, and at times a frame that never ends.
fn script(dice: &mut Random) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for _ in 0..dice.below(6) {
        let payload = vec![b'y'; dice.below(300) as usize];
        let fin = dice.below(2) == 0;
        frames.push(unmasked(fin, TEXT, &payload));
        if !fin {
            frames.push(unmasked(true, CONTINUATION, &payload));
        }
    }
    match dice.below(6) {
        0 => frames.push(unmasked(false, TEXT, b"begun")),
        1 => {
            let frame = unmasked(true, TEXT, &[b'y'; 60]);
            frames.push(frame[..1 + dice.below(50) as usize].to_vec());
        }
        _ => {}
    }
    frames
}

/// A message never stands among the frames of another.
fn check_frames(who: usize, client: &Client) {
    let mut begun = false;
    for Frame { fin, opcode, .. } in client.frames.iter().filter(|frame| frame.opcode < 8) {
        assert_eq!(*opcode == CONTINUATION, begun, "client {who}: opcode {opcode}");
        begun = !fin;
    }
}
