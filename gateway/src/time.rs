//! Time as the data plane counts it: nanoseconds on a clock that only goes forward.
//!
//! Nothing below the ring reads a clock; `now` is handed down from the loop, once a turn, so that
//! the same code runs on virtual time in the simulation.

use std::ops::{Add, Sub};
use std::time::Duration;

/// An instant: nanoseconds since an origin that the ring chose (the kernel's monotonic clock).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// Later than any instant that will be reached.
    pub const NEVER: Time = Time(u64::MAX);

    /// How long ago `earlier` was; zero when it is not in the past.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// In microseconds that wrap after 71 minutes: for what is over sooner, in half the room.
    pub fn wrapping_us(self) -> u32 {
        (self.0 / 1000) as u32
    }

    /// The instant that had these [`wrapping_us`](Time::wrapping_us), to the microsecond and within
    /// the last 35 minutes. One that another thread's clock has a little ahead of us is now.
    pub fn back_to(self, us: u32) -> Time {
        let ago = self.wrapping_us().wrapping_sub(us);
        match i32::try_from(ago) {
            Ok(_) => Time(self.0.saturating_sub(u64::from(ago) * 1000)),
            Err(_) => self,
        }
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, duration: Duration) -> Time {
        Time(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_the_room_is_enough_for_what_is_over_soon() {
        let wrap = (1_u64 << 32) * 1000;
        for now in [Time(5_000_000), Time(wrap + 300), Time(7 * wrap - 1)] {
            for ago_us in [0, 1, 999, 4_000, 1_000_000_000] {
                let then = Time(now.0.saturating_sub(ago_us * 1000));
                let found = now.back_to(then.wrapping_us());
                assert!(found.0.abs_diff(then.0) < 1000, "{now:?} {ago_us}: {found:?}");
            }
            assert_eq!(now.back_to(Time(now.0 + 40_000).wrapping_us()), now);
        }
    }
}
