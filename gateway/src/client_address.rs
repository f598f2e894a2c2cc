//! Who a client is, when proxies stand in between: the address that its request is made for.
//!
//! Every proxy appends whom it saw, so a chain is true from its right end to the first address that
//! is no proxy of ours: what stands to the left of that was sent by the client.
//!
//! ```text
//!   X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.0.0.7      from 10.0.0.1; trusted: 10.0.0.0/8
//!                    claimed  the client   a proxy            a proxy
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::http::Headers;
use crate::steps;

/// Addresses of a chain that are looked at. Nobody has so many proxies of his own in a row.
const HOPS_MAX: usize = 64;

/// The address that a request is made for: `peer`'s, or the one that `peer` names if it is trusted;
/// and the scheme by which that client came to the first of the proxies, if one says so.
///
/// X-Forwarded-For is walked from the right, over those that are trusted themselves, to the first
/// that is not; without such a header the `for` of Forwarded (RFC 7239 §5.2) is. `header` may have it
/// that only one of the two is looked at. What is no address ends the walk, and the last one before it
/// counts, as does the last of [`HOPS_MAX`]. The answer is canonical: never an IPv4 address in IPv6.
///
/// The scheme is of the hop whose address counts: of the entry of X-Forwarded-Proto that stands as far
/// from the right, or of the first where there are fewer, as some proxies replace that header and
/// append to the other; of Forwarded, the `proto` of the element.
pub fn client_of(
    headers: &Headers<'_>,
    peer: IpAddr,
    trusted: &CidrSet,
    header: ClientHeader,
) -> (IpAddr, Option<&'static str>) {
    let peer = peer.to_canonical();
    if !trusted.contains(peer) {
        return (peer, None);
    }
    // A comma never belongs to an address. So each entry is read by itself, and a quote that a
    // client left open cannot swallow what a proxy has put behind it.
    let is_listed = match header {
        ClientHeader::Either => headers.get("x-forwarded-for").is_some(),
        ClientHeader::ForwardedFor => true,
        ClientHeader::Forwarded => false,
    };
    let name = if is_listed { "x-forwarded-for" } else { "forwarded" };
    let entries = || headers.all(name).rev().flat_map(|line| line.rsplit(','));
    let (client, hops) = match is_listed {
        true => walk(peer, entries().map(node), trusted),
        false => walk(peer, entries().map(forwarded_for), trusted),
    };
    let of_element =
        || entries().nth(hops.checked_sub(1)?).and_then(|element| pair(element, "proto")?.ok());
    let proto = match header {
        ClientHeader::Forwarded => of_element().and_then(scheme),
        ClientHeader::ForwardedFor => listed_proto(headers, hops),
        ClientHeader::Either if headers.get("x-forwarded-proto").is_some() => {
            listed_proto(headers, hops)
        }
        ClientHeader::Either if !is_listed => of_element().and_then(scheme),
        ClientHeader::Either => None,
    };
    (client, proto)
}

/// `from` is the last one that is known, and trusted. Returns the one that counts, and how many
/// entries from the right it stands; 0 is `from`.
fn walk(
    mut from: IpAddr,
    entries: impl Iterator<Item = Option<IpAddr>>,
    trusted: &CidrSet,
) -> (IpAddr, usize) {
    let mut hops = 0;
    for entry in entries.take(HOPS_MAX) {
        steps::took(1);
        let Some(address) = entry else { break };
        from = address;
        hops += 1;
        if !trusted.contains(from) {
            break;
        }
    }
    (from, hops)
}

/// The scheme in X-Forwarded-Proto of the client that stands `hops` entries from the right in the list
/// of addresses; of the first entry, where there are fewer. The last of the list is what the peer has
/// seen, as the last address is.
fn listed_proto(headers: &Headers<'_>, hops: usize) -> Option<&'static str> {
    let entries = headers.all("x-forwarded-proto").rev().flat_map(|line| line.rsplit(','));
    entries.take(hops.max(1)).last().and_then(scheme)
}

/// A scheme of ours, in lower case.
fn scheme(text: &str) -> Option<&'static str> {
    let text = text.trim_matches([' ', '\t']);
    ["http", "https", "ws", "wss"].into_iter().find(|known| known.eq_ignore_ascii_case(text))
}

/// One entry of X-Forwarded-For, or one node of Forwarded: an address, with a port or without. An
/// IPv6 address may stand in brackets, and has to if a port follows.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches([' ', '\t']);
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return is_port.then(|| IpAddr::V6(address).to_canonical());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = text.split_once(':')?;
    let address: Ipv4Addr = address.parse().ok()?;
    is_port(port).then_some(IpAddr::V4(address))
}

/// A port, or a name that hides one (RFC 7239 §6.3).
fn is_port(text: &str) -> bool {
    let hidden = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    match text.strip_prefix('_') {
        Some(name) => hidden(name),
        None => {
            (1..=5).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_digit())
                && text.parse::<u16>().is_ok()
        }
    }
}

/// The address in one element of Forwarded (RFC 7239 §4): `for=192.0.2.1;proto=https`, or
/// `For="[2001:db8::1]:47011"`. A node without an address (`unknown`, `_hidden`) is none.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    node(pair(element, "for")?.ok()?)
}

/// The value of a pair of an element of Forwarded, without its quotes; an error where it is written in
/// no way that it may be, or twice, which is no element (RFC 7239 §4).
fn pair<'a>(element: &'a str, wanted: &str) -> Option<Result<&'a str, ()>> {
    let mut found = None;
    for pair in element.split(';') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        if !name.trim_matches([' ', '\t']).eq_ignore_ascii_case(wanted) {
            continue;
        }
        let value = value.trim_matches([' ', '\t']);
        let value = match value.strip_prefix('"') {
            Some(rest) => rest.strip_suffix('"').ok_or(()),
            // A token has no colon and no bracket (RFC 7239 §4).
            None if value.contains([':', '[']) => Err(()),
            None => Ok(value),
        };
        if found.replace(value).is_some() {
            return Some(Err(()));
        }
    }
    found
}

/// A range of addresses in CIDR notation (RFC 4632, RFC 4291 §2.3): `10.0.0.0/8`, `2001:db8::/32`,
/// or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    first: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The first and the last address of the range, as numbers of 32 or 128 bits.
    fn range(&self) -> (u128, u128) {
        let (first, bits) = match self.first {
            IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
            IpAddr::V6(address) => (u128::from(address), 128),
        };
        (first, first | host_mask(bits, self.prefix))
    }
}

/// The bits behind the prefix.
fn host_mask(bits: u8, prefix: u8) -> u128 {
    match bits - prefix {
        128 => u128::MAX,
        host_bits => (1 << host_bits) - 1,
    }
}

impl FromStr for Cidr {
    type Err = &'static str;

    /// The error says what to write instead.
    fn from_str(text: &str) -> Result<Cidr, &'static str> {
        const FORM: &str = "not an address or a range; write it like \"192.0.2.7\", \
                            \"10.0.0.0/8\" or \"2001:db8::/32\"";
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| FORM)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(text) => {
                let plain = (1..=3).contains(&text.len()) && !text.starts_with('+');
                text.parse::<u8>().ok().filter(|prefix| plain && *prefix <= bits).ok_or(
                    "the number behind `/` says how many bits are the same: 0 to 32 for IPv4, 0 to \
                     128 for IPv6",
                )?
            }
        };
        // IPv4 written in IPv6 is meant as IPv4, which is how addresses are compared.
        let (address, prefix, bits) = match address.to_canonical() {
            IpAddr::V4(inner) if bits == 128 && prefix >= 96 => (inner.into(), prefix - 96, 32),
            _ => (address, prefix, bits),
        };
        let cidr = Cidr { first: address, prefix };
        if cidr.range().0 & host_mask(bits, prefix) != 0 {
            return Err("the address has bits set behind the prefix, so it may be meant as one \
                        address or as a range; zero them, or leave the `/` and the number out");
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// Ranges of addresses, sorted and joined, so that a list of thousands is searched in a few steps.
/// IPv4 and IPv6 are kept apart: `::/0` holds no IPv4 address, however it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CidrSet {
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl CidrSet {
    /// All addresses of all `cidrs`, which may overlap.
    pub fn new(cidrs: &[Cidr]) -> CidrSet {
        let of = |is_v4: bool| {
            let ranges = cidrs.iter().filter(|cidr| cidr.first.is_ipv4() == is_v4);
            joined(ranges.map(Cidr::range).collect())
        };
        CidrSet { v4: of(true), v6: of(false) }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether `address` is in one of the ranges.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (ranges, number) = match address.to_canonical() {
            IpAddr::V4(address) => (&self.v4, u128::from(u32::from(address))),
            IpAddr::V6(address) => (&self.v6, u128::from(address)),
        };
        let above = ranges.partition_point(|(first, _)| *first <= number);
        above > 0 && number <= ranges[above - 1].1
    }
}

/// The same addresses in ranges that are sorted and do not touch.
fn joined(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// Which header of a trusted proxy names the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientHeader {
    /// X-Forwarded-For, and Forwarded where there is none.
    #[default]
    Either,
    /// X-Forwarded-For alone, with X-Forwarded-Proto.
    ForwardedFor,
    /// Forwarded alone (RFC 7239).
    Forwarded,
}

/// The rules of a listener: the clients that may come in, and the source of their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Whether every connection begins with a PROXY header.
    pub proxy_protocol: bool,
    /// Proxies that are believed. If there are any, only they may send a PROXY header.
    pub trusted_proxies: CidrSet,
    /// Clients that may come in; `None`: all.
    pub allow: Option<CidrSet>,
    /// Clients that may not, even where `allow` has them.
    pub deny: CidrSet,
    /// Whether a path has to be written plainly ([`is_plain_path`](crate::http::is_plain_path)).
    pub strict_paths: bool,
    /// Which header of a trusted proxy names the client.
    pub client_header: ClientHeader,
}

impl Access {
    /// Whether a connection from `peer` may say, in a PROXY header, for whom it comes.
    pub fn may_send_proxy_header(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.is_empty() || self.trusted_proxies.contains(peer)
    }

    /// Whether this client may come in.
    pub fn admits(&self, client: IpAddr) -> bool {
        let allowed = self.allow.as_ref().is_none_or(|allow| allow.contains(client));
        allowed && !self.deny.contains(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HeadLimits, parse_request};

    const LIMITS: HeadLimits =
        HeadLimits { head_bytes_max: 1 << 20, headers_max: 64, target_bytes_max: 1024 };

    fn set(cidrs: &str) -> CidrSet {
        let cidrs: Vec<Cidr> =
            cidrs.split_whitespace().map(|text| text.parse().expect("a range")).collect();
        CidrSet::new(&cidrs)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn with_headers<T>(lines: &str, act: impl FnOnce(&Headers<'_>) -> T) -> T {
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
        act(&parse_request(head.as_bytes(), &LIMITS).expect("a request").headers)
    }

    fn address(headers: &Headers<'_>, peer: IpAddr, trusted: &CidrSet) -> IpAddr {
        client_of(headers, peer, trusted, ClientHeader::Either).0
    }

    const TRUSTED: &str = "10.0.0.0/8 ::1 2001:db8:ffff::/48";

    /// Who a request with these header lines from 10.0.0.1 is for.
    #[track_caller]
    fn check(lines: &str, want: &str) {
        let client = with_headers(lines, |headers| address(headers, ip("10.0.0.1"), &set(TRUSTED)));
        assert_eq!(client, ip(want), "{}", &lines[..lines.len().min(200)]);
    }

    fn forwarded_for_line(value: &str, want: &str) {
        check(&format!("X-Forwarded-For: {value}\r\n"), want);
    }

    #[test]
    fn the_first_from_the_right_that_is_not_trusted() {
        for (value, want) in [
            ("203.0.113.9", "203.0.113.9"),
            ("203.0.113.9, 10.0.0.7", "203.0.113.9"),
            ("203.0.113.9,10.0.0.7,10.255.255.255", "203.0.113.9"),
            ("203.0.113.9 ,\t10.0.0.7 ", "203.0.113.9"),
            ("2001:db8::9, 2001:db8:ffff::7, ::1", "2001:db8::9"),
            // What the client sent itself stands to the left of it.
            ("6.6.6.6, 203.0.113.9", "203.0.113.9"),
            ("10.0.0.9, 203.0.113.9", "203.0.113.9"),
            ("10.0.0.9, 6.6.6.6, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
            ("\"6.6.6.6, 203.0.113.9", "203.0.113.9"),
            ("unknown, 203.0.113.9", "203.0.113.9"),
            // All are ours: a client within.
            ("10.0.0.9, 10.0.0.7", "10.0.0.9"),
        ] {
            forwarded_for_line(value, want);
        }
        check("", "10.0.0.1");
    }

    #[test]
    fn lines_are_one_list() {
        let two =
            "X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\nX-Other: 1\r\nx-forwarded-FOR: 10.0.0.7\r\n";
        check(two, "203.0.113.9");
        check("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9");
        // Another name, whatever some servers make of it.
        check("X_Forwarded_For: 6.6.6.6\r\n", "10.0.0.1");
        check("X-Real-IP: 6.6.6.6\r\nX-Client-IP: 6.6.6.6\r\n", "10.0.0.1");
    }

    #[test]
    fn addresses_in_all_spellings() {
        for (value, want) in [
            ("203.0.113.9:4711", "203.0.113.9"),
            ("[2001:db8::9]", "2001:db8::9"),
            ("[2001:db8::9]:4711", "2001:db8::9"),
            ("2001:DB8:0::9", "2001:db8::9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("[::ffff:203.0.113.9]:1", "203.0.113.9"),
            // Ours, so the walk goes on.
            ("203.0.113.9, ::ffff:10.0.0.7", "203.0.113.9"),
            ("203.0.113.9, 10.0.0.7:4711", "203.0.113.9"),
        ] {
            forwarded_for_line(value, want);
        }
    }

    #[test]
    fn what_is_no_address_ends_the_walk() {
        for bad in [
            "",
            " ",
            "unknown",
            "_hidden",
            "localhost",
            "203.0.113",
            "203.0.113.09",
            "203.0.113.256",
            "0xCB007109",
            "3405803785",
            "203.0.113.9:",
            "203.0.113.9:65536",
            "203.0.113.9:+1",
            "203.0.113.9:80:80",
            "203.0.113.9/32",
            "203.0.113.9 6.6.6.6",
            "[203.0.113.9]",
            "[2001:db8::9",
            "[2001:db8::9]x",
            "[2001:db8::9]:",
            "2001:db8::9]:1",
            "fe80::1%eth0",
            "\"203.0.113.9\"",
            "for=203.0.113.9",
            "http://203.0.113.9",
            "203.0.113.9\u{e9}",
        ] {
            forwarded_for_line(bad, "10.0.0.1");
            forwarded_for_line(&format!("6.6.6.6, {bad}, 10.0.0.7"), "10.0.0.7");
        }
        forwarded_for_line("6.6.6.6,", "10.0.0.1");
        forwarded_for_line("6.6.6.6,,10.0.0.7", "10.0.0.7");
    }

    #[test]
    fn the_walk_is_bounded() {
        let long = vec!["10.0.0.9"; 10_000].join(",");
        forwarded_for_line(&format!("6.6.6.6,{long}"), "10.0.0.9");
        let within = vec!["10.0.0.9"; HOPS_MAX - 1].join(",");
        forwarded_for_line(&format!("203.0.113.9,{within}"), "203.0.113.9");
        forwarded_for_line(&format!("203.0.113.9,10.0.0.9,{within}"), "10.0.0.9");
    }

    #[test]
    fn who_is_not_trusted_names_nobody() {
        let trusted = set(TRUSTED);
        let lines = "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n";
        for (peer, want) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::2", "::2"),
            ("11.0.0.0", "11.0.0.0"),
            ("::a00:1", "::a00:1"),
        ] {
            let client = with_headers(lines, |headers| address(headers, ip(peer), &trusted));
            assert_eq!(client, ip(want));
        }
        // The same address in IPv6, as a socket for both families tells it.
        let mapped = ip("::ffff:10.0.0.1");
        assert_eq!(
            with_headers(lines, |headers| address(headers, mapped, &trusted)),
            ip("6.6.6.6")
        );
        let nobody = CidrSet::default();
        assert_eq!(
            with_headers(lines, |headers| address(headers, mapped, &nobody)),
            ip("10.0.0.1")
        );
    }

    #[test]
    fn rfc_7239_section_4_where_there_is_no_other() {
        for (value, want) in [
            ("for=203.0.113.9", "203.0.113.9"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=203.0.113.9;proto=http;by=203.0.113.43", "203.0.113.9"),
            ("proto=https; for=203.0.113.9 ;host=a", "203.0.113.9"),
            ("for=\"203.0.113.9:4711\"", "203.0.113.9"),
            ("for=\"203.0.113.9:_hidden\"", "203.0.113.9"),
            ("for=6.6.6.6, for=203.0.113.9, for=\"10.0.0.7:1\"", "203.0.113.9"),
            // A quote that the client left open takes nothing with it.
            ("for=\"6.6.6.6, for=203.0.113.9", "203.0.113.9"),
            ("host=\", for=203.0.113.9", "203.0.113.9"),
            // A proxy that does not say: it is the last that is known.
            ("for=6.6.6.6, proto=http, for=10.0.0.7", "10.0.0.7"),
            ("for=6.6.6.6, for=unknown, for=10.0.0.7", "10.0.0.7"),
            ("for=6.6.6.6, for=_x, for=10.0.0.7", "10.0.0.7"),
            ("for=6.6.6.6,", "10.0.0.1"),
            ("for=6.6.6.6;for=203.0.113.9", "10.0.0.1"),
            ("for=6.6.6.6:80", "10.0.0.1"),
            ("for=[2001:db8::1]", "10.0.0.1"),
            ("for=2001:db8::1", "10.0.0.1"),
            ("for=\"6.6.6.6", "10.0.0.1"),
            ("for=\"6.6.6.6\\\"\"", "10.0.0.1"),
            ("for=", "10.0.0.1"),
            ("fort=6.6.6.6", "10.0.0.1"),
            ("6.6.6.6", "10.0.0.1"),
        ] {
            check(&format!("Forwarded: {value}\r\n"), want);
        }
        check("Forwarded: for=6.6.6.6\r\nForwarded: for=203.0.113.9\r\n", "203.0.113.9");
        // Only where there is no other, not even an empty one.
        check("Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9");
        check("Forwarded: for=6.6.6.6\r\nX-Forwarded-For: \r\n", "10.0.0.1");
    }

    #[test]
    fn the_scheme_is_of_the_hop_whose_address_counts() {
        use ClientHeader::*;
        let two = "X-Forwarded-For: 203.0.113.9, 10.0.0.7\r\n";
        let elements = "Forwarded: for=203.0.113.9;proto=HTTPS, for=10.0.0.7;proto=http\r\n";
        for (lines, header, want) in [
            (String::new(), Either, None),
            ("X-Forwarded-Proto: https\r\n".into(), Either, Some("https")),
            ("X-Forwarded-Proto: HTTPS \r\n".into(), Either, Some("https")),
            ("X-Forwarded-Proto: wss\r\n".into(), Either, Some("wss")),
            // Without addresses, what the peer itself says.
            ("X-Forwarded-Proto: https, http\r\n".into(), Either, Some("http")),
            // Two proxies that append: the outer one saw https, the inner one http.
            (format!("{two}X-Forwarded-Proto: https, http\r\n"), Either, Some("https")),
            (
                format!("{two}X-Forwarded-Proto: https\r\nx-forwarded-proto: http\r\n"),
                Either,
                Some("https"),
            ),
            // What a client sent stands to the left of it.
            (format!("{two}X-Forwarded-Proto: wss, https, http\r\n"), Either, Some("https")),
            // One that replaces the header speaks for the chain.
            (format!("{two}X-Forwarded-Proto: https\r\n"), Either, Some("https")),
            (format!("{two}X-Forwarded-Proto: https,\r\n"), Either, Some("https")),
            ("X-Forwarded-Proto: https,\r\n".into(), Either, None),
            ("X-Forwarded-Proto: javascript\r\n".into(), Either, None),
            ("X-Forwarded-Proto: https http\r\n".into(), Either, None),
            (elements.into(), Either, Some("https")),
            ("Forwarded: for=203.0.113.9;proto=https\r\n".into(), Either, Some("https")),
            ("Forwarded: proto=\"https\";for=203.0.113.9\r\n".into(), Either, Some("https")),
            ("Forwarded: for=203.0.113.9;proto=gopher\r\n".into(), Either, None),
            ("Forwarded: for=203.0.113.9;proto=http;proto=https\r\n".into(), Either, None),
            // Each header has its own scheme.
            (format!("{elements}X-Forwarded-Proto: ws\r\n"), Forwarded, Some("https")),
            (format!("{elements}X-Forwarded-Proto: ws\r\n"), ForwardedFor, Some("ws")),
            (format!("{elements}{two}"), Forwarded, Some("https")),
            (format!("{elements}{two}"), ForwardedFor, None),
        ] {
            let got = with_headers(&lines, |headers| {
                client_of(headers, ip("10.0.0.1"), &set(TRUSTED), header).1
            });
            assert_eq!(got, want, "{lines} {header:?}");
        }
    }

    #[test]
    fn one_header_can_be_the_only_one_that_counts() {
        let lines = "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=203.0.113.9\r\n";
        for (header, want) in [
            (ClientHeader::Either, "6.6.6.6"),
            (ClientHeader::ForwardedFor, "6.6.6.6"),
            (ClientHeader::Forwarded, "203.0.113.9"),
        ] {
            let of = |lines: &str| {
                with_headers(lines, |headers| {
                    client_of(headers, ip("10.0.0.1"), &set(TRUSTED), header).0
                })
            };
            assert_eq!(of(lines), ip(want), "{header:?}");
        }
        let only = |lines: &str, header| {
            with_headers(lines, |headers| {
                client_of(headers, ip("10.0.0.1"), &set(TRUSTED), header).0
            })
        };
        assert_eq!(only("X-Forwarded-For: 6.6.6.6\r\n", ClientHeader::Forwarded), ip("10.0.0.1"));
        assert_eq!(only("Forwarded: for=6.6.6.6\r\n", ClientHeader::ForwardedFor), ip("10.0.0.1"));
    }

    #[test]
    fn ranges() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.0.0.0 10.255.255.255", "9.255.255.255 11.0.0.0 ::a00:1"),
            ("192.0.2.7", "192.0.2.7 ::ffff:192.0.2.7", "192.0.2.6 192.0.2.8"),
            ("192.0.2.7/32", "192.0.2.7", "192.0.2.6 192.0.2.8"),
            ("192.0.2.6/31", "192.0.2.6 192.0.2.7", "192.0.2.5 192.0.2.8"),
            ("0.0.0.0/0", "0.0.0.0 255.255.255.255 ::ffff:1.2.3.4", "::1 ::"),
            ("::/0", ":: ffff:: 2001:db8::1", "1.2.3.4 ::ffff:1.2.3.4"),
            ("::1", "::1", ":: ::2"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000:: 2001:db7:ffff::"),
            ("::ffff:10.0.0.0/104", "10.0.0.0 10.255.255.255", "11.0.0.0"),
            ("::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("ffff:ffff::/32", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:fffe::"),
        ] {
            let set = set(text);
            for inside in inside.split(' ') {
                assert!(set.contains(ip(inside)), "{inside} in {text}");
            }
            for outside in outside.split(' ') {
                assert!(!set.contains(ip(outside)), "{outside} in {text}");
            }
        }
        for (text, why) in [
            ("", "not an address"),
            ("localhost", "not an address"),
            ("10.0.0/8", "not an address"),
            ("10/8", "not an address"),
            ("[::1]", "not an address"),
            ("10.0.0.1:80", "not an address"),
            ("10.0.0.0/", "the number behind"),
            ("10.0.0.0/33", "the number behind"),
            ("10.0.0.0/+8", "the number behind"),
            ("10.0.0.0/8/8", "the number behind"),
            ("::/129", "the number behind"),
            ("10.0.0.0/255.0.0.0", "the number behind"),
            ("10.0.0.1/8", "the address has bits"),
            ("2001:db8::1/32", "the address has bits"),
            ("::ffff:10.0.0.1/104", "the address has bits"),
        ] {
            let error = text.parse::<Cidr>().expect_err(text);
            assert!(error.starts_with(why), "{text}: {error}");
        }
        assert_eq!("10.0.0.0/8".parse::<Cidr>().expect("a range").to_string(), "10.0.0.0/8");
    }

    /// Random ranges, which touch and overlap, against a look at each of them.
    #[test]
    fn a_set_holds_what_its_ranges_hold() {
        let mut random = crate::ring::sim::Random::new(5);
        let mut next = |below: u64| random.below(below);
        for _ in 0..300 {
            let mut cidrs = Vec::new();
            for _ in 0..next(12) {
                let prefix = 24 + next(9) as u8;
                let address = (0x0A00_0000 + next(512) as u32) & !(host_mask(32, prefix) as u32);
                cidrs.push(Cidr { first: Ipv4Addr::from(address).into(), prefix });
            }
            let set = CidrSet::new(&cidrs);
            for address in 0x09FF_FFF0..0x0A00_0210_u32 {
                let is_in = |cidr: &Cidr| {
                    let (first, last) = cidr.range();
                    (first..=last).contains(&u128::from(address))
                };
                let want = cidrs.iter().any(is_in);
                assert_eq!(set.contains(Ipv4Addr::from(address).into()), want, "{cidrs:?}");
            }
        }
    }

    #[test]
    fn deny_wins_over_allow() {
        let access = |allow: Option<&str>, deny: &str| Access {
            allow: allow.map(set),
            deny: set(deny),
            ..Access::default()
        };
        let client = ip("10.1.2.3");
        for (allow, deny, admitted) in [
            (None, "", true),
            (None, "10.1.0.0/16", false),
            (Some("10.0.0.0/8"), "", true),
            (Some("10.0.0.0/8"), "10.1.2.3", false),
            (Some("192.0.2.0/24"), "", false),
            (Some(""), "", false),
            (Some("10.1.2.3"), "10.0.0.0/8", false),
        ] {
            assert_eq!(access(allow, deny).admits(client), admitted, "{allow:?} {deny}");
        }
        assert!(Access::default().may_send_proxy_header(client));
        let some = Access { trusted_proxies: set("10.0.0.0/16"), ..Access::default() };
        assert!(!some.may_send_proxy_header(client));
        assert!(some.may_send_proxy_header(ip("::ffff:10.0.9.9")));
    }
}
