//! What the shards of one process share, and count together: at an open and a close, never per
//! message. The one exception, what all connections of an address may do, is in [`Address`].
//!
//! [`Address`]: crate::addresses::Address

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::addresses::Addresses;
use crate::budget::Budget;
use crate::config::succession::Number;
use crate::doorstep::Doorstep;
use crate::keyed_hash::HashKey;
use crate::limits::{BACKEND_NUMBERS_MAX, ROUTE_NUMBERS_MAX};
use crate::makers::Makers;

/// The counts of one process.
#[derive(Debug)]
pub struct Shared {
    /// Clients that are served: at most `connections_max` of `[limits]`.
    pub clients: Places,
    /// Shards in which there are rooms of a backend, by its number.
    pub rooms: Box<[Places]>,
    /// The budget for memory, and its use.
    pub budget: Arc<Budget>,
    /// Where clients come from, where that is limited.
    pub addresses: Addresses,
    /// The connections that have not asked for anything yet.
    pub doorstep: Doorstep,
    /// Which shard is the home of a room and of a user of rooms: see [`HashKey::place_of`].
    pub homes: HashKey,
    /// The makers of the rooms that there are.
    pub makers: Arc<Makers>,
    /// Who is on each route, by its number: most have few routes, so it is made in pieces.
    routes: Box<[OnceLock<Box<[OnRoute]>>]>,
}

/// Routes whose counts are made together.
const ROUTES_PER_PIECE: usize = 256;

#[cfg(test)]
impl Default for Shared {
    fn default() -> Shared {
        Shared::new(HashKey::draw(&mut crate::random::Random::new([0, 0])))
    }
}

impl Shared {
    /// Nothing is counted. `homes` is drawn for this process, so that no peer can say which names have
    /// their home in the same shard.
    pub fn new(homes: HashKey) -> Shared {
        let pieces = ROUTE_NUMBERS_MAX.div_ceil(ROUTES_PER_PIECE);
        Shared {
            clients: Places::default(),
            rooms: (0..BACKEND_NUMBERS_MAX).map(|_| Places::default()).collect(),
            budget: Arc::default(),
            addresses: Addresses::default(),
            doorstep: Doorstep::default(),
            homes,
            makers: Arc::default(),
            routes: (0..pieces).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The clients on the route with this number.
    pub fn route(&self, number: u16) -> &OnRoute {
        let number = usize::from(number);
        let piece = self.routes[number / ROUTES_PER_PIECE]
            .get_or_init(|| (0..ROUTES_PER_PIECE).map(|_| OnRoute::default()).collect());
        &piece[number % ROUTES_PER_PIECE]
    }

    /// Bytes of the counts of routes and backends, without the addresses. For the memory ledger.
    pub fn held_bytes(&self) -> usize {
        let pieces = self.routes.iter().filter(|piece| piece.get().is_some()).count();
        size_of::<Shared>()
            + size_of_val(&*self.rooms)
            + size_of_val(&*self.routes)
            + self.doorstep.held_bytes()
            + self.makers.held_bytes()
            + pieces * ROUTES_PER_PIECE * size_of::<OnRoute>()
    }

    /// Whether a number that is retired in the configuration of all shards means something to one of
    /// them still, so that it cannot be given away.
    pub fn is_in_use(&self, number: Number) -> bool {
        match number {
            Number::Route(route) => {
                let OnRoute { clients, upstreams } = self.route(route.0);
                clients.taken() > 0 || upstreams.taken() > 0
            }
            // Its connections are on the routes that lead to it.
            Number::Backend(backend) => self.rooms[usize::from(backend)].taken() > 0,
        }
    }
}

/// The clients on a route.
#[derive(Debug, Default)]
pub struct OnRoute {
    /// Clients that were admitted to it, until their slot is free or they are led elsewhere: at most
    /// its `connections_max`, unless that was narrowed since.
    pub clients: Places,
    /// Connections to upstreams on behalf of such clients, which may outlive them for a while.
    pub upstreams: Places,
}

/// A number of places, of which each is taken by one client until it is given back.
#[derive(Debug, Default)]
pub struct Places {
    taken: AtomicU32,
}

impl Places {
    /// Takes one, unless `max` are taken. Exact: of several that ask for the last one, one gets it,
    /// and nobody is refused while there is one.
    pub fn try_take(&self, max: u32) -> bool {
        let one_more = |taken| (taken < max).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Takes one more, however many are taken.
    pub fn take(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives one back.
    pub fn give_back(&self) {
        // What its client has left in a journal is there for whoever sees the place free.
        let before = self.taken.fetch_sub(1, Ordering::Release);
        assert!(before > 0, "a place was given back twice");
    }

    /// How many are taken.
    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::RouteIndex;

    #[test]
    fn the_last_place_is_taken_once() {
        let places = Places::default();
        let taken = || (0..20_000).filter(|_| places.try_take(30_000)).count();
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(taken)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!((taken, places.taken()), (30_000, 30_000));
        assert!(!places.try_take(30_000));
        places.give_back();
        assert!(places.try_take(30_000));
    }

    #[test]
    fn a_number_is_in_use_while_anybody_is_on_it() {
        let shared = Shared::default();
        let last = (ROUTE_NUMBERS_MAX - 1) as u16;
        for number in [0, 255, 256, last] {
            let route = Number::Route(RouteIndex(number));
            for places in [&shared.route(number).clients, &shared.route(number).upstreams] {
                places.take();
                assert!(shared.is_in_use(route));
                places.give_back();
                assert!(!shared.is_in_use(route));
            }
        }
        let backend = (BACKEND_NUMBERS_MAX - 1) as u16;
        shared.rooms[usize::from(backend)].take();
        assert!(shared.is_in_use(Number::Backend(backend)));
        assert!(!shared.is_in_use(Number::Backend(backend - 1)));
    }
}
