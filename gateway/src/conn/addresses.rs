//! Where a connection comes from, in little room: every connection has one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::limits::LISTENERS_MAX;

/// The other end of a connection, and the client on whose behalf it speaks. Where no proxy stands
/// in between these are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    // IPv4 as IPv6 (RFC 4291 §2.5.5.2): both in the same room, without a tag.
    peer: [u8; 16],
    client: [u8; 16],
    port: u16,
    listener: u8,
}

// Two of the standard library's would take 48 bytes more of every connection.
const _: () = assert!(size_of::<Addresses>() <= 36);
const _: () = assert!(LISTENERS_MAX <= 1 << u8::BITS);

impl Addresses {
    /// Those of a connection whose other end is `peer`, and nobody else.
    pub fn of(peer: SocketAddr) -> Addresses {
        let address = packed(peer.ip());
        Addresses { peer: address, client: address, port: peer.port(), listener: 0 }
    }

    /// Nobody's.
    pub const NOWHERE: Addresses = {
        let none = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();
        Addresses { peer: none, client: none, port: 0, listener: 0 }
    };

    /// The other end: of the socket, or what its PROXY header says. Never IPv4 written as IPv6.
    pub fn peer(&self) -> SocketAddr {
        SocketAddr::new(unpacked(self.peer), self.port)
    }

    /// Whom the other end speaks for. Never IPv4 written as IPv6.
    pub fn client(&self) -> IpAddr {
        unpacked(self.client)
    }

    /// The other end speaks for this client now.
    pub fn set_client(&mut self, client: IpAddr) {
        self.client = packed(client);
    }

    /// Where the connection came in: an index into `Config::listeners`.
    pub fn listener(&self) -> usize {
        usize::from(self.listener)
    }

    /// Where the connection came in: less than [`LISTENERS_MAX`].
    pub fn set_listener(&mut self, listener: usize) {
        self.listener = u8::try_from(listener).expect("at most LISTENERS_MAX listeners");
    }
}

fn packed(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn unpacked(address: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(address)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        for (peer, shown) in [
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("0.0.0.0:0", "0.0.0.0:0"),
            ("[2001:db8::1]:65535", "[2001:db8::1]:65535"),
            ("[::]:0", "[::]:0"),
            ("[::ffff:192.0.2.1]:2", "192.0.2.1:2"),
            ("[::192.0.2.1]:2", "[::c000:201]:2"),
        ] {
            let mut addresses = Addresses::of(peer.parse().expect("an address"));
            assert_eq!(addresses.peer(), shown.parse().expect("an address"));
            assert_eq!(addresses.client(), addresses.peer().ip());
            addresses.set_client("203.0.113.9".parse().expect("an address"));
            addresses.set_listener(LISTENERS_MAX - 1);
            assert_eq!(addresses.client().to_string(), "203.0.113.9");
            assert_eq!(addresses.peer(), shown.parse().expect("an address"));
            assert_eq!(addresses.listener(), LISTENERS_MAX - 1);
        }
        assert_eq!(Addresses::NOWHERE, Addresses::of(SocketAddr::from(([0, 0, 0, 0], 0))));
    }
}
