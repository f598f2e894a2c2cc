//! Groups of upstreams: which of them a new client goes to.
//!
//! A shard has one [`Group`] per websocket backend, of its own: it counts the connections of this
//! shard and judges by what this shard's clients met, and what the operator and the health checks
//! say reaches every shard by mail. There is no I/O here, no clock and no randomness; `now` and
//! random numbers are handed in.
//!
//! The life of a client in a group, as its shard tells it:
//!
//! ```text
//!   pick -> Upstream(id): on_picked(id) --+--> on_opened(id) ---> on_closed(id)
//!    ^                                    +--> on_answered(id)         it said no, in good health
//!    |                                    +--> on_abandoned(id)        the client left first, or
//!    |                                           |                     the upstream failed it
//!    +-- tried.push(id) <------------------------+--> on_evidence(id)  where that is its fault
//!        while the client has no 101
//! ```
//!
//! Each `on_picked` is followed by exactly one of the second column, and each `on_opened` by one
//! `on_closed`, so that the counts come out even.
//!
//! Read on in `upstream/balance.rs` (who is chosen), `health.rs` (who may be), `key.rs` (what a
//! client is placed by), `cookie.rs` and `sids.rs` with `open_packet.rs` (who comes back to the
//! same one), `address.rs` and `hash.rs`.

mod address;
mod balance;
mod cookie;
mod hash;
mod health;
mod key;
mod open_packet;
mod sids;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::http::Headers;
use crate::time::Time;

use hash::mix;
use health::Record;

pub use address::{
    Place, UNIX_PATH_BYTES_MAX, UpstreamAddress, UpstreamName, UpstreamUrl, places_of,
};
pub use cookie::{COOKIE_NAME_DEFAULT, CookieToken, SameSite, StickyCookie};
pub use hash::stable_hash;
pub use health::{Checked, Evidence, Health, HealthOptions};
pub use key::{HashKey, cookie_value, is_engine_io, sid_of};
pub use open_packet::{OPEN_PACKET_BYTES_MAX, OpenScan, OpenScanner, SID_BYTES_MAX};
pub use sids::{Sid, Sids};

/// Upstreams in one group. A pick looks at each of them.
pub const UPSTREAMS_MAX: usize = 1024;

/// The largest weight; the smallest is 1.
pub const WEIGHT_MAX: u32 = 1000;

/// Upstreams that one client tries before it is told that none could be reached.
pub const TRIED_MAX: usize = 8;

/// Upstreams that have left the list and still have connections. Above it the one that left first
/// is forgotten: its connections go on, and would not be counted if it came back.
pub const LEAVING_MAX: usize = 1024;

/// How a group chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// In turn, by weight.
    RoundRobin,
    /// The fewest connections for its weight.
    LeastConnections,
    /// The better of two that are drawn by weight.
    RandomTwo,
    /// Clients of one key go to one upstream. Slow start has no part in this: a shard's own view
    /// of time would place the same key differently in each of them.
    Hash {
        /// What a client is placed by.
        key: HashKey,
        /// An upstream gets no client above this much of its even share, in percent; at least 100.
        /// `None`: it gets whatever hashes to it.
        load_factor_percent: Option<u32>,
    },
}

/// [`Balance::Hash`] with a bound, when the file does not say how high it is.
pub const LOAD_FACTOR_PERCENT_DEFAULT: u32 = 125;

/// What holds for a whole group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOptions {
    /// How it chooses.
    pub balance: Balance,
    /// How health is judged.
    pub health: HealthOptions,
    /// From the moment an upstream becomes available until it gets its whole share, which begins
    /// at a tenth. Zero: at once. What is there when the gateway starts starts whole.
    pub slow_start: Duration,
    /// When fewer than this many percent of the active upstreams are fit, health is ignored: the
    /// few could not carry what all had, and perhaps it is the checks that fail. 0: never.
    pub panic_percent: u32,
    /// The cookie that brings browsers back to their upstream. `None`: there is none.
    pub cookie: Option<StickyCookie>,
    /// Whether sessions of Engine.IO are brought back to the upstream that issued them.
    pub sticky_sid: bool,
}

impl Default for GroupOptions {
    fn default() -> GroupOptions {
        GroupOptions {
            balance: Balance::LeastConnections,
            health: HealthOptions::default(),
            slow_start: Duration::ZERO,
            panic_percent: 25,
            cookie: None,
            sticky_sid: true,
        }
    }
}

/// One upstream, as the operator wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSpec {
    /// The URL as the operator wrote it.
    pub url: UpstreamUrl,
    /// The address that the URL resolved to.
    pub address: UpstreamAddress,
    /// The same server's other address: see [`places_of`].
    pub other: Option<UpstreamAddress>,
    /// Its part of the clients against the others': 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// Connections of this shard at most, those being opened included; 0: any number. See
    /// [`connections_share`].
    pub connections_max: u32,
    /// Whether clients may come.
    pub mode: Mode,
}

/// Whether clients may come to an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They may.
    #[default]
    Active,
    /// No new ones; sessions that it has issued go on to it.
    Draining,
    /// Nothing goes there.
    Disabled,
}

/// Whether an upstream gets clients, and why not; the worse the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It gets its share.
    Up,
    /// It gets less, and more every moment.
    SlowStart,
    /// It failed clients, and gets none for a while.
    Ejected,
    /// Its checks fail.
    Down,
    /// The operator sends it no new ones.
    Draining,
    /// The operator sends it nothing.
    Disabled,
}

impl Standing {
    /// The name in answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Up => "up",
            Standing::SlowStart => "slow_start",
            Standing::Ejected => "ejected",
            Standing::Down => "down",
            Standing::Draining => "draining",
            Standing::Disabled => "disabled",
        }
    }
}

/// The part of a maximum for the whole process that is one shard's, so that all parts add up to
/// it. A maximum below the number of shards leaves some with nothing; the configuration has to
/// refuse it, as 0 means any number.
pub fn connections_share(total: u32, shard: u16, shards: u16) -> u32 {
    let (shard, shards) = (u32::from(shard), u32::from(shards));
    total / shards + u32::from(shard < total % shards)
}

/// An upstream in the calls of one group. It is the same for as long as the upstream is in the
/// list or has connections, and never another's. Never zero, so that `None` takes no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamId(NonZeroU32);

/// An upstream of a group.
#[derive(Clone, Debug)]
pub struct Upstream {
    id: UpstreamId,
    name: UpstreamName,
    spec: UpstreamSpec,
    token: Option<CookieToken>,
    record: Record,
    /// Open, and being opened.
    connections: u32,
    /// How much of the clients it is due in the pick that is going on, in thousandths of weight; 0
    /// when it is no candidate.
    share: u64,
    /// What round robin owes it, in the same unit.
    owed: i64,
}

impl Upstream {
    /// Its number in this group.
    pub fn id(&self) -> UpstreamId {
        self.id
    }

    /// The name of the upstream, the same in every shard and gateway.
    pub fn name(&self) -> UpstreamName {
        self.name
    }

    /// The upstream as the operator wrote it.
    pub fn spec(&self) -> &UpstreamSpec {
        &self.spec
    }

    /// The value of its cookie, where the group has one.
    pub fn token(&self) -> Option<CookieToken> {
        self.token
    }

    /// Connections of this shard to it, those being opened included.
    pub fn connections(&self) -> u32 {
        self.connections
    }

    /// How it is.
    pub fn health(&self, now: Time) -> Health {
        self.record.health(now)
    }

    /// How it stands with what the operator wants and with how it is; `slow_start` is its group's.
    pub fn standing(&self, slow_start: Duration, now: Time) -> Standing {
        match (self.spec.mode, self.health(now)) {
            (Mode::Disabled, _) => Standing::Disabled,
            (Mode::Draining, _) => Standing::Draining,
            (Mode::Active, Health::Down) => Standing::Down,
            (Mode::Active, Health::Ejected { .. }) => Standing::Ejected,
            (Mode::Active, Health::Up) if self.record.ramp(now, slow_start) < 1000 => {
                Standing::SlowStart
            }
            (Mode::Active, Health::Up) => Standing::Up,
        }
    }

    fn is_fit(&self, now: Time) -> bool {
        self.health(now) == Health::Up
    }

    fn is_full(&self) -> bool {
        self.spec.connections_max > 0 && self.connections >= self.spec.connections_max
    }
}

/// A client that needs an upstream.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// What [`HashKey::of`] made of its request; only [`Balance::Hash`] looks at it.
    pub key: u64,
    /// Where it was before.
    pub sticky: Sticky,
    /// Drawn for this pick alone.
    pub random: u64,
}

/// Where a client was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// Nobody knows, or it makes no difference.
    Nowhere,
    /// A session that only this upstream knows: it goes there even while it drains, and waits
    /// when it is full. It goes elsewhere, and will be told to begin anew, when that one is not
    /// fit.
    Session(UpstreamId),
    /// Its cookie says so: it goes there as long as a new client could.
    Cookie(UpstreamId),
}

/// Where a client goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// There.
    Upstream(UpstreamId),
    /// Nowhere yet: whoever is fit has as many connections as it may have. The end of any
    /// connection of this group is the moment to ask again.
    Wait,
    /// Nowhere: nobody is fit whom it has not tried.
    None,
}

/// The upstreams that a client has tried in vain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    ids: [Option<UpstreamId>; TRIED_MAX],
    count: u8,
}

impl Tried {
    /// It tried this one. After [`TRIED_MAX`] there is nothing more to try, and [`Group::pick`]
    /// answers [`Pick::None`].
    pub fn push(&mut self, id: UpstreamId) {
        if let Some(place) = self.ids.get_mut(usize::from(self.count)) {
            *place = Some(id);
            self.count += 1;
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    fn is_full(&self) -> bool {
        self.count() == TRIED_MAX
    }

    fn contains(&self, id: UpstreamId) -> bool {
        self.ids[..self.count()].contains(&Some(id))
    }
}

/// Why a list of upstreams is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListFault {
    /// More than [`UPSTREAMS_MAX`].
    TooMany(usize),
    /// Listed twice.
    Twice(UpstreamUrl),
    /// Its weight is not from 1 to [`WEIGHT_MAX`].
    Weight(UpstreamUrl, u32),
    /// No number is left for a new upstream.
    OutOfIds,
}

impl fmt::Display for ListFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListFault::TooMany(count) => write!(
                f,
                "{count} upstreams: at most {UPSTREAMS_MAX} are supported in one backend; remove \
                 some, or put a balancer behind"
            ),
            ListFault::Twice(url) => write!(
                f,
                "{url} is listed twice: it is one upstream; remove one of the two and give the \
                 other a higher weight"
            ),
            ListFault::Weight(url, weight) => write!(
                f,
                "the weight of {url} is {weight}: it is a number from 1 to {WEIGHT_MAX}; to send \
                 it no clients, drain it"
            ),
            ListFault::OutOfIds => f.write_str(
                "the list has changed four billion times: no number is left for a new upstream; \
                 restart the gateway",
            ),
        }
    }
}

impl std::error::Error for ListFault {}

/// The upstreams of one backend, as one shard sees them.
#[derive(Debug)]
pub struct Group {
    options: GroupOptions,
    /// Those of the list, by id.
    upstreams: Vec<Upstream>,
    /// Those that have left the list and still have connections, in the order they left.
    leaving: Vec<Leaving>,
    next_id: u32,
    /// Lets round robin begin elsewhere in each shard.
    random: u64,
}

/// What is kept of an upstream that left the list.
#[derive(Debug)]
struct Leaving {
    id: UpstreamId,
    name: UpstreamName,
    connections: u32,
}

impl Group {
    /// A group whose upstreams are all thought to be well. With a `random` of its own per shard,
    /// their first clients do not all meet at the same upstream.
    pub fn new(
        options: GroupOptions,
        list: Vec<UpstreamSpec>,
        random: u64,
    ) -> Result<Group, ListFault> {
        let mut group =
            Group { options, upstreams: Vec::new(), leaving: Vec::new(), next_id: 0, random };
        group.replace_list(list, None)?;
        Ok(group)
    }

    /// Takes on another list and other options. An upstream is known again by its URL and address
    /// (see [`UpstreamName`]): it keeps its id, its connections, its health and how far its slow
    /// start is. New ones begin theirs. Those that are gone get no more clients; the ends of their
    /// connections are still to be reported, and if they come back in time so do their counts.
    ///
    /// # Errors
    ///
    /// A faulty list changes nothing.
    pub fn reconfigure(
        &mut self,
        options: GroupOptions,
        list: Vec<UpstreamSpec>,
        now: Time,
    ) -> Result<(), ListFault> {
        let before = std::mem::replace(&mut self.options, options);
        self.replace_list(list, Some(now)).inspect_err(|_| self.options = before)
    }

    /// `now` is when upstreams that are new become available; `None`: they were always.
    fn replace_list(
        &mut self,
        list: Vec<UpstreamSpec>,
        now: Option<Time>,
    ) -> Result<(), ListFault> {
        let wanted = check_list(list)?;
        if u32::MAX - self.next_id < wanted.len() as u32 {
            return Err(ListFault::OutOfIds);
        }
        let mut upstreams = Vec::with_capacity(wanted.len());
        let mut old: BTreeMap<UpstreamName, Upstream> =
            self.upstreams.drain(..).map(|upstream| (upstream.name, upstream)).collect();
        for (name, spec) in wanted {
            let token = self.options.cookie.as_ref().map(|cookie| cookie.token(name));
            upstreams.push(match old.remove(&name) {
                Some(mut upstream) => {
                    upstream.set_mode(spec.mode, now);
                    Upstream { spec, token, ..upstream }
                }
                None => self.admit(name, spec, token, now),
            });
        }
        upstreams.sort_by_key(|upstream: &Upstream| upstream.id);
        self.upstreams = upstreams;
        let mut left: Vec<Upstream> = old.into_values().collect();
        left.sort_by_key(|upstream| upstream.id);
        for Upstream { id, name, connections, .. } in left {
            if connections > 0 {
                self.leaving.push(Leaving { id, name, connections });
            }
        }
        self.leaving.drain(..self.leaving.len().saturating_sub(LEAVING_MAX));
        Ok(())
    }

    /// An upstream that was not in the list, but may have been before.
    fn admit(
        &mut self,
        name: UpstreamName,
        spec: UpstreamSpec,
        token: Option<CookieToken>,
        now: Option<Time>,
    ) -> Upstream {
        let known = self.leaving.iter().position(|leaving| leaving.name == name);
        let (id, connections) = match known.map(|index| self.leaving.remove(index)) {
            Some(Leaving { id, connections, .. }) => (id, connections),
            None => {
                self.next_id += 1;
                let id = NonZeroU32::new(self.next_id).expect("it has just been raised");
                (UpstreamId(id), 0)
            }
        };
        // Anywhere in its first turn of the round. A `random` of 0 is the beginning.
        let turn = mix(name.0).wrapping_mul(self.random);
        let owed = ((u128::from(turn) * u128::from(spec.weight) * 1000) >> 64) as i64;
        let record = Record::new(now);
        Upstream { id, name, spec, token, record, connections, share: 0, owed }
    }

    /// Says where `client` goes. Nothing is counted before [`on_picked`](Group::on_picked), but
    /// round robin goes on by one. Looks at each upstream a few times and allocates nothing.
    pub fn pick(&mut self, client: &Client, now: Time, tried: &Tried) -> Pick {
        if tried.is_full() {
            return Pick::None;
        }
        let panics = self.panics(now);
        if let Some(pick) = self.pick_sticky(client.sticky, now, panics, tried) {
            return pick;
        }
        let is_hash = matches!(self.options.balance, Balance::Hash { .. });
        let (mut any_fit, mut any_room) = (false, false);
        for upstream in &mut self.upstreams {
            upstream.share = 0;
            if upstream.spec.mode != Mode::Active
                || !(panics || upstream.is_fit(now))
                || tried.contains(upstream.id)
            {
                continue;
            }
            any_fit = true;
            if upstream.is_full() {
                continue;
            }
            any_room = true;
            let slow_start = if is_hash { Duration::ZERO } else { self.options.slow_start };
            upstream.share =
                u64::from(upstream.spec.weight) * upstream.record.ramp(now, slow_start);
        }
        match (any_fit, any_room) {
            (false, _) => return Pick::None,
            (true, false) => return Pick::Wait,
            (true, true) => {}
        }
        let upstreams = &mut self.upstreams;
        let index = match &self.options.balance {
            Balance::RoundRobin => balance::round_robin(upstreams),
            Balance::LeastConnections => balance::least_connections(upstreams, client.random),
            Balance::RandomTwo => balance::random_two(upstreams, client.random),
            Balance::Hash { load_factor_percent, .. } => {
                balance::hash(upstreams, client.key, *load_factor_percent)
            }
        };
        Pick::Upstream(self.upstreams[index].id)
    }

    fn pick_sticky(&self, sticky: Sticky, now: Time, panics: bool, tried: &Tried) -> Option<Pick> {
        let (id, is_session) = match sticky {
            Sticky::Nowhere => return None,
            Sticky::Session(id) => (id, true),
            Sticky::Cookie(id) => (id, false),
        };
        let upstream = self.get(id)?;
        let may_come = match upstream.spec.mode {
            Mode::Active => true,
            Mode::Draining => is_session,
            Mode::Disabled => false,
        };
        if !may_come || !(panics || upstream.is_fit(now)) || tried.contains(id) {
            return None;
        }
        match (upstream.is_full(), is_session) {
            (false, _) => Some(Pick::Upstream(id)),
            (true, true) => Some(Pick::Wait),
            (true, false) => None,
        }
    }

    /// Whether so few of the active upstreams are fit that health is ignored.
    pub fn panics(&self, now: Time) -> bool {
        let (mut active, mut fit) = (0_u64, 0_u64);
        for upstream in &self.upstreams {
            if upstream.spec.mode == Mode::Active {
                active += 1;
                fit += u64::from(upstream.is_fit(now));
            }
        }
        fit * 100 < u64::from(self.options.panic_percent) * active
    }

    /// A client is on its way to an upstream.
    pub fn on_picked(&mut self, id: UpstreamId) {
        if let Some(upstream) = self.get_mut(id) {
            upstream.connections += 1;
        } else if let Some(index) = self.leaving_index(id) {
            self.leaving[index].connections += 1;
        }
    }

    /// The upstream accepted the client: its 101 is there.
    pub fn on_opened(&mut self, id: UpstreamId, now: Time) {
        if let Some(upstream) = self.get_mut(id) {
            upstream.record.on_success(now);
        }
    }

    /// The upstream answered with something else that speaks of the client, not of itself: a 4xx,
    /// a polling response. The attempt is over.
    pub fn on_answered(&mut self, id: UpstreamId, now: Time) {
        self.on_opened(id, now);
        self.on_closed(id);
    }

    /// The attempt is over, and says nothing of the upstream by itself: the client left before there was
    /// an answer, or what speaks against the upstream follows ([`on_evidence`](Group::on_evidence)).
    pub fn on_abandoned(&mut self, id: UpstreamId) {
        self.on_closed(id);
    }

    /// Something speaks against an upstream whose attempt was over before, by
    /// [`on_abandoned`](Group::on_abandoned). `random` is drawn for this. Answers the health when this has
    /// changed it.
    pub fn on_evidence(
        &mut self,
        id: UpstreamId,
        evidence: Evidence,
        now: Time,
        random: u64,
    ) -> Option<Health> {
        let options = self.options.health;
        let (mut active, mut ejected) = (0, 0);
        for upstream in self.upstreams.iter().filter(|it| it.spec.mode == Mode::Active) {
            active += 1;
            ejected += usize::from(upstream.record.is_ejected(now));
        }
        let may_eject = 2 * (ejected + 1) <= active;
        self.judge(id, now, |record| record.on_failure(evidence, may_eject, now, random, &options))
    }

    /// A connection that was open is not any more. Of an upstream that has left the list this is
    /// counted as well, and of one that was forgotten it is no matter.
    ///
    /// # Panics
    ///
    /// When more is closed than was picked, which is a bug of the shard.
    pub fn on_closed(&mut self, id: UpstreamId) {
        let one_less =
            |connections: u32| connections.checked_sub(1).expect("a close follows a pick");
        if let Some(upstream) = self.get_mut(id) {
            upstream.connections = one_less(upstream.connections);
        } else if let Some(index) = self.leaving_index(id) {
            let leaving = &mut self.leaving[index];
            leaving.connections = one_less(leaving.connections);
            if leaving.connections == 0 {
                self.leaving.remove(index);
            }
        }
    }

    /// What a health check has found. Answers the health when this has changed it.
    pub fn on_check_result(&mut self, id: UpstreamId, ok: bool, now: Time) -> Option<Health> {
        let options = self.options.health;
        self.judge(id, now, |record| record.on_check_result(ok, now, &options))
    }

    fn judge(
        &mut self,
        id: UpstreamId,
        now: Time,
        change: impl FnOnce(&mut Record),
    ) -> Option<Health> {
        let upstream = self.get_mut(id)?;
        let before = upstream.health(now);
        change(&mut upstream.record);
        let after = upstream.health(now);
        (after != before).then_some(after)
    }

    /// Lets clients come or keeps them away, until the next list says otherwise.
    pub fn set_mode(&mut self, id: UpstreamId, mode: Mode, now: Time) {
        if let Some(upstream) = self.get_mut(id) {
            upstream.set_mode(mode, Some(now));
        }
    }

    /// An upstream was reached at its other address, where clients are sent from here on.
    pub fn on_other_address(&mut self, id: UpstreamId) {
        if let Some(Upstream { spec, .. }) = self.get_mut(id)
            && let Some(other) = &mut spec.other
        {
            std::mem::swap(&mut spec.address, other);
        }
    }

    /// The options it goes by.
    pub fn options(&self) -> &GroupOptions {
        &self.options
    }

    /// The upstreams of the list, in the order they first came into it.
    pub fn upstreams(&self) -> &[Upstream] {
        &self.upstreams
    }

    /// An upstream of the list.
    pub fn get(&self, id: UpstreamId) -> Option<&Upstream> {
        self.index(id).map(|index| &self.upstreams[index])
    }

    /// The upstream of the list that has this name: what another shard or gateway said.
    pub fn find(&self, name: UpstreamName) -> Option<UpstreamId> {
        self.upstreams.iter().find(|upstream| upstream.name == name).map(Upstream::id)
    }

    /// The upstream of the list that the client's cookie names. `None` as well when the group has
    /// no cookie; whoever gets `None` and has one is to be sent the cookie with its answer.
    pub fn find_cookie(&self, headers: &Headers<'_>) -> Option<UpstreamId> {
        let token = self.options.cookie.as_ref()?.read(headers)?;
        let named = |upstream: &&Upstream| upstream.token == Some(token);
        self.upstreams.iter().find(named).map(Upstream::id)
    }

    /// Connections of this shard to an upstream, be it in the list or not any more.
    pub fn connections(&self, id: UpstreamId) -> u32 {
        match (self.get(id), self.leaving_index(id)) {
            (Some(upstream), _) => upstream.connections,
            (None, Some(index)) => self.leaving[index].connections,
            (None, None) => 0,
        }
    }

    /// Connections to upstreams that have left the list.
    pub fn leaving_connections(&self) -> u64 {
        self.leaving.iter().map(|leaving| u64::from(leaving.connections)).sum()
    }

    /// Upstreams that have left the list, and the connections that they still have.
    pub fn leaving(&self) -> impl Iterator<Item = (UpstreamId, u32)> {
        self.leaving.iter().map(|leaving| (leaving.id, leaving.connections))
    }

    fn get_mut(&mut self, id: UpstreamId) -> Option<&mut Upstream> {
        self.index(id).map(|index| &mut self.upstreams[index])
    }

    fn index(&self, id: UpstreamId) -> Option<usize> {
        self.upstreams.binary_search_by_key(&id, Upstream::id).ok()
    }

    fn leaving_index(&self, id: UpstreamId) -> Option<usize> {
        self.leaving.iter().position(|leaving| leaving.id == id)
    }
}

impl Upstream {
    fn set_mode(&mut self, mode: Mode, now: Option<Time>) {
        if let Some(now) = now
            && self.spec.mode != Mode::Active
            && mode == Mode::Active
        {
            self.record.on_admitted(now);
        }
        self.spec.mode = mode;
    }
}

/// The list by name, in its own order.
fn check_list(list: Vec<UpstreamSpec>) -> Result<Vec<(UpstreamName, UpstreamSpec)>, ListFault> {
    if list.len() > UPSTREAMS_MAX {
        return Err(ListFault::TooMany(list.len()));
    }
    let mut names = std::collections::BTreeSet::new();
    let mut named = Vec::with_capacity(list.len());
    for spec in list {
        if !(1..=WEIGHT_MAX).contains(&spec.weight) {
            return Err(ListFault::Weight(spec.url, spec.weight));
        }
        let name = UpstreamName::new(&spec.url, &spec.address);
        if !names.insert(name) {
            return Err(ListFault::Twice(spec.url));
        }
        named.push((name, spec));
    }
    Ok(named)
}
