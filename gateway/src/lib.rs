//! Penstock: a WebSocket gateway. Start reading at `shard.rs`.

pub mod shard;

pub mod ring;
pub mod conn;
pub mod timers;

pub mod http;
pub mod handshake;
pub mod ws;
pub mod rooms;
pub mod route;

pub mod config;
pub mod limits;
pub mod metrics;
pub mod random;
pub mod server;
pub mod spares;
pub mod time;
