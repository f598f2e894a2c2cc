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
//! Paths are compared byte for byte, without decoding `%xx`: a route says where a request goes, not
//! what it may do there. A path with a segment `.` or `..` is refused before (`http.rs`). The case of
//! letters, empty segments and needless `%xx` are the application's to tell apart, unless its listener
//! has `paths = "strict"`, which refuses the latter two.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::limits::ROUTE_NUMBERS_MAX;
use crate::origin::Origins;
use crate::policy::Policy;

/// All routes: each under a number of its own, and the order of matching beside.
///
/// Connections keep the number of their route, so it means the same in every configuration that
/// follows ([`Routes::succeed`]). A route that is gone is retired: it keeps its slot for the
/// connections that came by it, and is never matched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// By number, retired ones among them.
    slots: Vec<Route>,
    /// By number: whether it is one of `order`.
    live: Vec<bool>,
    /// The numbers of those that are matched, best first.
    order: Vec<u16>,
}

/// A route by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteIndex(pub u16);

/// Where requests of one kind go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its number in [`Routes`].
    pub index: RouteIndex,
    /// The hosts it is for.
    pub host: HostPattern,
    /// The paths it is for.
    pub path: PathPattern,
    /// The subprotocol a client must offer; `None`: whatever it offers.
    pub subprotocol: Option<String>,
    /// Index into `Config::backends`.
    pub backend: u16,
    /// The pages that may open a WebSocket on it.
    pub origins: Origins,
    /// The policy of its connections.
    pub policy: Policy,
}

/// The hosts of a route. Names are kept in lower case, without a port or a final dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// This path and no other.
    Exact(String),
    /// `/prefix/*`, kept as `/prefix/`: what begins with it, and `/prefix`. Empty: every path.
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
        let order = routes.iter().map(|route| route.index.0).collect();
        Routes { live: vec![true; routes.len()], order, slots: routes }
    }

    /// `new` with the numbers of this table, whose `Route::backend` are already those of this
    /// table's configuration.
    ///
    /// A route keeps its number, and one that was retired gets it back, if it is for the same
    /// requests and leads to the same backend: connections find their backend by their route, and
    /// stay where they are when the requests that come after them go elsewhere. Such a connection
    /// still gets the policy that holds for its requests now. A route without a number gets the
    /// lowest that was retired before and is not `in_use`, which has to be true while a connection
    /// of any shard is on the route. The numbers of routes that retire now are not given away yet:
    /// as long as one shard still matches them, a client may come by them.
    ///
    /// # Errors
    ///
    /// A sentence: all [`ROUTE_NUMBERS_MAX`] numbers are taken.
    pub fn succeed(
        &self,
        new: &Routes,
        in_use: impl Fn(RouteIndex) -> bool,
    ) -> Result<Routes, String> {
        let mut slots = self.slots.clone();
        let mut live = vec![false; slots.len()];
        let known: HashMap<_, u16> = self
            .slots
            .iter()
            .map(|route| ((route.requests(), route.backend), route.index.0))
            .collect();
        let found = |route: &Route| known.get(&(route.requests(), route.backend)).copied();
        for number in new.iter().filter_map(found) {
            live[usize::from(number)] = true;
        }
        // Numbers are looked at once, however many are wanted.
        let kept = live.clone();
        let mut free = (0..self.slots.len()).filter(|number| {
            !self.live[*number] && !kept[*number] && !in_use(self.slots[*number].index)
        });
        let mut order = Vec::with_capacity(new.len());
        for route in new.iter() {
            let number = found(route).map(usize::from).or_else(|| free.next());
            let number = number.unwrap_or(slots.len());
            let Some(index) = u16::try_from(number).ok().map(RouteIndex) else {
                return Err(format!(
                    "all {ROUTE_NUMBERS_MAX} numbers of routes are taken by {} routes of the file \
                     and by routes that are gone but have connections; reload again when those have \
                     ended, or restart",
                    new.len()
                ));
            };
            let route = Route { index, ..route.clone() };
            match slots.get_mut(number) {
                Some(slot) => *slot = route,
                None => slots.push(route),
            }
            live.resize(slots.len(), false);
            live[number] = true;
            order.push(index.0);
        }
        let policies: HashMap<_, &Policy> =
            new.iter().map(|route| (route.requests(), &route.policy)).collect();
        for (slot, live) in slots.iter_mut().zip(&live) {
            if let Some(policy) = policies.get(&slot.requests()).filter(|_| !live) {
                slot.policy = Policy::clone(policy);
            }
        }
        Ok(Routes { slots, live, order })
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
        let slot = |number: u16| &self.slots[usize::from(number)];
        let mut groups = self.order.chunk_by(|a, b| {
            let (a, b) = (slot(*a), slot(*b));
            a.host == b.host && a.path == b.path
        });
        groups.find_map(|group| {
            let first = slot(group[0]);
            if !first.host.matches(host) || !first.path.matches(path) {
                return None;
            }
            let named = |name: Option<&str>| {
                let mut routes = group.iter().map(|number| slot(*number));
                routes.find(|route| route.subprotocol.as_deref() == name)
            };
            offered.iter().find_map(|name| named(Some(name))).or_else(|| named(None))
        })
    }

    /// The route at `index`, which may be retired.
    ///
    /// # Panics
    ///
    /// When `index` is not of this table.
    pub fn get(&self, index: RouteIndex) -> &Route {
        &self.slots[usize::from(index.0)]
    }

    /// What holds for the connections of the route at `index`, which may be retired.
    ///
    /// # Panics
    ///
    /// When `index` is not of this table.
    pub fn policy(&self, index: u16) -> &Policy {
        &self.slots[usize::from(index)].policy
    }

    /// Whether the route at `index` is gone from the file; no request is led to it any more.
    ///
    /// # Panics
    ///
    /// When `index` is not of this table.
    pub fn is_retired(&self, index: RouteIndex) -> bool {
        !self.live[usize::from(index.0)]
    }

    /// All routes that are matched, in that order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Route> {
        self.order.iter().map(|number| &self.slots[usize::from(*number)])
    }

    /// All routes that are not matched any more, by number.
    pub fn retired(&self) -> impl Iterator<Item = &Route> {
        self.slots.iter().filter(|route| self.is_retired(route.index))
    }

    /// How many are matched.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// How many numbers there are, those of retired routes included: the length of a table by
    /// route number.
    pub fn numbers(&self) -> usize {
        self.slots.len()
    }
}

impl Route {
    /// Whether `other` is for the very same requests, so that one of the two could never be found.
    pub fn same_requests(&self, other: &Route) -> bool {
        self.requests() == other.requests()
    }

    /// The requests it is for.
    fn requests(&self) -> (&HostPattern, &PathPattern, Option<&str>) {
        (&self.host, &self.path, self.subprotocol.as_deref())
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
            PathPattern::Prefix(prefix) => {
                path.starts_with(prefix.as_str())
                    || prefix.strip_suffix('/').is_some_and(|bare| !bare.is_empty() && path == bare)
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: &str, path: &str, subprotocol: &str, backend: u16) -> Route {
        let pattern = |text: &str| text.parse::<HostPattern>().expect("a host");
        Route {
            index: RouteIndex(0),
            host: if host.is_empty() { HostPattern::Any } else { pattern(host) },
            path: if path.is_empty() {
                PathPattern::Prefix(String::new())
            } else {
                path.parse().expect("a path")
            },
            subprotocol: (!subprotocol.is_empty()).then(|| subprotocol.to_owned()),
            backend,
            origins: Origins::default(),
            policy: Policy::of(&crate::limits::Limits::default()),
        }
    }

    #[test]
    fn hosts_in_all_spellings() {
        let exact = Routes::new(vec![route("chat.example.org", "", "", 1)]);
        let wildcard = Routes::new(vec![route("*.example.org", "", "", 1)]);
        let address = Routes::new(vec![route("[2001:db8::1]", "", "", 1)]);
        for (routes, host, want) in [
            (&exact, "chat.example.org", true),
            (&exact, "CHAT.Example.ORG:8080", true),
            (&exact, "chat.example.org.", true),
            (&exact, "chat.example.org.:80", true),
            (&exact, "xchat.example.org", false),
            (&exact, "chat.example.orgx", false),
            (&exact, "", false),
            (&exact, ":80", false),
            (&wildcard, "a.example.org", true),
            (&wildcard, "a.B.EXAMPLE.org:1", true),
            (&wildcard, "example.org", false),
            (&wildcard, ".example.org", false),
            (&wildcard, "aexample.org", false),
            (&wildcard, "é.example.org", true),
            (&wildcard, "ééééééé", false),
            (&address, "[2001:db8::1]", true),
            (&address, "[2001:DB8:0:0::1]:8080", true),
            (&address, "[2001:db8::2]", false),
            (&address, "2001:db8::1", false),
            (&address, "[", false),
            (&address, "]:", false),
        ] {
            assert_eq!(routes.find(host, "/", [].into_iter()).is_some(), want, "{host}");
        }
    }

    #[test]
    fn paths_without_their_query() {
        let routes = Routes::new(vec![
            route("", "/a", "", 1),
            route("", "/a/*", "", 2),
            route("", "/a/b/*", "", 3),
        ]);
        for (path, want) in [
            ("/a", Some(1)),
            ("/a?b/c", Some(1)),
            ("/a/", Some(2)),
            ("/a/b", Some(3)),
            ("/a/bc", Some(2)),
            ("/a/b/?x", Some(3)),
            ("/A", None),
            ("/ab", None),
            ("", None),
            ("?", None),
        ] {
            let found = routes.find("h", path, [].into_iter()).map(|route| route.backend);
            assert_eq!(found, want, "{path}");
        }
    }

    #[test]
    fn a_prefix_is_for_its_bare_path_as_well() {
        let routes = Routes::new(vec![route("", "/app/*", "", 1), route("", "/app/x/*", "", 2)]);
        for (path, want) in [
            ("/app", Some(1)),
            ("/app?a", Some(1)),
            ("/app/", Some(1)),
            ("/app/x", Some(2)),
            ("/apple", None),
            ("/ap", None),
            ("/", None),
            ("*", None),
        ] {
            let found = routes.find("h", path, [].into_iter()).map(|route| route.backend);
            assert_eq!(found, want, "{path}");
        }
        // An exact route for it wins, and is another route.
        let (bare, prefix) = (route("", "/app", "", 3), route("", "/app/*", "", 1));
        assert!(!bare.same_requests(&prefix));
        let routes = Routes::new(vec![prefix, bare]);
        assert_eq!(routes.find("h", "/app", [].into_iter()).map(|it| it.backend), Some(3));
    }

    #[test]
    fn what_names_no_host_is_for_any() {
        let routes = Routes::new(vec![route("a.x", "", "", 1), route("", "", "", 2)]);
        for (host, path, want) in [("", "/", 2), ("", "*", 2), ("a.x", "*", 1), ("a.x:", "/", 1)] {
            let found = routes.find(host, path, [].into_iter()).map(|route| route.backend);
            assert_eq!(found, Some(want), "{host} {path}");
        }
        let named = Routes::new(vec![route("a.x", "", "", 1), route("*.x", "", "", 1)]);
        assert_eq!(named.find("", "/", [].into_iter()), None);
    }

    #[test]
    fn the_client_prefers_among_subprotocols() {
        let routes = Routes::new(vec![
            route("", "/a", "x", 1),
            route("", "/a", "y", 2),
            route("", "", "", 3),
            route("", "", "z", 4),
        ]);
        for (offered, want) in
            [("y x", 2), ("x y", 1), ("q y", 2), ("z", 4), ("z y", 2), ("X", 3), ("", 3)]
        {
            let found = routes.find("h", "/a", offered.split(' ')).expect("a route");
            assert_eq!(found.backend, want, "{offered}");
            assert_eq!(routes.get(found.index), found);
        }
    }

    #[test]
    fn the_order_of_matching_is_not_that_of_the_file() {
        let best_first = [
            route("a.x", "/p", "s", 0),
            route("a.x", "/p", "", 1),
            route("a.x", "/p/q/*", "", 2),
            route("a.x", "/p/*", "", 3),
            route("[::1]", "", "", 4),
            route("*.a.x", "", "", 5),
            route("*.x", "/p", "", 6),
            route("", "/p", "", 7),
            route("", "", "s", 8),
            route("", "", "", 9),
        ];
        for shift in 0..best_first.len() {
            let mut written = best_first.to_vec();
            written.rotate_left(shift);
            let routes = Routes::new(written);
            let order: Vec<u16> = routes.iter().map(|route| route.backend).collect();
            assert_eq!(order, (0..10).collect::<Vec<u16>>());
            assert!((0..10).all(|index| routes.get(RouteIndex(index)).index.0 == index));
        }
    }

    #[test]
    fn numbers_end() {
        // 16 files of 4096 routes each, all still in use, and one more.
        let file_of = |round: usize| {
            let one = |index: usize| route("", &format!("/{round}/{index}"), "", 0);
            Routes::new((0..4096).map(one).collect())
        };
        let mut routes = file_of(0);
        for round in 1..16 {
            routes = routes.succeed(&file_of(round), |_| true).expect("a number for each");
        }
        assert_eq!(routes.numbers(), ROUTE_NUMBERS_MAX);
        let refusal = routes.succeed(&file_of(16), |_| true).expect_err("no number is left");
        assert!(refusal.starts_with("all 65536 numbers of routes are taken"), "{refusal}");
        let last = RouteIndex(u16::MAX);
        let one_left = routes.succeed(&file_of(16), |index| index == last);
        assert_eq!(one_left.expect("4096 are free").numbers(), ROUTE_NUMBERS_MAX);
        let few = routes.succeed(&file_of(16), |index| index.0 >= 4095);
        few.expect_err("only 4095 are free");
    }

    /// The order of the module's first lines, one route against another, without sort or groups.
    fn naive<'r>(
        routes: &'r [Route],
        host: &str,
        path: &str,
        offered: &[&str],
    ) -> Option<&'r Route> {
        let rank = |route: &Route| {
            let by_host = match &route.host {
                HostPattern::Exact(name) if name == host => 1000,
                HostPattern::Wildcard(suffix) if host.ends_with(suffix) && host != suffix => {
                    suffix.len()
                }
                HostPattern::Any => 0,
                _ => return None,
            };
            let by_path = match &route.path {
                PathPattern::Exact(exact) if exact == path => 1000,
                PathPattern::Prefix(prefix) if path.starts_with(prefix) => prefix.len(),
                PathPattern::Prefix(prefix) if *prefix == format!("{path}/") => prefix.len(),
                _ => return None,
            };
            let by_subprotocol = match &route.subprotocol {
                None => 0,
                Some(name) => 1000 - offered.iter().position(|offered| offered == name)?,
            };
            Some((by_host, by_path, by_subprotocol))
        };
        routes.iter().filter(|route| rank(route).is_some()).max_by_key(|route| rank(route))
    }

    #[test]
    fn a_model_finds_the_same() {
        let hosts = ["", "a.x", "b.a.x", "*.x", "*.a.x", "*.b.a.x"];
        let paths = ["", "/p", "/p/*", "/p/q", "/p/q/*"];
        let subprotocols = ["", "s", "t", "u"];
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = |below: usize| {
            // xorshift64: any sequence will do, the same one each time.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let mut found_some = 0;
        for _ in 0..400 {
            let mut written: Vec<Route> = Vec::new();
            for backend in 0..next(24) as u16 {
                let (host, path) = (hosts[next(hosts.len())], paths[next(paths.len())]);
                let one = route(host, path, subprotocols[next(subprotocols.len())], backend);
                if !written.iter().any(|earlier| earlier.same_requests(&one)) {
                    written.push(one);
                }
            }
            let routes = Routes::new(written.clone());
            for host in ["a.x", "b.a.x", "c.b.a.x", "d.x", "x", "y"] {
                for path in ["/", "/p", "/p/", "/p/q", "/p/q/r", "/z"] {
                    for offered in [&[][..], &["s"], &["t", "s"], &["v", "u", "t"]] {
                        let got = routes.find(host, path, offered.iter().copied());
                        let want = naive(&written, host, path, offered);
                        let backend = |route: Option<&Route>| route.map(|route| route.backend);
                        assert_eq!(
                            backend(got),
                            backend(want),
                            "{host} {path} {offered:?} in {written:#?}"
                        );
                        found_some += usize::from(got.is_some());
                    }
                }
            }
        }
        assert!(found_some > 10_000);
    }
}
