//! Groups of upstreams: which of them a new client goes to.

mod address;
mod hash;
mod open_packet;
mod sids;

pub use address::{UNIX_PATH_BYTES_MAX, UpstreamAddress, UpstreamName, UpstreamUrl};
pub use hash::stable_hash;
pub use open_packet::{OPEN_PACKET_BYTES_MAX, OpenScan, OpenScanner, SID_BYTES_MAX};
pub use sids::{Sid, Sids};
