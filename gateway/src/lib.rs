//! Penstock: a WebSocket gateway. Start reading at `shard.rs`.

pub mod conn;
pub mod metrics;
pub mod ring;
pub mod rooms;
pub mod time;
pub mod ws;
