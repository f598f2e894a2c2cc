//! This program as a child of itself: what `repeat` and `--workers` start.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// How often a child that goes on is looked at.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// A command that runs this program with other arguments, in a process group of its own: a Ctrl-C
/// is ours alone, and passed on by `ask_to_end`, for a second one would end a run without a result.
pub(crate) fn command<S: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = S>,
) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--child").args(arguments).process_group(0);
    Ok(command)
}

/// Asks a child to end with what there is. Call it once.
pub(crate) fn ask_to_end(child: &Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // One that has ended already is not a fault.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// In a child: it is asked to end when its parent is gone.
pub(crate) fn end_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::TERM))?)
}
