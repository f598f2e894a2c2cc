//! The memory ledger: what holds how much, beside what the kernel says that the process takes.
//!
//! ```text
//!   a shard      Holder: table, timers, outboxes, rooms, …   its own sums, published as counters
//!   the process  receive buffers, rings, program, stacks     resident pages, from /proc/self
//!                allocator                                   resident heap, less what is in use of it
//!   the kernel   sockets                                     not in the resident memory; an estimate
//! ```
//!
//! No component is "what is left": each is counted or measured by itself, so that what the ledger does
//! not know of shows as `unaccounted_bytes`. Of what is in use of the heap the ledger adds up what it
//! knows; the rest (tasks of the control thread, what is on its way through a mailbox) is not in it.
//!
//! What is counted as the resident heap is all anonymous memory that is neither a stack nor a ring: the
//! allocator has it from there. Memory that is reserved and never touched (most of the tables of a
//! gateway with few clients) is in use for the allocator and not resident; it is taken out by number.
//!
//! To look costs a walk over the tables, in stretches of a few hundred slots, and one reading of
//! `/proc/self/smaps`, in which the kernel visits each page once. So it is done every few seconds,
//! less often where it takes long ([`keep`]), and at the word of whoever asks ([`measure`]).
//!
//! # Kernel memory
//!
//! What one socket holds cannot be asked for cheaply: sockets are direct descriptors, which
//! `getsockopt` and /proc do not see, and a dump over netlink walks the sockets of the whole machine
//! under their locks. So [`Kernel`] says what can be had:
//!
//! - structures: the number of our connections times [`SOCKET_BYTES`], which is measured once and not
//!   where this runs: other kernels differ by some hundred bytes;
//! - buffers, which are data on its way: of the control group (`sock` of its `memory.stat`), or
//!   without cgroup 2 of all TCP sockets of the machine (/proc/net/sockstat), an upper bound. The
//!   kernel counts them in pages, and keeps up to a megabyte per CPU that it has not spread yet.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use tokio::sync::oneshot;
use tracing::warn;

use crate::allocator;
use crate::control::Control;
use crate::memory_bound::{memory_bound, memory_bound_total};
use crate::metrics::{Counter, Counters};
use crate::server::{Gateway, item_sizes};
use crate::shard::account::{Account, Stretch};
use crate::shard::mailbox::Order;

/// Who holds memory in a shard. Those that [`memory_bound`] bounds have the names that they have there
/// (its `table` is the table and the timers together).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Holder {
    /// Slots of the table that were ever used.
    Table,
    /// Their nodes in the wheel.
    Timers,
    /// Heads of requests, and of upstreams' answers.
    RequestHeads,
    /// What clients sent before their upstream was there.
    EarlyBytes,
    /// What else a request has while it is with an upstream, and an upgrade until it is accepted.
    Handshakes,
    /// Messages of which only a part is here, and requests of rooms that wait to be served.
    Assembly,
    /// What waits to be sent: buffers by their capacity, lists of them, backlogs of slow members.
    Outboxes,
    /// Vectors and lists that wait to be used again.
    Spares,
    /// Meters of clients that have limits.
    Rates,
    /// Rooms, their members, and users.
    Rooms,
    /// Messages that rooms keep.
    RoomsHistory,
    /// Sessions of Engine.IO.
    Sessions,
    /// Mail that was not posted yet, or waits to be served.
    Mailboxes,
    /// Since when messages wait, of those that do.
    Delays,
}

impl Holder {
    /// All of them, in the order of their numbers.
    pub const ALL: [Holder; 14] = [
        Holder::Table,
        Holder::Timers,
        Holder::RequestHeads,
        Holder::EarlyBytes,
        Holder::Handshakes,
        Holder::Assembly,
        Holder::Outboxes,
        Holder::Spares,
        Holder::Rates,
        Holder::Rooms,
        Holder::RoomsHistory,
        Holder::Sessions,
        Holder::Mailboxes,
        Holder::Delays,
    ];

    /// The name in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Holder::Table => "table",
            Holder::Timers => "timers",
            Holder::RequestHeads => "request heads",
            Holder::EarlyBytes => "early bytes",
            Holder::Handshakes => "handshakes",
            Holder::Assembly => "assembly",
            Holder::Outboxes => "outboxes",
            Holder::Spares => "spares",
            Holder::Rates => "rates",
            Holder::Rooms => "rooms",
            Holder::RoomsHistory => "rooms history",
            Holder::Sessions => "Engine.IO sessions",
            Holder::Mailboxes => "mailboxes",
            Holder::Delays => "delays",
        }
    }
}

/// What one shard holds, or a part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    bytes: [u64; Holder::ALL.len()],
    /// Bytes of tables that were reserved and never touched: they are in no component, and not
    /// resident.
    pub reserved_bytes: u64,
}

impl Held {
    /// `holder` has so many bytes more.
    pub fn add(&mut self, holder: Holder, bytes: usize) {
        self.bytes[holder as usize] += bytes as u64;
    }

    /// Bytes of `holder`.
    pub fn get(&self, holder: Holder) -> u64 {
        self.bytes[holder as usize]
    }
}

/// What one shard says of its memory. It alone writes; whoever reads does not ask it.
#[derive(Debug, Default)]
pub struct ShardMemory {
    held: [Counter; Holder::ALL.len()],
    reserved: Counter,
    pool_address: Counter,
    pool_bytes: Counter,
}

impl ShardMemory {
    /// These are the sums from here on.
    pub fn publish(&self, held: &Held) {
        for (counter, bytes) in self.held.iter().zip(held.bytes) {
            counter.set(bytes);
        }
        self.reserved.set(held.reserved_bytes);
    }

    /// Where the receive buffers lie: the kernel knows which of their pages are resident.
    pub fn set_pool(&self, address: usize, bytes: usize) {
        self.pool_address.set(address as u64);
        self.pool_bytes.set(bytes as u64);
    }

    /// The sums of the last walk.
    pub fn read(&self) -> Held {
        Held { bytes: self.held.each_ref().map(Counter::get), reserved_bytes: self.reserved.get() }
    }
}

/// The name of what shards count, and of the histograms that they record.
pub(crate) const HISTOGRAMS: &str = "counters and histograms";

/// The ledger.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ledger {
    /// When it was measured, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What holds how many bytes of the resident memory. Always the same names in the same order.
    #[serde(serialize_with = "as_objects")]
    pub components: Vec<(&'static str, u64)>,
    /// Their sum.
    pub ledger_bytes: u64,
    /// What the kernel says that the process has in memory.
    pub rss_bytes: u64,
    /// That, less what the ledger knows: negative when it knows of more.
    pub unaccounted_bytes: i64,
    /// Kernel memory for sockets, which is not in the resident memory: the sum of [`Kernel`].
    pub kernel_bytes: u64,
    /// The parts of the kernel's share.
    pub kernel: Kernel,
    /// What the process may use at most: see [`memory_bound`].
    pub bound_bytes: u64,
    /// The heap: bytes that were asked for and not given back.
    pub heap_in_use_bytes: u64,
}

impl Ledger {
    /// How long ago it was measured, in milliseconds; `None` while nothing has been.
    pub fn age_ms(&self) -> Option<u64> {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        (self.unix_ms > 0).then(|| (now_ms as u64).saturating_sub(self.unix_ms))
    }
}

/// Kernel memory for sockets; how exact each part is stands at the top of this module.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Kernel {
    /// Structures of our connections: an estimate.
    pub sockets_bytes: u64,
    /// Data in buffers of sockets.
    pub buffers_bytes: u64,
    /// The sockets whose buffers were counted.
    pub buffers_of: BuffersOf,
    /// Tables of direct descriptors, which are there from the start.
    pub descriptors_bytes: u64,
}

/// Whose socket buffers are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BuffersOf {
    /// Those of our control group.
    ControlGroup,
    /// Those of all TCP sockets of the machine.
    Machine,
    /// Neither could be read.
    #[default]
    Unknown,
}

/// What an established TCP socket takes in the kernel while nothing is on its way, as a direct
/// descriptor with a receive armed: 3,886 bytes of socket, inode and file, 864 of the receive
/// (Linux 6.18, x86-64, slab objects counted at 18,000 and at 1,000,000 connections).
pub const SOCKET_BYTES: u64 = 4750;

/// What a slot in the table of a ring takes, used or not.
const DESCRIPTOR_BYTES: u64 = 8;

fn as_objects<S: Serializer>(list: &[(&'static str, u64)], to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Component {
        name: &'static str,
        bytes: u64,
    }
    to.collect_seq(list.iter().map(|&(name, bytes)| Component { name, bytes }))
}

/// What the kernel says of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Process {
    unix_ms: u64,
    rss: u64,
    /// Of that: files, among them the program, and its data.
    program: u64,
    stacks: u64,
    rings: u64,
    /// Anonymous memory that is none of these.
    heap: u64,
    /// Of that: receive buffers.
    pools: u64,
    /// Bytes of the heap that were asked for; 0 where nobody counts them.
    in_use: u64,
    buffers: u64,
    buffers_of: BuffersOf,
}

/// The last measurement.
#[derive(Debug, Default)]
pub struct Keeper {
    process: Mutex<Process>,
    /// Held while somebody measures; when that was done last.
    measured: tokio::sync::Mutex<Option<Instant>>,
    /// Bytes of the heap that were in use before the shards were there.
    at_start: u64,
}

impl Keeper {
    /// One that knows nothing. `at_start`: bytes of the heap that were in use before there were
    /// shards: configuration, runtime, log.
    pub fn new(at_start: usize) -> Keeper {
        Keeper { at_start: at_start as u64, ..Keeper::default() }
    }
}

/// How often the ledger is made anew by itself.
const INTERVAL: Duration = Duration::from_secs(5);

/// The pause after it is so many times what making it took, so that it costs no more than a hundredth of
/// a core however many connections there are.
const PAUSE_FACTOR: u32 = 100;

/// How long a shard is given to look at one stretch of its table.
const STRETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps the ledger up to date, for as long as the gateway runs.
pub async fn keep(control: Arc<Control>) {
    let mut failed = false;
    loop {
        let began = Instant::now();
        let result = measure(&control, Duration::ZERO).await;
        if control.gateway.has_stopped() {
            return;
        }
        if let (Err(why), false) = (&result, failed) {
            warn!("the memory ledger is not up to date: {why}");
        }
        failed = result.is_err();
        tokio::time::sleep(INTERVAL.max(began.elapsed() * PAUSE_FACTOR)).await;
    }
}

/// Looks at everything again, unless that was done `age_max` ago or later.
///
/// # Errors
///
/// A shard does not answer, or /proc cannot be read: the sentence says which.
pub async fn measure(control: &Control, age_max: Duration) -> Result<(), String> {
    let mut measured = control.memory.measured.lock().await;
    if measured.is_some_and(|at| at.elapsed() < age_max) {
        return Ok(());
    }
    for shard in 0..control.config().server.shards {
        walk(control, shard).await?;
    }
    let pools: Vec<(u64, u64)> = control.gateway.counters().iter().map(|it| pool(it)).collect();
    // It takes milliseconds where much is resident.
    let process = tokio::task::spawn_blocking(move || Process::read(&pools)).await;
    let process = process.map_err(|error| error.to_string())?;
    let process = process.map_err(|error| {
        format!("/proc/self/smaps: {error}; is /proc mounted, and may this process read its own?")
    })?;
    *lock(&control.memory.process) = process;
    *measured = Some(Instant::now());
    Ok(())
}

fn pool(counters: &Counters) -> (u64, u64) {
    (counters.memory.pool_address.get(), counters.memory.pool_bytes.get())
}

/// Has a shard look at its whole table.
async fn walk(control: &Control, shard: u16) -> Result<(), String> {
    let mut stretch = Stretch::More(0, Held::default());
    while let Stretch::More(from, held) = stretch {
        let (reply, answer) = oneshot::channel();
        control.order(shard, Order::Account(Box::new(Account { from, held, reply }))).await?;
        let answer = tokio::time::timeout(STRETCH_TIMEOUT, answer).await;
        stretch = match answer {
            Ok(Ok(stretch)) => stretch,
            Ok(Err(_)) => return Err(format!("shard {shard} has stopped")),
            Err(_) => {
                let patience = STRETCH_TIMEOUT;
                return Err(format!("shard {shard} has not answered within {patience:?}"));
            }
        };
    }
    Ok(())
}

/// The ledger, of what was measured last. Asks nobody.
pub fn ledger(control: &Control) -> Ledger {
    let process = *lock(&control.memory.process);
    let config = control.config();
    let bound_bytes = memory_bound_total(&memory_bound(&config, &item_sizes()));
    let slots = u64::from(config.server.shards) * u64::from(config.server.slots_per_shard);
    let gateway = &control.gateway;
    let connections = gateway.counters().iter().map(|it| it.clients.get() + it.upstreams.get());
    let kernel = Kernel {
        sockets_bytes: connections.sum::<u64>() * SOCKET_BYTES,
        buffers_bytes: process.buffers,
        buffers_of: process.buffers_of,
        descriptors_bytes: slots * DESCRIPTOR_BYTES,
    };
    let components = components(gateway, &process, control.memory.at_start);
    let ledger_bytes = components.iter().map(|(_, bytes)| bytes).sum();
    Ledger {
        unix_ms: process.unix_ms,
        components,
        ledger_bytes,
        rss_bytes: process.rss,
        unaccounted_bytes: process.rss as i64 - ledger_bytes as i64,
        kernel_bytes: kernel.sockets_bytes + kernel.buffers_bytes + kernel.descriptors_bytes,
        kernel,
        bound_bytes,
        heap_in_use_bytes: process.in_use,
    }
}

fn components(gateway: &Gateway, process: &Process, at_start: u64) -> Vec<(&'static str, u64)> {
    let mut reserved = 0;
    let mut held = Held::default();
    let mut histograms = 0;
    for counters in gateway.counters() {
        let of_shard = counters.memory.read();
        for (sum, bytes) in held.bytes.iter_mut().zip(of_shard.bytes) {
            *sum += bytes;
        }
        reserved += of_shard.reserved_bytes + pool(counters).1;
        histograms += (size_of::<Counters>() + counters.recorder.held_bytes()) as u64;
    }
    let shared = gateway.shared();
    held.add(Holder::Rates, shared.addresses.held_bytes());
    held.add(Holder::Mailboxes, gateway.mailboxes_bytes());
    let mut components: Vec<(&'static str, u64)> =
        Holder::ALL.iter().map(|&holder| (holder.name(), held.get(holder))).collect();
    let touched = process.in_use.saturating_sub(reserved.saturating_sub(process.pools));
    let allocator = match process.in_use {
        // Nobody counts.
        0 => 0,
        _ => process.heap.saturating_sub(touched),
    };
    components.extend([
        ("receive buffers", process.pools),
        ("rings", process.rings),
        (HISTOGRAMS, histograms),
        ("counts of all shards", shared.held_bytes() as u64),
        ("configuration", at_start),
        ("allocator", allocator),
        ("stacks", process.stacks),
        ("program", process.program),
    ]);
    components
}

impl Process {
    /// Asks the kernel. `pools`: addresses and lengths of receive buffers.
    fn read(pools: &[(u64, u64)]) -> io::Result<Process> {
        let mut process = Process::of_smaps(&fs::read_to_string("/proc/self/smaps")?);
        process.in_use = allocator::bytes_in_use() as u64;
        process.pools = resident_bytes(pools)?;
        (process.buffers, process.buffers_of) = socket_buffers();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        process.unix_ms = now.as_millis() as u64;
        Ok(process)
    }

    /// What the mappings of a process come to (proc(5), `/proc/pid/smaps`).
    fn of_smaps(text: &str) -> Process {
        let mut process = Process::default();
        let mut kind = Kind::Heap;
        let mut before = Before::default();
        for line in text.lines() {
            if let Some(mapping) = Mapping::parse(line) {
                kind = mapping.kind(&before);
                before = Before {
                    end: mapping.end,
                    is_data: kind == Kind::Program && mapping.permissions.starts_with("rw"),
                    is_guard: mapping.is_guard(),
                };
            } else if let Some(bytes) = size_in(line, "Rss:") {
                process.rss += bytes;
                *match kind {
                    Kind::Program => &mut process.program,
                    Kind::Stack => &mut process.stacks,
                    Kind::Ring => &mut process.rings,
                    Kind::Heap => &mut process.heap,
                    Kind::Other => continue,
                } += bytes;
            }
        }
        process
    }
}

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Program,
    Stack,
    Ring,
    Heap,
    /// Nothing that the ledger knows.
    Other,
}

/// The mapping below another.
#[derive(Default)]
struct Before {
    end: u64,
    /// It is of a program's or a library's file, and may be written.
    is_data: bool,
    is_guard: bool,
}

/// The first line of a mapping: `7f00-7f10 rw-p 00000000 00:00 0    /path`.
struct Mapping<'a> {
    start: u64,
    end: u64,
    permissions: &'a str,
    name: &'a str,
}

/// What no thread may touch below its stack: a page, less than mimalloc ever protects.
const GUARD_BYTES: u64 = PAGE_BYTES;

impl Mapping<'_> {
    fn parse(line: &str) -> Option<Mapping<'_>> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let (permissions, rest) = rest.split_once(' ')?;
        // Offset, device and inode, then spaces up to the name.
        let name = rest.splitn(4, ' ').nth(3).unwrap_or_default().trim();
        Some(Mapping { start, end, permissions, name })
    }

    fn is_guard(&self) -> bool {
        self.permissions.starts_with("---") && self.end - self.start == GUARD_BYTES
    }

    fn kind(&self, before: &Before) -> Kind {
        let is_next = before.end == self.start;
        match self.name {
            "[heap]" => Kind::Heap,
            "[stack]" => Kind::Stack,
            "[vdso]" | "[vvar]" | "[vvar_vclock]" | "[vsyscall]" => Kind::Program,
            name if name.starts_with("anon_inode:[io_uring]") => Kind::Ring,
            name if name.starts_with('/') => Kind::Program,
            // A program's data that begins as zeros lies behind its file.
            "" if is_next && before.is_data => Kind::Program,
            // As threads are made: a guard, and the stack above it.
            "" if is_next && before.is_guard => Kind::Stack,
            "" => Kind::Heap,
            _ => Kind::Other,
        }
    }
}

/// `Rss:    12 kB`
fn size_in(line: &str, key: &str) -> Option<u64> {
    let kilobytes = line.strip_prefix(key)?.trim().strip_suffix(" kB")?;
    Some(kilobytes.parse::<u64>().ok()? * 1024)
}

const PAGE_BYTES: u64 = 4096;

/// How much of these ranges (address, bytes) is resident, in whole pages.
fn resident_bytes(ranges: &[(u64, u64)]) -> io::Result<u64> {
    const PRESENT: u64 = 1 << 63;
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut pages = 0;
    for (address, bytes) in ranges {
        // Eight bytes for each page of the address space (Linux, admin-guide/mm/pagemap.rst).
        let first = address / PAGE_BYTES;
        let count = (address + bytes).div_ceil(PAGE_BYTES) - first;
        let mut entries = vec![0; count as usize * 8];
        pagemap.read_exact_at(&mut entries, first * 8)?;
        let is_present = |entry: &&[u8]| {
            let entry: [u8; 8] = (*entry).try_into().expect("eight bytes");
            u64::from_ne_bytes(entry) & PRESENT != 0
        };
        pages += entries.chunks_exact(8).filter(is_present).count() as u64;
    }
    Ok(pages * PAGE_BYTES)
}

/// Data in buffers of sockets, of the control group if there is one.
fn socket_buffers() -> (u64, BuffersOf) {
    let of_group = || {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = Path::new("/sys/fs/cgroup").join(own_group(&groups)?);
        buffers_of_group(&fs::read_to_string(path.join("memory.stat")).ok()?)
    };
    if let Some(bytes) = of_group() {
        return (bytes, BuffersOf::ControlGroup);
    }
    let text = fs::read_to_string("/proc/net/sockstat").ok();
    match text.and_then(|text| buffers_of_machine(&text)) {
        Some(bytes) => (bytes, BuffersOf::Machine),
        None => (0, BuffersOf::Unknown),
    }
}

/// The control group of version 2, below where they are mounted; `None` for the root, which counts
/// nothing.
fn own_group(groups: &str) -> Option<&str> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!path.is_empty()).then_some(path)
}

/// `sock 4096`
fn buffers_of_group(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("sock "))?.trim().parse().ok()
}

/// `TCP: inuse 1 orphan 0 tw 8 alloc 1 mem 3`: the last in pages.
fn buffers_of_machine(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP: "))?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "mem");
    Some(words.nth(1)?.parse::<u64>().ok()? * PAGE_BYTES)
}

fn lock(process: &Mutex<Process>) -> std::sync::MutexGuard<'_, Process> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_published_is_what_is_read() {
        let memory = ShardMemory::default();
        let mut held = Held { reserved_bytes: 7, ..Held::default() };
        for (index, holder) in Holder::ALL.into_iter().enumerate() {
            assert_eq!(holder as usize, index);
            held.add(holder, 100 + index);
            held.add(holder, 1);
            assert_eq!(held.get(holder), 101 + index as u64);
        }
        memory.publish(&held);
        assert_eq!(memory.read(), held);
    }

    /// Who is bounded is in the ledger, under the same name.
    #[test]
    fn the_bound_and_the_ledger_speak_of_the_same() {
        let config = Config::embedded_with(&Default::default()).unwrap_or_else(|it| panic!("{it}"));
        let mut names: Vec<&str> = Holder::ALL.iter().map(|holder| holder.name()).collect();
        names.extend(["receive buffers", HISTOGRAMS]);
        for (holder, _) in memory_bound(&config, &item_sizes()) {
            assert!(names.contains(&holder), "{holder}");
        }
    }

    #[test]
    fn mappings_are_told_by_their_names_and_neighbours() {
        let text = "\
10000-20000 r-xp 00001000 fe:00 15 /usr/bin/penstock with a space\nRss: 40 kB\nPss: 1 kB
20000-21000 rw-p 00011000 fe:00 15 /usr/bin/penstock with a space\nRss: 4 kB
21000-25000 rw-p 00000000 00:00 0 \nRss: 12 kB\nAnonymous: 12 kB
30000-40000 rw-p 00000000 00:00 0                          [heap]\nRss: 8 kB
50000-51000 ---p 00000000 00:00 0 \nRss: 0 kB
51000-60000 rw-p 00000000 00:00 0 \nRss: 16 kB
70000-90000 ---p 00000000 00:00 0 \nRss: 0 kB
90000-a0000 rw-p 00000000 00:00 0 \nRss: 100 kB
b0000-c0000 rw-p 00000000 00:00 0 \nRss: 200 kB
d0000-e0000 rw-s 10000000 00:10 3 anon_inode:[io_uring]\nRss: 32 kB
e0000-f0000 rw-p 00000000 00:00 0 [stack]\nRss: 64 kB
f0000-f1000 r-xp 00000000 00:00 0 [vdso]\nRss: 4 kB
f1000-f2000 rw-p 00000000 00:00 0 [anon:something]\nRss: 1000 kB
";
        let process = Process::of_smaps(text);
        let want = Process {
            rss: (40 + 4 + 12 + 8 + 16 + 100 + 200 + 32 + 64 + 4 + 1000) << 10,
            program: (40 + 4 + 12 + 4) << 10,
            stacks: (16 + 64) << 10,
            rings: 32 << 10,
            heap: (8 + 100 + 200) << 10,
            ..Process::default()
        };
        assert_eq!(process, want, "what has a name that is not known is in no component");
    }

    #[test]
    fn the_kernel_can_be_asked() {
        let process = Process::read(&[]).expect("/proc is mounted");
        let Process { rss, program, stacks, heap, .. } = process;
        assert!(program > 100_000 && stacks > 4096 && heap > 4096, "{process:?}");
        assert!(rss < 4 << 30 && program + stacks + heap <= rss, "{process:?}");
    }

    #[test]
    fn pages_are_resident_once_they_are_touched() {
        // Large enough to be fresh from the kernel.
        const PAGES: usize = 20_000;
        let mut memory: Vec<u8> = Vec::with_capacity(PAGES * PAGE_BYTES as usize);
        for touched in [0, 3000, 9000, PAGES] {
            memory.resize(touched * PAGE_BYTES as usize, 1);
            let range = (memory.as_ptr().addr() as u64, memory.capacity() as u64);
            let pages = resident_bytes(&[range]).expect("/proc/self/pagemap") / PAGE_BYTES;
            // The last may be a huge one, and the ends are pages that others have touched.
            assert!(pages.abs_diff(touched as u64) <= 514, "{pages} of {touched}");
        }
        assert_eq!(resident_bytes(&[]).ok(), Some(0));
    }

    #[test]
    fn socket_buffers_are_those_of_the_group_or_of_the_machine() {
        let sockstat = "sockets: used 15\nTCP: inuse 1 orphan 0 tw 8 alloc 1 mem 3\nUDP: mem 9\n";
        assert_eq!(buffers_of_machine(sockstat), Some(3 * 4096));
        assert_eq!(buffers_of_machine("sockets: used 15\nUDP: inuse 0 mem 0\n"), None);
        assert_eq!(buffers_of_machine("TCP: inuse 1 mem\n"), None);
        assert_eq!(buffers_of_group("anon 1\nsock 8192\nsockets 3\n"), Some(8192));
        assert_eq!(buffers_of_group("anon 1\n"), None);
        assert_eq!(own_group("4:memory:/x\n0::/a.slice/b\n"), Some("a.slice/b"));
        assert_eq!(own_group("4:memory:/x\n0::/\n"), None);
        assert_eq!(own_group("4:memory:/x\n"), None);
    }

    #[test]
    fn a_ledger_is_written_as_the_interface_says() {
        let ledger = Ledger {
            unix_ms: 1,
            components: vec![("table", 2), ("program", 3)],
            ledger_bytes: 5,
            rss_bytes: 4,
            unaccounted_bytes: -1,
            kernel_bytes: 0,
            kernel: Kernel::default(),
            bound_bytes: 9,
            heap_in_use_bytes: 2,
        };
        let json = serde_json::to_value(&ledger).expect("JSON");
        let components = serde_json::json!([
            {"name": "table", "bytes": 2}, {"name": "program", "bytes": 3}
        ]);
        assert_eq!(json["components"], components);
        assert_eq!(json["unaccounted_bytes"], -1);
        assert_eq!(json["kernel"]["buffers_of"], "unknown");
    }
}
