//! The cookie that keeps a browser on its upstream.
//!
//! It names the upstream and nothing else, as 16 digits that mean nothing to anybody else:
//! `penstock_upstream=8c3f…; Path=/; HttpOnly; SameSite=Lax`. Every gateway with the same secret
//! and the same upstream makes the same digits, so that no table is kept and nothing is lost by a
//! restart. There is no signature, because there is nothing to forge: what a client could make up
//! is the name of an upstream that it may be given anyway, or of none, and then it is placed as a
//! new one.

use std::fmt;
use std::time::Duration;

use crate::http::Headers;

use super::address::UpstreamName;
use super::key::cookie_value;

/// The name of the cookie when the file gives none.
pub const COOKIE_NAME_DEFAULT: &str = "penstock_upstream";

/// How the cookie is made.
#[derive(Clone, PartialEq, Eq)]
pub struct StickyCookie {
    /// Its name: a token (RFC 6265 §4.1.1).
    pub name: String,
    /// Hides the addresses of upstreams, which could be found out from a plain hash. The same in
    /// all gateways that serve the same clients; may be empty where addresses are no secret.
    pub secret: Vec<u8>,
    /// For how long; zero: as long as the browser is open.
    pub max_age: Duration,
    /// Which sites' pages it goes along with.
    pub same_site: SameSite,
    /// Whether it is `Secure` in any case: browsers then send it by TLS only.
    pub secure: bool,
}

/// Which sites' pages a cookie goes along with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// Pages of the gateway's own site.
    Lax,
    /// Pages of every site. Browsers want such a cookie to be `Secure`, so clients must come by
    /// TLS.
    None,
}

impl fmt::Debug for StickyCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StickyCookie { name, secret: _, max_age, same_site, secure } = self;
        f.debug_struct("StickyCookie")
            .field("name", name)
            .field("max_age", max_age)
            .field("same_site", same_site)
            .field("secure", secure)
            .finish_non_exhaustive()
    }
}

/// The value of the cookie for one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CookieToken(u64);

impl fmt::Display for CookieToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl CookieToken {
    /// The token in a cookie's value: 16 digits as we write them, or it is none.
    pub fn decode(value: &str) -> Option<CookieToken> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if value.len() != 16 || !value.bytes().all(is_digit) {
            return None;
        }
        u64::from_str_radix(value, 16).ok().map(CookieToken)
    }
}

impl StickyCookie {
    /// The token that stands for an upstream. Made once per upstream and configuration, not per client.
    pub fn token(&self, upstream: UpstreamName) -> CookieToken {
        // The length keeps a secret and a name apart that could be cut elsewhere.
        let mut sha1 = sha1_smol::Sha1::new();
        sha1.update(&(self.secret.len() as u64).to_be_bytes());
        sha1.update(&self.secret);
        sha1.update(&upstream.0.to_be_bytes());
        let digest = sha1.digest().bytes();
        CookieToken(u64::from_be_bytes(digest[..8].try_into().expect("20 bytes have 8")))
    }

    /// The token that a client brings. `None`: it has no cookie of ours, or a broken one.
    pub fn read(&self, headers: &Headers<'_>) -> Option<CookieToken> {
        cookie_value(headers, &self.name).and_then(CookieToken::decode)
    }

    /// The value of `Set-Cookie` (RFC 6265 §4.1). `is_https`: the client came by https.
    pub fn encode(&self, token: CookieToken, is_https: bool) -> String {
        let mut cookie = format!("{}={token}; Path=/; HttpOnly", self.name);
        if !self.max_age.is_zero() {
            cookie += &format!("; Max-Age={}", self.max_age.as_secs().max(1));
        }
        cookie += match self.same_site {
            SameSite::Lax => "; SameSite=Lax",
            SameSite::None => "; SameSite=None",
        };
        if is_https || self.secure || self.same_site == SameSite::None {
            cookie += "; Secure";
        }
        cookie
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HeadLimits, parse_request};

    fn cookie(secret: &str) -> StickyCookie {
        StickyCookie {
            name: COOKIE_NAME_DEFAULT.to_owned(),
            secret: secret.as_bytes().to_vec(),
            max_age: Duration::ZERO,
            same_site: SameSite::Lax,
            secure: false,
        }
    }

    /// Gateways of different releases stand side by side: a token never changes. The digits are
    /// those of `printf '\0\0\0\0\0\0\0\6secret\0\0\0\0\0\0\0\7' | sha1sum`.
    #[test]
    fn tokens_are_the_same_for_ever_and_tell_nothing() {
        let token = cookie("secret").token(UpstreamName(7));
        assert_eq!(token.to_string(), "46aa01a90f4d7966");
        assert_ne!(token, cookie("secret2").token(UpstreamName(7)));
        assert_ne!(token, cookie("secret").token(UpstreamName(8)));
        assert!(!format!("{:?}", cookie("secret")).contains("secret"));
    }

    #[test]
    fn what_goes_out_comes_back() {
        let limits = HeadLimits { head_bytes_max: 500, headers_max: 5, target_bytes_max: 50 };
        for number in [0, 1, u64::MAX, 0x0123_4567_89AB_CDEF] {
            let cookie = cookie("s");
            let set = cookie.encode(CookieToken(number), false);
            let pair = set.split(';').next().expect("a pair");
            let head = format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: a=b; {pair}\r\n\r\n");
            let request = parse_request(head.as_bytes(), &limits).expect("a request");
            assert_eq!(cookie.read(&request.headers), Some(CookieToken(number)));
        }
    }

    #[test]
    fn broken_tokens() {
        for value in [
            "",
            "0",
            "0123456789abcde",
            "0123456789abcdef0",
            "0123456789ABCDEF",
            "+123456789abcdef",
            "0123456789abcdeg",
            " 123456789abcdef",
            "ééééé012345",
        ] {
            assert_eq!(CookieToken::decode(value), None, "{value:?}");
        }
    }

    #[test]
    fn attributes() {
        let token = CookieToken(0xAB);
        let plain = "penstock_upstream=00000000000000ab; Path=/; HttpOnly; SameSite=Lax";
        let mut cookie = cookie("");
        assert_eq!(cookie.encode(token, false), plain);
        assert_eq!(cookie.encode(token, true), format!("{plain}; Secure"));
        cookie.max_age = Duration::from_millis(3_600_900);
        cookie.same_site = SameSite::None;
        assert_eq!(
            cookie.encode(token, false),
            "penstock_upstream=00000000000000ab; Path=/; HttpOnly; Max-Age=3600; SameSite=None; \
             Secure"
        );
        cookie.max_age = Duration::from_millis(1);
        assert!(cookie.encode(token, false).contains("Max-Age=1;"));
    }
}
