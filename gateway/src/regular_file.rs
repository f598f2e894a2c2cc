//! Files that the operator names: opened without waiting, whatever has been put in their place.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Opens the file at `path` to be read. `None`: it is no regular file. To open a pipe waits for its
/// writer, and to read a device may never end.
///
/// # Errors
///
/// [`unreadable`].
pub fn open(path: &Path) -> Result<Option<File>, String> {
    match fs::metadata(path).map_err(|error| unreadable(&error))?.is_file() {
        true => File::open(path).map(Some).map_err(|error| unreadable(&error)),
        false => Ok(None),
    }
}

/// What a message says of a file behind its path.
pub fn unreadable(error: &io::Error) -> String {
    format!("cannot be read: {error}; check the path and that this user may read it")
}
