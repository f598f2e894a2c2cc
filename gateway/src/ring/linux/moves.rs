//! An ordinary descriptor is moved into the table by the kernel, which writes the slot over it.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use crate::conn::ConnId;

/// Descriptors on their way into the table.
#[derive(Default)]
pub(super) struct Moves {
    /// Those that were accepted.
    pub(super) accepted: u32,
    // Boxed one by one, because the kernel reads and writes `fd` while the vector may grow. As
    // many as there are accepts and connects in one turn.
    #[allow(clippy::vec_box)]
    entries: Vec<Box<MoveEntry>>,
    free: Vec<u32>,
}

pub(super) struct MoveEntry {
    /// The descriptor, over which the kernel writes the slot.
    fd: RawFd,
    /// The same descriptor; closed when the move is over, either way.
    socket: Option<OwnedFd>,
    purpose: Move,
}

#[derive(Clone, Copy)]
pub(super) enum Move {
    Accepted { listener: usize, peer: SocketAddr },
    Opened { owner: ConnId },
    SelfTest,
}

impl Moves {
    pub(super) fn add(&mut self, socket: OwnedFd, purpose: Move) -> (u32, NonNull<RawFd>) {
        let fd = socket.as_raw_fd();
        self.accepted += u32::from(matches!(purpose, Move::Accepted { .. }));
        let entry = MoveEntry { fd, socket: Some(socket), purpose };
        let index = match self.free.pop() {
            Some(index) => {
                *self.entries[index as usize] = entry;
                index
            }
            None => {
                self.entries.push(Box::new(entry));
                self.entries.len() as u32 - 1
            }
        };
        (index, NonNull::from(&mut self.entries[index as usize].fd))
    }

    /// The slot that the kernel wrote, if it did, and the ordinary descriptor.
    pub(super) fn finish(&mut self, index: u32) -> (u32, Move, Option<OwnedFd>) {
        let entry = &mut self.entries[index as usize];
        let socket = entry.socket.take();
        self.free.push(index);
        self.accepted -= u32::from(matches!(entry.purpose, Move::Accepted { .. }));
        // SAFETY: a place that the kernel has written to since the compiler last saw it.
        (unsafe { (&raw const entry.fd).read_volatile() } as u32, entry.purpose, socket)
    }
}
