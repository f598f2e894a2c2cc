//! Whether an upstream is fit to be chosen: what checks say of it, and what clients met there.
//!
//! ```text
//!                 fall failed checks                     eject_failures in a row
//!        Up  -------------------------->  Down      Up  ------------------------->  Ejected
//!            <--------------------------                <-------------------------
//!                 rise good checks                            until is over
//! ```
//!
//! What a client met is evidence of two kinds ([`Evidence`]): without a connection the upstream is at
//! fault whoever asked, while a connection that it broke off may be the fault of what was asked. So
//! failures of the second kind eject only when clients of at least two addresses met them in a row.
//! Behind a proxy that is not in `trusted_proxies` all clients have one address: there only connects
//! that fail, and checks, speak against an upstream. Never more than half of a group is ejected.
//!
//! The two are apart: an upstream that answers its checks and fails its clients is ejected all the
//! same, and one that is down stays so whatever its old clients see. Down is what is said of one
//! that is both.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::time::Time;

use super::hash::mix;

/// How health is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthOptions {
    /// Good checks in a row that bring an upstream up again; at least 1.
    pub rise: u32,
    /// Failed checks in a row that take it down; at least 1.
    pub fall: u32,
    /// Clients in a row that it fails before it is ejected; 0: it never is.
    pub eject_failures: u32,
    /// The first ejection. Each one that follows on it is twice as long.
    pub eject: Duration,
    /// The longest; not below `eject`.
    pub eject_max: Duration,
}

impl Default for HealthOptions {
    fn default() -> HealthOptions {
        HealthOptions {
            rise: 2,
            fall: 3,
            eject_failures: 3,
            eject: Duration::from_secs(5),
            eject_max: Duration::from_secs(60),
        }
    }
}

/// How an upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Clients may go there.
    Up,
    /// Its checks fail; `rise` good ones end that.
    Down,
    /// It failed clients. From `until` on it is tried again, and ejected by its first failure.
    Ejected {
        /// The end.
        until: Time,
    },
}

/// What the checks of one upstream say together: `fall` failed ones in a row take it down, `rise`
/// good ones bring it up again. It begins up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    is_down: bool,
    /// Checks in a row that speak against what `is_down` says.
    contrary: u32,
}

impl Checked {
    /// Whether it is down.
    pub fn is_down(&self) -> bool {
        self.is_down
    }

    /// What one more check has found. Answers whether that has changed [`Checked::is_down`].
    pub fn on_result(&mut self, ok: bool, options: &HealthOptions) -> bool {
        if ok != self.is_down {
            self.contrary = 0;
            return false;
        }
        self.contrary += 1;
        let enough = if ok { options.rise } else { options.fall };
        let changes = self.contrary >= enough;
        if changes {
            *self = Checked { is_down: !ok, contrary: 0 };
        }
        changes
    }
}

/// What speaks against an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// There was no connection, whoever asked.
    Connect,
    /// It broke off, was silent or answered badly when a client of this address asked.
    Client(IpAddr),
}

/// What one client may choose of its address: an IPv6 host has the lower half for itself.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// What is remembered of one upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    checked: Checked,
    /// Clients in a row that it failed.
    failures: u32,
    /// Whose those were, as long as that is one network.
    failed_by: Option<IpAddr>,
    /// They were those of several, or connects.
    is_shared: bool,
    /// Ejections that followed on each other.
    ejections: u32,
    /// The end of the last ejection, and how long that was. `Time(0)`: there was none.
    ejected_until: Time,
    ejected_for: Duration,
    /// When clients could come again, for the slow start. `None`: it was there from the beginning.
    available_since: Option<Time>,
}

impl Record {
    /// Of an upstream that clients can come to since then.
    pub(super) fn new(available_since: Option<Time>) -> Record {
        Record {
            checked: Checked::default(),
            failures: 0,
            failed_by: None,
            is_shared: false,
            ejections: 0,
            ejected_until: Time(0),
            ejected_for: Duration::ZERO,
            available_since,
        }
    }

    pub(super) fn health(&self, now: Time) -> Health {
        if self.checked.is_down {
            Health::Down
        } else if now < self.ejected_until {
            Health::Ejected { until: self.ejected_until }
        } else {
            Health::Up
        }
    }

    pub(super) fn is_ejected(&self, now: Time) -> bool {
        now < self.ejected_until
    }

    /// The operator lets clients come again: their number grows slowly.
    pub(super) fn on_admitted(&mut self, now: Time) {
        self.available_since = Some(now);
    }

    pub(super) fn on_check_result(&mut self, ok: bool, now: Time, options: &HealthOptions) {
        if self.checked.on_result(ok, options) && ok {
            self.forgive(0);
            self.available_since = Some(now);
        }
    }

    /// A client got what it came for.
    pub(super) fn on_success(&mut self, now: Time) {
        // What was begun before the ejection, or in a panic, proves nothing for the others.
        if now < self.ejected_until {
            return;
        }
        self.forgive(0);
        // It has been well for as long as it was away: the next ejection is a first one again.
        if now >= self.ejected_until + self.ejected_for {
            self.ejections = 0;
        }
    }

    fn forgive(&mut self, failures: u32) {
        (self.failures, self.failed_by, self.is_shared) = (failures, None, false);
    }

    /// A client was failed. `random` shortens the ejection that may follow by up to a quarter, so
    /// that shards and gateways do not all try again at the same instant. `may_eject`: enough others
    /// are left.
    pub(super) fn on_failure(
        &mut self,
        evidence: Evidence,
        may_eject: bool,
        now: Time,
        random: u64,
        options: &HealthOptions,
    ) {
        // Clients that were on their way when it was ejected are the same failure, not a longer one.
        if options.eject_failures == 0 || now < self.ejected_until {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        match (evidence, self.failed_by) {
            (Evidence::Connect, _) => self.is_shared = true,
            (Evidence::Client(address), None) => self.failed_by = Some(network_of(address)),
            (Evidence::Client(address), Some(other)) => {
                self.is_shared |= network_of(address) != other;
            }
        }
        if self.failures < options.eject_failures || !self.is_shared || !may_eject {
            return;
        }
        let doubled = options.eject.saturating_mul(1_u32 << self.ejections.min(31));
        let whole = doubled.min(options.eject_max);
        let quarter = u64::try_from(whole.as_nanos() / 4).unwrap_or(u64::MAX);
        let cut = (u128::from(mix(random)) * u128::from(quarter)) >> 64;
        self.ejected_for = whole - Duration::from_nanos(cut as u64);
        self.ejected_until = now + self.ejected_for;
        self.ejections = self.ejections.saturating_add(1);
        // The next failure after its return is enough, if it is not of one client alone.
        self.forgive(options.eject_failures - 1);
    }

    /// How much of its weight it has, in thousandths: from 100 on the day it comes back to 1000
    /// when `slow_start` is over. One that is not well has all of it; that is asked for in a panic
    /// only, where the sick and the well share alike.
    pub(super) fn ramp(&self, now: Time, slow_start: Duration) -> u64 {
        if slow_start.is_zero() || self.health(now) != Health::Up {
            return 1000;
        }
        let returned = (self.ejected_until > Time(0)).then_some(self.ejected_until);
        let Some(since) = self.available_since.max(returned) else { return 1000 };
        let elapsed = now.since(since).min(slow_start);
        (100 + 900 * elapsed.as_nanos() / slow_start.as_nanos()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Time {
        Time(1_000_000) + SECOND * seconds as u32
    }

    fn options(rise: u32, fall: u32) -> HealthOptions {
        HealthOptions { rise, fall, eject_failures: 3, eject: 4 * SECOND, eject_max: 20 * SECOND }
    }

    /// `+` and `-` are checks; the second line is the health behind each: `u`p or `d`own.
    #[test]
    fn checks_in_a_row() {
        for (rise, fall, checks, want) in [
            (2, 3, "--+---", "uuuuud"),
            (2, 3, "---+-++", "uuddddu"),
            (2, 3, "---++---", "uudduuud"),
            (1, 1, "-+-+", "dudu"),
            (3, 1, "-++-+++", "ddddddu"),
        ] {
            let mut record = Record::new(None);
            let got: String = checks
                .chars()
                .map(|check| {
                    record.on_check_result(check == '+', at(1), &options(rise, fall));
                    if record.health(at(1)) == Health::Up { 'u' } else { 'd' }
                })
                .collect();
            assert_eq!(got, want, "rise {rise} fall {fall} {checks}");
        }
    }

    /// What happens at which second, and until when it is ejected after that (0: it is up). The
    /// random number 0 cuts nothing off, as `mix(0)` is 0.
    #[track_caller]
    fn check_ejections(options: &HealthOptions, events: &[(u64, char, u64)]) {
        let mut record = Record::new(None);
        for (index, &(second, event, want)) in events.iter().enumerate() {
            match event {
                '-' => record.on_failure(Evidence::Connect, true, at(second), 0, options),
                '+' => record.on_success(at(second)),
                _ => {}
            }
            let want = match want {
                0 => Health::Up,
                until => Health::Ejected { until: at(until) },
            };
            assert_eq!(record.health(at(second)), want, "event {index} at {second}");
        }
    }

    #[test]
    fn failures_in_a_row_eject() {
        let options = options(1, 1);
        // Two are forgiven by a success between.
        check_ejections(&options, &[(0, '-', 0), (0, '-', 0), (0, '+', 0), (0, '-', 0)]);
        // It returns at the very end; one failure sends it away for twice as long, up to the most.
        check_ejections(
            &options,
            &[
                (0, '-', 0),
                (0, '-', 0),
                (0, '-', 4),
                (3, ' ', 4),
                (4, ' ', 0),
                (4, '-', 12),
                (12, '-', 28),
                (28, '-', 48),
                (48, '-', 68),
            ],
        );
        // What was on its way counts neither for nor against it.
        check_ejections(
            &options,
            &[
                (0, '-', 0),
                (0, '-', 0),
                (0, '-', 4),
                (1, '-', 4),
                (2, '+', 4),
                (3, '-', 4),
                (4, '-', 12),
            ],
        );
        // A success after its return forgives failures at once, the length only after as long again.
        check_ejections(
            &options,
            &[
                (0, '-', 0),
                (0, '-', 0),
                (0, '-', 4),
                (7, '+', 0),
                (7, '-', 0),
                (7, '-', 0),
                (7, '-', 15),
                (23, '+', 0),
                (24, '-', 0),
                (24, '-', 0),
                (24, '-', 28),
            ],
        );
        let never = HealthOptions { eject_failures: 0, ..options };
        check_ejections(&never, &[(0, '-', 0); 20]);
    }

    #[test]
    fn jitter_shortens_by_a_quarter_at_most() {
        let options = HealthOptions { eject_failures: 1, ..options(1, 1) };
        let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
        for random in 0..1000 {
            let mut record = Record::new(None);
            record.on_failure(Evidence::Connect, true, at(0), random, &options);
            let Health::Ejected { until } = record.health(at(0)) else { panic!("not ejected") };
            let length = until.since(at(0));
            assert!(length > 3 * SECOND && length <= 4 * SECOND, "{length:?}");
            (least, most) = (least.min(length), most.max(length));
        }
        // A thousand draws from a second come within 2 % of both ends, but for one in 10^8 seeds.
        assert!(least < 3 * SECOND + SECOND / 50 && most > 4 * SECOND - SECOND / 50);
    }

    #[test]
    fn the_longest_ejection_cannot_overflow() {
        let mut options = HealthOptions { eject_failures: 1, ..options(1, 1) };
        options.eject_max = Duration::MAX;
        let mut record = Record::new(None);
        for _ in 0..100 {
            let now = record.ejected_until;
            record.on_failure(Evidence::Connect, true, now, u64::MAX, &options);
        }
        assert_eq!(record.health(Time(u64::MAX - 1)), Health::Ejected { until: Time::NEVER });
    }

    #[test]
    fn down_is_said_of_one_that_is_both() {
        let options = HealthOptions { eject_failures: 1, ..options(1, 1) };
        let mut record = Record::new(None);
        record.on_failure(Evidence::Connect, true, at(0), 0, &options);
        record.on_check_result(false, at(0), &options);
        assert_eq!(record.health(at(1)), Health::Down);
        record.on_check_result(true, at(2), &options);
        assert_eq!(record.health(at(2)), Health::Ejected { until: at(4) });
    }

    #[test]
    fn slow_start_from_whichever_return_was_last() {
        let slow = 10 * SECOND;
        let options = HealthOptions { eject_failures: 1, ..options(1, 1) };
        let mut record = Record::new(None);
        assert_eq!(record.ramp(at(0), slow), 1000);
        record.on_admitted(at(10));
        for (second, want) in [(10, 100), (11, 190), (15, 550), (19, 910), (20, 1000), (99, 1000)] {
            assert_eq!(record.ramp(at(second), slow), want, "{second}");
        }
        assert_eq!(record.ramp(at(10), Duration::ZERO), 1000);
        // Ejected: all of it, for a panic. Back: slowly again.
        record.on_failure(Evidence::Connect, true, at(30), 0, &options);
        assert_eq!(record.ramp(at(33), slow), 1000);
        assert_eq!(record.ramp(at(34), slow), 100);
        assert_eq!(record.ramp(at(44), slow), 1000);
        record.on_check_result(false, at(50), &options);
        assert_eq!(record.ramp(at(50), slow), 1000);
        record.on_check_result(true, at(60), &options);
        assert_eq!(record.ramp(at(60), slow), 100);
        assert_eq!(record.ramp(at(65), slow), 550);
    }

    /// Failures of one network alone eject nobody, however many; one of another network, or a connect,
    /// makes them count. The same again after its return.
    #[test]
    fn failures_of_one_client_alone_eject_nobody() {
        let options = options(1, 1);
        let [a, near_a, b] = ["2001:db8::1", "2001:db8::2:1", "2001:db8:0:1::1"]
            .map(|address| Evidence::Client(address.parse().expect("an address")));
        for last in [b, Evidence::Connect] {
            let mut record = Record::new(None);
            for begin in [0, 4] {
                for number in 0..100 {
                    let who = if number % 2 == 0 { a } else { near_a };
                    record.on_failure(who, true, at(begin), 0, &options);
                    assert_eq!(record.health(at(begin)), Health::Up);
                }
                record.on_failure(last, false, at(begin), 0, &options);
                assert_eq!(record.health(at(begin)), Health::Up, "nobody else is left");
                record.on_failure(last, true, at(begin), 0, &options);
                let until = if begin == 0 { at(4) } else { at(12) };
                assert_eq!(record.health(at(begin)), Health::Ejected { until });
            }
        }
        // A success between forgives the one as well as the number.
        let mut record = Record::new(None);
        for who in [a, b, a, b] {
            record.on_failure(who, true, at(0), 0, &options);
            record.on_success(at(0));
        }
        (0..9).for_each(|_| record.on_failure(b, true, at(0), 0, &options));
        assert_eq!(record.health(at(0)), Health::Up);
    }
}
