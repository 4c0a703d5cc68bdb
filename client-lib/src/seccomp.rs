//! The system calls that this library makes, for holders that confine themselves with seccomp(2).
//!
//! A process makes [`OPEN`] and [`RUN`] from [`Broker::connect`](crate::Broker::connect) until its sockets are active, and
//! [`RUN`] alone from then on. What is not in here is not this library's: the memory of its allocations, the threads and the
//! output of its program are the program's own business. The project's tests run holders of each kind under exactly these.
//!
//! What is set with [`Xsk::set_tx_budget`](crate::Xsk::set_tx_budget) and
//! [`Xsk::lower_busy_poll`](crate::Xsk::lower_busy_poll) takes setsockopt(2), which is in [`OPEN`] only: do it before the
//! filter is drawn tighter. The clock is read in the vDSO; where there is none, clock_gettime(2) is a system call too. An
//! `AsyncXsk` (feature `tokio`) makes those of tokio's reactor besides: epoll_ctl(2), epoll_wait(2), eventfd2(2), and an
//! fcntl(2) that duplicates the socket.
//!
//! ```
//! use xsk_client::seccomp::{OPEN, RUN};
//!
//! /// For a filter that allows these and what the program itself needs.
//! fn allowed() -> impl Iterator<Item = i64> {
//!     OPEN.iter().chain(RUN).map(|call| call.number)
//! }
//! # assert!(allowed().count() > 10);
//! ```

/// A system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemCall {
    /// Its name in the manual.
    pub name: &'static str,
    /// Its number on the architecture that this was compiled for.
    pub number: i64,
    /// What it is made for.
    pub why: &'static str,
}

macro_rules! calls {
    ($($name:ident: $number:ident, $why:literal;)*) => {
        &[$(SystemCall { name: stringify!($name), number: libc::$number, why: $why },)*]
    };
}

/// Until sockets are active: connect, acquire or inherit, register, map, bind, activate.
pub const OPEN: &[SystemCall] = calls! {
    socket: SYS_socket, "the connection to the broker";
    connect: SYS_connect, "the connection to the broker";
    sendto: SYS_sendto, "a request";
    recvmsg: SYS_recvmsg, "a reply with its file descriptors";
    ppoll: SYS_ppoll, "waiting for a reply";
    fcntl: SYS_fcntl, "sealing the umem; file descriptors that were inherited";
    memfd_create: SYS_memfd_create, "the umem";
    ftruncate: SYS_ftruncate, "the umem's length";
    fstat: SYS_fstat, "a umem that the broker made (kind bound)";
    mmap: SYS_mmap, "the umem and the rings";
    madvise: SYS_madvise, "having all pages of the umem there";
    setsockopt: SYS_setsockopt, "registering the umem, making rings (kind bare), options";
    getsockopt: SYS_getsockopt, "where the rings lie, and the mode";
    bind: SYS_bind, "binding the socket (kinds prepared and bare)";
    clock_nanosleep: SYS_clock_nanosleep, "trying again while the queue is busy";
    prlimit64: SYS_prlimit64, "telling what RLIMIT_MEMLOCK would have to be";
    getuid: SYS_getuid, "telling whose RLIMIT_MEMLOCK is too low";
    close: SYS_close, "the end of what is not needed any more";
};

/// With active sockets: to send, receive and wait, to read statistics, and to let go of all.
pub const RUN: &[SystemCall] = calls! {
    sendto: SYS_sendto, "waking the kernel for the TX ring";
    recvfrom: SYS_recvfrom, "waking the kernel for the fill ring (zero-copy)";
    ppoll: SYS_ppoll, "Xsk::wait";
    getsockopt: SYS_getsockopt, "whether the device is still there, and statistics";
    munmap: SYS_munmap, "the end of rings and umem";
    close: SYS_close, "the end of sockets and connection";
};
