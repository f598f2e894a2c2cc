//! What the tool asks of the kernel that the compiler cannot check: the rings, the memory they
//! write into, and a few system calls. All `unsafe` of the crate is below this module, and none
//! of it shows in a signature.
//!
//! Read `ring.rs` first; `pool.rs` is the receive memory, `lanes.rs` several rings in one thread.

#![allow(unsafe_code)]

pub(crate) mod lanes;
pub(crate) mod pool;
pub(crate) mod ring;

use std::io;
use std::time::Duration;

/// Keeps the calling thread, and threads it starts later, on one processor.
pub(crate) fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::other(format!("there is no CPU {cpu}")));
    }
    // SAFETY: the all-zero bit pattern is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies inside `set`.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is a whole set that outlives the call; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The processor time that all threads of a process have used since it began, to the nanosecond,
/// time of a thread that runs at this moment included. `None` when there is no such process.
pub(crate) fn process_cpu_time(pid: u32) -> Option<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: writes one clockid_t, to a local.
    if unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) } != 0 {
        return None;
    }
    clock_time(clock)
}

/// The processor time that the calling thread has used; what the kernel does within its system calls
/// is part of it.
pub(crate) fn own_thread_cpu_time() -> Duration {
    clock_time(libc::CLOCK_THREAD_CPUTIME_ID).expect("a thread has a clock of its own")
}

/// Has the kernel wake the calling thread when it asked to be woken. By default it may be 50 µs
/// late, to wake for several timers at once: too coarse for a schedule of messages.
pub(crate) fn wake_on_time() {
    // SAFETY: a call without pointers. It fails on no kernel, and late is what we were before.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// The processor time that this process has used.
pub(crate) fn own_cpu_time() -> Duration {
    clock_time(libc::CLOCK_PROCESS_CPUTIME_ID).expect("a process has a clock of its own")
}

fn clock_time(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, to a local.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    (result == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// The soft limit of open descriptors, which is also the kernel's bound for the table of one ring.
pub(crate) fn descriptors_max() -> u32 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one rlimit, to a local.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    if result != 0 {
        return 1024; // What POSIX systems have always started with.
    }
    // A table above 2^20 is refused by the kernel whatever the limit says.
    limit.rlim_cur.min(1 << 20) as u32
}
