//! What the limits of a configuration add up to in bytes, and what is said where that is too much.

use crate::addresses::ADDRESS_BYTES;
use crate::config::warnings::{Severity, Warning};
use crate::config::{BackendKind, Config, Local};
use crate::conn::Meter;
use crate::limits::{ADDRESSES_SPARE, PAUSE_AT_BYTES, human_bytes};
use crate::memory::HISTOGRAMS;
use crate::recorder::RECORDER_BYTES_MAX;

/// What one of a kind costs in memory: known to those who define the types.
#[derive(Clone, Copy, Debug)]
pub struct ItemSizes {
    /// A slot of the table, with all that is kept per connection beside it (timers, generation).
    pub slot_bytes: u64,
    /// A room without its history.
    pub room_bytes: u64,
    /// A membership: the room's entry for the client and the client's entry for the room.
    pub member_bytes: u64,
}

impl Default for ItemSizes {
    fn default() -> ItemSizes {
        ItemSizes { slot_bytes: 400, room_bytes: 512, member_bytes: 64 }
    }
}

/// What an outbox that a relay fills holds at most: what comes before reading has stopped is little.
const RELAY_OUTBOX_BYTES: usize = 2 * PAUSE_AT_BYTES;

/// Bytes that one session costs in [`Sids`](crate::upstream::Sids) while its map grows.
const SID_BYTES: usize = 100;

/// What the process can use at most, a line per holder.
///
/// This is the sum of the bounds, as if every client were as bad as it is allowed to be at the same
/// time; what a host of idle clients needs is close to the first line. Saturates.
pub fn memory_bound(config: &Config, sizes: &ItemSizes) -> Vec<(&'static str, u64)> {
    let Config { server, limits, backends, .. } = config;
    let shards = u64::from(server.shards);
    let slots = shards * u64::from(server.slots_per_shard);
    let clients = u64::from(limits.connections_max).min(slots);
    let times = |count: u64, bytes: usize| count.saturating_mul(bytes as u64);

    let mut rooms = 0_u64;
    let mut history = 0_u64;
    let mut answer_bytes_max = 0;
    for backend in backends {
        if let BackendKind::Local(Local { rooms: local, .. }) = &backend.kind {
            let homes = shards.saturating_mul(local.rooms_max as u64);
            let members = times(clients, local.rooms_per_client_max);
            rooms = rooms
                .saturating_add(homes.saturating_mul(sizes.room_bytes))
                .saturating_add(members.saturating_mul(sizes.member_bytes));
            answer_bytes_max =
                answer_bytes_max.max(local.answer_bytes_max.min(limits.outbox_bytes_max));
            let of_rooms = times(homes, local.history_bytes_max);
            let of_shards = times(shards, local.history_bytes_per_shard_max);
            history = history.saturating_add(of_rooms.min(of_shards));
        }
    }
    // A relay assembles nothing and reads nobody on whose bytes wait beyond a small bound.
    let assembled = config.routes.iter().filter(|route| config.backend(route).kind.assembles());
    let assembled = assembled.map(|route| route.policy.message_bytes_max).max();
    // A client has one upstream at a time.
    let peers = clients.saturating_mul(2).min(slots);
    let relayed = limits.outbox_bytes_max.min(RELAY_OUTBOX_BYTES);
    let of_client = if assembled.is_some() { limits.outbox_bytes_max } else { relayed };
    let outboxes = times(clients, of_client).saturating_add(times(peers - clients, relayed));
    let sticky = backends.iter().any(|backend| match &backend.kind {
        BackendKind::Websocket(group) => group.options.sticky_sid && group.upstreams.len() > 1,
        _ => false,
    });
    let by_address = config.routes.iter().any(|route| route.policy.rates.limit_addresses());
    let addresses = if by_address { clients.saturating_add(ADDRESSES_SPARE as u64) } else { 0 };
    let addresses = times(addresses, ADDRESS_BYTES);
    vec![
        ("table", slots.saturating_mul(sizes.slot_bytes)),
        (
            "receive buffers",
            times(shards * u64::from(server.receive_buffers), server.receive_buffer_bytes as usize),
        ),
        ("request heads", times(slots, limits.head_bytes_max)),
        ("early bytes", times(clients, limits.early_bytes_max)),
        ("assembly", times(clients, assembled.unwrap_or(0))),
        // What an answer shares with a history may be forgotten there before it is sent.
        ("outboxes", outboxes.saturating_add(times(clients, answer_bytes_max))),
        ("rates", times(clients, size_of::<Meter>()).saturating_add(addresses)),
        ("rooms", rooms),
        ("rooms history", history),
        ("Engine.IO sessions", if sticky { times(shards, limits.sids_max * SID_BYTES) } else { 0 }),
        (HISTOGRAMS, times(shards, RECORDER_BYTES_MAX)),
    ]
}

/// The warning of a bound above the budget. `None`: it is within, or the file sets neither the budget nor
/// what clients may hold. The defaults allow more than most machines have, and the budget is there for that.
pub fn memory_warning(config: &Config, bound_bytes: u64) -> Option<Warning> {
    let line = config.warnings.memory_line()?;
    let budget_bytes = config.server.memory_bytes_max;
    (bound_bytes > budget_bytes).then(|| Warning {
        line,
        severity: Severity::Warning,
        text: format!(
            "clients may ask for {} together, and `server.memory_bytes_max` is {}: when that is \
             used, new clients get 503, and those that hold most are closed",
            human_bytes(bound_bytes),
            human_bytes(budget_bytes)
        ),
        cure: "lower `limits.connections_max`, `limits.message_bytes_max` or \
               `limits.outbox_bytes_max`, or raise `server.memory_bytes_max`"
            .to_owned(),
    })
}

/// The sum of [`memory_bound`].
pub fn memory_bound_total(bound: &[(&'static str, u64)]) -> u64 {
    bound.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_adds_up_what_the_file_says() {
        let config = Config::parse(
            "test",
            "[server]\nshards = 2\nslots_per_shard = 100\nreceive_buffers = 16\n\
             receive_buffer_bytes = 4096\n\
             [[listener]]\naddress = \"127.0.0.1:0\"\n\
             [[route]]\nbackend = \"rooms\"\n\
             [backend.rooms]\nkind = \"local\"\nrooms_max = 10\nhistory_bytes_max = 1000\n\
             rooms_per_client_max = 3\n\
             [backend.few]\nkind = \"local\"\nrooms_max = 1\nrooms_per_client_max = 1\n\
             history_bytes_max = 300\nhistory_bytes_per_shard_max = 400\n\
             [backend.full]\nkind = \"local\"\nrooms_max = 2\nrooms_per_client_max = 1\n\
             history_bytes_max = 300\nhistory_bytes_per_shard_max = 400\n\
             [limits]\nconnections_max = 50\nmessage_bytes_max = 2000\noutbox_bytes_max = 4000\n\
             head_bytes_max = 4096\ntarget_bytes_max = 1024\nearly_bytes_max = 8\n",
        )
        .unwrap_or_else(|faults| panic!("{faults}"));
        let sizes = ItemSizes { slot_bytes: 7, room_bytes: 5, member_bytes: 2 };
        let bound = memory_bound(&config, &sizes);
        assert_eq!(
            bound,
            [
                ("table", 2 * 100 * 7),
                ("receive buffers", 2 * 16 * 4096),
                ("request heads", 200 * 4096),
                ("early bytes", 50 * 8),
                ("assembly", 50 * 2000),
                // Clients, and an upstream for each.
                // A client of rooms may have an answer on top.
                ("outboxes", 2 * 50 * 4000 + 50 * 4000),
                ("rates", 50 * size_of::<Meter>() as u64),
                ("rooms", 2 * (10 + 1 + 2) * 5 + 50 * (3 + 1 + 1) * 2),
                // Ten full rooms, one full room, and two that a shard does not let fill up.
                ("rooms history", 2 * (10 * 1000 + 300 + 400)),
                // No websocket backend.
                ("Engine.IO sessions", 0),
                (HISTOGRAMS, 2 * RECORDER_BYTES_MAX as u64),
            ]
        );
        assert_eq!(memory_bound_total(&bound), bound.iter().map(|(_, bytes)| bytes).sum::<u64>());
    }
}
