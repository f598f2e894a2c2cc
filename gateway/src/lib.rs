//! Penstock: a WebSocket gateway. Start reading at `shard.rs`.

pub mod conn;
pub mod handshake;
pub mod http;
pub mod metrics;
pub mod ring;
pub mod spares;
pub mod time;
pub mod ws;
