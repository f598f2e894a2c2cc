//! The ring through which receive buffers are offered to the kernel.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::{BUFFER_GROUP, Options, SetupError};
use crate::ring::buffers::Pool;

/// IOU_PBUF_RING_INC: one buffer takes the data of several receives, one behind the other, so that
/// small messages share the cache lines that are hot.
pub(super) const INCREMENTAL: u16 = 2;

/// A receive buffer where each receive takes a whole one: most messages are smaller, and the larger
/// the pool in bytes, the colder each buffer.
pub(super) const WHOLE_BUFFER_BYTES: u32 = 2048;

/// The ring through which receive buffers are offered to the kernel.
pub(super) struct BufferRing {
    entries: NonNull<BufRingEntry>,
    layout: std::alloc::Layout,
    mask: u16,
    tail: u16,
    pub(super) incremental: bool,
}

impl BufferRing {
    /// The pool that the options ask for. Where the kernel gives a whole buffer to each receive,
    /// however short, the same memory is cut into many small ones instead.
    pub(super) fn with_pool(
        ring: &IoUring,
        options: &Options,
    ) -> Result<(Pool, BufferRing), SetupError> {
        if options.incremental {
            let pool = Pool::new(options.buffers, options.buffer_bytes);
            if let Ok(buffer_ring) = BufferRing::register(ring, &pool, INCREMENTAL) {
                return Ok((pool, buffer_ring));
            }
        }
        let bytes = u64::from(options.buffers) * u64::from(options.buffer_bytes);
        let buffer_bytes = options.buffer_bytes.min(WHOLE_BUFFER_BYTES);
        let count = (bytes / u64::from(buffer_bytes)).clamp(1, 32_768) as u16;
        let count = if count.is_power_of_two() { count } else { count.next_power_of_two() / 2 };
        let pool = Pool::new(count, buffer_bytes);
        let buffer_ring = BufferRing::register(ring, &pool, 0)
            .map_err(|error| SetupError::new("a ring of receive buffers", error))?;
        Ok((pool, buffer_ring))
    }

    pub(super) fn register(ring: &IoUring, pool: &Pool, flags: u16) -> io::Result<BufferRing> {
        let bytes = usize::from(pool.count()) * size_of::<BufRingEntry>();
        // Page-aligned, as the kernel asks.
        let layout = std::alloc::Layout::from_size_align(bytes, 4096).expect("a size in range");
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(entries) = NonNull::new(memory.cast::<BufRingEntry>()) else {
            std::alloc::handle_alloc_error(layout)
        };
        let mut this = BufferRing {
            entries,
            layout,
            mask: pool.count() - 1,
            tail: 0,
            incremental: flags == INCREMENTAL,
        };
        // SAFETY: the memory is ours, aligned, zeroed, and outlives the ring (field order of
        // `LinuxRing`).
        unsafe {
            let address = entries.as_ptr() as u64;
            let submitter = ring.submitter();
            submitter.register_buf_ring_with_flags(address, pool.count(), BUFFER_GROUP, flags)?;
        }
        for id in 0..pool.count() {
            this.offer(pool, id);
        }
        this.publish();
        Ok(this)
    }

    /// Offers every buffer that has come home.
    pub(super) fn offer_home(&mut self, pool: &Pool) {
        let before = self.tail;
        while let Some(id) = pool.next_home() {
            self.offer(pool, id);
        }
        if self.tail != before {
            self.publish();
        }
    }

    pub(super) fn offer(&mut self, pool: &Pool, id: u16) {
        // SAFETY: the masked index is within the ring, and the kernel does not read an entry
        // before the tail has passed it. There are as many entries as buffers, so this one is free.
        let entry = unsafe { self.entries.add(usize::from(self.tail & self.mask)).as_mut() };
        entry.set_addr(pool.address(id).as_ptr() as u64);
        entry.set_len(pool.buffer_bytes());
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    pub(super) fn publish(&self) {
        // SAFETY: the tail lies in the first entry, 2-aligned; the kernel reads it concurrently,
        // so it is only ever touched as an atomic.
        let tail =
            unsafe { BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>().as_ref() };
        tail.expect("not null").store(self.tail, Ordering::Release);
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: allocated in `register` with this layout; the ring that used it is gone.
        unsafe { std::alloc::dealloc(self.entries.as_ptr().cast(), self.layout) };
    }
}
