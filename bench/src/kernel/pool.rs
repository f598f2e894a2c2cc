//! The receive memory of one ring: a provided-buffer ring that the kernel fills incrementally.
//!
//! ```text
//!   buffer:  | chunk | chunk | released |     the kernel writes on here      |
//!            0                       written                           buffer_bytes
//! ```
//!
//! The kernel writes one receive behind the other into a buffer, so small messages lie densely
//! and the working set stays in the cache. Each receive is handed out as a [`Chunk`]; a buffer is
//! offered to the kernel again when that has said it is done with it and every chunk is released.

use std::alloc::Layout;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, types::BufRingEntry};

/// Received bytes inside a [`Pool`]; has to be released there. It is a claim, not a view: the pool
/// that made it turns it into a slice.
#[derive(Debug)]
#[must_use = "a chunk that is not released keeps its buffer from the kernel for good"]
pub(crate) struct Chunk {
    buffer: u16,
    start: u32,
    len: u32,
}

impl Chunk {
    /// Drops `front` bytes from its beginning and keeps `len` bytes of the rest.
    ///
    /// # Panics
    ///
    /// When it does not have that many.
    pub(crate) fn narrow(&mut self, front: usize, len: usize) {
        assert!(front + len <= self.len as usize, "{front} + {len} of a chunk of {}", self.len);
        self.start += front as u32;
        self.len = len as u32;
    }

    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }
}

/// The buffers, and how far each is used.
pub(crate) struct Pool {
    /// The entries that the kernel reads; page-aligned.
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    buffer_bytes: u32,
    states: Box<[State]>,
    /// Our copy of the ring's tail; only we move it.
    tail: u16,
}

#[derive(Clone, Default)]
struct State {
    /// How far the kernel has written. `written <= buffer_bytes`
    written: u32,
    /// Chunks that are not released.
    chunks: u32,
    /// The kernel writes no more into it.
    exhausted: bool,
}

/// The one group of buffers that each ring has.
pub(crate) const BUFFER_GROUP: u16 = 0;

const PAGE_BYTES: usize = 4096;

/// IOU_PBUF_RING_INC (Linux 6.12): a buffer is consumed by what was received, not as a whole.
const INCREMENTAL: u16 = 2;

impl Pool {
    /// Allocates `count` buffers (a power of two) and registers them with `uring`.
    pub(crate) fn register(uring: &IoUring, count: u16, buffer_bytes: u32) -> io::Result<Pool> {
        assert!(count.is_power_of_two() && count <= 1 << 15 && buffer_bytes > 0);
        let entries = zeroed(usize::from(count) * size_of::<BufRingEntry>()).cast();
        let memory = zeroed(usize::from(count) * buffer_bytes as usize);
        // SAFETY: `entries` holds `count` zeroed entries, page-aligned, and is never freed.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                entries.as_ptr() as u64,
                count,
                BUFFER_GROUP,
                INCREMENTAL,
            )
        }
        .map_err(|error| {
            let hint = "incremental buffer rings need Linux 6.12";
            io::Error::new(
                error.kind(),
                format!("cannot register receive buffers: {error} ({hint})"),
            )
        })?;
        let states = vec![State::default(); usize::from(count)].into_boxed_slice();
        let mut pool = Pool { entries, memory, buffer_bytes, states, tail: 0 };
        for id in 0..count {
            pool.offer(id);
        }
        Ok(pool)
    }

    /// Claims the next `len` bytes of buffer `id`, which the kernel has just written. `more`: it
    /// will write behind them.
    ///
    /// # Panics
    ///
    /// When the kernel claims to have written where it had nothing to write.
    pub(crate) fn filled(&mut self, id: u16, len: u32, more: bool) -> Chunk {
        let state = &mut self.states[usize::from(id)];
        assert!(
            !state.exhausted && len <= self.buffer_bytes - state.written,
            "buffer {id} overrun"
        );
        let chunk = Chunk { buffer: id, start: state.written, len };
        state.written += len;
        state.chunks += 1;
        state.exhausted = !more;
        chunk
    }

    /// The bytes of a chunk.
    pub(crate) fn bytes(&self, chunk: &Chunk) -> &[u8] {
        // SAFETY: `address` has seen that the kernel has written these bytes, and it will not write
        // them again before the chunk is released. They were zeroed, so they are initialised. Rust
        // writes them only through `bytes_mut`, which borrows the pool for itself.
        unsafe { std::slice::from_raw_parts(self.address(chunk), chunk.len as usize) }
    }

    /// The bytes of a chunk, to be changed in place.
    pub(crate) fn bytes_mut(&mut self, chunk: &mut Chunk) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the pool is borrowed mutably, so there is no other view.
        unsafe { std::slice::from_raw_parts_mut(self.address(chunk), chunk.len as usize) }
    }

    /// Gives a chunk back.
    #[expect(clippy::needless_pass_by_value, reason = "nobody may have the chunk afterwards")]
    pub(crate) fn release(&mut self, chunk: Chunk) {
        let state = &mut self.states[usize::from(chunk.buffer)];
        state.chunks -= 1;
        if state.chunks == 0 && state.exhausted {
            *state = State::default();
            self.offer(chunk.buffer);
        }
    }

    /// Where a chunk begins.
    pub(super) fn address(&self, chunk: &Chunk) -> *mut u8 {
        // Only a chunk of another pool could fail this.
        let written = self.states[usize::from(chunk.buffer)].written;
        assert!(chunk.start + chunk.len <= written, "a chunk that this pool has not handed out");
        let offset = usize::from(chunk.buffer) * self.buffer_bytes as usize + chunk.start as usize;
        // SAFETY: the index of the buffer and the place in it are within the memory (above, and
        // written <= buffer_bytes).
        unsafe { self.memory.add(offset) }.as_ptr()
    }

    /// Puts a buffer on the ring that the kernel takes from.
    fn offer(&mut self, id: u16) {
        let mask = self.states.len() as u16 - 1;
        // SAFETY: the index is masked to the number of entries. The kernel reads entries only
        // below the tail that is stored afterwards, and this one is free: there are as many
        // entries as buffers.
        let entry = unsafe { self.entries.add(usize::from(self.tail & mask)).as_mut() };
        // SAFETY: `id` is below the number of buffers.
        let address = unsafe { self.memory.add(usize::from(id) * self.buffer_bytes as usize) };
        entry.set_addr(address.as_ptr() as u64);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry's reserved half-word, is 2-aligned, and is
        // touched here only, as an atomic; the kernel reads it with acquire.
        let tail = unsafe { &*BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

// There is no Drop: the kernel ends a ring's operations some time after its descriptor is closed,
// and until then may look at this memory. A ring lives as long as its process, so it is left.

/// Page-aligned zeroed memory that is never freed.
fn zeroed(bytes: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("a size in range");
    // SAFETY: the callers ask for more than zero bytes.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| std::alloc::handle_alloc_error(layout))
}
