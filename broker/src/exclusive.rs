//! What one broker has to itself while it runs, by a lock on a file or a directory (flock(2)) that ends with it.

use std::io;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Takes it, for as long as an fd of it is open. False: another process has it.
///
/// # Errors
///
/// What flock(2) says.
pub fn take(of: impl AsFd) -> io::Result<bool> {
    // Who only looks, as below, has it for a moment.
    const TRIES: u32 = 5;
    const PAUSE: Duration = Duration::from_millis(10);

    for _ in 0..TRIES {
        match flock(&of, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => sleep(PAUSE),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(false)
}

/// Whether somebody has it.
///
/// # Errors
///
/// What flock(2) says.
pub fn is_taken(of: impl AsFd) -> io::Result<bool> {
    match flock(&of, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            flock(&of, FlockOperation::Unlock)?;
            Ok(false)
        }
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}
