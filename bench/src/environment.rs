//! Where a run was made: the machine, the settings that matter to sockets, and the server.

use std::fs;

use serde_json::{Map, Value, json};

use crate::kernel;

/// Settings of the kernel that change what sockets can do, below /proc/sys.
const SYSCTLS: [&str; 10] = [
    "net.ipv4.tcp_congestion_control",
    "net.core.somaxconn",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.core.rmem_max",
    "net.core.wmem_max",
    "net.core.busy_poll",
    "fs.nr_open",
];

/// The machine, as far as it may be read; what may not is null.
pub(crate) fn machine() -> Value {
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let sysctls: Map<String, Value> = SYSCTLS
        .iter()
        .map(|name| {
            let value = read(&format!("/proc/sys/{}", name.replace('.', "/")));
            // The numbers of a range are divided by a tab.
            let value = value.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
            ((*name).to_owned(), json!(value))
        })
        .collect();
    json!({
        "hostname": read("/proc/sys/kernel/hostname"),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu_model": cpu_model(&cpuinfo),
        "cpus_count": std::thread::available_parallelism().ok().map(usize::from),
        "cpus_online": read("/sys/devices/system/cpu/online"),
        "cpu_governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_bytes": memory_bytes(&read("/proc/meminfo").unwrap_or_default()),
        "load_average": read("/proc/loadavg"),
        "descriptors_max": kernel::descriptors_max(),
        "sysctls": sysctls,
    })
}

/// The server's processes, by what they were started as.
pub(crate) fn processes(pids: &[u32]) -> Value {
    let process = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = words.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        let words: Vec<_> = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        json!({
            "pid": pid,
            "comm": read(&format!("/proc/{pid}/comm")),
            "command_line": words,
            "version": "unknown",
        })
    };
    Value::Array(pids.iter().map(process).collect())
}

/// A small file without the line feed at its end.
fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The first model that /proc/cpuinfo names; on Arm it names none.
fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.trim() == "model name").map(|(_, value)| value.trim())
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let machine = machine();
        assert!(machine["kernel"].as_str().unwrap().contains('.'), "{machine}");
        assert!(machine["memory_bytes"].as_u64() > Some(1 << 20), "{machine}");
        assert!(machine["descriptors_max"].as_u64() > Some(0), "{machine}");
        let sysctls = machine["sysctls"].as_object().unwrap();
        assert_eq!(sysctls.len(), SYSCTLS.len());
        assert!(sysctls["net.ipv4.ip_local_port_range"].is_string(), "{machine}");
    }

    #[test]
    fn processes_are_named_and_those_that_are_gone_too() {
        let processes = processes(&[std::process::id(), u32::MAX / 2]);
        let arguments: Vec<String> = std::env::args().collect();
        assert_eq!(processes[0]["command_line"], json!(arguments));
        assert_eq!(
            (&processes[1]["comm"], &processes[1]["command_line"]),
            (&Value::Null, &json!([]))
        );
    }

    #[test]
    fn models_and_memory_are_found_in_their_lines() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU: 3 GHz\n";
        assert_eq!(cpu_model(cpuinfo), Some("Some CPU: 3 GHz"));
        assert_eq!(cpu_model("CPU part : 0xd0c\n"), None);
        assert_eq!(memory_bytes("MemTotal:       16 kB\nMemFree: 1 kB\n"), Some(16_384));
        assert_eq!(memory_bytes("MemFree: 1 kB\n"), None);
    }
}
