//! Unprivileged users: numbers without a passwd entry, each used by one test at a time, and how a process or a thread
//! becomes one.

use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use rustix::process::{Gid, Resource, Rlimit, Uid as RawUid, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use crate::namespace::{Namespace, on_a_thread};
use crate::sys;

/// The first number of the pool.
pub const FIRST: u32 = 64_100;
/// How many there are.
pub const COUNT: u32 = 900;

/// The default of RLIMIT_MEMLOCK, since Linux 5.16.
pub const DEFAULT_MEMLOCK_BYTES: u64 = 8 << 20;

/// A uid of the pool, and the gid of the same number. Nobody else on this machine has it until it is dropped.
///
/// It is held by an abstract socket of that number's name, so that it is free again when this process ends, however
/// that happens. Numbers are given out in turn: what the kernel still charges to the last user of one (a umem lives
/// longer than its process) is not charged to the next.
#[derive(Debug)]
pub struct Uid {
    number: u32,
    _name: OwnedFd,
}

impl Uid {
    /// Takes a free one.
    pub fn take() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..COUNT {
            // Processes that start together begin at different places.
            let turn = NEXT
                .fetch_add(1, Ordering::Relaxed)
                .wrapping_add(std::process::id() * 17);
            let number = FIRST + turn % COUNT;
            let name = SocketAddr::from_abstract_name(format!("xsk-broker-e2e-uid-{number}"))?;
            match UnixDatagram::bind_addr(&name) {
                Ok(socket) => {
                    return Ok(Self {
                        number,
                        _name: socket.into(),
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context("holding a uid"),
            }
        }
        bail!("all {COUNT} uids from {FIRST} are in use")
    }

    /// The number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// A user that is nothing but this uid: no groups beside its own, the default memlock.
    pub fn user(&self) -> User {
        User::new(self.number)
    }
}

/// Whom a process or thread becomes: all five capability sets empty (but see [`User::may_pin`]), no_new_privs.
#[derive(Debug, Clone)]
pub struct User {
    uid: RawUid,
    gid: Gid,
    groups: Vec<Gid>,
    memlock_bytes: u64,
    ipc_lock: bool,
    own_namespaces: bool,
}

impl User {
    /// This uid, and the gid of the same number.
    pub fn new(uid: u32) -> Self {
        Self {
            uid: RawUid::from_raw(uid),
            gid: Gid::from_raw(uid),
            groups: Vec::new(),
            memlock_bytes: DEFAULT_MEMLOCK_BYTES,
            ipc_lock: false,
            own_namespaces: false,
        }
    }

    /// With these supplementary groups.
    #[must_use]
    pub fn groups(mut self, groups: &[u32]) -> Self {
        self.groups = groups.iter().copied().map(Gid::from_raw).collect();
        self
    }

    /// With that RLIMIT_MEMLOCK, as far as this machine's hard limit allows.
    #[must_use]
    pub fn memlock_bytes(mut self, bytes: u64) -> Self {
        self.memlock_bytes = bytes;
        self
    }

    /// With so much RLIMIT_MEMLOCK at least. Where this machine's hard limit is lower and root may not raise it
    /// (CAP_SYS_RESOURCE), the process keeps CAP_IPC_LOCK in its place: to exceed that limit is all that it does for an
    /// AF_XDP socket (`xdp_umem_account_pages`).
    #[must_use]
    pub fn may_pin(self, bytes: u64) -> Self {
        let limit = getrlimit(Resource::Memlock);
        let raised = Rlimit {
            current: limit.current,
            maximum: Some(bytes),
        };
        let enough = limit.maximum.is_none_or(|maximum| maximum >= bytes);
        let ipc_lock = !enough && setrlimit(Resource::Memlock, raised).is_err();
        Self {
            ipc_lock,
            ..self.memlock_bytes(bytes)
        }
    }

    /// In a user namespace of its own, with a network namespace and mounts of its own, which any user may make: a process
    /// of such a user has CAP_NET_ADMIN and CAP_NET_RAW there, over its own devices, and may mount what users may.
    #[must_use]
    pub fn in_own_namespaces(self) -> Self {
        Self {
            own_namespaces: true,
            ..self
        }
    }

    /// The uid.
    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// Makes the calling thread this user, for good. Limits belong to the process and are left alone.
    ///
    /// System calls only: std and glibc would change all threads.
    pub fn become_in_thread(&self) -> io::Result<()> {
        rustix::thread::clear_ambient_capability_set()?;
        for number in 0..64 {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if self.ipc_lock && capability == CapabilitySet::IPC_LOCK {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                // Beyond the last one that this kernel knows.
                Err(rustix::io::Errno::INVAL) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let kept = match self.ipc_lock {
            true => CapabilitySet::IPC_LOCK,
            false => CapabilitySet::empty(),
        };
        rustix::thread::set_keep_capabilities(self.ipc_lock)?;
        rustix::thread::set_thread_groups(&self.groups)?;
        rustix::thread::set_thread_res_gid(self.gid, self.gid, self.gid)?;
        rustix::thread::set_thread_res_uid(self.uid, self.uid, self.uid)?;
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: kept,
            },
        )?;
        if self.ipc_lock {
            rustix::thread::configure_capability_in_ambient_set(kept, true)?;
        }
        rustix::thread::set_no_new_privs(true)?;
        Ok(())
    }

    /// Makes the calling process this user, for good; for use between fork and exec.
    pub fn become_in_process(&self) -> io::Result<()> {
        let hard = getrlimit(Resource::Memlock).maximum.unwrap_or(u64::MAX);
        let bytes = Some(self.memlock_bytes.min(hard));
        setrlimit(
            Resource::Memlock,
            Rlimit {
                current: bytes,
                maximum: bytes,
            },
        )?;
        self.become_in_thread()?;
        if self.own_namespaces {
            sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET | UnshareFlags::NEWNS)?;
            // Ambient, or exec would take them away from who is not root there.
            let kept = [
                CapabilitySet::NET_ADMIN,
                CapabilitySet::NET_RAW,
                CapabilitySet::SYS_ADMIN,
            ];
            let all = kept
                .into_iter()
                .fold(CapabilitySet::empty(), CapabilitySet::union);
            rustix::thread::set_capabilities(
                None,
                CapabilitySets {
                    effective: all,
                    permitted: all,
                    inheritable: all,
                },
            )?;
            for capability in kept {
                rustix::thread::configure_capability_in_ambient_set(capability, true)?;
            }
        }
        Ok(())
    }

    /// Runs `f` on a thread of its own that is this user, inside of `namespace`. A panic there goes on in the caller.
    ///
    /// `SO_PEERCRED` of a socket that this thread connects is this user. But it is a thread: its pid, hence its
    /// pidfd, is the whole test's, so all leases taken this way have the one holder; its address space is shared
    /// with root's; `/proc/self` belongs to root, `/proc/thread-self/status` tells the truth. Where a test is about
    /// a holder's life, it wants a process ([`crate::holder::Holder`]).
    pub fn run<T: Send>(&self, namespace: &Namespace, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(|| {
            namespace.enter().context("entering the namespace")?;
            self.become_in_thread()
                .with_context(|| format!("becoming uid {}", self.uid()))?;
            Ok(f())
        })
    }
}

/// Makes a command's process another user.
pub trait CommandExt {
    /// The process becomes that user just before exec.
    fn as_user(&mut self, user: &User) -> &mut Self;
}

impl CommandExt for Command {
    fn as_user(&mut self, user: &User) -> &mut Self {
        let user = user.clone();
        sys::before_exec(self, move || user.become_in_process())
    }
}
