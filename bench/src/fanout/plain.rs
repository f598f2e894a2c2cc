//! One room with everybody in it: what a client sends goes to all as it is. The dialect of
//! `serve --runtime send-loop`.

use super::dialect::{Dialect, Event, Form, Next};
use crate::websocket::TEXT;

/// The one room.
pub(crate) struct Plain;

impl Dialect for Plain {
    fn form(&self) -> Form {
        Form { confirms_joins: false, publishers_are_members: true, rooms_max: 1, ..Form::of(TEXT) }
    }

    fn join(&self, _room: u32, _session: &[u8], _out: &mut Vec<u8>) {}

    fn publish(&self, _room: u32, _number: u64, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(data);
    }

    fn next<'a>(&self, input: &'a [u8], _answer: &mut Vec<u8>) -> Next<'a> {
        Ok(Some((Event::message(None, input), input.len())))
    }
}
