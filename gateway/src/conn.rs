//! A connection: who it is, where it stands, and what it still owes its peer.

/// A connection of one shard: a place in its table, and whose turn it is in that place.
///
/// The slot is the index of the connection's direct descriptor. A slot is used again under the
/// next generation, so that an id kept by mistake names nobody instead of somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// Index into the shard's table and into its table of direct descriptors.
    pub slot: u32,
    /// 24 bits; wraps.
    pub generation: u32,
}
