//! Whole shards on the simulated kernel: virtual time, and a seed that picks how bad the day is.
//!
//! Each scenario plays clients (and upstream servers) with random manners against a gateway of one
//! to three shards, compares what they got with what they were promised, and in the end looks for
//! anything that was left behind. A seed that fails is printed with the command that plays it
//! alone; `PENSTOCK_SIM_SEEDS` sets how many are played, `PENSTOCK_SIM_NARRATE` prints every
//! submission and completion.

#[path = "sim/bad.rs"]
mod bad;
#[path = "sim/bodies.rs"]
mod bodies;
#[path = "sim/client.rs"]
mod client;
#[path = "sim/drain.rs"]
mod drain;
#[path = "sim/echo.rs"]
mod echo;
#[path = "sim/forward.rs"]
mod forward;
#[path = "sim/last_words.rs"]
mod last_words;
#[path = "sim/rates.rs"]
mod rates;
#[path = "sim/relay.rs"]
mod relay;
#[path = "sim/rooms.rs"]
mod rooms;
#[path = "sim/sids.rs"]
mod sids;
#[path = "sim/stop.rs"]
mod stop;
#[path = "sim/thousand.rs"]
mod thousand;
#[path = "sim/timeouts.rs"]
mod timeouts;
#[path = "sim/world.rs"]
mod world;
