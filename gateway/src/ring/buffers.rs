//! The receive buffers of one shard, and the loans out of them.
//!
//! The kernel picks a buffer when data arrives, so an idle connection holds none. A buffer is
//! filled from the front, by one receive or, where the kernel can do it (Linux 6.12), by one after
//! the other:
//!
//! ```text
//!   | lent to a | back again | lent to b |  the kernel may still write here  |
//!   0                                    written                             buffer_bytes
//! ```
//!
//! It goes home to the kernel when the kernel will write no more into it (`exhausted`) and the
//! last loan has been dropped.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

/// Received bytes, on loan: readable and writable, nobody else's, until dropped.
#[must_use = "a buffer that is dropped unread loses received bytes"]
pub struct Buffer {
    pool: Rc<Inner>,
    start: NonNull<u8>,
    len: u32,
    id: u16,
}

impl Buffer {
    /// Splits the first `len` bytes off; `self` keeps the rest. Both stay in place.
    ///
    /// # Panics
    ///
    /// When `len` is more than there is.
    pub fn split_to(&mut self, len: usize) -> Buffer {
        assert!(len <= self.len as usize, "a split at {len} of {}", self.len);
        self.pool.states[usize::from(self.id)].borrow();
        let front =
            Buffer { pool: Rc::clone(&self.pool), start: self.start, len: len as u32, id: self.id };
        // SAFETY: `len` is within this loan, so the sum stays within (or one past) its range.
        self.start = unsafe { self.start.add(len) };
        self.len -= len as u32;
        front
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: loans never overlap (`filled` moves `written` on, `split_to` divides), the
        // kernel writes only beyond `written`, and `pool` keeps the memory mapped. The memory was
        // zeroed at allocation and then written by the kernel, so it is initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only view of the loan.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len as usize) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let state = &self.pool.states[usize::from(self.id)];
        state.loans.set(state.loans.get() - 1);
        self.pool.send_home_if_done(self.id);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes of #{})", self.len, self.id)
    }
}

/// The buffers of one ring: `count` of `buffer_bytes` each.
pub struct Pool(Rc<Inner>);

struct Inner {
    memory: NonNull<u8>,
    layout: std::alloc::Layout,
    buffer_bytes: u32,
    states: Box<[State]>,
    /// Buffers that are done and wait to be given back to the kernel.
    home: RefCell<Vec<u16>>,
    /// Buffers the kernel may still write into.
    with_kernel: Cell<u32>,
}

#[derive(Default)]
struct State {
    /// How far the kernel has written. `written <= buffer_bytes`
    written: Cell<u32>,
    /// Loans that have not been dropped.
    loans: Cell<u32>,
    /// The kernel writes no more into it.
    exhausted: Cell<bool>,
}

impl State {
    /// Counts one more loan.
    fn borrow(&self) {
        self.loans.set(self.loans.get() + 1);
    }
}

impl Pool {
    /// Allocates the buffers, zeroed. All start out with the kernel: the caller offers each id.
    ///
    /// # Panics
    ///
    /// When `count` is 0 or above 32,768 (the largest buffer ring), or `buffer_bytes` is 0.
    pub fn new(count: u16, buffer_bytes: u32) -> Pool {
        assert!((1..=32_768).contains(&count) && buffer_bytes > 0);
        let bytes = usize::from(count) * buffer_bytes as usize;
        let layout = std::alloc::Layout::from_size_align(bytes, 4096).expect("a size in range");
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { std::alloc::handle_alloc_error(layout) };
        Pool(Rc::new(Inner {
            memory,
            layout,
            buffer_bytes,
            states: (0..count).map(|_| State::default()).collect(),
            home: RefCell::new(Vec::with_capacity(usize::from(count))),
            with_kernel: Cell::new(u32::from(count)),
        }))
    }

    /// Where buffer `id` begins.
    pub fn address(&self, id: u16) -> NonNull<u8> {
        self.0.address(id)
    }

    /// Bytes in each buffer.
    pub fn buffer_bytes(&self) -> u32 {
        self.0.buffer_bytes
    }

    /// Number of buffers.
    pub fn count(&self) -> u16 {
        self.0.states.len() as u16
    }

    /// Lends the next `len` bytes of buffer `id`, which the kernel has just written. `more`: it
    /// will write behind them.
    ///
    /// # Panics
    ///
    /// When the kernel claims more than the buffer holds, or a buffer that it does not have.
    pub fn filled(&self, id: u16, len: u32, more: bool) -> Buffer {
        let state = &self.0.states[usize::from(id)];
        let written = state.written.get();
        assert!(!state.exhausted.get(), "buffer {id} was filled after it was exhausted");
        assert!(len <= self.0.buffer_bytes - written, "buffer {id} was filled beyond its end");
        state.borrow();
        state.written.set(written + len);
        if !more {
            state.exhausted.set(true);
            self.0.with_kernel.set(self.0.with_kernel.get() - 1);
        }
        // SAFETY: `written` is within the buffer (asserted above).
        let start = unsafe { self.0.address(id).add(written as usize) };
        Buffer { pool: Rc::clone(&self.0), start, len, id }
    }

    /// What the kernel does, for the simulated one: writes `data` behind what buffer `id` holds
    /// already and lends it. The buffer is exhausted when it is full or `more` is false.
    pub fn fill(&self, id: u16, data: &[u8], more: bool) -> Buffer {
        let room = self.room(id);
        let mut buffer = self.filled(id, data.len() as u32, more && data.len() < room);
        buffer.copy_from_slice(data);
        buffer
    }

    /// Bytes that the kernel may still write into buffer `id`.
    pub fn room(&self, id: u16) -> usize {
        (self.0.buffer_bytes - self.0.states[usize::from(id)].written.get()) as usize
    }

    /// Takes the id of a buffer that has come home; the caller offers it to the kernel again.
    pub fn next_home(&self) -> Option<u16> {
        let id = self.0.home.borrow_mut().pop()?;
        let state = &self.0.states[usize::from(id)];
        state.written.set(0);
        state.exhausted.set(false);
        self.0.with_kernel.set(self.0.with_kernel.get() + 1);
        Some(id)
    }

    /// Buffers that the kernel may still write into, in percent of all. Those that have come home
    /// count: they are offered before the next submission is.
    pub fn free_percent(&self) -> u32 {
        let free = self.0.with_kernel.get() as usize + self.0.home.borrow().len();
        (free * 100 / self.0.states.len()) as u32
    }

    /// Loans that have not been dropped.
    pub fn loans(&self) -> u32 {
        self.0.states.iter().map(|state| state.loans.get()).sum()
    }
}

impl Inner {
    fn address(&self, id: u16) -> NonNull<u8> {
        assert!(usize::from(id) < self.states.len(), "no buffer {id}");
        // SAFETY: the index is within the allocation of `count` buffers (asserted).
        unsafe { self.memory.add(usize::from(id) * self.buffer_bytes as usize) }
    }

    fn send_home_if_done(&self, id: u16) {
        let state = &self.states[usize::from(id)];
        if state.exhausted.get() && state.loans.get() == 0 {
            self.home.borrow_mut().push(id);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: allocated in `Pool::new` with this layout. Each loan keeps `Inner` alive, and
        // the ring, which is what lets the kernel write here, is dropped before its pool.
        unsafe { std::alloc::dealloc(self.memory.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_goes_home_after_its_last_loan() {
        let pool = Pool::new(2, 8);
        let mut first = pool.fill(1, b"abcd", true);
        let second = pool.fill(1, b"efgh", true); // Full: exhausted.
        let front = first.split_to(1);
        assert_eq!((&front[..], &first[..], &second[..]), (&b"a"[..], &b"bcd"[..], &b"efgh"[..]));
        assert_eq!(pool.free_percent(), 50);
        drop(first);
        drop(second);
        assert_eq!(pool.next_home(), None);
        drop(front);
        assert_eq!(pool.next_home(), Some(1));
        assert_eq!((pool.next_home(), pool.free_percent(), pool.loans()), (None, 100, 0));
    }

    #[test]
    fn a_buffer_that_the_kernel_may_still_fill_stays() {
        let pool = Pool::new(1, 8);
        drop(pool.fill(0, b"ab", true));
        assert_eq!(pool.next_home(), None);
        drop(pool.fill(0, b"cd", false));
        assert_eq!(pool.next_home(), Some(0));
        assert_eq!(pool.room(0), 8);
    }
}
