//! Which system calls a thread of another process makes: ptrace(2), as strace does it.

#![expect(
    unsafe_code,
    reason = "ptrace(2) and waitpid(2) of a thread, for which rustix has no functions"
)]

use std::ffi::{c_int, c_long, c_uint};
use std::io;
use std::ptr;

/// A system call that was about to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: c_long,
    /// Its first argument.
    pub argument: u64,
}

/// A thread that is traced by the calling one. Dropping it lets the thread go on by itself.
#[derive(Debug)]
pub struct Traced {
    thread: c_int,
}

impl Traced {
    /// Stops the thread of that number.
    ///
    /// # Errors
    ///
    /// EPERM where the caller may not look into that process.
    pub fn seize(thread: i32) -> io::Result<Self> {
        request(
            libc::PTRACE_SEIZE,
            thread,
            0,
            libc::PTRACE_O_TRACESYSGOOD as usize,
        )?;
        let traced = Self { thread };
        request(libc::PTRACE_INTERRUPT, thread, 0, 0)?;
        traced.wait()?;
        Ok(traced)
    }

    /// Lets it run until it is about to make its next system call.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn next_call(&mut self) -> io::Result<Call> {
        /// `PTRACE_SYSCALL_INFO_ENTRY` (include/uapi/linux/ptrace.h).
        const ENTRY: u64 = 1;
        /// `struct ptrace_syscall_info`, in words: the kind is its first byte, number and arguments follow three words.
        const WORDS: usize = 12;
        loop {
            request(libc::PTRACE_SYSCALL, self.thread, 0, 0)?;
            if self.wait()? != libc::SIGTRAP | 0x80 {
                continue;
            }
            let mut info = [0_u64; WORDS];
            let at = ptr::from_mut(&mut info).addr();
            request(libc::PTRACE_GET_SYSCALL_INFO, self.thread, size_of_val(&info), at)?;
            if info[0] & 0xff == ENTRY {
                return Ok(Call {
                    number: info[3].cast_signed(),
                    argument: info[4],
                });
            }
        }
    }

    /// By which signal it has stopped.
    fn wait(&self) -> io::Result<c_int> {
        let mut status = 0;
        // SAFETY: the kernel writes a number to a live local.
        let waited = unsafe { libc::waitpid(self.thread, &raw mut status, libc::__WALL) };
        match waited {
            -1 => Err(io::Error::last_os_error()),
            _ if libc::WIFSTOPPED(status) => Ok(libc::WSTOPSIG(status)),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It is stopped, or has ended.
        request(libc::PTRACE_DETACH, self.thread, 0, 0).ok();
    }
}

fn request(what: c_uint, thread: c_int, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: of the requests above one writes to this process's memory, to `address` bytes at `data`, which its caller has.
    match unsafe { libc::ptrace(what, thread, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
