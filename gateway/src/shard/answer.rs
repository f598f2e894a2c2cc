//! The head of an upstream's answer, to a handshake (`relay.rs`) as to an ordinary request
//! (`forward.rs`): gathered until it is whole, and what becomes of one that is none.

use super::Shard;
use super::attempt::Failing;
use crate::conn::ConnId;
use crate::http::{self, HttpError, Response};
use crate::ring::Ring;

/// Why a client is told 502 when its upstream has gone.
pub(super) const NOT_ANSWERED: &str = "the upstream closed the connection before it answered";

impl<R: Ring> Shard<R> {
    /// Takes what an upstream has sent into the head of its answer. Once that is whole, returns who
    /// has asked, the head, and how many of `bytes` belong to it.
    pub(super) fn gather_answer_head(
        &mut self,
        id: ConnId,
        bytes: &[u8],
    ) -> Option<(ConnId, Vec<u8>, usize)> {
        let limits = self.head_limits();
        let answer = self.table[id].state.answer_head()?;
        let client = answer.client;
        match answer.gather(bytes, &limits) {
            Ok(whole) => whole.map(|(head, taken)| (client, head, taken)),
            Err(error) => {
                self.bad_head(id, client, error);
                None
            }
        }
    }

    /// Reads a head that is whole.
    pub(super) fn parse_answer<'a>(
        &mut self,
        id: ConnId,
        client: ConnId,
        head: &'a [u8],
    ) -> Option<Response<'a>> {
        match http::parse_response(head, &self.head_limits()) {
            Ok(response) => Some(response),
            Err(error) => {
                self.bad_head(id, client, error);
                None
            }
        }
    }

    /// The head was that of an interim response. `None`: it was one too many.
    pub(super) fn count_interim(&mut self, id: ConnId, client: ConnId) -> Option<()> {
        if self.table[id].state.answer_head()?.count_interim() {
            return Some(());
        }
        self.bad_answer(id, client, "the upstream sent too many interim responses");
        None
    }

    /// An upstream's answer is none that a client could be given.
    pub(super) fn bad_answer(&mut self, id: ConnId, client: ConnId, why: &str) {
        self.attempt_failed(id, client, Failing::BadAnswer, why);
    }

    fn bad_head(&mut self, id: ConnId, client: ConnId, error: HttpError) {
        let failing = match error {
            // What is in order and too large for us says nothing of the upstream.
            HttpError::HeadTooLarge | HttpError::TooManyHeaders => Failing::OurLimit,
            _ => Failing::BadAnswer,
        };
        self.attempt_failed(id, client, failing, &format!("the upstream's answer: {error}"));
    }
}
