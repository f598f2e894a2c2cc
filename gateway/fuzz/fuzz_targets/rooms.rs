//! Any text, from any client of a few shards, with time passing and mail that is late: nothing
//! panics, everything said is a well-formed frame, and nothing is left when all have gone.
//!
//! The input is a list of steps: a byte that chooses what happens, then what it needs. Texts end
//! at a newline.

#![no_main]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gateway::addresses::AddressKey;
use gateway::conn::ConnId;
use gateway::keyed_hash::HashKey;
use gateway::makers::{Maker, Makers};
use gateway::random::Random;
use gateway::rooms::{Gauges, Mail, Outlet, RoomLimits, Rooms};
use gateway::time::Time;
use libfuzzer_sys::fuzz_target;

const SHARDS: u16 = 3;
const SLOTS: u32 = 4;

#[derive(Default)]
struct Said {
    mail: Vec<(u16, Mail)>,
    makers: Arc<Makers>,
}

impl Outlet for Said {
    fn published(&mut self, _at_us: u32) {}

    fn deliver(&mut self, _: ConnId, frame: &Bytes) {
        assert_eq!(frame[0], 0x81, "an unfragmented text frame");
        assert_eq!(frame.last(), Some(&b'}'));
    }
    fn post(&mut self, shard: u16, mail: Mail) {
        self.mail.push((shard, mail));
    }
    fn takes_requests(&self, _: u16) -> bool {
        true
    }
    fn has_room(&self, _: u16) -> bool {
        true
    }
    fn maker(&mut self, conn: ConnId) -> Arc<Maker> {
        self.makers.maker(0, AddressKey::V4(conn.slot / 2))
    }
    fn answered(&mut self, _: ConnId) {}
}

fuzz_target!(|input: &[u8]| {
    let limits = RoomLimits {
        rooms_max: 3,
        rooms_made_per_client_max: 2,
        rooms_made_per_address_max: 3,
        history_bytes_max: 512,
        ..RoomLimits::default()
    };
    let homes = HashKey::draw(&mut Random::new([0, 0]));
    let rooms_of = |shard: u16| {
        Rooms::new(shard, SHARDS, limits.clone(), 0, homes, Random::new([1, u64::from(shard)]))
    };
    let mut shards: Vec<Rooms> = (0..SHARDS).map(rooms_of).collect();
    let mut open = [[false; SLOTS as usize]; SHARDS as usize];
    let mut mail: Vec<VecDeque<(u16, Mail)>> = (0..SHARDS).map(|_| VecDeque::new()).collect();
    let mut now = Time(0);
    let mut out = Said::default();

    // One queue per sender keeps the order between any two shards.
    let collect = |from: u16, out: &mut Said, mail: &mut Vec<VecDeque<(u16, Mail)>>| {
        mail[usize::from(from)].extend(out.mail.drain(..));
    };
    let deliver = |from: usize, now, shards: &mut Vec<Rooms>, out: &mut Said, mail: &mut _| {
        let queues: &mut Vec<VecDeque<(u16, Mail)>> = mail;
        let Some((to, letter)) = queues[from].pop_front() else { return false };
        shards[usize::from(to)].on_mail(letter, now, out);
        collect(to, out, queues);
        true
    };

    let mut rest = input;
    while let [step, place, tail @ ..] = rest {
        rest = tail;
        let shard = u16::from(place >> 4) % SHARDS;
        let slot = u32::from(*place) % SLOTS;
        let conn = ConnId { slot, generation: 0 };
        let rooms = &mut shards[usize::from(shard)];
        let is_open = &mut open[usize::from(shard)][slot as usize];
        match step % 6 {
            0 if !*is_open => {
                *is_open = true;
                let user = (place & 8 != 0).then_some("ann");
                rooms.opened(conn, user, now, &mut out);
            }
            1 if *is_open => {
                *is_open = false;
                rooms.closed(conn, now, &mut out);
            }
            2 => {
                now = now + Duration::from_secs(u64::from(*place));
                rooms.on_deadline(now, &mut out);
            }
            3 => {
                deliver(usize::from(shard), now, &mut shards, &mut out, &mut mail);
            }
            _ if *is_open => {
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                rooms.on_message(conn, &rest[..end], now, &mut out);
                rest = &rest[(end + 1).min(rest.len())..];
            }
            _ => {}
        }
        collect(shard, &mut out, &mut mail);
    }

    for shard in 0..SHARDS {
        for slot in 0..SLOTS {
            if open[usize::from(shard)][slot as usize] {
                let conn = ConnId { slot, generation: 0 };
                shards[usize::from(shard)].closed(conn, now, &mut out);
                collect(shard, &mut out, &mut mail);
            }
        }
    }
    for _ in 0..3 {
        while (0..usize::from(SHARDS))
            .any(|from| deliver(from, now, &mut shards, &mut out, &mut mail))
        {}
        now = now + Duration::from_secs(1_000);
        for shard in 0..SHARDS {
            let rooms = &mut shards[usize::from(shard)];
            while rooms.next_deadline().is_some_and(|at| at <= now) {
                rooms.on_deadline(now, &mut out);
            }
            collect(shard, &mut out, &mut mail);
        }
    }
    assert!(shards.iter().all(|rooms| rooms.gauges() == Gauges::default()));
    assert_eq!(out.makers.rooms(), 0);
});
