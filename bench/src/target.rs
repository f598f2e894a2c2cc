//! Whom to talk to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use crate::tls::Security;

/// A server, from a `ws://` or `wss://` URL, and what is asked of it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// For the Host header: as it stood in the URL.
    pub(crate) host: String,
    /// Path and query.
    pub(crate) path: String,
    /// The subprotocols that are offered, as the header lists them; empty for none.
    pub(crate) subprotocols: String,
    /// Headers that are sent along, "Name: value" each.
    pub(crate) headers: Vec<String>,
    /// permessage-deflate is offered.
    pub(crate) deflate: bool,
    /// The URL says wss.
    pub(crate) is_secure: bool,
    /// How, once it is prepared for.
    pub(crate) security: Option<Security>,
}

impl Target {
    /// Reads a URL. Without `allow_remote`, only loopback addresses are taken: a load tool turned
    /// on somebody else's host by a typing mistake is an attack.
    pub(crate) fn parse(url: &str, allow_remote: bool) -> Result<Target, String> {
        let (rest, is_secure) = match (url.strip_prefix("ws://"), url.strip_prefix("wss://")) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => return Err(format!("{url}: only ws:// and wss://host:port/path are understood")),
        };
        let (host, path) = match rest.find(['/', '?']) {
            Some(end) if rest[end..].starts_with('/') => (&rest[..end], rest[end..].to_owned()),
            Some(end) => (&rest[..end], format!("/{}", &rest[end..])),
            None => (rest, "/".to_owned()),
        };
        let fits = |c: char| c.is_ascii_graphic() && c != '#' && c != '@';
        if host.is_empty() || !host.chars().chain(path.chars()).all(fits) {
            return Err(format!("{url}: not a host and path that could stand in a request"));
        }
        let end_of_host = host.rfind(']').unwrap_or(0);
        let has_port = host[end_of_host..].contains(':');
        let port = if is_secure { 443 } else { 80 };
        let authority = if has_port { host.to_owned() } else { format!("{host}:{port}") };
        let address = authority
            .to_socket_addrs()
            .map_err(|error| format!("{url}: {error}"))?
            // localhost is often ::1 first; only 127.0.0.0/8 has source addresses to spare.
            .min_by_key(SocketAddr::is_ipv6)
            .ok_or_else(|| format!("{url}: no address"))?;
        if !address.ip().is_loopback() && !allow_remote {
            return Err(format!("{url}: {address} is not this machine (--allow-remote to insist)"));
        }
        Ok(Target {
            address,
            host: host.to_owned(),
            path,
            subprotocols: String::new(),
            headers: Vec::new(),
            deflate: false,
            is_secure,
            security: None,
        })
    }

    /// The host as it stood in the URL, without a port.
    pub(crate) fn host_name(&self) -> &str {
        let end_of_host = self.host.rfind(']').unwrap_or(0);
        let colon = self.host[end_of_host..].find(':');
        &self.host[..colon.map_or(self.host.len(), |colon| end_of_host + colon)]
    }

    /// Whether connections to it may come from any address of 127.0.0.0/8.
    pub(crate) fn is_loopback_v4(&self) -> bool {
        matches!(self.address.ip(), IpAddr::V4(address) if Ipv4Addr::is_loopback(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let check = |url: &str, want: &[&str]| {
            let got = Target::parse(url, false).unwrap();
            assert_eq!([&got.address.to_string(), &got.host, &got.path], want);
        };
        check("ws://127.0.0.1:8080/a/b?c=d", &["127.0.0.1:8080", "127.0.0.1:8080", "/a/b?c=d"]);
        check("ws://127.0.0.1", &["127.0.0.1:80", "127.0.0.1", "/"]);
        check("ws://127.1.2.3:1?x", &["127.1.2.3:1", "127.1.2.3:1", "/?x"]);
        check("ws://[::1]:9/", &["[::1]:9", "[::1]:9", "/"]);
        check("ws://[::1]", &["[::1]:80", "[::1]", "/"]);
        check("wss://127.0.0.1/x", &["127.0.0.1:443", "127.0.0.1", "/x"]);
        check("wss://127.0.0.1:80", &["127.0.0.1:80", "127.0.0.1:80", "/"]);
    }

    #[test]
    fn names_without_ports() {
        for (url, want) in [
            ("ws://127.0.0.1:8080/a:b", "127.0.0.1"),
            ("wss://localhost", "localhost"),
            ("wss://[::1]:9/", "[::1]"),
            ("wss://[::1]", "[::1]"),
        ] {
            assert_eq!(Target::parse(url, false).unwrap().host_name(), want);
        }
    }

    #[test]
    fn what_is_refused() {
        for url in [
            "http://127.0.0.1",
            "ws://",
            "ws://127.0.0.1:1/a b",
            "ws://a@127.0.0.1:1/",
            "ws://127.0.0.1:99999/",
        ] {
            assert!(Target::parse(url, true).is_err(), "{url}");
        }
        // An address of the documentation range (RFC 5737): refused before anything is sent.
        assert!(Target::parse("ws://192.0.2.1:80/", false).unwrap_err().contains("--allow-remote"));
        assert!(Target::parse("ws://192.0.2.1:80/", true).is_ok());
    }
}
