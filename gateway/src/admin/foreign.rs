//! Requests that another site's page may have made in the operator's browser.
//!
//! A browser sends what a page asks for to whatever it can reach: to a port of this host, or to the
//! admin socket behind `ssh -L`. The page cannot read the answer, but an order would be carried out.
//!
//! | Sign | Refused unless |
//! | --- | --- |
//! | `Origin` (RFC 6454 §7) | it is where the request was sent to |
//! | `Sec-Fetch-Site` (Fetch Metadata) | `same-origin` or `none`; a link to the dashboard's page may come from anywhere |
//! | `Host` | an address, or a name that no other site can have: else its name could be made to lead here, and its page read answers |
//! | an order (not `GET`, `HEAD`, `OPTIONS`) | it has `Penstock-Order: yes`, which no form and no request without a preflight can bring |

use std::net::{IpAddr, Ipv6Addr};

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, Method};

/// The header that every order has to bring, with the value `yes`.
pub(super) const ORDER: &str = "penstock-order";

/// Top-level names that nobody can register (RFC 6761, RFC 6762, RFC 8375, ICANN for `internal`), and
/// `svc` of Kubernetes.
const OWN_NAMES: [&str; 5] = ["localhost", "local", "internal", "svc", "home.arpa"];

/// Why a request is refused; `None`: it is not. `is_page`: the path holds no data. `is_known` says
/// whether a name in `Host` is one that the operator uses, where it might be anybody's.
pub(super) fn refuses(
    method: &Method,
    headers: &HeaderMap,
    is_page: bool,
    is_known: impl Fn(&str) -> bool,
) -> Option<String> {
    let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let text = |name: &str| match headers.get(name) {
        None => Ok(None),
        Some(value) => value.to_str().map(Some),
    };
    let (Ok(host), Ok(origin), Ok(site)) =
        (text(HOST.as_str()), text(ORIGIN.as_str()), text("sec-fetch-site"))
    else {
        return Some("Host, Origin or Sec-Fetch-Site is not text".to_owned());
    };
    let host = host.unwrap_or_default();
    if let Some(origin) = origin
        && !is_same_place(origin, host)
    {
        return Some(format!(
            "a page of {origin} asks: only the dashboard's own page may, and programs without Origin"
        ));
    }
    let is_link = is_page && reads && matches!(text("sec-fetch-mode"), Ok(Some("navigate")));
    if let Some(site) = site
        && !matches!(site, "same-origin" | "none")
        && !is_link
    {
        return Some(format!("another site's page asks (Sec-Fetch-Site: {site})"));
    }
    let name = name_of(host);
    if !is_own(name) && !is_known(name) {
        return Some(format!(
            "Host is {name}, which may be another site's name: ask by an address or by localhost, send \
             the token, or add the name to admin.hosts"
        ));
    }
    if !reads && headers.get(ORDER).is_none_or(|value| value != "yes") {
        return Some(
            "an order needs the header `Penstock-Order: yes`, so that no page can give it"
                .to_owned(),
        );
    }
    None
}

/// Whether a page of `origin` was had from where `host` is.
fn is_same_place(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare = |text: &str| text.strip_suffix(port).unwrap_or(text).to_ascii_lowercase();
    !authority.is_empty() && bare(authority) == bare(host)
}

/// The name in `Host`, without its port and brackets.
fn name_of(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    host.split(':').next().unwrap_or_default()
}

/// Whether a name cannot be another site's: an address, none at all (HTTP/1.0), one without a dot, or one
/// below a domain that is in nobody's hands.
fn is_own(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_below = |domain: &&str| {
        let start = name.len().checked_sub(domain.len());
        let tail = start.and_then(|start| name.get(start..));
        tail.is_some_and(|tail| tail.eq_ignore_ascii_case(domain))
            && name[..name.len() - domain.len()].ends_with('.')
    };
    !name.contains('.')
        || name.parse::<IpAddr>().is_ok()
        || name.parse::<Ipv6Addr>().is_ok()
        || OWN_NAMES.iter().any(is_below)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn what_a_page_may_have_made() {
        let order = "penstock-order: yes";
        let mut tried = 0;
        for (method, headers, good) in [
            ("GET", &["host: penstock"][..], true),
            ("GET", &["host: localhost:9464"], true),
            ("GET", &["host: [::1]:9464"], true),
            ("GET", &["host: 192.0.2.1"], true),
            ("GET", &[], true),
            ("GET", &["host: penstock.monitoring.svc:9464"], true),
            ("GET", &["host: known.example.org"], true),
            ("GET", &["host: evil.example.org:9464"], false),
            ("GET", &["host: localhost.evil.example.org"], false),
            ("GET", &["host: evillocal.org"], false),
            ("GET", &["host: x.notlocal"], false),
            ("GET", &["host: a:1", "origin: http://a:1"], true),
            ("GET", &["host: a", "origin: https://A:443"], true),
            ("GET", &["host: a:1", "origin: http://a:2"], false),
            ("GET", &["host: a:1", "origin: null"], false),
            ("GET", &["host: a:1", "origin: http://evil.example"], false),
            ("GET", &["host: a:1", "origin: file://a:1"], false),
            ("GET", &["host: a", "sec-fetch-site: same-origin"], true),
            ("GET", &["host: a", "sec-fetch-site: none"], true),
            ("GET", &["host: a", "sec-fetch-site: same-site"], false),
            ("GET", &["host: a", "sec-fetch-site: cross-site"], false),
            ("GET", &["host: a", "sec-fetch-site: cross-site", "sec-fetch-mode: navigate"], false),
            ("OPTIONS", &["host: a:1", "origin: http://evil.example"], false),
            ("POST", &["host: a"], false),
            ("PUT", &["host: a"], false),
            ("DELETE", &["host: a"], false),
            ("POST", &["host: a", order], true),
            ("POST", &["host: a", "penstock-order: no"], false),
            ("POST", &["host: a:1", "origin: http://a:1", order], true),
            ("POST", &["host: a:1", "origin: http://evil.example", order], false),
        ] {
            let mut map = HeaderMap::new();
            for header in headers {
                let (name, value) = header.split_once(": ").expect("a header");
                map.insert(name, HeaderValue::from_static(value));
            }
            let method = method.parse().expect("a method");
            let why = refuses(&method, &map, false, |name| name == "known.example.org");
            assert_eq!(why.is_none(), good, "{method} {headers:?}: {why:?}");
            tried += 1;
        }
        assert_eq!(tried, 30);
        // A link may lead to the page, and nothing else of another site.
        let mut map = HeaderMap::new();
        map.insert("sec-fetch-site", HeaderValue::from_static("cross-site"));
        assert!(refuses(&Method::GET, &map, true, |_| false).is_some());
        map.insert("sec-fetch-mode", HeaderValue::from_static("navigate"));
        assert!(refuses(&Method::GET, &map, true, |_| false).is_none());
        assert!(refuses(&Method::POST, &map, true, |_| false).is_some());
    }
}
