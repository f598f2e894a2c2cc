//! Sessions of Engine.IO find the upstream again that issued them, to whichever shard their
//! requests come. The design stands in `upstream/sids.rs`; this is the mail.
//!
//! ```text
//!   start_attempt:  session_of --> known here, or nobody is asked: begin_attempt tries an upstream
//!                       |
//!                       +-- ask (home) ...... on_sid_mail --> on_session_found --> try_upstream
//!
//!   forward_answer: watch_opening --> learn (home) ...... on_sid_mail
//! ```
//!
//! # What a client may rely on
//!
//! Once a byte of the answer that names a `sid` is on its way, the mail that makes it known is in
//! the inbox of its home, or there was no room for it: a turn posts its mail before it hands its
//! answers to the kernel (`Shard::turn`). Whoever asks has read that answer, so the question comes
//! behind it. A full inbox breaks this: such a session may be asked for before it is known, and then
//! begins anew.

use super::Shard;
use super::attempt::attempt_of;
use super::close::upstream_of;
use super::mailbox::{Letter, SidMail};
use crate::conn::table::Table;
use crate::conn::{Attempt, ConnId, Phase, Session, State};
use crate::http::Request;
use crate::limits::Limits;
use crate::ring::Ring;
use crate::upstream::{
    OpenScan, Sid, Sids, Sticky, UpstreamId, UpstreamName, is_engine_io, sid_of,
};

/// What one shard knows of sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// Those that this shard is the home of; made with the first.
    sids: Option<Sids>,
    /// The number of the last question. It wraps: no question waits for four billion others.
    asked: u32,
}

impl Sessions {
    /// Bytes of the table, for the memory ledger.
    pub(super) fn held_bytes(&self) -> usize {
        self.sids.as_ref().map_or(0, Sids::held_bytes)
    }

    /// Goes by other limits from here on.
    pub(super) fn set_limits(&mut self, limits: &Limits) {
        if let Some(sids) = &mut self.sids {
            sids.set_limits(limits.sids_max, limits.sid_idle);
        }
    }
}

impl<R: Ring> Shard<R> {
    /// What a request has to do with a session, and where that leads if it is known already. May
    /// write to the home of the session on behalf of `id`.
    pub(super) fn session_of(
        &mut self,
        id: ConnId,
        backend: u16,
        request: &Request<'_>,
    ) -> (Session, Option<UpstreamId>) {
        let group = self.groups[usize::from(backend)].as_ref().expect("a websocket backend");
        // With one upstream there is nothing to be found.
        let is_wanted = group.options().sticky_sid && group.upstreams().len() > 1;
        if !(is_wanted && is_engine_io(request)) {
            return (Session::None, None);
        }
        let Some(sid) = sid_of(request) else { return (Session::Opens, None) };
        let sid = Sid::new(backend, &sid);
        let (shard, home) = (self.index, sid.home(self.mail.shards()));
        if home != shard && self.mail.has_room(home) {
            self.sessions.asked = self.sessions.asked.wrapping_add(1);
            let number = self.sessions.asked;
            self.mail.post(home, Letter::Sids(SidMail::Ask { sid, shard, conn: id, number }));
            return (Session::Asked(number), None);
        }
        let name = if home == shard { self.find_sid(sid) } else { None };
        (Session::None, self.issuer(backend, name))
    }

    pub(super) fn on_sid_mail(&mut self, mail: SidMail) {
        match mail {
            SidMail::Learn { sid, upstream } => self.keep_sid(sid, upstream),
            SidMail::Ask { sid, shard, conn, number } => {
                let upstream = self.find_sid(sid);
                // Refused to nobody: each client has one question under way at most.
                let answer = SidMail::Answer { conn, number, upstream };
                self.mail.post(shard, Letter::Sids(answer));
            }
            SidMail::Answer { conn, number, upstream } => {
                self.on_session_found(conn, number, upstream);
            }
        }
    }

    /// The home of a session has answered: the client that was held goes on.
    fn on_session_found(&mut self, id: ConnId, number: u32, upstream: Option<UpstreamName>) {
        let Some(attempt) = asking_attempt(&mut self.table, id, number) else { return };
        let backend = attempt.backend;
        let issuer = self.issuer(backend, upstream);
        let Some(attempt) = asking_attempt(&mut self.table, id, number) else { return };
        attempt.session = Session::None;
        if let Some(upstream) = issuer {
            attempt.sticky = Sticky::Session(upstream);
        }
        self.try_upstream(id, None);
    }

    /// The upstream of a session by its name. One that is not in the list any more has taken its
    /// sessions along.
    fn issuer(&mut self, backend: u16, name: Option<UpstreamName>) -> Option<UpstreamId> {
        let group = self.groups[usize::from(backend)].as_ref();
        let issuer = group.zip(name).and_then(|(group, name)| group.find(name));
        self.metrics.sids_unknown.add(u64::from(issuer.is_none()));
        issuer
    }

    /// Bytes of the answer to a request that opens a session have been looked at: if its `sid` was
    /// among them, the home is told. Called before they are queued for the client.
    pub(super) fn watch_opening(&mut self, id: ConnId) {
        let Shard { table, groups, mail, metrics, index, .. } = self;
        let conn = &mut table[id];
        let State::Answering(answering) = &mut conn.state else { return };
        let Some(scanner) = &mut answering.opening else { return };
        let sid = match (scanner.scan(b""), conn.counted) {
            (OpenScan::More, _) => return,
            (OpenScan::Sid(sid), counted) => upstream_of(groups, counted)
                .map(|(backend, upstream)| (Sid::new(backend, sid), upstream)),
            _ => None,
        };
        answering.opening = None;
        let Some((sid, upstream)) = sid else { return metrics.sids_missed.add(1) };
        metrics.sids_learnt.add(1);
        let home = sid.home(mail.shards());
        if home == *index {
            self.keep_sid(sid, upstream);
        } else if mail.has_room(home) {
            mail.post(home, Letter::Sids(SidMail::Learn { sid, upstream }));
        }
    }

    fn keep_sid(&mut self, sid: Sid, upstream: UpstreamName) {
        let limits = &self.config.limits;
        let sids =
            self.sessions.sids.get_or_insert_with(|| Sids::new(limits.sids_max, limits.sid_idle));
        sids.insert(sid, upstream, self.now);
    }

    fn find_sid(&mut self, sid: Sid) -> Option<UpstreamName> {
        self.sessions.sids.as_mut()?.find(sid, self.now)
    }
}

/// The search of a client that waits for the answer to this question. It may have gone meanwhile, or
/// have been told that it took too long.
fn asking_attempt(table: &mut Table, id: ConnId, number: u32) -> Option<&mut Attempt> {
    let conn = table.get_mut(id).filter(|conn| conn.phase == Phase::Open)?;
    attempt_of(&mut conn.state).filter(|attempt| attempt.session == Session::Asked(number))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::ring::sim::{Faults, Network, Peer, SimRing};
    use crate::shard::Setup;
    use crate::shard::mailbox::{Inbox, Mailroom, Order};

    const CONFIG: &str = r#"
[server]
shards = 2
slots_per_shard = 64
[[listener]]
address = "127.0.0.1:0"
[[route]]
backend = "chat"
[backend.chat]
kind = "websocket"
balance = "round-robin"
[[backend.chat.upstream]]
url = "ws://127.0.0.1:9001"
[[backend.chat.upstream]]
url = "ws://127.0.0.1:9002"
mode = "draining"
"#;

    /// One shard of two, and the other's desk, at which the test sits.
    struct World {
        network: Network,
        shard: Shard<SimRing>,
        inboxes: Arc<[Inbox]>,
        home: Mailroom,
    }

    impl World {
        fn new() -> World {
            let network = Network::new(1, Faults::none());
            let inboxes: Arc<[Inbox]> = (0..2).map(|_| Inbox::default()).collect();
            let setup = Setup::of_test(CONFIG, &inboxes);
            let mut shard = Shard::new(network.ring(64, 8, 4096, 1), setup);
            shard.start();
            (1..=2).for_each(|number| network.listen(upstream(number)));
            let home = Mailroom::new(1, Arc::clone(&inboxes));
            World { network, shard, inboxes, home }
        }

        fn run(&mut self) {
            for _ in 0..20 {
                self.shard.turn();
                self.home.dispatch();
                self.network.jump(self.network.now());
            }
        }

        fn ask(&mut self, sid: &str) -> Peer {
            let mut client = self.network.connect(0, 0);
            let request = format!("GET /?EIO=4&sid={sid} HTTP/1.1\r\nHost: t\r\n\r\n");
            assert_eq!(client.send(request.as_bytes()), request.len());
            self.run();
            client
        }

        /// The question that has come to the other shard.
        #[track_caller]
        fn question(&mut self) -> (Sid, ConnId, u32) {
            match self.home.next_letter(&mut 0) {
                Some(Letter::Sids(SidMail::Ask { sid, shard: 0, conn, number })) => {
                    (sid, conn, number)
                }
                _ => panic!("no question"),
            }
        }

        fn answer(&mut self, conn: ConnId, number: u32, upstream: Option<UpstreamName>) {
            self.home.post(0, Letter::Sids(SidMail::Answer { conn, number, upstream }));
            self.home.dispatch();
            self.run();
        }

        /// Which upstream has been connected to since.
        fn connected(&self) -> Option<u16> {
            (1..=2).find(|number| self.network.accept(upstream(*number)).is_some())
        }

        fn name(&self, number: usize) -> UpstreamName {
            self.shard.groups[0].as_ref().expect("a group").upstreams()[number - 1].name()
        }
    }

    fn upstream(number: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 9000 + number))
    }

    /// A session whose home is the shard of this index.
    fn at_home(shard: u16) -> String {
        let mut names = (0..).map(|number: u32| number.to_string());
        names.find(|sid| Sid::new(0, sid).home(2) == shard).expect("every second one")
    }

    fn text(client: &mut Peer) -> String {
        let mut bytes = Vec::new();
        while client.receive(&mut bytes, 1 << 16) > 0 {}
        String::from_utf8(bytes).expect("ASCII")
    }

    #[test]
    fn a_request_is_held_until_the_home_has_answered() {
        let mut world = World::new();
        let _client = world.ask(&at_home(1));
        assert_eq!(world.connected(), None);
        let (sid, conn, number) = world.question();
        assert_eq!(sid, Sid::new(0, &at_home(1)));
        // What is meant for another request, or another client, changes nothing.
        let draining = world.name(2);
        world.answer(conn, number.wrapping_sub(1), Some(draining));
        let other = ConnId { generation: conn.generation + 1, ..conn };
        world.answer(other, number, Some(draining));
        assert_eq!(world.connected(), None);
        // The session goes on where it is, although no new client is sent there.
        world.answer(conn, number, Some(draining));
        assert_eq!(world.connected(), Some(2));
        // A second answer is to nobody.
        world.answer(conn, number, Some(draining));
        assert_eq!(world.connected(), None);
        assert_eq!(world.shard.metrics.sids_unknown.get(), 0);
    }

    #[test]
    fn what_nobody_knows_is_placed_like_a_new_client() {
        let mut world = World::new();
        let gone = UpstreamName(7); // It has left the list.
        for upstream in [None, Some(gone)] {
            let client = world.ask(&at_home(1));
            let (_, conn, number) = world.question();
            world.answer(conn, number, upstream);
            assert_eq!(world.connected(), Some(1));
            drop(client);
        }
        assert_eq!(world.shard.metrics.sids_unknown.get(), 2);
    }

    #[test]
    fn an_answer_that_is_lost_ends_with_the_clients_patience() {
        let mut world = World::new();
        let mut client = world.ask(&at_home(1));
        let (_, conn, number) = world.question();
        let late = world.network.now() + Duration::from_secs(6);
        while world.network.now() < late {
            world.network.jump(late);
            world.shard.turn();
        }
        let answer = text(&mut client);
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("session"), "{answer}");
        // It comes after all, once the client has been told, and once it has gone.
        let upstream = world.name(1);
        world.answer(conn, number, Some(upstream));
        drop(client);
        world.run();
        world.answer(conn, number, Some(upstream));
        assert_eq!(world.connected(), None);
        assert_eq!(world.shard.open(), 0);
    }

    #[test]
    fn a_home_without_room_is_not_asked() {
        let mut world = World::new();
        let order = || {
            let (backend, upstream, ok) = (0, UpstreamName(0), true);
            Letter::Order(Order::Checked { backend, upstream, ok })
        };
        while world.inboxes[1].post(order()).is_ok() {}
        while world.shard.mail.has_room(1) {
            world.shard.mail.post(1, order());
        }
        let _client = world.ask(&at_home(1));
        assert_eq!(world.connected(), Some(1));
        assert_eq!(world.shard.metrics.sids_unknown.get(), 1);
    }

    /// What is learnt here of a session that belongs here, or elsewhere; and what others ask.
    #[test]
    fn sessions_are_learnt_and_told() {
        let mut world = World::new();
        for (shard, sid) in [at_home(0), at_home(1)].into_iter().enumerate() {
            let mut client = world.network.connect(0, 0);
            client.send(b"GET /?EIO=4 HTTP/1.1\r\nHost: t\r\n\r\n");
            world.run();
            let mut server = world.network.accept(upstream(1)).expect("a request");
            let body = format!("0{{\"sid\":\"{sid}\"}}");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            server.send((answer + &body).as_bytes());
            world.run();
            assert!(text(&mut client).ends_with(&body));
            let sid = Sid::new(0, &sid);
            if shard == 1 {
                match world.home.next_letter(&mut 0) {
                    Some(Letter::Sids(SidMail::Learn { sid: learnt, upstream })) => {
                        assert_eq!((learnt, upstream), (sid, world.name(1)));
                    }
                    _ => panic!("no session"),
                }
                continue;
            }
            let conn = ConnId { slot: 5, generation: 6 };
            world.home.post(0, Letter::Sids(SidMail::Ask { sid, shard: 1, conn, number: 7 }));
            world.home.dispatch();
            world.run();
            let known = world.name(1);
            match world.home.next_letter(&mut 0) {
                Some(Letter::Sids(SidMail::Answer { conn: to, number: 7, upstream })) => {
                    assert_eq!((to, upstream), (conn, Some(known)));
                }
                _ => panic!("no answer"),
            }
        }
        assert_eq!(world.shard.metrics.sids_learnt.get(), 2);
    }
}
