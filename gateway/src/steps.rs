//! Work of parsers, counted in tests so that a test can bound it without a clock: bytes and entries
//! looked at.

/// So many bytes or entries are looked at. Nothing outside of tests.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn took(_count: usize) {}

#[cfg(test)]
thread_local! {
    static TOOK: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
pub(crate) fn took(count: usize) {
    TOOK.set(TOOK.get() + count as u64);
}

/// The steps that `act` takes on this thread.
#[cfg(test)]
pub(crate) fn of(act: impl FnOnce()) -> u64 {
    let before = TOOK.get();
    act();
    TOOK.get() - before
}
