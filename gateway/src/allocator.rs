//! The allocator of the program, and how many bytes are in use of it.
//!
//! mimalloc keeps the threads apart; what it keeps beyond what it was asked for (pages that are not
//! full, sizes rounded up, what was given back and is kept for later) it does not say. So the bytes
//! that were asked for are counted here: what the kernel gave, less these, is what the allocator costs
//! (`memory.rs`).
//!
//! A shard counts in a place of its own with a relaxed load and store, which costs nothing beside the
//! allocation. All other threads share one place. Memory is often given back by another thread than
//! the one that asked for it, so single places may be below zero; the sum is exact.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

use mimalloc::MiMalloc;

/// Threads that count in places of their own; what comes beyond them shares one, and costs a little
/// more.
const PLACES: usize = 256;

/// mimalloc, and a count. To be declared as the `#[global_allocator]`.
pub struct Counting;

/// A count of one thread, in a cache line of its own.
#[repr(align(64))]
struct Place {
    bytes: AtomicIsize,
    taken: AtomicBool,
}

impl Place {
    const fn new() -> Place {
        Place { bytes: AtomicIsize::new(0), taken: AtomicBool::new(false) }
    }
}

static OWN: [Place; PLACES] = [const { Place::new() }; PLACES];
static SHARED: Place = Place::new();

thread_local! {
    /// The place of this thread, if it has one. Without a destructor, so that it can be asked at any
    /// time, and without an allocation.
    static MINE: Cell<Option<&'static Place>> = const { Cell::new(None) };
}

/// Gives the calling thread a place of its own, which it has for good: for threads that stay, and
/// allocate all the time.
pub fn claim_place() {
    if MINE.get().is_none() {
        let free = |place: &&Place| !place.taken.swap(true, Ordering::Relaxed);
        MINE.set(OWN.iter().find(free));
    }
}

/// Bytes that were asked for and not given back, by all threads; 0 where [`Counting`] is not the
/// allocator. What changes while this adds up may be counted or not.
pub fn bytes_in_use() -> usize {
    let own: isize = OWN.iter().map(|place| place.bytes.load(Ordering::Relaxed)).sum();
    (own + SHARED.bytes.load(Ordering::Relaxed)).max(0) as usize
}

/// Bytes that the calling thread has asked for and given back, whoever asked for those, if it has a
/// place of its own; else 0. Below zero for a thread that frees what others asked for.
pub fn own_bytes() -> isize {
    MINE.get().map_or(0, |place| place.bytes.load(Ordering::Relaxed))
}

unsafe extern "C" {
    fn mi_collect(force: bool);
}

/// Has mimalloc give free pages of the calling thread back to the kernel, which it does by itself only
/// while the thread allocates.
pub fn give_pages_back() {
    // SAFETY: it may be called at any time, and is linked with `MiMalloc` (mimalloc.h).
    unsafe { mi_collect(true) }
}

fn count(bytes: isize) {
    match MINE.get() {
        // Nobody else writes here.
        Some(Place { bytes: sum, .. }) => {
            sum.store(sum.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
        }
        None => {
            SHARED.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

// SAFETY: everything is handed on to mimalloc as it came, and what that answers is handed back; to
// count touches none of it, and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are mimalloc's.
        let pointer = unsafe { MiMalloc.alloc(layout) };
        if !pointer.is_null() {
            count(layout.size() as isize);
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are mimalloc's.
        let pointer = unsafe { MiMalloc.alloc_zeroed(layout) };
        if !pointer.is_null() {
            count(layout.size() as isize);
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above; it was allocated there.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above; it was allocated there.
        let moved = unsafe { MiMalloc.realloc(pointer, layout, size) };
        if !moved.is_null() {
            count(size as isize - layout.size() as isize);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tests have another allocator, so only these count here.
    #[test]
    fn what_is_given_back_elsewhere_is_counted_once() {
        let small = Layout::from_size_align(1000, 8).expect("a layout");
        let large = Layout::from_size_align(5000, 8).expect("a layout");
        let before = bytes_in_use();
        let since = || bytes_in_use() - before;
        // SAFETY: the layout has a size.
        let pointer = unsafe { Counting.alloc(small) } as usize;
        assert_eq!(since(), 1000);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                claim_place();
                let place = MINE.get().map(std::ptr::from_ref);
                claim_place();
                assert_eq!(MINE.get().map(std::ptr::from_ref), place, "one place for a thread");
                assert!(place.is_some());
                // SAFETY: it was allocated above with this layout, and is used here alone from now on.
                let pointer = unsafe { Counting.realloc(pointer as *mut u8, small, 5000) };
                assert_eq!(since(), 5000);
                // SAFETY: it has this layout since; and this one has a size.
                let zeroed = unsafe {
                    Counting.dealloc(pointer, large);
                    Counting.alloc_zeroed(large)
                };
                assert_eq!(since(), 5000);
                // SAFETY: it was allocated just now.
                unsafe { Counting.dealloc(zeroed, large) };
            });
        });
        assert_eq!(since(), 0);
    }
}
