//! The process that listens on an address or a Unix socket already, for the message of one that cannot
//! have it.
//!
//! The kernel tells a socket's inode (`/proc/net/tcp`, proc(5)) and each process's descriptors
//! (`/proc/PID/fd`). Descriptors of other users' processes are not shown to everybody, so the answer may
//! be nothing.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;

/// `TCP_LISTEN` as `/proc/net/tcp` writes it.
const LISTEN: &str = "0A";

/// The process that listens on `address`, or on all addresses of its port: `pid 42 (nginx -g ...)`.
pub fn holder_of(address: SocketAddr) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listeners(&table, address))
        .collect();
    inodes.iter().find_map(|inode| holder_of_inode(inode))
}

/// The process behind the other end of a Unix socket (`SO_PEERCRED`, unix(7)).
pub fn holder_behind(stream: &UnixStream) -> Option<String> {
    let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
    Some(describe(&peer.pid.as_raw_nonzero().to_string()))
}

/// The inodes of the sockets in `table` that listen where `address` is.
fn listeners(table: &str, address: SocketAddr) -> Vec<String> {
    let rows = table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (local, state) = (words.nth(1)?, words.nth(1)?);
        let inode = words.nth(5)?;
        let (host, port) = local.split_once(':')?;
        let is_there = u16::from_str_radix(port, 16).ok()? == address.port()
            && (is_all(host)
                || host.eq_ignore_ascii_case(&written(address.ip()))
                || is_unspecified(address));
        (state == LISTEN && is_there).then(|| inode.to_owned())
    });
    rows.collect()
}

fn is_all(host: &str) -> bool {
    host.bytes().all(|digit| digit == b'0')
}

fn is_unspecified(address: SocketAddr) -> bool {
    address.ip().is_unspecified()
}

/// An address as the kernel writes it: words of 32 bits in the order of the machine.
fn written(ip: IpAddr) -> String {
    let hex = |bytes: &[u8]| -> String {
        let words = bytes.chunks(4).map(|word| {
            let word: [u8; 4] = word.try_into().unwrap_or_default();
            format!("{:08X}", u32::from_ne_bytes(word))
        });
        words.collect()
    };
    match ip {
        IpAddr::V4(address) => hex(&address.octets()),
        IpAddr::V6(address) => hex(&address.octets()),
    }
}

fn holder_of_inode(inode: &str) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut processes = processes.filter(|process| {
        let name = process.file_name();
        name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let holds = |process: &fs::DirEntry| {
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { return false };
        let mut links = descriptors.flatten().filter_map(|it| fs::read_link(it.path()).ok());
        links.any(|link| link.as_os_str() == wanted.as_str())
    };
    let process = processes.find(holds)?;
    Some(describe(process.file_name().to_str()?))
}

/// `pid 42 (penstock run /etc/penstock/penstock.toml)`.
fn describe(pid: &str) -> String {
    /// Of a command line; the rest says little more.
    const COMMAND_CHARS_MAX: usize = 120;
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&words).replace('\0', " ");
    let shown = words.trim().chars().take(COMMAND_CHARS_MAX);
    let shown: String = shown.map(|it| if it.is_control() { '?' } else { it }).collect();
    if shown.is_empty() { format!("pid {pid}") } else { format!("pid {pid} ({shown})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0\n   \
                     1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1 0 100 0 0 10 0\n   \
                     2: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 33 1 0 100 0 0 10 0\n";
        for (address, want) in [
            ("127.0.0.1:8080", &["11"][..]),
            ("127.0.0.2:8080", &[]),
            ("0.0.0.0:8080", &["11"]),
            ("10.1.2.3:80", &["22"]),
            ("127.0.0.1:81", &[]),
        ] {
            let address = address.parse().expect("an address");
            if cfg!(target_endian = "little") {
                assert_eq!(listeners(table, address), want, "{address}");
            }
        }
        assert!(listeners("", "127.0.0.1:1".parse().expect("an address")).is_empty());
    }

    #[test]
    fn this_process_is_found_by_its_listener() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let holder = holder_of(address).expect("its descriptors are ours to see");
        assert!(holder.starts_with(&format!("pid {} (", std::process::id())), "{holder}");
        drop(listener);
        assert_eq!(holder_of(address), None);
    }
}
