//! Where an upstream is: its URL as the operator writes it, and the address that comes of it.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::route::{HostPattern, PathPattern};

use super::hash::stable_hash;

/// The longest path of a Unix socket: `sun_path` without its final NUL (unix(7)).
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// What a socket is connected to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UpstreamAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket at this absolute path, of at most [`UNIX_PATH_BYTES_MAX`] bytes.
    Unix(PathBuf),
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UpstreamAddress::Tcp(address) => address.fmt(f),
            UpstreamAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A URL of an upstream: `ws://host[:port][/path]`, the same with `http://`, or
/// `unix:/socket[:/path]`. Displayed in one spelling, which tells upstreams apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamUrl {
    target: Target,
    path: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Target {
    /// The host in lower case, an IPv6 address in brackets.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl UpstreamUrl {
    /// Host and port, for the resolver. `None`: a Unix socket, which needs none.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        match &self.target {
            Target::Tcp { host, port } => Some((host, *port)),
            Target::Unix(_) => None,
        }
    }

    /// Whether it takes a resolver to know where it is, so that it may be elsewhere later.
    pub fn is_name(&self) -> bool {
        match &self.target {
            Target::Tcp { host, .. } => {
                !host.starts_with('[') && host.parse::<std::net::Ipv4Addr>().is_err()
            }
            Target::Unix(_) => false,
        }
    }

    /// The path of the socket. `None`: TCP.
    pub fn unix_path(&self) -> Option<&Path> {
        match &self.target {
            Target::Tcp { .. } => None,
            Target::Unix(path) => Some(path),
        }
    }

    /// The path it is asked for instead of the client's; never with a query.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// What goes into `Host` when the client's is not kept. The port that is the scheme's own is
    /// left out (RFC 6455 §4.1, item 4); a Unix socket has no name, and `localhost` is what
    /// servers behind one expect.
    pub fn host_header(&self) -> String {
        match &self.target {
            Target::Tcp { host, port: 80 } => host.clone(),
            Target::Tcp { host, port } => format!("{host}:{port}"),
            Target::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.as_deref().unwrap_or_default();
        match &self.target {
            Target::Tcp { host, port } => write!(f, "ws://{host}:{port}{path}"),
            Target::Unix(socket) if path.is_empty() => write!(f, "unix:{}", socket.display()),
            Target::Unix(socket) => write!(f, "unix:{}:{path}", socket.display()),
        }
    }
}

/// Which upstream it is, in every shard, process and release: a hash of its URL and its address. A
/// name that resolves to several addresses is several upstreams, and one that resolves to another
/// address than before is another upstream, because its health and its clients are another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamName(pub u64);

impl UpstreamName {
    /// The name of the upstream that `url` means, at `address`.
    pub fn new(url: &UpstreamUrl, address: &UpstreamAddress) -> UpstreamName {
        UpstreamName(stable_hash(format!("{url} {address}").as_bytes()))
    }
}

/// Where one upstream of a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its address, by which it is known.
    pub address: SocketAddr,
    /// The same server's other address; it is tried where that one is not to be reached.
    pub other: Option<SocketAddr>,
}

/// The upstreams of a name with these addresses: each is one, and none twice. Their order is the same
/// whatever order a resolver found them in. The loopback addresses of IPv4 and IPv6 are this machine
/// both times, and so one server, which may listen on either.
pub fn places_of(mut addresses: Vec<SocketAddr>) -> Vec<Place> {
    addresses.sort_unstable();
    addresses.dedup();
    let first = |is: fn(&SocketAddr) -> bool| addresses.iter().copied().find(is);
    let four = first(|address| address.is_ipv4() && address.ip().is_loopback());
    let six = first(|address| address.is_ipv6() && address.ip().is_loopback());
    let (twin, other) = match (four, six) {
        (Some(four), Some(six)) => (Some(four), Some(six)),
        _ => (None, None),
    };
    let places = addresses.iter().filter(|address| other != Some(**address));
    places
        .map(|&address| Place { address, other: other.filter(|_| twin == Some(address)) })
        .collect()
}

/// The error says what is wrong and what to write instead.
impl FromStr for UpstreamUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<UpstreamUrl, &'static str> {
        if let Some(rest) = text.strip_prefix("unix:") {
            return unix_url(rest);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("not a URL; write it like \"ws://127.0.0.1:3000\" or \
                        \"unix:/run/app.sock\"");
        };
        match scheme.to_ascii_lowercase().as_str() {
            "ws" | "http" => {}
            "wss" | "https" => {
                return Err(
                    "TLS to an upstream is not supported yet; use ws:// to a host that is \
                            near, or a TLS client beside the gateway",
                );
            }
            _ => return Err("a URL of another scheme; write ws:// or unix:"),
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err("credentials in a URL are not sent; leave out what precedes `@`");
        }
        let (host, port) = match authority.rfind(':') {
            Some(colon) if !authority[colon..].contains(']') => {
                (&authority[..colon], Some(&authority[colon + 1..]))
            }
            _ => (authority, None),
        };
        let port = match port {
            None => 80,
            // Digits only: `parse` alone would take a plus sign.
            Some(port) => match port.parse::<u16>() {
                Ok(number) if number > 0 && !port.starts_with('+') => number,
                _ => return Err("the port is a number from 1 to 65535; write ws://host:port"),
            },
        };
        let host = match host.parse() {
            Ok(HostPattern::Exact(_)) => host.to_ascii_lowercase(),
            Ok(HostPattern::Ipv6(address)) => format!("[{address}]"),
            _ => {
                return Err("the host is a name, an IPv4 address or an IPv6 address in brackets; \
                            write ws://host:port");
            }
        };
        Ok(UpstreamUrl { target: Target::Tcp { host, port }, path: url_path(path)? })
    }
}

fn unix_url(rest: &str) -> Result<UpstreamUrl, &'static str> {
    let (socket, path) = rest.split_once(':').unwrap_or((rest, ""));
    if !socket.starts_with('/') || socket.ends_with('/') {
        return Err(
            "a socket is named by its absolute path; write it like \"unix:/run/app.sock\", \
                    with one slash",
        );
    }
    // `unix://host/path` would be read as a path that begins with two slashes.
    if socket.starts_with("//") {
        return Err("a socket has no host; write it like \"unix:/run/app.sock\", with one slash");
    }
    if socket.len() > UNIX_PATH_BYTES_MAX {
        return Err("the path of a socket has at most 107 bytes; choose a shorter one");
    }
    if socket.bytes().any(|byte| byte.is_ascii_control()) {
        return Err("the path of a socket has no control characters; choose another");
    }
    if rest.ends_with(':') {
        return Err("no path behind the second colon; leave the colon out, or write it like \
                    \"unix:/run/app.sock:/chat\"");
    }
    Ok(UpstreamUrl { target: Target::Unix(PathBuf::from(socket)), path: url_path(path)? })
}

/// The path that replaces the client's; empty text: none does.
fn url_path(text: &str) -> Result<Option<String>, &'static str> {
    match text {
        "" => return Ok(None),
        "/" => {
            return Err("a lone `/` behind the host could mean every path or that one; leave it \
                        out to keep the client's path, or set `path` to \"/\"");
        }
        _ => {}
    }
    if text.contains('?') {
        return Err("the query is always the client's; leave out `?` and what follows");
    }
    match text.parse()? {
        PathPattern::Exact(path) => Ok(Some(path)),
        PathPattern::Prefix(_) => {
            Err("a path replaces the client's and cannot hold a `*`; leave it out to keep theirs")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_their_one_spelling() {
        for (text, spelling, host) in [
            ("ws://127.0.0.1:3000", "ws://127.0.0.1:3000", "127.0.0.1:3000"),
            ("http://127.0.0.1:3000", "ws://127.0.0.1:3000", "127.0.0.1:3000"),
            ("WS://Chat.Example.org", "ws://chat.example.org:80", "chat.example.org"),
            ("HTTP://a:80/x/y", "ws://a:80/x/y", "a"),
            ("ws://a.:81", "ws://a.:81", "a.:81"),
            ("ws://[2001:DB8:0::1]", "ws://[2001:db8::1]:80", "[2001:db8::1]"),
            ("ws://[::1]:8080/socket", "ws://[::1]:8080/socket", "[::1]:8080"),
            ("unix:/run/app.sock", "unix:/run/app.sock", "localhost"),
            ("unix:/run/app.sock:/chat", "unix:/run/app.sock:/chat", "localhost"),
        ] {
            let url = text.parse::<UpstreamUrl>().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(url.to_string(), spelling, "{text}");
            assert_eq!(url.host_header(), host, "{text}");
            assert_eq!(url.to_string().parse(), Ok(url), "{text}");
        }
    }

    #[test]
    fn each_address_of_a_name_is_an_upstream() {
        let places = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|text| text.parse().expect("an address"));
            let line = |place: &Place| match place.other {
                Some(other) => format!("{} or {other}", place.address),
                None => place.address.to_string(),
            };
            places_of(addresses.collect()).iter().map(line).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(places(&["10.0.0.2:80", "10.0.0.1:80"]), "10.0.0.1:80, 10.0.0.2:80");
        assert_eq!(places(&["10.0.0.1:80", "10.0.0.1:80"]), "10.0.0.1:80");
        assert_eq!(places(&["[2001:db8::1]:80", "10.0.0.1:80"]), "10.0.0.1:80, [2001:db8::1]:80");
        assert_eq!(places(&["[::1]:80", "127.0.0.1:80"]), "127.0.0.1:80 or [::1]:80");
        assert_eq!(places(&["[::1]:80"]), "[::1]:80");
        assert_eq!(
            places(&["[::1]:80", "127.0.1.1:80", "127.0.0.1:80", "10.0.0.1:80"]),
            "10.0.0.1:80, 127.0.0.1:80 or [::1]:80, 127.0.1.1:80"
        );
    }

    #[test]
    fn what_has_to_be_resolved() {
        for (url, is_name) in [
            ("ws://localhost", true),
            ("ws://a.example:1", true),
            ("ws://127.0.0.1:1", false),
            ("ws://[::1]:1", false),
            ("unix:/run/a", false),
        ] {
            assert_eq!(url.parse::<UpstreamUrl>().expect("a URL").is_name(), is_name, "{url}");
        }
    }

    #[test]
    fn the_parts_of_a_url() {
        let url: UpstreamUrl = "ws://[::1]:81/x".parse().expect("good");
        assert_eq!(
            (url.host_and_port(), url.unix_path(), url.path()),
            (Some(("[::1]", 81)), None, Some("/x"))
        );
        let url: UpstreamUrl = "unix:/run/a".parse().expect("good");
        assert_eq!(
            (url.host_and_port(), url.unix_path(), url.path()),
            (None, Some(Path::new("/run/a")), None)
        );
    }

    #[test]
    fn refused_urls_say_what_to_write() {
        let long = format!("unix:/{}", "a".repeat(UNIX_PATH_BYTES_MAX));
        for (text, why) in [
            ("", "not a URL"),
            ("127.0.0.1:80", "not a URL"),
            ("wss://a", "TLS to an upstream is not supported yet"),
            ("HTTPS://a", "TLS to an upstream is not supported yet"),
            ("ftp://a", "another scheme"),
            ("ws://", "the host is"),
            ("ws://:80", "the host is"),
            ("ws://a b", "the host is"),
            ("ws://*.a", "the host is"),
            ("ws://::1", "the host is"),
            ("ws://[::1", "the host is"),
            ("ws://[::1]x", "the host is"),
            ("ws://a:", "the port is"),
            ("ws://a:0", "the port is"),
            ("ws://a:+1", "the port is"),
            ("ws://a:65536", "the port is"),
            ("ws://a:b", "the port is"),
            ("ws://u:p@a", "credentials"),
            ("ws://a/", "a lone `/`"),
            ("ws://a?x", "the query is"),
            ("ws://a/b?x", "the query is"),
            ("ws://a#x", "a path begins with"),
            ("ws://a/b#x", "a path has no fragment"),
            ("ws://a/b/*", "cannot hold a `*`"),
            ("ws://a/é", "a path on the wire"),
            ("unix:", "a socket is named"),
            ("unix:run/a", "a socket is named"),
            ("unix:/run/", "a socket is named"),
            ("unix://run/a", "a socket has no host"),
            ("unix:/run/a:", "no path behind"),
            ("unix:/run/a:b", "a path begins with"),
            ("unix:/run/a\n", "no control characters"),
            (&long, "at most 107 bytes"),
        ] {
            let error = text.parse::<UpstreamUrl>().expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
            assert!(error.contains("; "), "{text}: nothing to do: {error}");
        }
        let longest = format!("unix:/{}", "a".repeat(UNIX_PATH_BYTES_MAX - 1));
        assert!(longest.parse::<UpstreamUrl>().is_ok());
    }

    /// Gateways of different releases stand side by side: a name never changes.
    #[test]
    fn names_are_the_same_for_ever() {
        let name = |url: &str, address: UpstreamAddress| {
            UpstreamName::new(&url.parse().expect("a URL"), &address)
        };
        let tcp = |text: &str| UpstreamAddress::Tcp(text.parse().expect("an address"));
        let first = name("ws://10.0.0.1:3000", tcp("10.0.0.1:3000"));
        assert_eq!(first.0, stable_hash(b"ws://10.0.0.1:3000 10.0.0.1:3000"));
        assert_eq!(first, name("http://10.0.0.1:3000", tcp("10.0.0.1:3000")));
        assert_ne!(first, name("ws://10.0.0.1:3000", tcp("10.0.0.2:3000")));
        assert_ne!(first, name("ws://10.0.0.1:3000/x", tcp("10.0.0.1:3000")));
        let socket = UpstreamAddress::Unix(PathBuf::from("/run/a"));
        assert_eq!(name("unix:/run/a", socket).0, stable_hash(b"unix:/run/a unix:/run/a"));
    }
}
