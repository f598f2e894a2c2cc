//! Penstock: a WebSocket gateway. Start reading at `shard.rs`.

pub mod shard;

pub mod conn;
pub mod ring;
pub mod timers;

pub mod addresses;
pub mod client_address;
pub mod handshake;
pub mod http;
pub mod names;
pub mod origin;
pub mod policy;
pub mod proxy_protocol;
pub mod rate;
pub mod rooms;
pub mod route;
pub mod upstream;
pub mod ws;

pub(crate) mod steps;
#[cfg(test)]
mod worst_inputs;

pub mod access;
pub mod admin;
pub mod allocator;
pub mod budget;
pub mod checks;
pub mod config;
pub mod control;
pub mod doorstep;
pub mod families;
mod heap;
pub mod histogram;
pub mod history;
pub mod interval_log;
pub mod journal;
pub mod keyed_hash;
pub mod limits;
pub mod listening;
pub mod log;
pub mod makers;
pub mod memory;
pub mod memory_bound;
pub mod metrics;
pub mod random;
pub mod recorder;
pub mod regular_file;
pub mod resolve;
pub mod server;
pub mod shared;
pub mod spares;
pub mod striped;
pub mod time;
pub mod totals;
pub mod troubles;
