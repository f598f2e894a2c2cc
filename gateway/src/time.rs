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
