//! Sockets that this process was started with, as `xsk-broker grant IF:QUEUES -- COMMAND` leaves them.
//!
//! Until they are taken they are numbers in the environment, and whether they still mean what they meant is checked
//! before anybody owns them.

#![expect(unsafe_code, reason = "inherited fds are numbers until somebody owns them")]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SealFlags;
use rustix::io::FdFlags;

use crate::error::InheritError;
use crate::sys;
use crate::wire::{Acquired, SocketKind};

const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
const XSK_LEASE: &str = "XSK_LEASE";

/// The first fd that is passed (`SD_LISTEN_FDS_START`).
const FIRST_FD: RawFd = 3;

/// Whether the environment offers sockets.
pub(crate) fn is_offered() -> bool {
    [LISTEN_FDS, XSK_LEASE]
        .iter()
        .all(|name| std::env::var_os(name).is_some())
}

/// Takes them, once.
pub(crate) fn take() -> Result<(Acquired, Vec<OwnedFd>), InheritError> {
    let described = Inherited::read(|name| std::env::var(name).ok(), std::process::id())?;
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.load(Ordering::Acquire) {
        return Err(InheritError::Taken);
    }
    for fd in described.fds.clone() {
        check_inherited(fd, described.acquired.kind)?;
    }
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Err(InheritError::Taken);
    }
    let mut sockets = Vec::new();
    for fd in described.fds {
        // SAFETY: nobody else in this process owns it. It is open and not close-on-exec (`check_inherited`), so it
        // came through exec: whatever opens fds in Rust since then makes them close-on-exec. LISTEN_PID says that
        // it was left to exactly this process, by the protocol that makes the first taker its owner; and `TAKEN`
        // makes this the only take.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC).map_err(|_| InheritError::NotOurs { fd })?;
        sockets.push(socket);
    }
    Ok((described.acquired, sockets))
}

/// What the environment says, consistent in itself.
#[derive(Debug)]
struct Inherited {
    acquired: Acquired,
    fds: std::ops::Range<RawFd>,
}

impl Inherited {
    fn read(variable: impl Fn(&'static str) -> Option<String>, our_pid: u32) -> Result<Self, InheritError> {
        let text = |name| variable(name).ok_or(InheritError::Missing(name));
        let malformed = |name, value: &str| InheritError::Malformed {
            name,
            value: value.to_owned(),
        };
        let pid = text(LISTEN_PID)?;
        let pid: u32 = pid.parse().map_err(|_| malformed(LISTEN_PID, &pid))?;
        if pid != our_pid {
            return Err(InheritError::OtherProcess {
                meant: pid,
                ours: our_pid,
            });
        }
        let count = text(LISTEN_FDS)?;
        let fds: u16 = count.parse().map_err(|_| malformed(LISTEN_FDS, &count))?;
        let names = text(LISTEN_FDNAMES)?;
        let acquired: Acquired = serde_json::from_str(&text(XSK_LEASE)?)?;
        // The fds come in the order of the reply's indexes, and so do their names.
        let sockets = acquired.sockets.iter();
        let sockets = sockets.map(|socket| (socket.socket_file_descriptor, socket.queue.to_string()));
        let umem = acquired
            .umem_file_descriptor
            .map(|index| (index, "umem".to_owned()));
        let mut expected: Vec<_> = sockets.chain(umem).collect();
        expected.sort_unstable();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(_, name)| format!("xsk-{}-{name}", acquired.interface))
            .collect();
        if expected.is_empty() || usize::from(fds) != expected.len() || names != expected.join(":") {
            return Err(InheritError::Inconsistent {
                sockets: expected.len(),
            });
        }
        Ok(Self {
            acquired,
            fds: FIRST_FD..FIRST_FD + RawFd::from(fds),
        })
    }
}

/// What is handed over for sockets of that kind, and came through exec: an unbound AF_XDP socket, or a memfd of a length
/// that is sealed.
fn check_inherited(fd: RawFd, kind: SocketKind) -> Result<(), InheritError> {
    // SAFETY: borrowed for two calls that only ask, which are harmless on any number; nothing in this process closes
    // an fd that it does not own, and this one nobody owns yet.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let inherited = rustix::io::fcntl_getfd(borrowed).is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC));
    let is_right = match kind {
        SocketKind::Bound => {
            rustix::fs::fcntl_get_seals(borrowed).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
        }
        _ => matches!(sys::is_bound(borrowed), Ok(false)),
    };
    match inherited && is_right {
        true => Ok(()),
        false => Err(InheritError::NotOurs { fd }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::{Direction, GrantedSocket, QueueLock, RingSizes, XdpMode, ZeroCopy};

    pub(crate) fn acquired() -> Acquired {
        let socket = |queue, socket_file_descriptor| GrantedSocket {
            queue,
            socket_file_descriptor,
        };
        Acquired {
            lease: 7,
            interface: "eth0".parse().unwrap(),
            interface_index: 3,
            rule: "tenant".into(),
            kind: SocketKind::Prepared,
            direction: Direction::RxTx,
            queue_lock: QueueLock::None,
            xdp: XdpMode::Native,
            zero_copy: ZeroCopy::Allowed,
            rings: RingSizes::default(),
            activate_within_ms: 5000,
            umem: None,
            umem_file_descriptor: None,
            sockets: vec![socket(4, 1), socket(5, 0)],
        }
    }

    fn read(changes: &[(&'static str, Option<&str>)]) -> Result<Inherited, InheritError> {
        let lease = serde_json::to_string(&acquired()).unwrap();
        let variable = |name| match changes.iter().find(|(changed, _)| *changed == name) {
            Some((_, value)) => value.map(str::to_owned),
            None => Some(match name {
                LISTEN_FDS => "2".to_owned(),
                LISTEN_PID => "77".to_owned(),
                LISTEN_FDNAMES => "xsk-eth0-5:xsk-eth0-4".to_owned(),
                _ => lease.clone(),
            }),
        };
        Inherited::read(variable, 77)
    }

    #[test]
    fn a_consistent_environment_is_read() {
        let inherited = read(&[]).unwrap();
        assert_eq!(inherited.fds, 3..5);
        assert_eq!(inherited.acquired, acquired());
    }

    #[test]
    fn a_umem_may_be_left_in_place_of_sockets() {
        let lease = Acquired {
            kind: SocketKind::Bound,
            umem_file_descriptor: Some(0),
            sockets: Vec::new(),
            ..acquired()
        };
        let lease = serde_json::to_string(&lease).unwrap();
        let with = |names| {
            read(&[
                (LISTEN_FDS, Some("1")),
                (LISTEN_FDNAMES, Some(names)),
                (XSK_LEASE, Some(&lease)),
            ])
        };
        assert_eq!(with("xsk-eth0-umem").unwrap().fds, 3..4);
        assert!(with("xsk-eth0-4").is_err());
    }

    #[test]
    fn whatever_does_not_fit_is_refused() {
        for name in [LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES, XSK_LEASE] {
            assert!(matches!(read(&[(name, None)]), Err(InheritError::Missing(missing)) if missing == name));
        }
        assert!(matches!(
            read(&[(LISTEN_PID, Some("78"))]),
            Err(InheritError::OtherProcess { meant: 78, ours: 77 })
        ));
        for (name, value) in [
            (LISTEN_FDS, "1"),
            (LISTEN_FDS, "3"),
            (LISTEN_FDS, "-1"),
            (LISTEN_FDS, "2000000000"),
            (LISTEN_PID, "x"),
            (LISTEN_FDNAMES, "xsk-eth0-4:xsk-eth0-5"),
            (LISTEN_FDNAMES, ""),
            (XSK_LEASE, "{}"),
            (XSK_LEASE, "[]"),
        ] {
            assert!(read(&[(name, Some(value))]).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn what_was_not_inherited_is_not_taken() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        use std::os::fd::AsRawFd;
        for kind in SocketKind::ALL {
            assert!(check_inherited(ours.as_raw_fd(), *kind).is_err());
            assert!(check_inherited(1_000_000, *kind).is_err());
        }
    }
}
