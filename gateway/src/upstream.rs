//! Groups of upstreams: which of them a new client goes to.

mod address;
mod cookie;
mod hash;
mod key;
mod open_packet;
mod sids;

pub use address::{UNIX_PATH_BYTES_MAX, UpstreamAddress, UpstreamName, UpstreamUrl};
pub use cookie::{COOKIE_NAME_DEFAULT, CookieToken, SameSite, StickyCookie};
pub use hash::stable_hash;
pub use key::{HashKey, cookie_value, sid_of};
pub use open_packet::{OPEN_PACKET_BYTES_MAX, OpenScan, OpenScanner, SID_BYTES_MAX};
pub use sids::{Sid, Sids};
