//! What a `[[route]]` says of its own instead of `[limits]`.

use super::check::{AGE_MS_MAX, DURATION_MS_MAX, TIMEOUT_MS_MAX};
use super::rates::read_rates;
use super::reader::{Reader, Section};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::policy::Policy;
use crate::ws::frame::CONTROL_BYTES_MAX;

/// What routes have that say nothing of their own.
pub(super) struct Common {
    /// Those whose backend assembles messages.
    pub assembled: Policy,
    /// The others: a relay needs no bound on messages, and has one only where `[limits]` write it.
    pub relayed: Policy,
}

/// Reads the route's own limits. `assembles`: its backend does that with messages.
pub(super) fn read_policy(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    common: &Common,
    assembles: bool,
) -> Policy {
    let common = if assembles { &common.assembled } else { &common.relayed };
    let message_bytes_max = read_message_bytes_max(reader, section, common.message_bytes_max);
    if assembles && !(1..=MESSAGE_BYTES_MAX).contains(&message_bytes_max) {
        let (whose, cure) = match section.has("message_bytes_max") {
            true => ("", "choose"),
            false => (" in [limits]", "give it one of its own of"),
        };
        let message = format!(
            "`message_bytes_max` is {message_bytes_max}{whose}: this route leads to a backend that \
             assembles each message, which takes a bound; {cure} {CONTROL_BYTES_MAX} to \
             {MESSAGE_BYTES_MAX}"
        );
        reader.fault(&section.place_of("message_bytes_max"), message);
    }
    let connections_max = section.number(
        "connections_max",
        0..=u64::from(u32::MAX),
        u64::from(common.connections_max),
    ) as u32;
    let common = Policy { message_bytes_max, connections_max, ..common.clone() };
    read_common(reader, section, &common)
}

/// Reads `message_bytes_max`: none, or enough for what a control frame may carry.
pub(super) fn read_message_bytes_max(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    default: usize,
) -> usize {
    read_bytes(reader, section, "message_bytes_max", default)
}

/// Reads what `[limits]` and a route say in the same words; what is left out is as in `common`, which
/// has the largest message already.
pub(super) fn read_common(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    common: &Policy,
) -> Policy {
    let message_bytes_max = common.message_bytes_max;
    let age = 0..=AGE_MS_MAX;
    let mut age = |key, default| section.milliseconds(key, age.clone(), default);
    let ping_interval = age("ping_interval_ms", common.ping_interval);
    let upstream_ping_interval = age("upstream_ping_interval_ms", common.upstream_ping_interval);
    let idle_timeout = age("idle_timeout_ms", common.idle_timeout);
    let response_timeout =
        section.milliseconds("response_timeout_ms", 1..=AGE_MS_MAX, common.response_timeout);
    let body_bytes = common.request_body_bytes_max;
    let request_body_bytes_max = section.number("request_body_bytes_max", 0..=u64::MAX, body_bytes);
    let duration = 0..=DURATION_MS_MAX;
    Policy {
        message_bytes_max,
        request_body_bytes_max,
        response_timeout,
        frame_bytes_max: read_bytes(reader, section, "frame_bytes_max", common.frame_bytes_max),
        ping_interval,
        ping_timeout: section.milliseconds(
            "ping_timeout_ms",
            1..=TIMEOUT_MS_MAX,
            common.ping_timeout,
        ),
        upstream_ping_interval,
        idle_timeout,
        duration_max: section.milliseconds("duration_max_ms", duration, common.duration_max),
        rates: read_rates(reader, section, &common.rates, message_bytes_max),
        connections_max: common.connections_max,
    }
}

/// Reads a bound on bytes of a client: none, or enough for every control frame.
fn read_bytes(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: usize,
) -> usize {
    let bytes = section.size(key, 0..=u64::MAX, default);
    // What is not written here has been looked at where it is.
    if section.has(key) && (1..CONTROL_BYTES_MAX).contains(&bytes) {
        let message = format!(
            "`{key}` is {bytes}: control frames carry up to {CONTROL_BYTES_MAX} bytes and always have \
             to pass; set it to at least that, or to 0 for no limit"
        );
        reader.fault(&section.place_of(key), message);
    }
    bytes
}
