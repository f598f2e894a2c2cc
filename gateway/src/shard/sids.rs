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
use super::mailbox::{Letter, SidMail};
use crate::conn::table::Table;
use crate::conn::{Attempt, ConnId, Counted, Phase, Session, State};
use crate::http::Request;
use crate::ring::Ring;
use crate::upstream::{
    OpenScan, Sid, Sids, Sticky, Upstream, UpstreamId, UpstreamName, is_engine_io, sid_of,
};

/// What one shard knows of sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// Those that this shard is the home of; made with the first.
    sids: Option<Sids>,
    /// The number of the last question. It wraps: no question waits for four billion others.
    asked: u32,
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
            (OpenScan::Sid(sid), Some(Counted { backend, upstream })) => {
                let group = groups[usize::from(backend)].as_ref();
                let upstream = group.and_then(|group| group.get(upstream)).map(Upstream::name);
                upstream.map(|upstream| (Sid::new(backend, sid), upstream))
            }
            _ => None,
        };
        answering.opening = None;
        let Some((sid, upstream)) = sid else { return };
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
