//! How much a client may do, as `[limits]` say, or a `[[route]]` of its own.

use super::reader::{Reader, Section};
use crate::limits::Limits;
use crate::rate::{Action, BURST_MAX, Flow, PER_SECOND_MAX, Rate, Rates};
use crate::ws::frame::FRAME_HEADER_BYTES_MAX;

/// Reads the rates of a section; what it leaves out is as in `common`.
pub(super) fn read_rates(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    common: &Rates,
    message_bytes_max: usize,
) -> Rates {
    // Who keeps to a rate of bytes may always send one message of the largest size, where there is one.
    let message_bytes = match message_bytes_max {
        0 => Limits::default().message_bytes_max,
        bytes => bytes,
    };
    let one_message = message_bytes.saturating_add(FRAME_HEADER_BYTES_MAX) as u64;
    let mut rate = |keys: [&'static str; 2], common: Rate, burst_least: u64| {
        read_rate(reader, section, keys, common, burst_least)
    };
    let connection = Flow {
        messages: rate(["messages_per_second", "messages_burst"], common.connection.messages, 1),
        bytes: rate(["bytes_per_second", "bytes_burst"], common.connection.bytes, one_message),
        control_frames: rate(
            ["control_frames_per_second", "control_frames_burst"],
            common.connection.control_frames,
            1,
        ),
    };
    let address = Flow {
        messages: rate(
            ["address_messages_per_second", "address_messages_burst"],
            common.address.messages,
            1,
        ),
        bytes: rate(
            ["address_bytes_per_second", "address_bytes_burst"],
            common.address.bytes,
            one_message,
        ),
        control_frames: rate(
            ["address_control_frames_per_second", "address_control_frames_burst"],
            common.address.control_frames,
            1,
        ),
    };
    let address_handshakes = rate(
        ["address_handshakes_per_second", "address_handshakes_burst"],
        common.address_handshakes,
        1,
    );
    let address_connections_max = u64::from(common.address_connections_max);
    let address_connections_max =
        section.number("address_connections_max", 0..=u64::from(u32::MAX), address_connections_max)
            as u32;
    let words = match common.action {
        Action::Close => ["close", "throttle"],
        Action::Throttle => ["throttle", "close"],
    };
    let action = match section.word("rate_action", &words) {
        "throttle" => Action::Throttle,
        _ => Action::Close,
    };
    Rates { connection, address, address_handshakes, address_connections_max, action }
}

/// A rate and its burst. The burst follows the rate where only that is written.
pub(super) fn read_rate(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    [rate_key, burst_key]: [&'static str; 2],
    common: Rate,
    burst_least: u64,
) -> Rate {
    let per_second = section.integer(rate_key, 0..=PER_SECOND_MAX);
    let burst = section.integer(burst_key, 1..=BURST_MAX);
    if burst.is_some() && per_second.is_none() && !common.is_limit() {
        let message = format!(
            "`{burst_key}` without `{rate_key}`: there is no rate that it could be the burst of; \
             add `{rate_key}`, or take it out"
        );
        reader.fault(&section.place_of(burst_key), message);
    }
    let burst = burst.unwrap_or_else(|| match per_second {
        Some(0) => 0,
        Some(per_second) => burst_default(per_second, burst_least),
        None => common.burst(),
    });
    let per_second = per_second.unwrap_or(common.per_second());
    section.settle(rate_key, per_second);
    section.settle(burst_key, burst);
    Rate::new(per_second, burst)
}

/// Two seconds' worth, and at least what a client has to be able to send at once.
fn burst_default(per_second: u64, burst_least: u64) -> u64 {
    (2 * per_second).max(burst_least).min(BURST_MAX)
}
