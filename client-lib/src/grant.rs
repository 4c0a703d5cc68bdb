//! Sockets that were granted: from the request to the [`Xsk`].
//!
//! `Grant` → `bind` → [`Bound`] → `activate` → [`Xsk`]: each step gives what the next one takes. How the fds came
//! (asked for, inherited, or received in some other way) makes no difference after the first.

#![expect(unsafe_code, reason = "inherited fds are numbers until somebody owns them")]

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;

use crate::call_error::{CallError, ProtocolError};
use crate::connection::{Broker, in_order};
use crate::error::{Error, InheritError, Queue};
use crate::setup::{BindOptions, Unbound};
use crate::sys;
use crate::umem::Umem;
use crate::wire::{Acquire, Acquired, RingSizes, SocketKind, Target};
use crate::xsk::Xsk;

/// What to ask the broker for.
#[derive(Debug, Clone)]
#[must_use]
pub struct Request(Acquire);

impl Request {
    /// Queues of a device, all or none: `"eth0:4".parse()` or `"eth0:2-4".parse()`.
    pub fn new(target: Target) -> Self {
        Self(Acquire {
            interface: target.interface,
            queues: target.queues,
            sockets: SocketKind::Prepared,
            rings: None,
            label: None,
        })
    }

    /// How large the rings are to be; the broker's default, and at most what the rule allows, if not set.
    pub fn rings(mut self, rings: RingSizes) -> Self {
        self.0.rings = Some(rings);
        self
    }

    /// A text for the broker's log and list.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.0.label = Some(label.into());
        self
    }
}

/// Sockets of one lease, not yet bound. The lease ends by itself if it is not activated in time.
///
/// ```no_run
/// use xsk_client::{BindOptions, Broker, Grant, Request, Umem, UmemOptions};
///
/// let mut broker = Broker::connect()?;
/// let grant = Grant::acquire(&mut broker, Request::new("eth0:4".parse()?))?;
/// let umem = Umem::new(&UmemOptions::new())?;
/// let mut xsk = grant.bind_one(umem, &BindOptions::new())?.activate(&mut broker)?;
/// println!("{} in {} mode", xsk.queue(), xsk.mode());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Grant {
    acquired: Acquired,
    sockets: Vec<OwnedFd>,
}

impl Grant {
    /// Asks the broker.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`] says why not; [`Error::retry_after`] whether to ask again.
    pub fn acquire(broker: &mut Broker, request: Request) -> Result<Self, Error> {
        let Request(request) = request;
        let (acquired, sockets) = broker.acquire(&request)?;
        Ok(Self { acquired, sockets })
    }

    /// Whether this process was started with sockets to take: `LISTEN_FDS` and `XSK_LEASE` are set.
    pub fn is_in_env() -> bool {
        [LISTEN_FDS, XSK_LEASE]
            .iter()
            .all(|name| std::env::var_os(name).is_some())
    }

    /// Takes the sockets that `xsk-broker grant IF:QUEUES -- COMMAND` has left to this process, once.
    ///
    /// They are named by `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` (`xsk-eth0-4`) as in `sd_listen_fds(3)`, and
    /// described by `XSK_LEASE`. Take them early, before anything else in the process could use these fds. They become
    /// close-on-exec; the environment is left as it is, since changing it is not safe while other threads run.
    ///
    /// # Errors
    ///
    /// [`Error::Inherit`] says which variable is missing, or does not fit the others.
    pub fn from_env() -> Result<Self, Error> {
        let described = Inherited::read(|name| std::env::var(name).ok(), std::process::id())?;
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.load(Ordering::Acquire) {
            return Err(InheritError::Taken.into());
        }
        for fd in described.fds.clone() {
            check_inherited(fd)?;
        }
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Err(InheritError::Taken.into());
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
        Self::from_parts(described.acquired, sockets)
    }

    /// Takes sockets that came by another way, with the reply that describes them: from a manager over SCM_RIGHTS, say.
    /// `sockets` in the order of the reply's fd indexes, as they came.
    ///
    /// # Errors
    ///
    /// [`CallError::Protocol`] where the indexes and the fds do not match.
    pub fn from_parts(acquired: Acquired, sockets: Vec<OwnedFd>) -> Result<Self, Error> {
        let sockets = in_order(&acquired, sockets).map_err(|cause| CallError::Protocol {
            method: "Acquire",
            cause,
        })?;
        acquired.rings.check().map_err(|error| CallError::Protocol {
            method: "Acquire",
            cause: ProtocolError::Json(serde::de::Error::custom(error)),
        })?;
        Ok(Self { acquired, sockets })
    }

    /// The reply and the sockets, in the order of its fd indexes: to hand them on.
    pub fn into_parts(self) -> (Acquired, Vec<OwnedFd>) {
        let mut indexed: Vec<_> = self
            .acquired
            .sockets
            .iter()
            .map(|socket| socket.socket_file_descriptor)
            .zip(self.sockets)
            .collect();
        indexed.sort_by_key(|(index, _)| *index);
        (
            self.acquired,
            indexed.into_iter().map(|(_, socket)| socket).collect(),
        )
    }

    /// What was granted.
    pub fn acquired(&self) -> &Acquired {
        &self.acquired
    }

    /// The sockets, in the order of `acquired().sockets`.
    pub fn sockets(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    /// Binds every socket, each with a umem of its own, in the order of the queues.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] unless there is one umem for each socket; [`Error::Memlock`], [`Error::QueueBusy`],
    /// [`Error::NoZeroCopy`], [`Error::Socket`]. The sockets are closed then, and the broker ends the lease.
    pub fn bind(self, umems: Vec<Umem>, options: &BindOptions) -> Result<Bound<Vec<Xsk>>, Error> {
        let Self { acquired, sockets } = self;
        if umems.len() != sockets.len() {
            return Err(Error::Count {
                what: "umems",
                sockets: sockets.len(),
                given: umems.len(),
            });
        }
        let mut bound = Vec::new();
        for ((socket, granted), umem) in sockets.into_iter().zip(&acquired.sockets).zip(umems) {
            let unbound = Unbound {
                socket,
                queue: Queue {
                    interface: acquired.interface.clone(),
                    id: granted.queue,
                },
                interface_index: acquired.interface_index,
                rings: acquired.rings,
            };
            bound.push(Xsk::bind(unbound, umem, options)?);
        }
        Ok(Bound {
            lease: acquired.lease,
            sockets: bound,
        })
    }

    /// As [`Self::bind`], for a grant of one queue.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] where the grant has several.
    pub fn bind_one(self, umem: Umem, options: &BindOptions) -> Result<Bound<Xsk>, Error> {
        let Bound { lease, mut sockets } = self.bind(vec![umem], options)?;
        match sockets.pop() {
            Some(sockets) => Ok(Bound { lease, sockets }),
            None => Err(Error::Count {
                what: "umems",
                sockets: 0,
                given: 1,
            }),
        }
    }
}

/// Bound sockets (`Xsk`, or `Vec<Xsk>`) that no packet is redirected to yet.
#[derive(Debug)]
pub struct Bound<S> {
    lease: u64,
    sockets: S,
}

impl<S> Bound<S> {
    /// The lease's number.
    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// Has the broker redirect packets to the sockets.
    ///
    /// # Errors
    ///
    /// As [`Broker::activate`]. The sockets are closed then.
    pub fn activate(self, broker: &mut Broker) -> Result<S, Error> {
        broker.activate(self.lease)?;
        Ok(self.sockets)
    }

    /// The sockets, for who activates the lease in another way. They can send; nothing arrives yet.
    pub fn into_inner(self) -> S {
        self.sockets
    }
}

const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
const XSK_LEASE: &str = "XSK_LEASE";

/// The first fd that is passed (`SD_LISTEN_FDS_START`).
const FIRST_FD: RawFd = 3;

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
        let mut expected: Vec<_> = acquired
            .sockets
            .iter()
            .map(|socket| (socket.socket_file_descriptor, socket.queue))
            .collect();
        expected.sort_unstable();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(_, queue)| format!("xsk-{}-{queue}", acquired.interface))
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

/// An unbound AF_XDP socket that came through exec.
fn check_inherited(fd: RawFd) -> Result<(), InheritError> {
    // SAFETY: borrowed for two calls that only ask, which are harmless on any number; nothing in this process closes
    // an fd that it does not own, and this one nobody owns yet.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let inherited = rustix::io::fcntl_getfd(borrowed).is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC));
    match inherited && matches!(sys::is_bound(borrowed), Ok(false)) {
        true => Ok(()),
        false => Err(InheritError::NotOurs { fd }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{GrantedSocket, QueueLock, XdpMode};

    fn acquired() -> Acquired {
        let socket = |queue, socket_file_descriptor| GrantedSocket {
            queue,
            socket_file_descriptor,
        };
        Acquired {
            lease: 7,
            interface: "eth0".parse().unwrap(),
            interface_index: 3,
            rule: "tenant".into(),
            queue_lock: QueueLock::None,
            xdp: XdpMode::Native,
            rings: RingSizes::default(),
            activate_within_ms: 5000,
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
        assert!(check_inherited(ours.as_raw_fd()).is_err());
        assert!(check_inherited(1_000_000).is_err());
    }

    #[test]
    fn parts_go_round() {
        let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
        use std::os::fd::AsRawFd;
        let numbers = [one.as_raw_fd(), two.as_raw_fd()];
        let grant = Grant::from_parts(acquired(), vec![one.into(), two.into()]).unwrap();
        // The first socket names index 1.
        let sockets: Vec<_> = grant.sockets().map(|socket| socket.as_raw_fd()).collect();
        assert_eq!(sockets, [numbers[1], numbers[0]]);
        let (again, fds) = grant.into_parts();
        assert_eq!(again, acquired());
        assert_eq!(fds.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(), numbers);
    }
}
