//! Sockets before they enter the table: listeners, and those toward upstreams.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

/// The ports for outgoing connections, as `IP_LOCAL_PORT_RANGE` takes them: the last in the upper
/// half, the first in the lower. `None` where the system does not say.
pub(super) fn local_ports() -> Option<u32> {
    let (first, last) = local_port_range()?;
    Some(u32::from(last) << 16 | u32::from(first))
}

/// The first and the last port for outgoing connections. `None` where the system does not say.
pub fn local_port_range() -> Option<(u16, u16)> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ports = range.split_ascii_whitespace().map(|port| port.parse::<u16>().ok());
    Some((ports.next()??, ports.next()??))
}

pub(super) fn upstream_socket(
    address: &SocketAddr,
    source: Option<IpAddr>,
    local_ports: Option<u32>,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)))?;
    // An orderly end is a shutdown and the peer's end. A close without one is meant as a reset, as
    // the client's was; and no TIME_WAIT keeps a port from the next connection to this upstream.
    socket.set_linger(Some(Duration::ZERO))?;
    if let Some(ports) = local_ports {
        // The system's own range, but named for this socket: then the kernel (6.8) takes ports as
        // they come. Otherwise it keeps the odd ones for others, and once the even ones are taken
        // it looks at all of them again for each connection. Older kernels refuse, or ignore it.
        const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
        set_ip_option(&socket, IP_LOCAL_PORT_RANGE, ports);
    }
    if let Some(source) = source {
        // The port is chosen at the connect, when it is known where to: one that is taken toward
        // another upstream will do as well. Without this a bind takes a port from all of them.
        const IP_BIND_ADDRESS_NO_PORT: libc::c_int = 24;
        set_ip_option(&socket, IP_BIND_ADDRESS_NO_PORT, 1);
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket)
}

/// Sets an option of the level `IPPROTO_IP` whose value has 32 bits (ip(7)). One that the kernel does not
/// know is left out.
pub(super) fn set_ip_option(socket: &Socket, option: libc::c_int, value: u32) {
    // SAFETY: the value is a u32, and its size is given; the descriptor is open.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            (&raw const value).cast(),
            size_of::<u32>() as libc::socklen_t,
        );
    }
}

/// How an address is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody may listen there: the first socket of an address.
    Whole,
    /// Beside other sockets of this user that share it (`SO_REUSEPORT`, socket(7)).
    Share,
}

/// Opens a listener that shares its address with those of the other shards; the kernel spreads
/// new connections over them by a hash of addresses and ports.
///
/// Options are set here because accepted sockets inherit them, which saves a call on each.
///
/// # Errors
///
/// The failing call's, usually "address in use" or "permission denied" (ports below 1024).
pub fn listen(
    address: SocketAddr,
    send_buffer: usize,
    receive_buffer: usize,
    claim: Claim,
) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(claim == Claim::Share)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)))?;
    // Zero leaves the size to the kernel, which then lends one unread peer megabytes.
    if send_buffer > 0 {
        socket.set_send_buffer_size(send_buffer)?;
    }
    if receive_buffer > 0 {
        socket.set_recv_buffer_size(receive_buffer)?;
    }
    socket.bind(&SockAddr::from(address))?;
    // The kernel cuts it down to net.core.somaxconn.
    socket.listen(65_535)?;
    // From here on our other shards may share it: the kernel looks at the flag of each socket that
    // listens when another is bound.
    socket.set_reuse_port(true)?;
    Ok(socket.into())
}
