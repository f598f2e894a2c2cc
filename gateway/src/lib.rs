//! Penstock: a WebSocket gateway. Start reading at `shard.rs`.

pub mod config;
pub mod conn;
pub mod limits;
pub mod metrics;
pub mod ring;
pub mod route;
pub mod server;
pub mod time;
pub mod ws;
