//! What the control thread asks of a shard: another configuration, what a health check has found, to
//! empty an upstream.

use std::sync::Arc;

use super::Shard;
use super::attempt::{new_group, upstreams_of};
use super::drain::Whom;
use super::mailbox::Order;
use super::outlet::{new_rooms, room_limits};
use crate::config::{BackendKind, Config, Websocket};
use crate::conn::Counted;
use crate::ring::Ring;
use crate::upstream::{UpstreamId, UpstreamName};

impl<R: Ring> Shard<R> {
    pub(super) fn on_order(&mut self, order: Order) {
        match order {
            Order::Config(config) => self.on_config(&config),
            Order::Inspect(inspect) => self.on_inspect(*inspect),
            Order::Account(account) => self.on_account(*account),
            Order::Upstreams { backend, reply } => self.on_ask_upstreams(backend, reply),
            Order::Checked { backend, upstream, ok } => self.on_checked(backend, upstream, ok),
        }
    }

    /// A health check of an upstream has ended.
    fn on_checked(&mut self, backend: u16, upstream: UpstreamName, ok: bool) {
        // Either may have left the configuration since the check began.
        let Some(Some(group)) = self.groups.get_mut(usize::from(backend)) else { return };
        let Some(id) = group.find(upstream) else { return };
        if group.on_check_result(id, ok, self.now).is_none() {
            return;
        }
        self.room_made = true;
        // It may be another's: while too few were fit, nobody had to leave for his health.
        for id in self.emptied(backend) {
            self.empty(backend, id);
        }
    }

    /// Goes by another configuration from here on. Connections, rooms and groups stay what they are:
    /// the numbers of routes and backends mean the same as before, or are ones that nobody was on.
    fn on_config(&mut self, config: &Arc<Config>) {
        let mut emptied: Vec<_> =
            (0..self.groups.len()).map(|it| self.emptied(it as u16)).collect();
        let before = std::mem::replace(&mut self.config, Arc::clone(config));
        for (index, (before, after)) in before.backends.iter().zip(&config.backends).enumerate() {
            if !before.is_same(after) {
                self.forget_backend(index);
                emptied[index].clear();
            }
        }
        for (index, backend) in config.backends.iter().enumerate() {
            if index == self.groups.len() {
                self.groups.push(None);
                self.rooms.push(None);
                self.has_rooms.push(false);
                self.waiting.push(Default::default());
            }
            match &backend.kind {
                BackendKind::Echo | BackendKind::Refuse { .. } => {}
                BackendKind::Local(local) => {
                    let limits = room_limits(config, index as u16, local);
                    match &mut self.rooms[index] {
                        Some(rooms) => rooms.set_limits(limits),
                        empty => {
                            let (homes, random) = (self.shared.homes, &mut self.random);
                            let origin = self.unix_origin_ms;
                            *empty =
                                Some(new_rooms(config, limits, self.index, origin, homes, random));
                        }
                    }
                }
                BackendKind::Websocket(websocket) => self.on_upstreams(index as u16, websocket),
            }
        }
        self.sessions.set_limits(&config.limits);
        for backend in 0..self.groups.len() {
            let before = emptied.get(backend).map_or(&[][..], Vec::as_slice);
            for id in self.emptied(backend as u16) {
                if !before.contains(&id) {
                    self.empty(backend as u16, id);
                }
            }
        }
        self.room_made = true;
        self.accept_again_when_room();
        self.metrics.config_generation.set(config.generation);
    }

    /// The number of a backend means another one from here on.
    fn forget_backend(&mut self, index: usize) {
        self.rooms[index] = None;
        if self.has_rooms[index] {
            self.count_rooms(index, false);
        }
        self.groups[index] = None;
        self.waiting[index] = Default::default();
        self.sweeps.retain(|sweep| !sweep.is_of_backend(index));
    }

    /// The list of a backend's upstreams, as it is from here on.
    fn on_upstreams(&mut self, backend: u16, websocket: &Websocket) {
        let shards = self.config.server.shards;
        let place = &mut self.groups[usize::from(backend)];
        let Some(group) = place else {
            *place = Some(new_group(websocket, self.index, shards, &mut self.random));
            return;
        };
        let list = upstreams_of(websocket, self.index, shards);
        if let Err(fault) = group.reconfigure(websocket.options.clone(), list, self.now) {
            // The control thread has checked the list; only numbers can have run out.
            debug_assert!(false, "{fault}");
        }
    }

    /// Moves the clients of an upstream out.
    fn empty(&mut self, backend: u16, upstream: UpstreamId) {
        let window = self.config.server.drain_window;
        self.start_sweep(Whom::Upstream(Counted { backend, upstream }), window);
    }
}
