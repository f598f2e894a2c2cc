//! One turn of a ring: submissions start, and what waits is visited and does what it can.

use std::time::Duration;

use super::super::super::{Buffer, Completion, Failure, SendMode, Wait};
use super::super::faults::Fault;
use super::super::link::{ACCEPTOR, CONNECTOR, Link};
use super::{Descriptor, Kernel, OPS, Op, Outcome, Ready, Send, Slot, Submission, Waiting, World};
use crate::conn::ConnId;

/// What may do something in a turn.
#[derive(Clone, Copy)]
enum Target {
    Accept(usize),
    Op(usize, Op),
}

/// Events that one turn brings at most: what a DEFER_TASKRUN enter of Linux 6.13 and later runs.
const EVENTS_MAX: usize = 40;
/// The kernel gives up a connect that nobody answers after about this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(127);

impl World {
    pub(in crate::ring::sim) fn submit_and_wait(&mut self, ring: usize, wait: Wait) {
        self.now = self.now + Duration::from_micros(1 + self.random.below(10));
        self.rings[ring].collect_home();
        let queue = std::mem::take(&mut self.rings[ring].queue);
        for submission in queue {
            self.start(ring, submission);
        }
        self.run_events(ring);
        let kernel = &mut self.rings[ring];
        kernel.turned_at = self.now;
        kernel.notice_wake();
        let woken = std::mem::take(&mut kernel.woken);
        kernel.asleep = match wait {
            Wait::Until(deadline) if kernel.ready.is_empty() && !woken && deadline > self.now => {
                Some((deadline, self.changes))
            }
            _ => None,
        };
    }

    fn start(&mut self, ring: usize, submission: Submission) {
        let now = self.now;
        match submission {
            Submission::Accept(listener) => {
                let waiting = Waiting::until(self.delayed(now));
                self.rings[ring].listeners[listener].accept = Some(waiting);
            }
            Submission::CancelAccept(listener) => {
                let at = self.delayed(now);
                if let Some(waiting) = &mut self.rings[ring].listeners[listener].accept {
                    waiting.cancel_at.get_or_insert(at);
                }
            }
            Submission::Recv(id) => {
                let waiting = Waiting::until(self.delayed(now));
                self.descriptor(ring, id.slot as usize).recv = Some(waiting);
            }
            Submission::Watch(id) => {
                let waiting = Waiting::until(self.delayed(now));
                self.descriptor(ring, id.slot as usize).watch = Some(waiting);
            }
            Submission::Send(id, payload, mode) => {
                let at = if mode == SendMode::TryNow { now } else { self.delayed(now) };
                let send = Send { waiting: Waiting::until(at), payload, done: 0, mode };
                self.descriptor(ring, id.slot as usize).send = Some(send);
                self.visit(ring, Target::Op(id.slot as usize, Op::Send));
            }
            Submission::Socket(owner) => {
                let waiting = Waiting::until(self.delayed(now));
                self.descriptor(ring, owner.slot as usize).socket = Some(waiting);
            }
            Submission::Connect(id, address) => {
                let (at, outcome) = if self.fires(Fault::NoLocalPort) {
                    (now, Outcome::Failed(Failure::NoLocalPort))
                } else if self.fires(Fault::ConnectTimeout) {
                    (now + CONNECT_TIMEOUT, Outcome::Failed(Failure::TimedOut))
                } else if !self.servers.contains_key(&address) || self.fires(Fault::ConnectRefused)
                {
                    (self.arrival(), Outcome::Failed(Failure::Refused))
                } else {
                    (self.arrival(), Outcome::Accepted)
                };
                let connect = Some((Waiting::until(at), address, outcome));
                self.descriptor(ring, id.slot as usize).connect = connect;
            }
            Submission::Shutdown(id) => {
                let waiting = Waiting::until(self.delayed(now));
                self.descriptor(ring, id.slot as usize).shutdown = Some(waiting);
            }
            Submission::Close(id) => {
                let waiting = Waiting::until(self.delayed(now));
                self.descriptor(ring, id.slot as usize).close = Some(waiting);
            }
            Submission::Cancel(id, op) => {
                let at = self.delayed(now);
                let descriptor = self.descriptor(ring, id.slot as usize);
                if let Some(waiting) = descriptor.waiting(op) {
                    waiting.cancel_at.get_or_insert(at);
                }
            }
        }
    }

    fn run_events(&mut self, ring: usize) {
        let limit = self.rings[ring].ready.len() + EVENTS_MAX;
        loop {
            let before = self.rings[ring].ready.len();
            let mut targets = self.rings[ring].targets();
            if targets.len() > 1 && self.fires(Fault::Reorder) {
                self.random.shuffle(&mut targets);
            } else {
                let first = self.random.below(targets.len() as u64) as usize;
                targets.rotate_left(first);
            }
            for target in targets {
                if self.rings[ring].ready.len() >= limit {
                    return;
                }
                self.visit(ring, target);
            }
            if self.rings[ring].ready.len() == before {
                return;
            }
        }
    }

    /// Lets one operation do what it can.
    fn visit(&mut self, ring: usize, target: Target) {
        let Some(waiting) = self.rings[ring].waiting(target) else { return };
        let waiting = *waiting;
        if waiting.is_cancelled(self.now) {
            if self.fires(Fault::CancelRace) {
                self.attempt(ring, target);
            }
            self.cancel(ring, target);
        } else if waiting.not_before <= self.now {
            self.attempt(ring, target);
        }
    }

    fn attempt(&mut self, ring: usize, target: Target) {
        match target {
            Target::Accept(listener) => self.attempt_accept(ring, listener),
            Target::Op(slot, Op::Recv) => self.attempt_recv(ring, slot),
            Target::Op(slot, Op::Watch) => self.attempt_watch(ring, slot),
            Target::Op(slot, Op::Send) => self.attempt_send(ring, slot),
            Target::Op(slot, Op::Connect) => self.attempt_connect(ring, slot),
            Target::Op(slot, Op::Socket) => self.attempt_socket(ring, slot),
            Target::Op(slot, Op::Shutdown) => self.attempt_shutdown(ring, slot),
            Target::Op(slot, Op::Close) => self.attempt_close(ring, slot),
        }
    }

    /// Ends an operation that is still there with what it has done.
    fn cancel(&mut self, ring: usize, target: Target) {
        if self.rings[ring].waiting(target).is_none() {
            return;
        }
        match target {
            Target::Accept(listener) => {
                self.rings[ring].end_accept(listener, Some(Failure::Cancelled));
            }
            Target::Op(slot, Op::Recv) => self.end_recv(ring, slot, Err(Failure::Cancelled)),
            Target::Op(slot, Op::Watch) => self.end_watch(ring, slot, false),
            Target::Op(slot, Op::Send) => self.end_send(ring, slot, Failure::Cancelled),
            Target::Op(slot, Op::Connect) => {
                self.end_connect(ring, slot, Err(Failure::Cancelled));
            }
            Target::Op(_, op) => unreachable!("the trait has no way to cancel {op:?}"),
        }
    }

    // --- What each operation does when its time has come.

    fn attempt_accept(&mut self, ring: usize, listener: usize) {
        let now = self.now;
        let Kernel { listeners, accepts_left, .. } = &mut self.rings[ring];
        let backlog = &mut listeners[listener].backlog;
        if backlog.front().is_none_or(|next| next.0 > now) || *accepts_left == 0 {
            return;
        }
        *accepts_left -= 1;
        let (_, link, peer) = backlog.pop_front().expect("looked at above");
        // The connection has been accepted when the lack of a slot is noticed, and is closed.
        let slot = if self.fires(Fault::TableFull) { None } else { self.rings[ring].allocate() };
        let Some(slot) = slot else {
            self.close_end(link, ACCEPTOR);
            let failure = Failure::TableFull;
            self.rings[ring].push(Completion::AcceptRefused { listener, failure });
            // The system may lack descriptors as well, of which an accept ends.
            if self.fires(Fault::MultishotEnd) {
                self.rings[ring].end_accept(listener, Some(failure));
            }
            return;
        };
        self.descriptor(ring, slot).connection = Some((link, ACCEPTOR));
        let slot = slot as u32;
        self.rings[ring].push(Completion::Accepted { listener, slot, peer });
        if self.fires(Fault::MultishotEnd) {
            self.rings[ring].end_accept(listener, None);
        }
    }

    fn attempt_recv(&mut self, ring: usize, slot: usize) {
        let now = self.now;
        let descriptor = self.descriptor(ring, slot);
        let Some(waiting) = &mut descriptor.recv else { return };
        let fresh = std::mem::replace(&mut waiting.fresh, false);
        let Some((link, end)) = descriptor.connection else {
            return self.end_recv(ring, slot, Err(Failure::Reset));
        };
        if self.link(link).readable(end, now) > 0 {
            self.maybe_reset(link);
        }
        let state = self.link(link);
        let (readable, is_reset) = (state.readable(end, now), state.is_reset(end, now));
        let ready = readable > 0 || is_reset || state.at_end(end, now);
        // The kernel takes a buffer before it looks at the socket: without one even an idle
        // socket, or one at its end, answers so when the receive is armed.
        let no_buffers = self.rings[ring].offered.is_empty();
        if (fresh || ready) && no_buffers || ready && self.fires(Fault::NoBuffers) {
            return self.end_recv(ring, slot, Err(Failure::NoBuffers));
        }
        if readable > 0 {
            return self.receive(ring, slot, readable);
        }
        if is_reset {
            let first = self.link(link).take_error(end);
            let result = if first { Err(Failure::Reset) } else { Ok(None) };
            self.end_recv(ring, slot, result);
        } else if ready {
            self.end_recv(ring, slot, Ok(None));
        }
    }

    /// Moves bytes from the socket into a buffer. There are some, and there is one.
    fn receive(&mut self, ring: usize, slot: usize, readable: usize) {
        let (link, end) = self.descriptor(ring, slot).connection.expect("it has bytes");
        let buffer_id = self.rings[ring].offered[0];
        let mut count = readable.min(self.rings[ring].pool.room(buffer_id));
        if count > 1 && self.fires(Fault::ShortReceive) {
            count = 1 + self.random.below(count as u64 - 1) as usize;
        }
        let bytes = self.link(link).read(end, count);
        self.changes += 1; // The window has opened.
        let kernel = &mut self.rings[ring];
        let buffer = kernel.pool.fill(buffer_id, &bytes, kernel.incremental);
        if !kernel.incremental || kernel.pool.room(buffer_id) == 0 {
            kernel.offered.pop_front();
        }
        if self.fires(Fault::MultishotEnd) {
            return self.end_recv(ring, slot, Ok(Some(buffer)));
        }
        let not_before = self.delayed(self.now);
        let id = self.id(ring, slot);
        self.descriptor(ring, slot).recv.as_mut().expect("armed").not_before = not_before;
        let received = Completion::Received { id, result: Ok(Some(buffer)), more: true };
        self.rings[ring].push(received);
    }

    /// A watch tells of a reset once. It does not take the error, and stays armed, or ends with it.
    fn attempt_watch(&mut self, ring: usize, slot: usize) {
        let now = self.now;
        let descriptor = self.descriptor(ring, slot);
        let (waiting, connection) = (descriptor.watch, descriptor.connection);
        let fresh = waiting.is_some_and(|waiting| waiting.fresh);
        let gone = connection.is_none_or(|(link, end)| self.link(link).is_reset(end, now));
        // It is fresh until it has told.
        if !gone || !fresh {
            return;
        }
        if self.fires(Fault::MultishotEnd) {
            return self.end_watch(ring, slot, true);
        }
        let id = self.id(ring, slot);
        self.descriptor(ring, slot).watch.as_mut().expect("armed").fresh = false;
        self.rings[ring].push(Completion::Watched { id, gone: true, more: true });
    }

    fn attempt_send(&mut self, ring: usize, slot: usize) {
        let now = self.now;
        let Some((link, end)) = self.descriptor(ring, slot).connection else {
            return self.end_send(ring, slot, Failure::Reset);
        };
        self.maybe_reset(link);
        let state = self.link(link);
        if state.is_reset(end, now) || state.has_finished(end) {
            state.take_error(end);
            return self.end_send(ring, slot, Failure::Reset);
        }
        let room = state.room(end);
        let send = self.descriptor(ring, slot).send.as_ref().expect("visited");
        let (done, mode, left) = (send.done, send.mode, send.payload.bytes - send.done);
        let mut count = left.min(room);
        if count > 0 && self.fires(Fault::ShortSend) {
            count = self.random.below(count as u64) as usize;
        }
        let arrival = self.arrival();
        // A send that stops short of the room goes on of itself, a little later.
        let soon = now + Duration::from_micros(1);
        let again_at = if count < left.min(room) { self.delayed(soon) } else { now };
        let send = self.descriptor(ring, slot).send.as_mut().expect("visited");
        let bytes = send.payload.read(done, count);
        send.done += count;
        send.waiting.not_before = again_at;
        let taken = self.link(link).write(end, &bytes, arrival);
        assert_eq!(taken, count, "the link had room for it");
        if count == left || mode == SendMode::TryNow {
            self.end_send(ring, slot, Failure::Full);
        }
    }

    fn attempt_connect(&mut self, ring: usize, slot: usize) {
        let (_, address, outcome) = self.descriptor(ring, slot).connect.expect("visited");
        let result = match outcome {
            Outcome::Failed(failure) => Err(failure),
            // The server may have gone in the meantime.
            Outcome::Accepted if !self.servers.contains_key(&address) => Err(Failure::Refused),
            Outcome::Accepted => {
                let link = self.new_link();
                self.servers.entry(address).or_default().push_back(link);
                self.descriptor(ring, slot).connection = Some((link, CONNECTOR));
                Ok(())
            }
        };
        self.end_connect(ring, slot, result);
    }

    fn attempt_socket(&mut self, ring: usize, slot: usize) {
        let owner = self.id(ring, slot);
        self.descriptor(ring, slot).socket = None;
        let new = if self.fires(Fault::TableFull) { None } else { self.rings[ring].allocate() };
        let result = new.map(|slot| slot as u32).ok_or(Failure::TableFull);
        self.rings[ring].push(Completion::SocketOpened { owner, result });
    }

    fn attempt_shutdown(&mut self, ring: usize, slot: usize) {
        let arrival = self.arrival();
        self.descriptor(ring, slot).shutdown = None;
        if let Some((link, end)) = self.descriptor(ring, slot).connection {
            self.link(link).finish(end, arrival);
        }
        let id = self.id(ring, slot);
        self.rings[ring].push(Completion::ShutDown { id });
    }

    fn attempt_close(&mut self, ring: usize, slot: usize) {
        let id = self.id(ring, slot);
        if let Some((link, end)) = self.descriptor(ring, slot).connection {
            self.close_end(link, end);
        }
        let kernel = &mut self.rings[ring];
        kernel.slots[slot] = Slot { descriptor: None, last_generation: Some(id.generation) };
        kernel.hint = slot;
        kernel.push(Completion::Closed { id });
    }

    // --- How operations end.

    fn end_recv(&mut self, ring: usize, slot: usize, result: Result<Option<Buffer>, Failure>) {
        let id = self.id(ring, slot);
        self.descriptor(ring, slot).recv = None;
        self.rings[ring].push(Completion::Received { id, result, more: false });
    }

    fn end_watch(&mut self, ring: usize, slot: usize, gone: bool) {
        let id = self.id(ring, slot);
        self.descriptor(ring, slot).watch = None;
        self.rings[ring].push(Completion::Watched { id, gone, more: false });
    }

    /// Answers with what was sent, or with `failure` where that is nothing.
    fn end_send(&mut self, ring: usize, slot: usize, failure: Failure) {
        let id = self.id(ring, slot);
        let send = self.descriptor(ring, slot).send.take().expect("visited");
        let nothing = send.done == 0 && send.payload.bytes > 0;
        let result = if nothing { Err(failure) } else { Ok(send.done) };
        let completion = Completion::Sent { id, result };
        self.rings[ring].ready.push_back(Ready { completion, payload: Some(send.payload) });
    }

    fn end_connect(&mut self, ring: usize, slot: usize, result: Result<(), Failure>) {
        let id = self.id(ring, slot);
        self.descriptor(ring, slot).connect = None;
        self.rings[ring].push(Completion::Connected { id, result });
    }

    fn maybe_reset(&mut self, link: u64) {
        if self.fires(Fault::Reset) {
            let now = self.now;
            for end in [CONNECTOR, ACCEPTOR] {
                self.link(link).reset(end, now);
            }
            self.changes += 1;
        }
    }

    fn descriptor(&mut self, ring: usize, slot: usize) -> &mut Descriptor {
        self.rings[ring].slots[slot].descriptor.as_mut().expect("an operation holds the slot open")
    }

    fn link(&mut self, link: u64) -> &mut Link {
        self.links.get_mut(&link).expect("our end is open")
    }

    fn id(&mut self, ring: usize, slot: usize) -> ConnId {
        let generation = self.descriptor(ring, slot).generation.expect("an operation named it");
        ConnId { slot: slot as u32, generation }
    }
}

impl Kernel {
    fn targets(&self) -> Vec<Target> {
        let accepts = self.listeners.iter().enumerate().filter(|(_, it)| it.accept.is_some());
        let mut targets: Vec<_> = accepts.map(|(index, _)| Target::Accept(index)).collect();
        for (slot, state) in self.slots.iter().enumerate() {
            if let Some(descriptor) = &state.descriptor {
                let ops = OPS.into_iter().filter(|op| descriptor.peek(*op).is_some());
                targets.extend(ops.map(|op| Target::Op(slot, op)));
            }
        }
        targets
    }

    fn waiting(&mut self, target: Target) -> Option<&mut Waiting> {
        match target {
            Target::Accept(listener) => self.listeners[listener].accept.as_mut(),
            Target::Op(slot, op) => self.slots[slot].descriptor.as_mut()?.waiting(op),
        }
    }
}
