//! What a connection holds on the heap, for the memory ledger.

use super::{
    AnswerHead, Answering, Attempt, Conn, Connecting, Forwarding, Head, Meter, Refusing, State,
};
use crate::memory::{Held, Holder};

impl Conn {
    /// Adds what it has on the heap to `held`. Returns how many steps that took: one, and one for each
    /// segment of its outbox, of which no more than a bounded number is looked at.
    pub fn add_held(&self, held: &mut Held) -> usize {
        let (outbox, segments) = self.outbox.held_bytes();
        held.add(Holder::Outboxes, outbox);
        if self.meter.is_some() {
            held.add(Holder::Rates, size_of::<Meter>());
        }
        self.state.add_held(held);
        1 + segments
    }
}

impl State {
    fn add_held(&self, held: &mut Held) {
        match self {
            State::None | State::Relay(_) => {}
            State::ProxyHeader(bytes) | State::Head(Head { bytes, .. }) => {
                held.add(Holder::RequestHeads, bytes.capacity());
            }
            State::Echo(decoder) | State::Rooms(decoder) => {
                held.add(Holder::Assembly, decoder.assembly_bytes());
            }
            State::Connecting(connecting) => {
                let Connecting { attempt, offer, early } = &**connecting;
                let offer = offer.as_ref().map_or(0, |offer| offer.held_bytes());
                held.add(Holder::Handshakes, size_of::<Connecting>() + offer);
                held.add(Holder::EarlyBytes, early.capacity());
                attempt.add_held(held);
            }
            State::Handshaking(head) => {
                held.add(Holder::Handshakes, size_of::<AnswerHead>());
                held.add(Holder::RequestHeads, head.bytes.capacity());
            }
            State::Refusing(_) => held.add(Holder::Handshakes, size_of::<Refusing>()),
            State::Forwarding(forwarding) => {
                let Forwarding { attempt, request, next, .. } = &**forwarding;
                held.add(Holder::Handshakes, size_of::<Forwarding>());
                held.add(Holder::EarlyBytes, request.capacity() + next.capacity());
                attempt.add_held(held);
            }
            State::Answering(answering) => {
                held.add(Holder::Handshakes, size_of::<Answering>());
                held.add(Holder::RequestHeads, answering.head.bytes.capacity());
            }
        }
    }
}

impl Attempt {
    fn add_held(&self, held: &mut Held) {
        held.add(Holder::RequestHeads, self.head.capacity());
    }
}
