//! What submissions point to.

use std::io::IoSlice;

use socket2::SockAddr;

use super::{SEND_PARTS_MAX, SUBMISSIONS};

/// What submissions point to until they are submitted: the kernel copies message headers, arrays
/// of parts and addresses then (IORING_FEAT_SUBMIT_STABLE). The vectors never grow beyond what they
/// were made with, so nothing in them moves.
pub(super) struct Gather {
    messages: Vec<libc::msghdr>,
    parts: Vec<libc::iovec>,
    addresses: Vec<SockAddr>,
}

impl Gather {
    pub(super) fn new() -> Gather {
        Gather {
            messages: Vec::with_capacity(SUBMISSIONS as usize),
            parts: Vec::with_capacity(SUBMISSIONS as usize * 4 + SEND_PARTS_MAX),
            addresses: Vec::with_capacity(SUBMISSIONS as usize),
        }
    }

    /// Whether one more message of [`SEND_PARTS_MAX`] parts, or one more address, might not fit.
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() == self.messages.capacity()
            || self.parts.capacity() - self.parts.len() < SEND_PARTS_MAX
            || self.addresses.len() == self.addresses.capacity()
    }

    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.parts.clear();
        self.addresses.clear();
    }

    pub(super) fn add(&mut self, parts: &[IoSlice<'_>]) -> *const libc::msghdr {
        assert!(parts.len() <= SEND_PARTS_MAX && !self.is_full());
        let first = self.parts.len();
        self.parts.extend(parts.iter().map(|part| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        }));
        // SAFETY: a message header of zeros is a valid one, with no address and no parts.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = (&raw const self.parts[first]).cast_mut();
        message.msg_iovlen = parts.len();
        self.messages.push(message);
        &raw const *self.messages.last().expect("pushed above")
    }

    pub(super) fn add_address(
        &mut self,
        address: SockAddr,
    ) -> (*const libc::sockaddr, libc::socklen_t) {
        assert!(!self.is_full());
        self.addresses.push(address);
        let address = self.addresses.last().expect("pushed above");
        (address.as_ptr().cast(), address.len())
    }
}
