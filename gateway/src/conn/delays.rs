//! How long messages were with us: from when they came until the socket took them.
//!
//! ```text
//!   outbox   | first: all that was here when a message was queued | rest: what came later |
//!              -> its time and messages, and its bytes              -> time and messages
//! ```
//!
//! A connection has one mark, and only while messages wait in its outbox: of the turn that queued
//! into an empty outbox nearly always all is taken at once, and `first` is exact for each message.
//! What is queued while that waits is `rest`, with the time of its oldest, and becomes `first` when
//! `first` is gone. So a message's delay is never reported too short, and too long at most by how
//! long `first` was under way. It counts once all of it is taken, however often its peer stalls:
//! of a peer that never catches up all messages count nevertheless.
//!
//! What rooms deliver in one turn is a fan-out: it knows how many marks still wait for it, and so
//! when the first and the last of its deliveries were taken. A member that had not taken everything
//! before is not waited for, or a slow one would stand for all; it is counted as behind.

use crate::heap::list_bytes;
use crate::histogram::Durations;
use crate::recorder::Recorder;
use crate::time::Time;

/// Names the mark of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkId(u32);

impl MarkId {
    /// Nothing waits.
    pub const NONE: MarkId = MarkId(u32::MAX);
}

#[derive(Clone, Copy, Default)]
struct Mark {
    first_at: Time,
    rest_at: Time,
    /// Of the outbox, still to be taken until `first` is gone.
    first_bytes: u32,
    first_messages: u32,
    rest_messages: u32,
    /// The fan-out that waits for `first`.
    fanout: Option<FanoutId>,
}

/// A place in [`Delays::fanouts`], and one more, so that an `Option` of it costs nothing.
type FanoutId = std::num::NonZeroU32;

/// What rooms delivered in one turn to members that had nothing waiting.
#[derive(Clone, Copy, Default)]
struct Fanout {
    /// When the oldest publication of it came.
    at: Time,
    members: u32,
    /// Members that have not taken it.
    waiting: u32,
    /// When a member took it last; at first, never.
    taken_at: Option<Time>,
}

/// The marks of one shard, at most one for each connection, and the fan-outs that wait for them, of
/// which each has at least one. Places are used again last in, first out, so that those that come
/// and go within a turn stay in the cache.
#[derive(Default)]
pub struct Delays {
    marks: Vec<Mark>,
    free: Vec<MarkId>,
    fanouts: Vec<Fanout>,
    free_fanouts: Vec<FanoutId>,
    /// The fan-out of this turn, and which turn that is.
    current: Option<(FanoutId, Time)>,
}

impl Delays {
    /// Bytes of the marks and fan-outs, those that are free among them. For the memory ledger.
    pub fn held_bytes(&self) -> usize {
        let Delays { marks, free, fanouts, free_fanouts, current: _ } = self;
        list_bytes(marks) + list_bytes(free) + list_bytes(fanouts) + list_bytes(free_fanouts)
    }

    /// `messages` that came at `now` were queued; the outbox holds `bytes` with them.
    pub fn queued(&mut self, id: &mut MarkId, messages: u32, bytes: usize, now: Time) {
        let bytes = bytes as u32; // An outbox counts in 32 bits.
        if *id == MarkId::NONE {
            *id = self.mark(now, bytes, messages);
            return;
        }
        let mark = &mut self.marks[id.0 as usize];
        if mark.rest_messages == 0 && mark.first_at == now {
            mark.first_bytes = bytes;
            mark.first_messages = mark.first_messages.saturating_add(messages);
        } else {
            if mark.rest_messages == 0 {
                mark.rest_at = now;
            }
            mark.rest_messages = mark.rest_messages.saturating_add(messages);
        }
    }

    /// A message that was published at `at` was queued for a member of a room.
    pub fn published(&mut self, id: &mut MarkId, bytes: usize, at: Time, now: Time, to: &Recorder) {
        if *id == MarkId::NONE {
            *id = self.mark(at, bytes as u32, 1);
            let fanout = self.fanout(at, now);
            self.marks[id.0 as usize].fanout = Some(fanout);
            let fanout = self.fanout_mut(fanout);
            fanout.members += 1;
            fanout.waiting += 1;
            return;
        }
        let current = self.current.filter(|(_, turn)| *turn == now).map(|(fanout, _)| fanout);
        if current.is_none() || self.marks[id.0 as usize].fanout != current {
            to.fanout_behind.add(1);
        }
        self.queued(id, 1, bytes, at);
    }

    /// The socket took `count` bytes, and `left` are in the outbox.
    pub fn sent(
        &mut self,
        id: &mut MarkId,
        count: usize,
        left: usize,
        now: Time,
        to: &Durations,
        recorder: &Recorder,
    ) {
        if *id == MarkId::NONE {
            return;
        }
        let mark = &mut self.marks[id.0 as usize];
        mark.first_bytes = mark.first_bytes.saturating_sub(count as u32).min(left as u32);
        if mark.first_bytes > 0 {
            return;
        }
        let Mark { first_at, first_messages, rest_at, rest_messages, fanout, .. } = *mark;
        record(to, first_at, now, first_messages);
        recorder.outbox_age.record_since(first_at, now);
        if rest_messages > 0 && left > 0 {
            *mark = Mark {
                first_at: rest_at,
                first_bytes: left as u32,
                first_messages: rest_messages,
                ..Mark::default()
            };
        } else {
            if rest_messages > 0 {
                record(to, rest_at, now, rest_messages);
            }
            self.free.push(*id);
            *id = MarkId::NONE;
        }
        if let Some(fanout) = fanout {
            self.taken(fanout, Some(now), recorder);
        }
    }

    /// What waits will not be taken, or not all of it.
    pub fn forget(&mut self, id: &mut MarkId, recorder: &Recorder) {
        if *id == MarkId::NONE {
            return;
        }
        let fanout = self.marks[id.0 as usize].fanout;
        self.free.push(*id);
        *id = MarkId::NONE;
        if let Some(fanout) = fanout {
            self.taken(fanout, None, recorder);
        }
    }

    /// Connections that have messages waiting.
    pub fn waiting(&self) -> usize {
        self.marks.len() - self.free.len()
    }

    fn mark(&mut self, first_at: Time, first_bytes: u32, first_messages: u32) -> MarkId {
        let mark = Mark { first_at, first_bytes, first_messages, ..Mark::default() };
        if let Some(id) = self.free.pop() {
            self.marks[id.0 as usize] = mark;
            return id;
        }
        self.marks.push(mark);
        // No more than connections, whose slots have 32 bits.
        MarkId(self.marks.len() as u32 - 1)
    }

    /// The fan-out of this turn.
    fn fanout(&mut self, at: Time, now: Time) -> FanoutId {
        if let Some((id, turn)) = self.current
            && turn == now
        {
            let fanout = self.fanout_mut(id);
            fanout.at = fanout.at.min(at);
            return id;
        }
        let fanout = Fanout { at, ..Fanout::default() };
        let id = match self.free_fanouts.pop() {
            Some(id) => {
                *self.fanout_mut(id) = fanout;
                id
            }
            None => {
                self.fanouts.push(fanout);
                FanoutId::new(self.fanouts.len() as u32).expect("one was pushed")
            }
        };
        self.current = Some((id, now));
        id
    }

    fn fanout_mut(&mut self, id: FanoutId) -> &mut Fanout {
        &mut self.fanouts[id.get() as usize - 1]
    }

    /// A member took what `id` waited for, at `at`; or never will.
    fn taken(&mut self, id: FanoutId, at: Option<Time>, recorder: &Recorder) {
        let fanout = self.fanout_mut(id);
        fanout.waiting -= 1;
        if let Some(now) = at {
            if fanout.taken_at.is_none() {
                recorder.fanout_first.record_since(fanout.at, now);
            }
            fanout.taken_at = Some(now);
        }
        if fanout.waiting > 0 {
            return;
        }
        let Fanout { at, members, taken_at, .. } = *fanout;
        if let Some(taken_at) = taken_at {
            recorder.fanout_last.record_since(at, taken_at);
            recorder.fanout_members.record(members.into(), 1);
        }
        self.free_fanouts.push(id);
        if self.current.is_some_and(|(current, _)| current == id) {
            self.current = None;
        }
    }
}

fn record(to: &Durations, from: Time, now: Time, messages: u32) {
    to.record(now.since(from).as_nanos() as u64, messages.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Snapshot;
    use crate::recorder::Recorder;
    use crate::ring::sim::Random;
    use std::collections::VecDeque;

    fn recorded(to: &Durations) -> Vec<(u64, u64)> {
        let mut snapshot = Snapshot::default();
        to.add_to(&mut snapshot);
        snapshot.iter().map(|(value, count)| (value / 1000, count)).collect()
    }

    const US: u64 = 1000;

    #[test]
    fn messages_that_are_taken_at_once_are_exact() {
        let (mut delays, mut id, to) = (Delays::default(), MarkId::NONE, Durations::default());
        let recorder = Recorder::default();
        delays.queued(&mut id, 2, 20, Time(100 * US));
        delays.queued(&mut id, 1, 30, Time(100 * US));
        delays.sent(&mut id, 30, 0, Time(110 * US), &to, &recorder);
        assert_eq!(id, MarkId::NONE);
        delays.sent(&mut id, 5, 0, Time(500 * US), &to, &recorder);
        assert_eq!(recorded(&to), [(10, 3)]);
    }

    #[test]
    fn what_waits_is_counted_when_it_is_taken() {
        let (mut delays, mut id, to) = (Delays::default(), MarkId::NONE, Durations::default());
        let recorder = Recorder::default();
        delays.queued(&mut id, 1, 100, Time(0));
        delays.queued(&mut id, 1, 200, Time(20 * US));
        delays.queued(&mut id, 1, 300, Time(30 * US));
        delays.sent(&mut id, 60, 240, Time(40 * US), &to, &recorder);
        assert_eq!(recorded(&to), []);
        delays.sent(&mut id, 40, 200, Time(50 * US), &to, &recorder);
        assert_eq!(recorded(&to).iter().map(|(_, count)| count).sum::<u64>(), 1);
        delays.queued(&mut id, 1, 300, Time(55 * US));
        // Both of the others, by the older.
        delays.sent(&mut id, 200, 100, Time(60 * US), &to, &recorder);
        assert_eq!(recorded(&to).iter().map(|(_, count)| count).sum::<u64>(), 3);
        delays.sent(&mut id, 100, 0, Time(70 * US), &to, &recorder);
        assert_eq!(id, MarkId::NONE);
        let total: u64 = recorded(&to).iter().map(|(_, count)| count).sum();
        assert_eq!(total, 4);
    }

    /// Random queueing and sending of one connection, against a queue that knows every message.
    #[test]
    fn no_delay_is_reported_too_short_and_each_once() {
        for seed in 0..50 {
            let mut random = Random::new(seed);
            let (mut delays, mut id, to) = (Delays::default(), MarkId::NONE, Durations::default());
            let recorder = Recorder::default();
            let mut queue: VecDeque<(Time, u32)> = VecDeque::new();
            let (mut bytes, mut now, mut queued) = (0_usize, Time(0), 0_u64);
            let mut exact: Vec<u64> = Vec::new();
            for step in 0..400 {
                now = Time(now.0 + random.below(50) * US);
                if step < 300 && random.below(2) == 0 {
                    let size = 1 + random.below(100) as u32;
                    bytes += size as usize;
                    queue.push_back((now, size));
                    queued += 1;
                    delays.queued(&mut id, 1, bytes, now);
                } else if bytes > 0 {
                    let most = bytes as u64;
                    let count = if step >= 300 { most } else { 1 + random.below(most) };
                    bytes -= count as usize;
                    let mut left = count as u32;
                    while left > 0 {
                        let (at, size) = queue.front_mut().expect("bytes are messages'");
                        let here = left.min(*size);
                        (*size, left) = (*size - here, left - here);
                        if *size == 0 {
                            exact.push(now.0 - at.0);
                            queue.pop_front();
                        }
                    }
                    delays.sent(&mut id, count as usize, bytes, now, &to, &recorder);
                }
            }
            exact.sort_unstable();
            let mut snapshot = Snapshot::default();
            to.add_to(&mut snapshot);
            assert_eq!((snapshot.count(), id), (queued, MarkId::NONE), "seed {seed}");
            assert!(snapshot.sum() >= exact.iter().sum::<u64>(), "seed {seed}");
            assert!(delays.marks.len() == 1 && delays.free.len() == 1);
        }
    }

    #[test]
    fn marks_are_used_again() {
        let (mut delays, to) = (Delays::default(), Durations::default());
        let recorder = Recorder::default();
        let mut ids = [MarkId::NONE; 3];
        for _ in 0..5 {
            ids.iter_mut().for_each(|id| delays.queued(id, 1, 10, Time(1)));
            delays.forget(&mut ids[0], &recorder);
            delays.forget(&mut ids[0], &recorder);
            ids.iter_mut().for_each(|id| delays.sent(id, 10, 0, Time(2), &to, &recorder));
        }
        assert_eq!((delays.marks.len(), delays.free.len()), (3, 3));
        assert_eq!(recorded(&to), [(0, 10)]);
    }

    fn durations(of: &Durations) -> Vec<u64> {
        recorded(of).iter().flat_map(|(us, count)| vec![*us; *count as usize]).collect()
    }

    /// Three members; one of them still owes what came before, and one leaves.
    #[test]
    fn a_fan_out_has_a_first_and_a_last() {
        let (mut delays, to, recorder) =
            (Delays::default(), Durations::default(), Recorder::default());
        let mut ids = [MarkId::NONE; 4];
        delays.queued(&mut ids[3], 1, 10, Time(0));
        // Two publications of one turn; the older came 40 µs ago, from another shard.
        for at in [60 * US, 80 * US] {
            for id in &mut ids {
                delays.published(id, 20, Time(at), Time(100 * US), &recorder);
            }
        }
        assert_eq!(recorder.fanout_behind.get(), 2, "both, to the one that waits");
        delays.sent(&mut ids[1], 20, 0, Time(200 * US), &to, &recorder);
        let first = durations(&recorder.fanout_first);
        assert!(first.len() == 1 && first[0].abs_diff(140) <= 2, "{first:?}");
        delays.sent(&mut ids[0], 5, 15, Time(300 * US), &to, &recorder);
        delays.sent(&mut ids[0], 15, 0, Time(400 * US), &to, &recorder);
        assert!(durations(&recorder.fanout_last).is_empty());
        // Whoever never takes it is not the last to do so.
        delays.forget(&mut ids[2], &recorder);
        let last = durations(&recorder.fanout_last);
        assert!(last.len() == 1 && last[0].abs_diff(340) <= 6, "{last:?}");
        let mut members = Snapshot::default();
        recorder.fanout_members.add_to(&mut members);
        assert_eq!(members.iter().collect::<Vec<_>>(), [(3, 1)]);
        assert_eq!(delays.free_fanouts.len(), delays.fanouts.len());
        delays.sent(&mut ids[3], 40, 0, Time(900 * US), &to, &recorder);
        assert_eq!(delays.waiting(), 0);
        assert_eq!(recorded(&to).iter().map(|(_, count)| count).sum::<u64>(), 7);
    }

    #[test]
    fn turns_have_fan_outs_of_their_own() {
        let (mut delays, to, recorder) =
            (Delays::default(), Durations::default(), Recorder::default());
        let (mut one, mut other) = (MarkId::NONE, MarkId::NONE);
        delays.published(&mut one, 10, Time(10 * US), Time(10 * US), &recorder);
        delays.published(&mut other, 10, Time(20 * US), Time(20 * US), &recorder);
        delays.sent(&mut one, 10, 0, Time(30 * US), &to, &recorder);
        delays.sent(&mut other, 10, 0, Time(30 * US), &to, &recorder);
        assert_eq!(durations(&recorder.fanout_last), [10, 20]);
        // One that nobody gets leaves no trace, and the turn may have another.
        delays.published(&mut one, 10, Time(40 * US), Time(40 * US), &recorder);
        delays.forget(&mut one, &recorder);
        delays.published(&mut one, 10, Time(40 * US), Time(40 * US), &recorder);
        delays.sent(&mut one, 10, 0, Time(50 * US), &to, &recorder);
        assert_eq!(durations(&recorder.fanout_last), [10, 10, 20]);
        assert_eq!(delays.fanouts.len(), 2);
    }
}
