//! What tells a process from others that have its pid before or after it.

use std::io;

/// When a process started, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
///
/// # Errors
///
/// What reading the file says: [`io::ErrorKind::NotFound`] where there is no such process in our pid namespace.
pub fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    // The second field is the command's name in parentheses, and may hold any bytes, parentheses too.
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(") ")
        .and_then(|(_, fields)| fields.split(' ').nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::other("no time of its start"))
}
