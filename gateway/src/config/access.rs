//! Who may come in: at a listener by address, at a route by the page it comes from.

use std::str::FromStr;

use super::reader::{Placed, Reader, Section};
use crate::client_address::{Access, Cidr, CidrSet, ClientHeader};
use crate::origin::Origins;

/// Ranges in one list. A public list of addresses to deny has tens of thousands.
const CIDRS_MAX: usize = 65_536;

/// Origins of one route. An upgrade looks at them one after the other.
const ORIGINS_MAX: usize = 1024;

/// Reads what a listener says about its clients.
pub(super) fn read_access(reader: &Reader<'_>, section: &mut Section<'_, '_>) -> Access {
    let proxy_protocol = section.word("proxy_protocol", &["off", "required"]) == "required";
    let trusted_proxies = read_cidrs(reader, section, "trusted_proxies").unwrap_or_default();
    section.settle_list("trusted_proxies");
    let allow = read_cidrs(reader, section, "allow");
    let deny = read_cidrs(reader, section, "deny").unwrap_or_default();
    section.settle_list("deny");
    if allow.as_ref().is_some_and(CidrSet::is_empty) && !section.has_items("allow") {
        let message = "`allow` is empty: nobody could connect; leave it out to let everybody in";
        reader.fault(&section.place_of("allow"), message);
    }
    let strict_paths = section.word("paths", &["as-sent", "strict"]) == "strict";
    let headers = ["either", "x-forwarded-for", "forwarded"];
    let client_header = match section.word("client_address_header", &headers) {
        "x-forwarded-for" => ClientHeader::ForwardedFor,
        "forwarded" => ClientHeader::Forwarded,
        _ => ClientHeader::Either,
    };
    Access { proxy_protocol, trusted_proxies, allow, deny, strict_paths, client_header }
}

fn read_cidrs(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    key: &'static str,
) -> Option<CidrSet> {
    let list: Vec<Cidr> = read_list(reader, section, key, CIDRS_MAX)?;
    Some(CidrSet::new(&list))
}

/// Reads what a route says about the pages that use it.
pub(super) fn read_origins(reader: &Reader<'_>, section: &mut Section<'_, '_>) -> Origins {
    let allowed = read_list(reader, section, "origins", ORIGINS_MAX);
    let required = section.boolean("origin_required", false);
    if allowed.is_some() && !section.has_items("origins") {
        let message = "`origins` is empty: no page could connect; leave it out to let all of them";
        reader.fault(&section.place_of("origins"), message);
    }
    Origins { allowed, required }
}

/// A list of what is written as strings; `None` where there is none. What is not right is reported
/// and left out.
fn read_list<T: FromStr<Err = &'static str>>(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    key: &'static str,
    max: usize,
) -> Option<Vec<T>> {
    let list = section.strings(key)?;
    if list.len() > max {
        let message =
            format!("`{key}` has {} entries: at most {max} are supported; join some", list.len());
        reader.fault(&section.place_of(key), message);
        return None;
    }
    let parsed = list.into_iter().filter_map(|Placed { value, place }| match value.parse() {
        Ok(entry) => Some(entry),
        Err(why) => {
            reader.fault(&place, format!("`{key}` has \"{value}\": {why}"));
            None
        }
    });
    Some(parsed.collect())
}
