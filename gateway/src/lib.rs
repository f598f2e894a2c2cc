//! Penstock: a WebSocket gateway. Start reading at `shard.rs`.

pub mod shard;

pub mod conn;
pub mod ring;
pub mod timers;

pub mod handshake;
pub mod http;
pub mod policy;
pub mod rooms;
pub mod route;
pub mod upstream;
pub mod ws;

pub mod checks;

pub mod config;
pub mod limits;
pub mod metrics;
pub mod random;
pub mod server;
pub mod spares;
pub mod time;
