//! One room with everybody in it: what a client sends goes to all as it is. The dialect of
//! `serve --runtime send-loop`.

use std::borrow::Cow;

use super::{Dialect, Event};

/// The one room.
pub(crate) struct Plain;

impl Dialect for Plain {
    fn join(&self, _room: u32, _out: &mut Vec<u8>) {}

    fn publish(&self, _room: u32, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(data);
    }

    fn read<'a>(&self, payload: &'a [u8]) -> Result<Event<'a>, String> {
        Ok(Event::Message { room: 0, data: Cow::Borrowed(payload) })
    }
}
