//! The PROXY protocol, versions 1 and 2: what a balancer that passes TCP on says about the client
//! ahead of the client's own bytes. (The specification is HAProxy's `doc/proxy-protocol.txt`; the
//! sections named here are its.)
//!
//! ```text
//!   v1   PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n      a line, at most 107 bytes
//!   v2   signature 12 | version, command 1 | family 1 | length 2 | addresses, TLVs: `length`
//! ```
//!
//! A header is believed as a whole or not at all: what is not exactly in order has no meaning.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::steps;

/// The longest line of version 1, with its CRLF (§2.1).
pub const LINE_BYTES_MAX: usize = 107;

/// The longest header of version 2 that is taken. The format allows 65,551; addresses and the TLVs
/// that balancers send fit into a few hundred, and who has shown nothing yet gets no more memory.
pub const HEADER_BYTES_MAX: usize = 4096;

/// What begins version 2 (§2.2). No request and no TLS record begins so.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What begins version 1 (§2.1).
const LINE_START: &[u8; 6] = b"PROXY ";

/// The fixed part of version 2.
const FIXED_BYTES: usize = 16;

/// A header that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Its bytes: the client's own begin behind them.
    pub len: usize,
    /// Where the client comes from. `None`: the sender speaks for itself (a health check), or for a
    /// client that has no address of the internet; the connection's own address counts.
    pub source: Option<SocketAddr>,
}

/// Why what a connection began with is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// It begins like neither version.
    NoHeader,
    /// No CRLF within [`LINE_BYTES_MAX`], or a line that ends with a lone LF (§2.1).
    LineEnd,
    /// The protocol is not TCP4, TCP6 or UNKNOWN (§2.1).
    LineProtocol,
    /// An address or port that is none, of the wrong family, missing, or too many (§2.1).
    LineAddress,
    /// A version other than 2 behind the signature (§2.2).
    Version,
    /// A command other than LOCAL and PROXY (§2.2).
    Command,
    /// A family or transport that is not defined (§2.2).
    Family,
    /// More than [`HEADER_BYTES_MAX`].
    TooLong,
    /// The length leaves no room for the addresses of the family (§2.2).
    TooShort,
    /// A TLV that ends outside of the header (§2.2).
    Tlv,
    /// The header is not the one that its sender made the checksum of (§2.2.3).
    Checksum,
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeaderFault::NoHeader => "no PROXY header",
            HeaderFault::LineEnd => "a PROXY line without its CRLF",
            HeaderFault::LineProtocol => "a PROXY line for another protocol than TCP",
            HeaderFault::LineAddress => "a PROXY line with a wrong address or port",
            HeaderFault::Version => "a PROXY header of an unknown version",
            HeaderFault::Command => "a PROXY header with an unknown command",
            HeaderFault::Family => "a PROXY header for an unknown family",
            HeaderFault::TooLong => "a PROXY header longer than 4096 bytes",
            HeaderFault::TooShort => "a PROXY header without its addresses",
            HeaderFault::Tlv => "a PROXY header with a broken TLV",
            HeaderFault::Checksum => "a PROXY header with a wrong checksum",
        })
    }
}

/// Reads the header at the front of `bytes`, which are all that a connection has sent so far.
///
/// `None`: they end inside the header; call again with more. A fault is found as early as the bytes
/// show it, and stays one whatever follows. Never asks for more than [`HEADER_BYTES_MAX`] bytes.
pub fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, HeaderFault> {
    if begins(bytes, LINE_START) {
        return parse_line(bytes);
    }
    if begins(bytes, SIGNATURE) {
        return parse_binary(bytes);
    }
    Err(HeaderFault::NoHeader)
}

/// Whether `bytes` begin with `start`, as far as they go.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    let len = bytes.len().min(start.len());
    bytes[..len] == start[..len]
}

/// Version 1 (§2.1).
fn parse_line(bytes: &[u8]) -> Result<Option<ProxyHeader>, HeaderFault> {
    let within = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    steps::took(within.len());
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return if within.len() < LINE_BYTES_MAX { Ok(None) } else { Err(HeaderFault::LineEnd) };
    };
    let line = within[..end].strip_suffix(b"\r").ok_or(HeaderFault::LineEnd)?;
    let Some(fields) = line.strip_prefix(LINE_START) else { return Err(HeaderFault::NoHeader) };
    let source = match fields {
        b"UNKNOWN" => None,
        // Whatever stands there is to be ignored.
        _ if fields.starts_with(b"UNKNOWN ") => None,
        _ => {
            let fields = std::str::from_utf8(fields).map_err(|_| HeaderFault::LineAddress)?;
            Some(line_source(fields)?)
        }
    };
    Ok(Some(ProxyHeader { len: end + 1, source }))
}

/// `TCP4 192.0.2.1 198.51.100.7 56324 443`
fn line_source(fields: &str) -> Result<SocketAddr, HeaderFault> {
    let mut fields = fields.split(' ');
    let protocol = fields.next();
    let wrong = HeaderFault::LineAddress;
    let (source, destination) = (fields.next().ok_or(wrong)?, fields.next().ok_or(wrong)?);
    let ports = (fields.next().ok_or(wrong)?, fields.next().ok_or(wrong)?);
    let (port, _) = (line_port(ports.0)?, line_port(ports.1)?);
    if fields.next().is_some() {
        return Err(wrong);
    }
    match protocol {
        Some("TCP4") => {
            let _: Ipv4Addr = destination.parse().map_err(|_| wrong)?;
            let source: Ipv4Addr = source.parse().map_err(|_| wrong)?;
            Ok(SocketAddr::from((source, port)))
        }
        Some("TCP6") => {
            let _: Ipv6Addr = destination.parse().map_err(|_| wrong)?;
            let source: Ipv6Addr = source.parse().map_err(|_| wrong)?;
            Ok(SocketAddr::from((source, port)))
        }
        _ => Err(HeaderFault::LineProtocol),
    }
}

/// A decimal port without zeros in front.
fn line_port(text: &str) -> Result<u16, HeaderFault> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let padded = text.len() > 1 && text.starts_with('0');
    if !plain || padded {
        return Err(HeaderFault::LineAddress);
    }
    text.parse().map_err(|_| HeaderFault::LineAddress)
}

/// Version 2 (§2.2).
fn parse_binary(bytes: &[u8]) -> Result<Option<ProxyHeader>, HeaderFault> {
    let Some(&version_command) = bytes.get(12) else { return Ok(None) };
    if version_command >> 4 != 2 {
        return Err(HeaderFault::Version);
    }
    let is_local = match version_command & 0xF {
        0 => true,
        1 => false,
        _ => return Err(HeaderFault::Command),
    };
    let Some(&family_transport) = bytes.get(13) else { return Ok(None) };
    let (family, transport) = (family_transport >> 4, family_transport & 0xF);
    // LOCAL is of no family, whatever stands there.
    if !is_local && (family > 3 || transport > 2) {
        return Err(HeaderFault::Family);
    }
    let Some(length) = bytes.get(14..FIXED_BYTES) else { return Ok(None) };
    let len = FIXED_BYTES + usize::from(u16::from_be_bytes([length[0], length[1]]));
    if len > HEADER_BYTES_MAX {
        return Err(HeaderFault::TooLong);
    }
    let addresses_bytes = match family {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    let has_addresses = !is_local && family != 0;
    if has_addresses && len < FIXED_BYTES + addresses_bytes {
        return Err(HeaderFault::TooShort);
    }
    let Some(header) = bytes.get(..len) else { return Ok(None) };
    if !has_addresses {
        // Where TLVs would begin nobody can tell.
        return Ok(Some(ProxyHeader { len, source: None }));
    }
    check_tlvs(header, FIXED_BYTES + addresses_bytes)?;
    let part = &header[FIXED_BYTES..];
    let source = match (family, transport) {
        (1, 1) => {
            let address: [u8; 4] = part[..4].try_into().expect("12 bytes are there");
            Some(SocketAddr::from((address, u16::from_be_bytes([part[8], part[9]]))))
        }
        (2, 1) => {
            let address: [u8; 16] = part[..16].try_into().expect("36 bytes are there");
            Some(SocketAddr::from((address, u16::from_be_bytes([part[32], part[33]]))))
        }
        // No client of ours came by datagrams or a path: as if nothing was said.
        _ => None,
    };
    Ok(Some(ProxyHeader { len, source }))
}

/// Walks over the TLVs, which begin at `at`, and verifies the checksum if one of them is that.
fn check_tlvs(header: &[u8], mut at: usize) -> Result<(), HeaderFault> {
    const CRC32C: u8 = 3;
    let mut checksum_at = None;
    while at < header.len() {
        steps::took(1);
        let Some(&[kind, high, low]) = header.get(at..at + 3) else { return Err(HeaderFault::Tlv) };
        let value = at + 3;
        let end = value + usize::from(u16::from_be_bytes([high, low]));
        if end > header.len() {
            return Err(HeaderFault::Tlv);
        }
        if kind == CRC32C {
            if end - value != 4 || checksum_at.is_some() {
                return Err(HeaderFault::Checksum);
            }
            checksum_at = Some(value);
        }
        at = end;
    }
    let Some(place) = checksum_at else { return Ok(()) };
    // It is made over the header with zeros in its own place.
    let (before, rest) = header.split_at(place);
    let (sent, behind) = rest.split_at(4);
    let made = crc32c(before.iter().chain(&[0; 4]).chain(behind));
    if sent == made.to_be_bytes() { Ok(()) } else { Err(HeaderFault::Checksum) }
}

/// CRC-32C (RFC 4960, appendix B), a bit at a time: a header comes once per connection.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        steps::took(8);
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a header with a request behind it, and that every way of cutting it up comes to
    /// the same: nothing is decided too early, and a fault is final.
    #[track_caller]
    fn check(header: &[u8], want: Result<Option<&str>, HeaderFault>) {
        let wire = [header, b"GET / HTTP/1.1\r\n"].concat();
        let want = want.map(|source| {
            let source = source.map(|text| text.parse().expect("an address"));
            Some(ProxyHeader { len: header.len(), source })
        });
        assert_eq!(parse(&wire), want, "{}", header.escape_ascii());
        let mut decided = false;
        for cut in 0..=wire.len() {
            match parse(&wire[..cut]) {
                Ok(None) => assert!(!decided, "undecided again at {cut}"),
                other => {
                    decided = true;
                    assert_eq!(other, want, "cut at {cut} of {}", header.escape_ascii());
                    let is_whole = other.is_err() || cut >= header.len();
                    assert!(is_whole, "decided at {cut} of {}", header.escape_ascii());
                }
            }
        }
        assert!(decided);
    }

    fn line(text: &str, want: Result<Option<&str>, HeaderFault>) {
        check(format!("{text}\r\n").as_bytes(), want);
    }

    #[test]
    fn section_2_1_lines() {
        line("PROXY TCP4 192.0.2.1 198.51.100.7 56324 443", Ok(Some("192.0.2.1:56324")));
        line("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535", Ok(Some("0.0.0.0:0")));
        line("PROXY TCP6 2001:db8::1 ::1 1 2", Ok(Some("[2001:db8::1]:1")));
        line("PROXY TCP6 2001:DB8:0:0:0:0:0:1 ::1 1 2", Ok(Some("[2001:db8::1]:1")));
        line("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2", Ok(Some("[::ffff:192.0.2.1]:1")));
        line("PROXY UNKNOWN", Ok(None));
        let full = ["ffff"; 8].join(":");
        let longest = format!("PROXY UNKNOWN {full} {full} 65535 65535");
        assert_eq!(longest.len() + 2, LINE_BYTES_MAX);
        line(&longest, Ok(None));
        line("PROXY UNKNOWN \x01\r\x7F anything PROXY", Ok(None));
    }

    #[test]
    fn section_2_1_every_fault() {
        use HeaderFault::*;
        for (text, fault) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.7 56324", LineAddress),
            ("PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 ", LineAddress),
            ("PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 1", LineAddress),
            ("PROXY TCP4  192.0.2.1 198.51.100.7 56324 443", LineAddress),
            ("PROXY TCP4 192.0.2.1\t198.51.100.7 56324 443", LineAddress),
            ("PROXY TCP4 192.0.2.01 198.51.100.7 56324 443", LineAddress),
            ("PROXY TCP4 192.0.2.256 198.51.100.7 56324 443", LineAddress),
            ("PROXY TCP4 192.0.2 198.51.100.7 56324 443", LineAddress),
            ("PROXY TCP4 ::1 ::1 56324 443", LineAddress),
            ("PROXY TCP4 192.0.2.1 ::1 56324 443", LineAddress),
            ("PROXY TCP6 192.0.2.1 198.51.100.7 56324 443", LineAddress),
            ("PROXY TCP6 fe80::1%eth0 ::1 56324 443", LineAddress),
            ("PROXY TCP6 [::1] ::1 56324 443", LineAddress),
            ("PROXY TCP4 192.0.2.1 198.51.100.7 65536 443", LineAddress),
            ("PROXY TCP4 192.0.2.1 198.51.100.7 1 65536", LineAddress),
            ("PROXY TCP4 192.0.2.1 198.51.100.7 01 443", LineAddress),
            ("PROXY TCP4 192.0.2.1 198.51.100.7 +1 443", LineAddress),
            ("PROXY TCP4 192.0.2.1 198.51.100.7 -1 443", LineAddress),
            ("PROXY TCP4 192.0.2.1 198.51.100.7  443", LineAddress),
            ("PROXY TCP4 ü 198.51.100.7 1 443", LineAddress),
            ("PROXY TCP4", LineAddress),
            ("PROXY ", LineAddress),
            ("PROXY tcp4 192.0.2.1 198.51.100.7 56324 443", LineProtocol),
            ("PROXY UDP4 192.0.2.1 198.51.100.7 56324 443", LineProtocol),
            ("PROXY UNKNOWNS 192.0.2.1 198.51.100.7 1 2", LineProtocol),
            ("PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\nX", LineEnd),
            ("proxy TCP4 192.0.2.1 198.51.100.7 56324 443", NoHeader),
            ("PROXYTCP4 192.0.2.1 198.51.100.7 56324 443", NoHeader),
            (" PROXY UNKNOWN", NoHeader),
            ("GET / HTTP/1.1", NoHeader),
            ("\x16\x03\x01", NoHeader),
        ] {
            line(text, Err(fault));
        }
        // One byte too many, with its CRLF and without any.
        line(&format!("PROXY UNKNOWN {}", "x".repeat(LINE_BYTES_MAX - 15)), Err(LineEnd));
        check(format!("PROXY {}", "x".repeat(200)).as_bytes(), Err(LineEnd));
        assert_eq!(parse(b""), Ok(None));
    }

    /// A header of version 2: its command, its family, and what follows the length.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).expect("a length");
        [&SIGNATURE[..], &[command, family], &len.to_be_bytes(), rest].concat()
    }

    const INET: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 7, 0xDC, 0x04, 0x01, 0xBB];

    fn inet6() -> Vec<u8> {
        let address: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        [&address.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0, 1, 0, 2]].concat()
    }

    #[test]
    fn section_2_2_headers() {
        check(&binary(0x21, 0x11, INET), Ok(Some("192.0.2.1:56324")));
        check(&binary(0x21, 0x21, &inet6()), Ok(Some("[2001:db8::1]:1")));
        check(&binary(0x21, 0x31, &[b'/'; 216]), Ok(None));
        check(&binary(0x21, 0x32, &[b'/'; 216]), Ok(None));
        // Datagrams and what is not specified: as if nothing was said.
        check(&binary(0x21, 0x12, INET), Ok(None));
        check(&binary(0x21, 0x10, INET), Ok(None));
        check(&binary(0x21, 0x00, &[]), Ok(None));
        check(&binary(0x21, 0x00, INET), Ok(None));
        check(&binary(0x21, 0x01, &[0xFF; 7]), Ok(None));
        // The family of LOCAL is nobody's business, nor is what comes with it.
        for family in [0x00, 0x11, 0x21, 0xFF] {
            check(&binary(0x20, family, &[]), Ok(None));
            check(&binary(0x20, family, &[0xFF; 40]), Ok(None));
        }
    }

    #[test]
    fn section_2_2_every_fault() {
        use HeaderFault::*;
        check(&binary(0x11, 0x11, INET), Err(Version));
        check(&binary(0x31, 0x11, INET), Err(Version));
        check(&binary(0x01, 0x11, INET), Err(Version));
        check(&binary(0x22, 0x11, INET), Err(Command));
        check(&binary(0x2F, 0x11, INET), Err(Command));
        check(&binary(0x21, 0x41, INET), Err(Family));
        check(&binary(0x21, 0x13, INET), Err(Family));
        check(&binary(0x21, 0x11, &INET[..11]), Err(TooShort));
        check(&binary(0x21, 0x21, &inet6()[..35]), Err(TooShort));
        check(&binary(0x21, 0x31, &[b'/'; 215]), Err(TooShort));
        let largest = HEADER_BYTES_MAX - FIXED_BYTES;
        check(&binary(0x20, 0, &vec![0; largest]), Ok(None));
        check(&binary(0x20, 0, &vec![0; largest + 1]), Err(TooLong));
        check(&binary(0x21, 0x11, &[0; 65_535]), Err(TooLong));
        // Every byte of the signature counts.
        for at in 0..SIGNATURE.len() {
            let mut header = binary(0x21, 0x11, INET);
            header[at] ^= 0x20;
            check(&header, Err(NoHeader));
        }
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(value.len()).expect("a length");
        [&[kind][..], &len.to_be_bytes(), value].concat()
    }

    #[test]
    fn section_2_2_tlvs_are_skipped_and_must_fit() {
        let with = |tlvs: &[u8]| binary(0x21, 0x11, &[INET, tlvs].concat());
        let good = || Ok(Some("192.0.2.1:56324"));
        check(&with(&tlv(2, b"chat.example.org")), good());
        check(&with(&tlv(4, b"")), good());
        check(&with(&[tlv(1, b"h2"), tlv(0xEA, &[0; 300]), tlv(4, &[])].concat()), good());
        check(&with(&[4]), Err(HeaderFault::Tlv));
        check(&with(&[4, 0]), Err(HeaderFault::Tlv));
        check(&with(&[4, 0, 1]), Err(HeaderFault::Tlv));
        check(&with(&[4, 0xFF, 0xFF, 0]), Err(HeaderFault::Tlv));
    }

    #[test]
    fn section_2_2_3_checksums() {
        // The check value of the polynomial.
        assert_eq!(crc32c(b"123456789".iter()), 0xE306_9283);
        let with = |sum: [u8; 4]| {
            let tlvs = [tlv(4, b"pad"), tlv(3, &sum), tlv(5, b"id")].concat();
            binary(0x21, 0x11, &[INET, &tlvs].concat())
        };
        let sum = crc32c(with([0; 4]).iter()).to_be_bytes();
        let good = with(sum);
        check(&good, Ok(Some("192.0.2.1:56324")));
        check(&with([0; 4]), Err(HeaderFault::Checksum));
        for at in FIXED_BYTES..FIXED_BYTES + INET.len() {
            let mut header = good.clone();
            header[at] ^= 1;
            check(&header, Err(HeaderFault::Checksum));
        }
        for tlvs in [tlv(3, &sum[..3]), [tlv(3, &sum), tlv(3, &sum)].concat()] {
            check(&binary(0x21, 0x11, &[INET, &tlvs].concat()), Err(HeaderFault::Checksum));
        }
    }

    /// Whatever single byte is damaged, nothing panics and no other client is named but by the
    /// bytes that name it.
    #[test]
    fn damaged_headers_never_panic() {
        let tlvs = [tlv(4, b"pad"), tlv(5, b"id")].concat();
        for header in [
            binary(0x21, 0x11, &[INET, &tlvs].concat()),
            binary(0x21, 0x21, &inet6()),
            b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n".to_vec(),
        ] {
            for at in 0..header.len() {
                for byte in 0..=255 {
                    let mut damaged = header.clone();
                    damaged[at] = byte;
                    if let Ok(Some(header)) = parse(&damaged) {
                        assert!(header.len <= damaged.len());
                    }
                }
            }
        }
    }
}
