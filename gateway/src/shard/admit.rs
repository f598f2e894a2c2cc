//! Who is let in: clients are counted against `connections_max` of the process and of their route,
//! and by the address that they come from. Each count is taken once and given back when the slot is
//! free (`release_places`).
//!
//! Whoever is not let in is told so, by an answer to its request: 503 where there is no room for
//! anybody, 429 where its own address has had its share, both with a `Retry-After`.

use super::Shard;
use super::shortage::MEMORY_SHORT;
use crate::addresses::{AddressKey, Refusal};
use crate::conn::{ConnId, Side};
use crate::doorstep::silent_max;
use crate::limits::addresses_max;
use crate::metrics::Cause;
use crate::ring::Ring;
use crate::route::{Route, RouteIndex};

impl<R: Ring> Shard<R> {
    /// Counts a client as one that has not asked for anything yet. `false`: its address has as many
    /// of those as it may have, and this one is not counted. Proxies speak for many, and may have
    /// any number.
    pub(super) fn come_to_door(&mut self, id: ConnId) -> bool {
        let Shard { table, shared, config, .. } = self;
        let conn = &mut table[id];
        let (listener, ip) = (conn.addresses.listener(), conn.addresses.peer().ip());
        if config.listeners[listener].access.trusted_proxies.contains(ip) {
            return true;
        }
        let max = silent_max(config.limits.connections_max);
        conn.flags.at_door = shared.doorstep.enter(listener, ip, max);
        conn.flags.at_door
    }

    /// It has asked for something, or is gone.
    pub(super) fn leave_door(&mut self, id: ConnId) {
        let conn = &mut self.table[id];
        if std::mem::take(&mut conn.flags.at_door) {
            self.shared.doorstep.leave(conn.addresses.listener(), conn.addresses.peer().ip());
        }
    }

    /// Takes a place for one more client that is served.
    pub(super) fn take_place(&self) -> bool {
        self.accept_limits.has_room(&self.table)
            && !self.is_memory_short()
            && self.shared.clients.try_take(self.config.limits.connections_max)
    }

    /// Whether a client may ask for something. One that came above the limit may when others have
    /// left meanwhile.
    pub(super) fn admit_client(&mut self, id: ConnId) -> bool {
        if !self.table[id].flags.surplus {
            return true;
        }
        if !self.take_place() {
            if self.is_memory_short() {
                self.metrics.memory_refused.add(1);
                self.refuse(id, 503, Cause::MemoryShort, MEMORY_SHORT);
                return false;
            }
            let why = "connections_max: the gateway has as many clients as it may have";
            self.refuse(id, 503, Cause::MemoryPressure, why);
            return false;
        }
        self.surplus -= 1;
        self.table[id].flags.surplus = false;
        true
    }

    /// Counts a client with its route and its address, once each, however many requests it makes.
    /// `false`: it has been refused.
    pub(super) fn admit_to_route(&mut self, id: ConnId, route: &Route, is_upgrade: bool) -> bool {
        let policy = &route.policy;
        if policy.rates.limit_addresses()
            && let Err(refusal) = self.admit_address(id, route, is_upgrade)
        {
            let (status, cause, why) = match refusal {
                Refusal::Connections => (
                    429,
                    Cause::RateLimited,
                    "address_connections_max: your address has as many connections as it may have",
                ),
                Refusal::Handshakes => (
                    429,
                    Cause::RateLimited,
                    "address_handshakes_per_second: your address connects too often",
                ),
                Refusal::TableFull => {
                    (503, Cause::MemoryPressure, "clients come from too many addresses")
                }
            };
            self.refuse(id, status, cause, why);
            return false;
        }
        if self.table[id].flags.on_route {
            return true;
        }
        let places = &self.shared.route(route.index.0).clients;
        match policy.connections_max {
            0 => places.take(),
            max if places.try_take(max) => {}
            _ => {
                let why = "connections_max: this route has as many clients as it may have";
                self.refuse(id, 503, Cause::MemoryPressure, why);
                return false;
            }
        }
        self.table[id].flags.on_route = true;
        true
    }

    /// A request of a client has been routed. With another route than its last one it counts no more
    /// where it did; it is yet to be admitted to this one.
    pub(super) fn set_route(&mut self, id: ConnId, route: RouteIndex) {
        let Shard { table, shared, .. } = self;
        let conn = &mut table[id];
        conn.flags.routed = true;
        if conn.route == route.0 {
            return;
        }
        if std::mem::take(&mut conn.flags.on_route) {
            shared.route(conn.route).clients.give_back();
        }
        conn.route = route.0;
        // The number of that backend may mean another one from here on.
        conn.counted = None;
    }

    fn admit_address(
        &mut self,
        id: ConnId,
        route: &Route,
        is_upgrade: bool,
    ) -> Result<(), Refusal> {
        let Shard { table, shared, config, now, .. } = self;
        let (conn, rates) = (&mut table[id], &route.policy.rates);
        let (ip, entries_max) = (conn.client_ip(), addresses_max(&config.limits));
        if is_upgrade && rates.address_handshakes.is_limit() {
            shared.addresses.handshake(ip, *now, &rates.address_handshakes, entries_max)?;
        }
        let meter = conn.meter.get_or_insert_default();
        let key = AddressKey::of(ip);
        if meter.address.as_ref().is_some_and(|address| address.key() == key) {
            return Ok(());
        }
        // Who speaks for another client now counts as that one.
        if let Some(address) = meter.address.take() {
            shared.addresses.close(&address, *now);
        }
        let max = rates.address_connections_max;
        meter.address = Some(shared.addresses.open(ip, *now, max, entries_max)?);
        Ok(())
    }

    /// A slot becomes free: so do its places.
    pub(super) fn release_places(&mut self, id: ConnId) {
        self.leave_door(id);
        let Shard { table, shared, surplus, now, .. } = self;
        let conn = &mut table[id];
        let was_on_route = std::mem::take(&mut conn.flags.on_route);
        if conn.side != Side::Client {
            if was_on_route {
                shared.route(conn.route).upstreams.give_back();
            }
            return;
        }
        if was_on_route {
            shared.route(conn.route).clients.give_back();
        }
        if conn.flags.surplus {
            *surplus -= 1;
        } else {
            shared.clients.give_back();
        }
        let Some(meter) = conn.meter.take() else { return };
        if let Some(address) = &meter.address {
            shared.addresses.close(address, *now);
        }
    }
}
