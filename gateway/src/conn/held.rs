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
            State::None => {}
            State::Relay(relay) => held.add(Holder::Assembly, relay.scanner.held_bytes()),
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::conn::outbox::Stores;
    use crate::conn::table::Table;
    use crate::conn::{ConnId, Session, Side};
    use crate::http::BodyReader;
    use crate::spares::Spares;
    use crate::time::Time;
    use crate::upstream::{Sticky, Tried};
    use crate::ws::{Decoder, Limits};

    fn attempt(head: Vec<u8>) -> Attempt {
        Attempt {
            backend: 0,
            head,
            key: 0,
            sticky: Sticky::Nowhere,
            cookie: None,
            is_https: false,
            session: Session::None,
            picked: None,
            picked_unfit: false,
            sent: 0,
            suspect: None,
            at_other: false,
            upstream: None,
            tried: Tried::default(),
            waits: false,
            began_at: Time(0),
        }
    }

    /// A decoder to which the first half of a message has come.
    fn halfway() -> Decoder {
        let (mut decoder, mut spares) = (Decoder::default(), Spares::default());
        let limits = Limits { message_bytes_max: 1000, frame_bytes_max: 1000 };
        let mut bytes = [&[0x82, 0xe4, 0, 0, 0, 0][..], &[7; 50]].concat();
        let event = decoder.next(&mut bytes, &mut 0, &limits, &mut spares);
        assert_eq!(event, Ok(None));
        decoder
    }

    #[test]
    fn each_state_is_counted_where_it_belongs() {
        let client = ConnId { slot: 9, generation: 0 };
        let vector = Vec::with_capacity;
        let answer = || AnswerHead { bytes: vector(70), ..AnswerHead::new(client) };
        let connecting =
            Connecting { attempt: attempt(vector(300)), offer: None, early: vector(40) };
        let forwarding = Forwarding {
            attempt: attempt(vector(200)),
            request: vector(20),
            body: BodyReader::Length(0),
            body_bytes_left: 0,
            measured_from: (Time::NEVER, 0),
            request_done: true,
            is_head: false,
            is_http_10: false,
            keep_alive: false,
            answered: false,
            connected: true,
            next: vector(3),
        };
        let half = halfway().assembly_bytes();
        assert!(half >= 50);
        use Holder::{Assembly, EarlyBytes, Handshakes, RequestHeads};
        let cases: [(State, &[(Holder, usize)]); 9] = [
            (State::None, &[]),
            (State::ProxyHeader(vector(11)), &[(RequestHeads, 11)]),
            (State::Head(Head { bytes: vector(12), ..Head::default() }), &[(RequestHeads, 12)]),
            (State::Echo(halfway()), &[(Assembly, half)]),
            (State::Rooms(halfway()), &[(Assembly, half)]),
            (
                State::Connecting(Box::new(connecting)),
                &[(Handshakes, size_of::<Connecting>()), (RequestHeads, 300), (EarlyBytes, 40)],
            ),
            (
                State::Handshaking(Box::new(answer())),
                &[(Handshakes, size_of::<AnswerHead>()), (RequestHeads, 70)],
            ),
            (
                State::Forwarding(Box::new(forwarding)),
                &[(Handshakes, size_of::<Forwarding>()), (RequestHeads, 200), (EarlyBytes, 23)],
            ),
            (
                State::Answering(Box::new(Answering {
                    head: answer(),
                    body: None,
                    is_done: false,
                    opening: None,
                })),
                &[(Handshakes, size_of::<Answering>()), (RequestHeads, 70)],
            ),
        ];
        for (state, want) in cases {
            let mut table = Table::new(1);
            let peer = SocketAddr::from(([127, 0, 0, 1], 1));
            let id = table.occupy(0, Side::Client, peer, Time(1));
            let name = state.name();
            table[id].state = state;
            let (mut held, mut wanted) = (Held::default(), Held::default());
            assert_eq!(table[id].add_held(&mut held), 1, "{name}");
            want.iter().for_each(|&(holder, bytes)| wanted.add(holder, bytes));
            assert_eq!(held, wanted, "{name}");
        }
    }

    #[test]
    fn outbox_and_meter_are_counted() {
        let mut table = Table::new(1);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let id = table.occupy(0, Side::Client, peer, Time(1));
        table[id].meter = Some(Box::default());
        let mut stores = Stores::default();
        table[id].outbox.write(&mut stores, Time(1), |out| out.extend_from_slice(&[1; 100]));
        let mut held = Held::default();
        assert_eq!(table[id].add_held(&mut held), 2);
        assert_eq!(held.get(Holder::Rates), size_of::<Meter>() as u64);
        assert!(held.get(Holder::Outboxes) >= 100);
    }
}
