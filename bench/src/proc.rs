//! What /proc says about a server, this process, and the kernel's memory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::param::page_size;
use serde_json::{Map, Value, json};

use crate::kernel;

/// A process at one moment. Missing figures (no such process, no permission) are `None`.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProcessMemory {
    /// Resident, shared pages included.
    pub(crate) rss_bytes: Option<u64>,
    /// Resident and nobody else's.
    pub(crate) private_bytes: Option<u64>,
    /// Resident, shared pages divided by their users.
    pub(crate) pss_bytes: Option<u64>,
}

impl ProcessMemory {
    /// Of one process.
    pub(crate) fn read(pid: u32) -> ProcessMemory {
        let status = kilobyte_fields(&format!("/proc/{pid}/status"));
        let rollup = kilobyte_fields(&format!("/proc/{pid}/smaps_rollup"));
        let private = ["Private_Clean", "Private_Dirty", "Private_Hugetlb"];
        ProcessMemory {
            rss_bytes: status.get("VmRSS").copied(),
            private_bytes: rollup
                .contains_key("Rss")
                .then(|| private.iter().filter_map(|key| rollup.get(*key)).sum()),
            pss_bytes: rollup.get("Pss").copied(),
        }
    }

    /// The resident bytes of one process alone: a quicker look.
    pub(crate) fn read_resident(pid: u32) -> Option<u64> {
        kilobyte_fields(&format!("/proc/{pid}/status")).get("VmRSS").copied()
    }

    /// Of several together; `None` when there are none.
    pub(crate) fn read_all(pids: &[u32]) -> Option<ProcessMemory> {
        let all: Vec<ProcessMemory> = pids.iter().map(|pid| ProcessMemory::read(*pid)).collect();
        // One that cannot be read makes a sum that means nothing.
        let sum = |of: fn(&ProcessMemory) -> Option<u64>| all.iter().map(of).sum();
        (!all.is_empty()).then(|| ProcessMemory {
            rss_bytes: sum(|memory| memory.rss_bytes),
            private_bytes: sum(|memory| memory.private_bytes),
            pss_bytes: sum(|memory| memory.pss_bytes),
        })
    }

    /// This one after `before`, with growth in bytes per connection.
    pub(crate) fn report_growth(&self, before: &ProcessMemory, connections: u64) -> Value {
        let mut report = Map::new();
        let figures = [
            ("rss", before.rss_bytes, self.rss_bytes),
            ("private", before.private_bytes, self.private_bytes),
            ("pss", before.pss_bytes, self.pss_bytes),
        ];
        for (name, before, after) in figures {
            let (Some(before), Some(after)) = (before, after) else { continue };
            report.insert(format!("{name}_before_bytes"), json!(before));
            report.insert(format!("{name}_after_bytes"), json!(after));
            report.insert(
                format!("{name}_bytes_per_connection"),
                per(after as f64 - before as f64, connections),
            );
        }
        Value::Object(report)
    }
}

/// What several processes have resident, shared pages included: the one figure that costs the
/// server nothing to tell. `None` when there are none, or one cannot be read.
pub(crate) fn rss_bytes(pids: &[u32]) -> Option<u64> {
    let of = |pid: &u32| kilobyte_fields(&format!("/proc/{pid}/status")).remove("VmRSS");
    pids.iter().map(of).sum::<Option<u64>>().filter(|_| !pids.is_empty())
}

/// The kernel's memory at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct KernelMemory {
    meminfo: BTreeMap<String, u64>,
    /// Bytes of each slab cache, where we may look.
    slabs: BTreeMap<String, u64>,
}

impl KernelMemory {
    pub(crate) fn read() -> KernelMemory {
        let slabinfo = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
        // name <active_objs> <num_objs> <objsize> …, after two lines of heading.
        let slabs = slabinfo.lines().skip(2).filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?.to_owned();
            let numbers: Vec<u64> = words.take(3).filter_map(|word| word.parse().ok()).collect();
            let [active, _, object_bytes] = numbers[..] else { return None };
            Some((name, active * object_bytes))
        });
        KernelMemory { meminfo: kilobyte_fields("/proc/meminfo"), slabs: slabs.collect() }
    }

    /// Growth since `before`. The figures are of the whole machine: what else it did counts too.
    pub(crate) fn report_growth(&self, before: &KernelMemory, connections: u64) -> Value {
        let mut report = Map::new();
        for (name, key) in [
            ("unreclaimable_slab", "SUnreclaim"),
            ("kernel_stacks", "KernelStack"),
            ("page_tables", "PageTables"),
        ] {
            if let (Some(then), Some(now)) = (before.meminfo.get(key), self.meminfo.get(key)) {
                let growth = *now as f64 - *then as f64;
                report.insert(format!("{name}_growth_bytes"), json!(growth));
                report.insert(format!("{name}_bytes_per_connection"), per(growth, connections));
            }
        }
        if let (Some(then), Some(now)) =
            (before.meminfo.get("MemAvailable"), self.meminfo.get("MemAvailable"))
        {
            let used = *then as f64 - *now as f64;
            report.insert("available_memory_bytes_per_connection".into(), per(used, connections));
        }
        let mut slabs: Vec<(f64, &String)> = self
            .slabs
            .iter()
            .map(|(name, now)| {
                (*now as f64 - before.slabs.get(name).copied().unwrap_or(0) as f64, name)
            })
            .filter(|(growth, _)| *growth > 0.0)
            .collect();
        slabs.sort_by(|a, b| b.0.total_cmp(&a.0));
        let total: f64 = slabs.iter().map(|(growth, _)| growth).sum();
        if total > 0.0 {
            report.insert("slab_objects_bytes_per_connection".into(), per(total, connections));
            let largest: Map<String, Value> = slabs
                .iter()
                .take(8)
                .map(|(growth, name)| ((*name).clone(), per(*growth, connections)))
                .collect();
            report.insert("largest_slabs_bytes_per_connection".into(), Value::Object(largest));
        }
        report.insert(
            "note".into(),
            json!(
                "the whole machine's; on loopback both halves of each connection are in here, and \
                 through a gateway its upstream connections too"
            ),
        );
        Value::Object(report)
    }
}

/// TCP sockets of this network namespace, as /proc/net/sockstat counts them.
pub(crate) fn socket_counts() -> Value {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let words: Vec<&str> = text
        .lines()
        .find_map(|line| line.strip_prefix("TCP:"))
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let pairs = words.chunks_exact(2).filter_map(|pair| Some((pair[0], pair[1].parse().ok()?)));
    Value::Object(pairs.map(|(name, count): (_, u64)| (name.to_owned(), json!(count))).collect())
}

/// What all TCP sockets of the machine hold, in bytes (`mem` of /proc/net/sockstat is in pages).
pub(crate) fn socket_bytes() -> Option<u64> {
    socket_counts()["mem"].as_u64().map(|pages| pages * page_size() as u64)
}

/// Processor time of a process: the scheduler's exact sum, and how it divides into user and system
/// by ticks (10 ms).
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuTime {
    pub(crate) total_ns: u64,
    user_ticks: u64,
    system_ticks: u64,
}

impl CpuTime {
    /// Of several processes together; `None` when there are none, or one of them is not there.
    pub(crate) fn read_all(pids: &[u32]) -> Option<CpuTime> {
        let mut all = pids.iter().map(|pid| CpuTime::read(*pid));
        let first = all.next()??;
        all.try_fold(first, |sum, next| {
            let next = next?;
            Some(CpuTime {
                total_ns: sum.total_ns + next.total_ns,
                user_ticks: sum.user_ticks + next.user_ticks,
                system_ticks: sum.system_ticks + next.system_ticks,
            })
        })
    }

    /// Two readings so many seconds of processor time apart, for tests.
    #[cfg(test)]
    pub(crate) fn between(seconds: f64) -> (CpuTime, CpuTime) {
        let before = CpuTime { total_ns: 1, user_ticks: 0, system_ticks: 0 };
        (before, CpuTime { total_ns: 1 + (seconds * 1e9) as u64, ..before })
    }

    /// Of one process.
    pub(crate) fn read(pid: u32) -> Option<CpuTime> {
        let total_ns = kernel::process_cpu_time(pid)?.as_nanos() as u64;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may contain anything, parentheses too; after its last one come the fields
        // from the third on.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse().ok();
        Some(CpuTime { total_ns, user_ticks: ticks(14)?, system_ticks: ticks(15)? })
    }

    pub(crate) fn report_since(&self, before: &CpuTime) -> Value {
        // USER_HZ, what /proc counts in, is 100 on every architecture that Linux runs on today.
        let seconds = |now: u64, then: u64| (now - then) as f64 / 100.0;
        json!({
            "cpu_seconds": (self.total_ns - before.total_ns) as f64 / 1e9,
            "user_seconds": seconds(self.user_ticks, before.user_ticks),
            "system_seconds": seconds(self.system_ticks, before.system_ticks),
        })
    }
}

/// Cgroups that are looked through for a unit.
const CGROUPS_MAX: usize = 100_000;

/// The processes of a systemd unit, or of a cgroup when the name begins with a slash; those of the
/// cgroups below it too. `root` is where cgroups are mounted.
pub(crate) fn unit_processes(root: &Path, name: &str) -> io::Result<Vec<u32>> {
    let refuse = |what: &str| Err(io::Error::other(format!("--unit {name}: {what}")));
    // With version 1 of cgroups, systemd keeps its own tree.
    let roots = [root.to_owned(), root.join("systemd"), root.join("unified")];
    let found = match name.strip_prefix('/') {
        Some(path)
            if Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) =>
        {
            roots.iter().map(|root| root.join(path)).find(|path| path.join("cgroup.procs").exists())
        }
        Some(_) => return refuse("a path of names only"),
        None => {
            let service = format!("{name}.service");
            let is_it = |path: &Path| {
                path.file_name().is_some_and(|own| own == name || *own == *service)
                    && path.join("cgroup.procs").exists()
            };
            cgroups_below(root).into_iter().find(|path| is_it(path))
        }
    };
    let Some(group) = found else { return refuse("there is no such cgroup: is it running?") };
    let mut pids = Vec::new();
    for group in cgroups_below(&group) {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    if pids.is_empty() { refuse("it has no processes") } else { Ok(pids) }
}

/// A directory and those below it, the nearest first.
fn cgroups_below(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while next < found.len() && found.len() < CGROUPS_MAX {
        let entries = fs::read_dir(&found[next]).into_iter().flatten().flatten();
        // Not those that are links: what they lead to may contain them.
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut below: Vec<PathBuf> = directories.map(|entry| entry.path()).collect();
        below.sort();
        found.extend(below);
        next += 1;
    }
    found
}

/// These processes, their children, and theirs.
pub(crate) fn with_children(pids: &[u32]) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: Vec<(u32, u32)> = entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // After the name, which may contain anything: the state, then the parent.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut all = pids.to_vec();
    let mut next = 0;
    while let Some(parent) = all.get(next).copied() {
        let children = parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid);
        let new: Vec<u32> = children.filter(|pid| !all.contains(pid)).collect();
        all.extend(new);
        next += 1;
    }
    all
}

/// What a core has spent, in ticks (10 ms) since the machine was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoreTime {
    total_ticks: u64,
    idle_ticks: u64,
}

impl CoreTime {
    pub(crate) fn read(core: usize) -> Option<CoreTime> {
        let text = fs::read_to_string("/proc/stat").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} ")))?;
        // user nice system idle iowait irq softirq steal; what follows is contained in user.
        let words = line.split_whitespace().take(8);
        let ticks: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let idle_ticks = ticks.get(3)? + ticks.get(4)?;
        Some(CoreTime { total_ticks: ticks.iter().sum(), idle_ticks })
    }

    /// How busy it was, 0 to 1; `None` when too little time has passed for its ticks to tell.
    pub(crate) fn busy_since(&self, before: &CoreTime) -> Option<f64> {
        let total = self.total_ticks.checked_sub(before.total_ticks)?;
        let idle = self.idle_ticks.saturating_sub(before.idle_ticks);
        (total >= 50).then(|| 1.0 - idle as f64 / total as f64)
    }
}

/// `total / count`, rounded for people; null when there is nothing to divide by.
pub(crate) fn per(total: f64, count: u64) -> Value {
    if count == 0 { Value::Null } else { round(total / count as f64) }
}

/// A number with three decimals.
pub(crate) fn round(number: f64) -> Value {
    json!((number * 1000.0).round() / 1000.0)
}

/// The lines of a file of the form `Name:   123 kB`, in bytes.
fn kilobyte_fields(path: &str) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let kilobytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        Some((name.to_owned(), kilobytes * 1024))
    };
    text.lines().filter_map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_can_be_read() {
        let pid = std::process::id();
        let memory = ProcessMemory::read(pid);
        // They are read one after the other, and tests beside this one allocate meanwhile: which of
        // them is larger says nothing.
        assert!(memory.rss_bytes > Some(100_000) && memory.private_bytes > Some(100_000));
        let before = CpuTime::read(pid).unwrap();
        let mut sum = 0u64;
        while CpuTime::read(pid).unwrap().total_ns < before.total_ns + 1_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(
            CpuTime::read(pid).unwrap().report_since(&before)["cpu_seconds"].as_f64()
                > Some(0.0009)
        );
        assert!(CpuTime::read(u32::MAX / 2).is_none());
        assert!(ProcessMemory::read(u32::MAX / 2).rss_bytes.is_none());
    }

    #[test]
    fn processes_of_a_unit_are_those_of_its_cgroups() {
        let root =
            std::env::temp_dir().join(format!("penstock-bench-{}-cgroup", std::process::id()));
        let write = |path: &str, text: &str| {
            let directory = root.join(path);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("cgroup.procs"), text).unwrap();
        };
        write("", "1\n");
        write("system.slice", "");
        write("system.slice/penstock.service", "20\n21\n");
        write("system.slice/penstock.service/below", "22\n");
        write("system.slice/empty.service", "");
        for name in ["penstock", "penstock.service", "/system.slice/penstock.service"] {
            assert_eq!(unit_processes(&root, name).unwrap(), [20, 21, 22], "{name}");
        }
        for (name, want) in [
            ("none", "no such cgroup"),
            ("empty", "no processes"),
            ("/../x", "names only"),
            ("/none", "no such cgroup"),
        ] {
            let error = unit_processes(&root, name).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains(name), "{error}");
        }
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn children_belong_to_their_parents() {
        let own = std::process::id();
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let all = with_children(&[own]);
        assert!(all.contains(&child.id()) && all[0] == own, "{all:?}");
        let without = with_children(&[child.id()]);
        assert_eq!(without, [child.id()]);
        // Its input ends, and it with it.
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn cores_can_be_read() {
        let core = CoreTime::read(0).unwrap();
        assert!(core.idle_ticks <= core.total_ticks && CoreTime::read(1_000_000).is_none());
        let later =
            CoreTime { total_ticks: core.total_ticks + 100, idle_ticks: core.idle_ticks + 25 };
        assert_eq!((later.busy_since(&core), core.busy_since(&core)), (Some(0.75), None));
    }

    #[test]
    fn sockets_are_counted() {
        let before = socket_counts()["inuse"].as_u64();
        assert!(before.is_some(), "{}", socket_counts());
    }
}
