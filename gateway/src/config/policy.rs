//! What a `[[route]]` says of its own instead of `[limits]`.

use super::check::{AGE_MS_MAX, DURATION_MS_MAX, TIMEOUT_MS_MAX};
use super::rates::read_rates;
use super::reader::{Reader, Section};
use crate::limits::{Limits, MESSAGE_BYTES_LEAST, MESSAGE_BYTES_MAX};
use crate::policy::Policy;
use crate::ws::frame::CONTROL_BYTES_MAX;

/// Reads the route's own limits; what it leaves out is as `limits` say.
pub(super) fn read_policy(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    limits: &Limits,
) -> Policy {
    let common = Policy::of(limits);
    let bytes = MESSAGE_BYTES_LEAST as u64..=MESSAGE_BYTES_MAX as u64;
    let message_bytes_max = section.size("message_bytes_max", bytes, common.message_bytes_max);
    if message_bytes_max > limits.message_bytes_max {
        let message = format!(
            "`message_bytes_max` is {message_bytes_max}: a route may allow less than [limits] do, \
             which is {}; lower the one or raise the other",
            limits.message_bytes_max
        );
        reader.fault(&section.place_of("message_bytes_max"), message);
    }
    let connections_max = section.number(
        "connections_max",
        0..=u64::from(u32::MAX),
        u64::from(common.connections_max),
    ) as u32;
    let common = Policy { message_bytes_max, connections_max, ..common };
    read_common(reader, section, &common)
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
    let duration = 0..=DURATION_MS_MAX;
    Policy {
        message_bytes_max,
        frame_bytes_max: read_frame_bytes_max(reader, section, common.frame_bytes_max),
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

/// Reads `frame_bytes_max`: none, or enough for every control frame.
fn read_frame_bytes_max(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    default: usize,
) -> usize {
    let frame_bytes_max = section.size("frame_bytes_max", 0..=MESSAGE_BYTES_MAX as u64, default);
    if (1..CONTROL_BYTES_MAX).contains(&frame_bytes_max) {
        let message = format!(
            "`frame_bytes_max` is {frame_bytes_max}: control frames carry up to \
             {CONTROL_BYTES_MAX} bytes and always have to pass; set it to at least that, or to 0 \
             for no limit"
        );
        reader.fault(&section.place_of("frame_bytes_max"), message);
    }
    frame_bytes_max
}
