//! What the kernel says of this process: what every Prometheus client library tells of its own, the
//! processor time of each shard, and how much memory there is.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// The process, as /proc tells it. What cannot be read is `None`: its metric is absent then.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Processor time of all threads since the start, user and system.
    pub cpu_seconds: Option<f64>,
    /// Memory that it occupies.
    pub resident_bytes: Option<u64>,
    /// Addresses that it has taken.
    pub virtual_bytes: Option<u64>,
    /// When it started, in seconds since 1970.
    pub start_seconds: Option<f64>,
    /// Entries in its table of descriptors; connections are not among them (direct descriptors).
    pub open_fds: Option<u64>,
    /// How many those may be.
    pub max_fds: Option<u64>,
    /// Processor time of each shard's thread in seconds, with the shard's number.
    pub shards: Vec<(u16, f64)>,
    /// What it can use: the limit of its control groups, or else the machine's memory.
    pub memory_limit_bytes: Option<u64>,
}

impl Process {
    /// Looks.
    pub fn read() -> Process {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let stat = Stat::parse(&stat);
        let ticks = clock_ticks_per_second() as f64;
        Process {
            cpu_seconds: stat.map(|it| it.cpu_ticks as f64 / ticks),
            resident_bytes: stat.map(|it| it.resident_pages * page_size() as u64),
            virtual_bytes: stat.map(|it| it.virtual_bytes),
            start_seconds: stat
                .and_then(|it| Some(boot_seconds()? as f64 + it.start_ticks as f64 / ticks)),
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64),
            max_fds: getrlimit(Resource::Nofile).current,
            shards: shard_cpu_seconds(),
            memory_limit_bytes: memory_limit(),
        }
    }
}

/// Some fields of /proc/self/stat (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The name is in parentheses and may have some in it. What follows begins with field 3.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// When the machine came up, in seconds since 1970. It is read once: the kernel derives it from the
/// clock of the day, and a process does not start another time because that was set.
fn boot_seconds() -> Option<u64> {
    static BOOT: OnceLock<Option<u64>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = fs::read_to_string("/proc/stat").ok()?;
        text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
    })
}

/// Processor time of each shard's thread since the start, with the shard's number: the scheduler's account,
/// which is exact where the ticks of `stat` are not.
pub fn shard_cpu_seconds() -> Vec<(u16, f64)> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let mut shards: Vec<(u16, f64)> = tasks.filter_map(|task| shard(&task.ok()?.path())).collect();
    shards.sort_by_key(|(shard, _)| *shard);
    shards
}

fn shard(task: &Path) -> Option<(u16, f64)> {
    // `server.rs` gives the threads their names.
    let name = fs::read_to_string(task.join("comm")).ok()?;
    let shard = name.trim().strip_prefix("shard-")?.parse().ok()?;
    let account = fs::read_to_string(task.join("schedstat")).ok()?;
    let nanoseconds: u64 = account.split_whitespace().next()?.parse().ok()?;
    Some((shard, nanoseconds as f64 / 1e9))
}

/// The least of what the control groups and the machine allow.
pub fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let mut directory = Path::new("/sys/fs/cgroup").join(group);
    let mut limits = Vec::new();
    while directory.starts_with("/sys/fs/cgroup") {
        // "max" where there is none.
        let text = fs::read_to_string(directory.join("memory.max")).unwrap_or_default();
        limits.extend(text.trim().parse::<u64>());
        directory.pop();
    }
    let machine = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = machine.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = total.and_then(|total| total.split_whitespace().next()?.parse::<u64>().ok());
    limits.extend(kilobytes.map(|kilobytes| kilobytes * 1024));
    limits.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_fields_after_it() {
        let text = "12 (a) S (b) S 1 2 3 4 5 6 7 8 9 10 110 12 13 14 15 16 17 18 190 20000 21 22\n";
        let want =
            Stat { cpu_ticks: 122, start_ticks: 190, virtual_bytes: 20_000, resident_pages: 21 };
        assert_eq!(Stat::parse(text), Some(want));
        for text in ["", "12 (a) S 1 2", "12 a S"] {
            assert_eq!(Stat::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn this_process_is_there() {
        let named = std::thread::Builder::new().name("shard-7".to_owned());
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (named_so, is_named) = std::sync::mpsc::channel();
        let thread = named
            .spawn(move || {
                let _ = named_so.send(());
                let _ = stopped.recv();
            })
            .expect("a thread");
        is_named.recv().expect("it runs");
        let process = Process::read();
        drop(stop);
        thread.join().expect("no panic");
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 1 << 20), "{process:?}");
        assert!(process.virtual_bytes >= process.resident_bytes);
        assert!(process.open_fds.is_some_and(|count| count >= 3) && process.max_fds.is_some());
        assert!(process.cpu_seconds.is_some());
        assert!(process.memory_limit_bytes > process.resident_bytes);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("after 1970").as_secs_f64();
        assert!(process.start_seconds.is_some_and(|start| start < now && start > now - 1e6));
        assert!(process.shards.iter().any(|(shard, _)| *shard == 7), "{:?}", process.shards);
    }
}
