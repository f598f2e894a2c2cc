//! What a `[[route]]` says of its own instead of `[limits]`.

use super::check::{AGE_MS_MAX, TIMEOUT_MS_MAX};
use super::rates::read_rates;
use super::reader::{Reader, Section};
use crate::limits::Limits;
use crate::policy::Policy;

/// Reads the route's own limits; what it leaves out is as `limits` say.
pub(super) fn read_policy(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    limits: &Limits,
) -> Policy {
    let common = Policy::of(limits);
    let bytes = 125..=u64::MAX;
    let message_bytes_max = section.size("message_bytes_max", bytes, common.message_bytes_max);
    if message_bytes_max > limits.message_bytes_max {
        let message = format!(
            "`message_bytes_max` is {message_bytes_max}: a route may allow less than [limits] do, \
             which is {}; lower the one or raise the other",
            limits.message_bytes_max
        );
        reader.fault(&section.place_of("message_bytes_max"), message);
    }
    Policy {
        message_bytes_max,
        ping_interval: section.milliseconds(
            "ping_interval_ms",
            0..=AGE_MS_MAX,
            common.ping_interval,
        ),
        ping_timeout: section.milliseconds(
            "ping_timeout_ms",
            1..=TIMEOUT_MS_MAX,
            common.ping_timeout,
        ),
        rates: read_rates(reader, section, &common.rates, message_bytes_max),
        connections_max: section
            .integer("connections_max", 0..=u64::from(u32::MAX))
            .map_or(common.connections_max, |count| count as u32),
    }
}
