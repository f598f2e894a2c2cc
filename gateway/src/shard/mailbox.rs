//! What shards say to each other.
//!
//! Each shard has one bounded inbox that anyone may post to. Mail is collected during a turn and
//! posted at its end, so that a burst costs the receiver one wake, and none when it is awake.
//! Mail from one shard to another arrives in the order in which it was written.
//!
//! At the bounds: a full inbox leaves mail with its sender, who tries again next turn. With
//! [`CROWD_LETTERS`] letters or [`CROWD_BYTES`] bytes on their way to a shard, clients whose requests
//! would go there wait in line (`Mailroom::takes_requests`, `unread.rs`). With [`OUTGOING_MAX`] letters
//! or [`OUTGOING_BYTES_MAX`] bytes that wait with one sender, what it would fan out there is refused
//! (`Mailroom::has_room`). A leave or an answer may not be refused and still goes onto that list: a
//! client has one long answer on its way at a time.

mod wake;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::conn::ConnId;
use crate::ring::Waker;
use crate::rooms;
use crate::shard::account::Account;
use crate::shard::inspect::{Inspect, UpstreamView};
use crate::upstream::{Sid, UpstreamName};
use wake::Sleeper;

/// Letters in an inbox.
const INBOX_MAX: usize = 4096;

/// Letters that wait for a full inbox before publishes are refused.
const OUTGOING_MAX: usize = 4096;

/// Bytes of letters that wait for a full inbox before what may be refused is refused.
const OUTGOING_BYTES_MAX: usize = 4 << 20;

/// Letters on their way to a shard, those in its inbox included, at which requests of clients wait: about
/// half a millisecond of its work. Whoever asks next comes behind no more than these.
const CROWD_LETTERS: usize = 128;

/// As [`CROWD_LETTERS`], in bytes that the letters hold.
const CROWD_BYTES: usize = 1 << 20;

/// Letters taken from the inbox in one turn, so that sockets get their share of it.
const INBOX_BATCH: usize = 1024;

/// Where others leave mail for one shard.
pub struct Inbox {
    queue: ArrayQueue<Letter>,
    /// What the letters in it hold, those that are just being left or taken included.
    bytes: AtomicUsize,
    sleeper: Sleeper,
    stop: AtomicBool,
    waker: OnceLock<Waker>,
}

/// One piece of mail.
pub enum Letter {
    /// From one shard's rooms to another's.
    Rooms {
        /// The backend whose rooms they are.
        backend: u16,
        /// What it says.
        mail: rooms::Mail,
    },
    /// Which upstream issued which session of Engine.IO.
    Sids(SidMail),
    /// From the control thread.
    Order(Order),
}

/// What shards tell each other about sessions of Engine.IO; see `upstream/sids.rs`.
#[derive(Clone, Copy, Debug)]
pub enum SidMail {
    /// To the home of a session: this upstream has issued it.
    Learn {
        /// The session.
        sid: Sid,
        /// Who knows it.
        upstream: UpstreamName,
    },
    /// To the home of a session: who issued it?
    Ask {
        /// The session.
        sid: Sid,
        /// Who asks.
        shard: u16,
        /// For which client of that shard.
        conn: ConnId,
        /// Comes back with the answer: the client may be at another request by then.
        number: u32,
    },
    /// To the shard that asked.
    Answer {
        /// For which client.
        conn: ConnId,
        /// Of the question.
        number: u32,
        /// `None`: nobody knows.
        upstream: Option<UpstreamName>,
    },
}

/// What the control thread asks of a shard.
pub enum Order {
    /// Go by this configuration from the next turn on.
    Config(Arc<Config>),
    /// A health check has ended.
    Checked {
        /// The backend in whose group the upstream is.
        backend: u16,
        /// Which upstream.
        upstream: UpstreamName,
        /// Whether it was good.
        ok: bool,
    },
    /// The operator wants to know about clients, or to close them.
    Inspect(Box<Inspect>),
    /// What does it hold?
    Account(Box<Account>),
    /// The operator wants to know about the upstreams of a backend.
    Upstreams {
        /// The backend.
        backend: u16,
        /// Where the answer goes. Nobody may be there any more.
        reply: oneshot::Sender<Vec<UpstreamView>>,
    },
}

impl Letter {
    /// Bytes on the heap that it holds.
    fn held_bytes(&self) -> usize {
        match self {
            Letter::Rooms { mail, .. } => mail.held_bytes(),
            Letter::Sids(_) | Letter::Order(_) => 0,
        }
    }
}

// Thousands of them lie in a mailbox.
const _: () = assert!(size_of::<Letter>() <= 72);

impl Default for Inbox {
    fn default() -> Inbox {
        Inbox {
            queue: ArrayQueue::new(INBOX_MAX),
            bytes: AtomicUsize::new(0),
            sleeper: Sleeper::new(),
            stop: AtomicBool::new(false),
            waker: OnceLock::new(),
        }
    }
}

impl Inbox {
    /// Bytes of the inbox, full or empty, and of what letters hold. For the memory ledger.
    pub fn held_bytes(&self) -> usize {
        // Each place has a stamp beside the letter.
        self.queue.capacity() * (size_of::<Letter>() + size_of::<usize>())
            + self.bytes.load(Ordering::Relaxed)
    }

    /// Asks the shard to stop: it closes its connections in order and then ends.
    pub fn stop(&self) {
        self.sleeper.leave(|| self.stop.store(true, Ordering::Release), || self.wake());
    }

    /// Whether the shard has been asked to stop.
    pub fn stop_asked(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Says how the shard is woken; until then it is not.
    pub fn set_waker(&self, waker: Waker) {
        // Set once, by the shard itself, when its ring is made.
        let _ = self.waker.set(waker);
    }

    /// Leaves a letter, as one who is not a shard. A full inbox gives it back: try again soon.
    pub fn post(&self, letter: Letter) -> Result<(), Letter> {
        self.sleeper.leave(|| self.queue.push(letter), || self.wake())
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }
}

/// Letters in an inbox, and what they hold.
#[derive(Clone, Copy, Default)]
struct Lying {
    letters: usize,
    bytes: usize,
}

/// One shard's view of the post: its own inbox, and what it has written to others.
pub struct Mailroom {
    index: u16,
    inboxes: Arc<[Inbox]>,
    outgoing: Vec<VecDeque<Letter>>,
    /// What the letters of each of `outgoing` hold.
    outgoing_bytes: Vec<usize>,
    /// What lay in each inbox when this shard last looked; nothing in its own, which it empties itself.
    lying: Vec<Lying>,
    /// What the letters held that were taken from the own inbox and are still counted with it.
    taken_bytes: usize,
    /// Letters to be tried, over all of `outgoing`.
    waiting: usize,
    /// Bytes of answers to single clients that were written since `begin_answers`.
    answer_bytes: usize,
}

impl Mailroom {
    /// The post of shard `index`.
    pub fn new(index: u16, inboxes: Arc<[Inbox]>) -> Mailroom {
        let outgoing: Vec<_> = inboxes.iter().map(|_| VecDeque::new()).collect();
        Mailroom {
            index,
            inboxes,
            outgoing_bytes: vec![0; outgoing.len()],
            lying: vec![Lying::default(); outgoing.len()],
            outgoing,
            taken_bytes: 0,
            waiting: 0,
            answer_bytes: 0,
        }
    }

    /// Bytes of what this shard has not posted yet, as [`Inbox::held_bytes`].
    pub fn held_bytes(&self) -> usize {
        let letters: usize = self.outgoing.iter().map(VecDeque::capacity).sum();
        letters * size_of::<Letter>()
            + self.outgoing.len()
                * (size_of::<VecDeque<Letter>>() + size_of::<usize>() + size_of::<Lying>())
            + self.outgoing_bytes.iter().sum::<usize>()
    }

    /// Bytes of letters that were not posted yet, without what they have on the heap.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting * size_of::<Letter>()
    }

    /// How many shards there are.
    pub fn shards(&self) -> u16 {
        self.outgoing.len() as u16
    }

    /// Counts the bytes of answers from here on.
    pub fn begin_answers(&mut self) {
        self.answer_bytes = 0;
    }

    /// Bytes of answers, each made for one client, that were written since `begin_answers`.
    pub fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    /// Writes to a shard; to this one too.
    pub fn post(&mut self, shard: u16, letter: Letter) {
        if let Letter::Rooms { mail, .. } = &letter {
            self.answer_bytes += mail.answer_bytes();
        }
        self.outgoing_bytes[usize::from(shard)] += letter.held_bytes();
        self.outgoing[usize::from(shard)].push_back(letter);
        self.waiting += 1;
    }

    /// Whether a letter that may be refused should be written to `shard`.
    pub fn has_room(&self, shard: u16) -> bool {
        let shard = usize::from(shard);
        self.outgoing[shard].len() < OUTGOING_MAX && self.outgoing_bytes[shard] < OUTGOING_BYTES_MAX
    }

    /// Whether another request of a client should be written to `shard`, rather than wait in line.
    pub fn takes_requests(&self, shard: u16) -> bool {
        let shard = usize::from(shard);
        let Lying { letters, bytes } = self.lying[shard];
        self.outgoing[shard].len() + letters < CROWD_LETTERS
            && self.outgoing_bytes[shard] + bytes < CROWD_BYTES
    }

    /// As `takes_requests`, by what lies in the inbox of `shard` now.
    pub fn takes_requests_by_now(&mut self, shard: u16) -> bool {
        if shard != self.index {
            let inbox = &self.inboxes[usize::from(shard)];
            let bytes = inbox.bytes.load(Ordering::Relaxed);
            self.lying[usize::from(shard)] = Lying { letters: inbox.queue.len(), bytes };
        }
        self.takes_requests(shard)
    }

    /// The next letter to this shard. `taken` counts those of this turn.
    pub fn next_letter(&mut self, taken: &mut usize) -> Option<Letter> {
        if *taken < INBOX_BATCH {
            *taken += 1;
            if let Some(letter) = self.outgoing[usize::from(self.index)].pop_front() {
                self.outgoing_bytes[usize::from(self.index)] -= letter.held_bytes();
                self.waiting -= 1;
                return Some(letter);
            }
            if let Some(letter) = self.own().queue.pop() {
                self.taken_bytes += letter.held_bytes();
                return Some(letter);
            }
        }
        if self.taken_bytes > 0 {
            let taken_bytes = std::mem::take(&mut self.taken_bytes);
            self.own().bytes.fetch_sub(taken_bytes, Ordering::Relaxed);
        }
        None
    }

    /// Posts what was written this turn, and wakes those who sleep.
    pub fn dispatch(&mut self) {
        if self.waiting == self.outgoing[usize::from(self.index)].len() {
            return;
        }
        for (shard, letters) in self.outgoing.iter_mut().enumerate() {
            if shard == usize::from(self.index) || letters.is_empty() {
                continue;
            }
            let inbox = &self.inboxes[shard];
            let left_bytes = &mut self.outgoing_bytes[shard];
            // Counted before they lie there: who takes them may be quicker.
            let mut bytes = inbox.bytes.load(Ordering::Relaxed);
            if *left_bytes > 0 {
                bytes = inbox.bytes.fetch_add(*left_bytes, Ordering::Relaxed) + *left_bytes;
            }
            let leave = || {
                while let Some(letter) = letters.pop_front() {
                    let letter_bytes = letter.held_bytes();
                    if let Err(letter) = inbox.queue.push(letter) {
                        letters.push_front(letter);
                        break;
                    }
                    *left_bytes -= letter_bytes;
                    self.waiting -= 1;
                }
            };
            inbox.sleeper.leave(leave, || inbox.wake());
            if *left_bytes > 0 {
                inbox.bytes.fetch_sub(*left_bytes, Ordering::Relaxed);
                bytes -= *left_bytes;
            }
            self.lying[shard] = Lying { letters: inbox.queue.len(), bytes };
        }
    }

    /// Declares this shard asleep and says whether it may really wait. [`Mailroom::awake`] has to
    /// follow the wait. `stopping`: it knows already that it has been asked to stop.
    pub fn may_sleep(&self, stopping: bool) -> bool {
        let inbox = self.own();
        let has_work = || !inbox.queue.is_empty() || (inbox.stop_asked() && !stopping);
        inbox.sleeper.may_sleep(has_work)
    }

    /// Declares this shard awake: no wake is needed from now on.
    pub fn awake(&self) {
        self.own().sleeper.awake();
    }

    /// Whether the shard has been asked to stop.
    pub fn stop_asked(&self) -> bool {
        self.own().stop_asked()
    }

    /// Whether this shard has written to itself and not read it yet.
    pub fn has_own(&self) -> bool {
        !self.outgoing[usize::from(self.index)].is_empty()
    }

    /// Whether mail waits for a full inbox.
    pub fn is_stuck(&self) -> bool {
        self.waiting > self.outgoing[usize::from(self.index)].len()
    }

    fn own(&self) -> &Inbox {
        &self.inboxes[usize::from(self.index)]
    }
}
