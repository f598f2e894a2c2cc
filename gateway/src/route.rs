//! Which backend a handshake goes to: by host, then path, then subprotocol.
//!
//! The order of the routes in the file means nothing. Of all routes that match,
//!
//! 1. an exact host wins over `*.example.org`, the longer wildcard over the shorter one, and any
//!    host comes last;
//! 2. among those, an exact path wins over `/prefix/*`, and the longer prefix over the shorter one;
//! 3. among those, a route whose subprotocol the client offers wins over one that asks for none;
//!    of several the one the client named first (its order of preference, RFC 6455 §4.1).
//!
//! Paths are compared byte for byte, without decoding `%xx` or resolving `..`: a route says where a
//! request goes, not what it may do there.

use std::cmp::Reverse;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// All routes, best first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    routes: Vec<Route>,
}

/// A route by its place in the order of matching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteIndex(pub u16);

/// Where requests of one kind go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its place in [`Routes`].
    pub index: RouteIndex,
    /// The hosts it is for.
    pub host: HostPattern,
    /// The paths it is for.
    pub path: PathPattern,
    /// The subprotocol a client must offer; `None`: whatever it offers.
    pub subprotocol: Option<String>,
    /// Index into `Config::backends`.
    pub backend: u16,
}

/// The hosts of a route. Names are kept in lower case, without a port or a final dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This name or IPv4 address.
    Exact(String),
    /// This IPv6 address, however it is spelt.
    Ipv6(Ipv6Addr),
    /// `*.example.org`, kept as `.example.org`: any name below it, not itself.
    Wildcard(String),
    /// Any host.
    Any,
}

/// The paths of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// This path and no other.
    Exact(String),
    /// `/prefix/*`, kept as `/prefix/`: what begins with it. Empty: every path.
    Prefix(String),
}

impl Routes {
    /// Puts `routes` into the order of matching and numbers them.
    ///
    /// The caller has made sure that no two of them are the same ([`Route::same_requests`]) and
    /// that there are no more than 65,536.
    pub fn new(mut routes: Vec<Route>) -> Routes {
        routes.sort_by(|a, b| a.order().cmp(&b.order()));
        for (index, route) in routes.iter_mut().enumerate() {
            route.index = RouteIndex(u16::try_from(index).expect("at most ROUTES_MAX routes"));
        }
        Routes { routes }
    }

    /// The best route for a request.
    ///
    /// `host` is the `Host` header as it came: any case, with or without a port, a name, an IPv4
    /// address or an IPv6 address in brackets. `path` may carry its query, which plays no part.
    pub fn find<'a>(
        &self,
        host: &str,
        path: &str,
        subprotocols: impl Iterator<Item = &'a str>,
    ) -> Option<&Route> {
        let host = host_without_port(host);
        let path = path.split('?').next().unwrap_or(path);
        let offered: Vec<&str> = subprotocols.collect();
        // The sort has put routes that differ in nothing but their subprotocol side by side.
        let mut groups = self.routes.chunk_by(|a, b| a.host == b.host && a.path == b.path);
        groups.find_map(|group| {
            let first = &group[0];
            if !first.host.matches(host) || !first.path.matches(path) {
                return None;
            }
            let named = |name: Option<&str>| {
                group.iter().find(|route| route.subprotocol.as_deref() == name)
            };
            offered.iter().find_map(|name| named(Some(name))).or_else(|| named(None))
        })
    }

    /// The route at `index`.
    ///
    /// # Panics
    ///
    /// When `index` is not of this table.
    pub fn get(&self, index: RouteIndex) -> &Route {
        &self.routes[usize::from(index.0)]
    }

    /// All routes in the order of matching.
    pub fn iter(&self) -> std::slice::Iter<'_, Route> {
        self.routes.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

impl Route {
    /// Whether `other` is for the very same requests, so that one of the two could never be found.
    pub fn same_requests(&self, other: &Route) -> bool {
        self.host == other.host && self.path == other.path && self.subprotocol == other.subprotocol
    }

    /// The key that sorts better routes first. What does not decide (names) only makes the order
    /// the same for every order of the file.
    fn order(&self) -> impl Ord + '_ {
        let host = match &self.host {
            HostPattern::Exact(name) => (0, Reverse(0), name.clone()),
            HostPattern::Ipv6(address) => (1, Reverse(0), address.to_string()),
            HostPattern::Wildcard(suffix) => (2, Reverse(suffix.len()), suffix.clone()),
            HostPattern::Any => (3, Reverse(0), String::new()),
        };
        let path = match &self.path {
            PathPattern::Exact(path) => (0, Reverse(0), path),
            PathPattern::Prefix(prefix) => (1, Reverse(prefix.len()), prefix),
        };
        (host, path, self.subprotocol.is_none(), &self.subprotocol)
    }
}

/// `host:port` without the port, and without the dot that may end an absolute name.
fn host_without_port(host: &str) -> &str {
    let host = match host.rfind(':') {
        // In an IPv6 literal only a colon behind the bracket begins a port.
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    };
    host.strip_suffix('.').unwrap_or(host)
}

/// The address in `[::1]`; `None` when `host` is not one.
fn ipv6_literal(host: &str) -> Option<Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

impl HostPattern {
    /// Whether `host`, which carries no port, is one of these. Names ignore ASCII case.
    fn matches(&self, host: &str) -> bool {
        match self {
            HostPattern::Any => true,
            HostPattern::Exact(name) => name.eq_ignore_ascii_case(host),
            HostPattern::Ipv6(address) => ipv6_literal(host) == Some(*address),
            HostPattern::Wildcard(suffix) => {
                let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
                host.len() > suffix.len()
                    && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
            }
        }
    }
}

impl PathPattern {
    fn matches(&self, path: &str) -> bool {
        match self {
            PathPattern::Exact(exact) => path == exact,
            PathPattern::Prefix(prefix) => path.starts_with(prefix.as_str()),
        }
    }
}

/// The error says what is wrong and what to write instead.
impl FromStr for HostPattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<HostPattern, &'static str> {
        if text.starts_with('[') {
            return match ipv6_literal(text) {
                Some(address) => Ok(HostPattern::Ipv6(address)),
                None if ipv6_literal(host_without_port(text)).is_some() => Err(PORT_IN_HOST),
                None => Err("not an IPv6 address in brackets; write it like \"[2001:db8::1]\""),
            };
        }
        if text.contains(':') {
            return Err(PORT_IN_HOST);
        }
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.contains('*') {
            return Err("a `*` may only stand for whole labels in front, like \"*.example.org\"; \
                        leave `host` out to match any host");
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err("not a host name; write it as the browser sends it, like \
                        \"chat.example.org\" (punycode where it is not ASCII)");
        }
        let name = name.to_ascii_lowercase();
        Ok(if wildcard {
            HostPattern::Wildcard(format!(".{name}"))
        } else {
            HostPattern::Exact(name)
        })
    }
}

const PORT_IN_HOST: &str = "a route's host has no port; leave the port out (the listener has it)";

/// The error says what is wrong and what to write instead.
impl FromStr for PathPattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<PathPattern, &'static str> {
        if !text.starts_with('/') {
            return Err("a path begins with `/`; write \"/chat\" or \"/chat/*\"");
        }
        if let Some(bad) = text.bytes().find(|byte| !(0x21..=0x7E).contains(byte) || *byte == b'#')
        {
            return Err(if bad == b'#' {
                "a path has no fragment; leave out `#` and what follows"
            } else {
                "a path on the wire has no spaces and is ASCII; write the rest as %xx"
            });
        }
        if text.contains('?') {
            return Err("a route does not look at the query; leave out `?` and what follows");
        }
        match text.strip_suffix("/*") {
            // `/*` is every path, just as leaving the key out.
            Some("") => Ok(PathPattern::Prefix(String::new())),
            Some(prefix) if !prefix.contains('*') => Ok(PathPattern::Prefix(format!("{prefix}/"))),
            None if !text.contains('*') => Ok(PathPattern::Exact(text.to_owned())),
            _ => Err("a `*` may only be the last segment; write \"/prefix/*\""),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(name) => f.write_str(name),
            HostPattern::Ipv6(address) => write!(f, "[{address}]"),
            HostPattern::Wildcard(suffix) => write!(f, "*{suffix}"),
            HostPattern::Any => f.write_str("any host"),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathPattern::Exact(path) => f.write_str(path),
            PathPattern::Prefix(prefix) if prefix.is_empty() => f.write_str("/*"),
            PathPattern::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}
