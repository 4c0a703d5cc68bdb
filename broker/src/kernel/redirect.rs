//! The XDP program on a device, and its map of sockets.
//!
//! **Invariants**: a foreign XDP program is never detached or replaced; of what is made here nothing leaves the
//! broker, since a map's fd deletes other holders' slots, a link's detaches XDP for all, and a program's can be
//! attached by anyone (F21). A [`Slot`] is emptied when dropped.

use std::cell::RefCell;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use aya::maps::{MapData, PerCpuArray, XskMap};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfLoader};
use caps::Capability;
use xsk_client::wire::{InterfaceName, XdpMode};

use super::bpf_link;
use super::netlink::Link;
use super::pins::{Pin, PinDirectory};
use super::xsk::Xsk;
use crate::device::Device;
use crate::error::Failure;
use crate::lease::Reservation;
use crate::policy::XdpSetting;
use crate::privileges;

/// Our program on one device. It is detached when this, its clones and all its slots are dropped.
#[derive(Debug, Clone)]
pub struct Redirect(Rc<Attached>);

struct Attached {
    interface: InterfaceName,
    mode: XdpMode,
    sockets: RefCell<XskMap<MapData>>,
    /// `redirected` and `passed`, in the order of [`xdp_ebpf::QueueCounters`].
    counters: PerCpuArray<MapData, [u64; 2]>,
    /// Before the fd of the link: without its file in bpffs, the fd is the last thing that holds the link.
    _pin: Pin,
    _link: OwnedFd,
}

/// Why the program is not on the device.
#[derive(Debug)]
pub enum AttachError {
    /// Another XDP program is there, by its id where the kernel tells.
    Foreign(Option<u32>),
    /// The driver has no native XDP, or not for the device as it is set up.
    NotNative(io::Error),
    /// Ours.
    Failed(Failure),
}

impl From<Failure> for AttachError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Redirect {
    /// Loads the program with maps for as many queues as the device can ever have, attaches it as the policy says,
    /// and pins the link, so that a crash of the broker does not stop the holders' packets.
    ///
    /// It takes a reservation to show that a policy has decided so; `link` is what the device has now.
    ///
    /// # Errors
    ///
    /// [`AttachError`]; the device is as it was.
    pub fn attach(
        reservation: &Reservation,
        link: &Link,
        pins: &Rc<PinDirectory>,
    ) -> Result<Self, AttachError> {
        let device = reservation.device();
        if let Some((_, program)) = link.xdp {
            return Err(AttachError::Foreign(Some(program)));
        }
        let setting = reservation.terms().settings().xdp;
        let attached = privileges::with(&[Capability::CAP_BPF, Capability::CAP_NET_ADMIN], || {
            let mut ebpf = load(device)?;
            let program = program(&mut ebpf, device)?;
            let (link, mode) = match setting {
                XdpSetting::Native => attach_as(program, device, XdpMode::Native)?,
                XdpSetting::Generic => attach_as(program, device, XdpMode::Generic)?,
                XdpSetting::Auto => match attach_as(program, device, XdpMode::Native) {
                    Err(AttachError::NotNative(_)) => attach_as(program, device, XdpMode::Generic)?,
                    other => other?,
                },
            };
            Attached::new(ebpf, link, mode, device, pins).map_err(AttachError::Failed)
        })??;
        Ok(Self(Rc::new(attached)))
    }

    /// Where the program runs.
    pub fn mode(&self) -> XdpMode {
        self.0.mode
    }

    /// Sends the packets of the socket's queue to it. The socket should be bound: until it is, the kernel drops
    /// them uncounted (F2, `xsk_rcv_check` in net/xdp/xsk.c).
    ///
    /// # Errors
    ///
    /// What bpf(2) says; EEXIST where the slot is taken.
    pub fn insert(&self, socket: &Xsk) -> Result<Slot, Failure> {
        /// include/uapi/linux/bpf.h.
        const BPF_NOEXIST: u64 = 1;

        let queue = socket.queue();
        let redirected_before = self.counters(queue).redirected;
        let inserted = self
            .0
            .sockets
            .borrow_mut()
            .set(queue, socket.as_fd().as_raw_fd(), BPF_NOEXIST);
        inserted.map_err(|source| xdp_failure("insert into xsks_map", &self.0.interface, source))?;
        Ok(Slot {
            redirect: self.clone(),
            queue,
            redirected_before,
        })
    }

    /// What the program has counted on a queue since it was attached. All 0 for a queue that it does not know.
    pub fn counters(&self, queue: u32) -> xdp_ebpf::QueueCounters {
        let cpus = self.0.counters.get(&queue, 0);
        let sum = |index: usize| {
            cpus.iter()
                .flat_map(|cpus| cpus.iter())
                .filter_map(|cpu| cpu.get(index))
                .sum()
        };
        xdp_ebpf::QueueCounters {
            redirected: sum(0),
            passed: sum(1),
        }
    }

    /// Packets passed to the host's stack, over all queues.
    pub fn passed(&self) -> u64 {
        (0..self.0.counters.len())
            .map(|queue| self.counters(queue).passed)
            .sum()
    }
}

impl Attached {
    fn new(
        mut ebpf: Ebpf,
        link: OwnedFd,
        mode: XdpMode,
        device: &Device,
        pins: &Rc<PinDirectory>,
    ) -> Result<Self, Failure> {
        let mut map = |name| {
            ebpf.take_map(name)
                .ok_or_else(|| xdp_failure("find a map in the object", &device.name, name))
        };
        let sockets = XskMap::try_from(map(xdp_ebpf::XSKS_MAP)?)
            .map_err(|source| xdp_failure("open xsks_map", &device.name, source))?;
        let counters = PerCpuArray::try_from(map(xdp_ebpf::QUEUE_COUNTERS)?)
            .map_err(|source| xdp_failure("open queue_counters", &device.name, source))?;
        let name = PinDirectory::link_name(device.index);
        bpf_link::pin(link.as_fd(), &pins.path_for(&name))
            .map_err(|source| xdp_failure("pin the link", &device.name, source))?;
        let pin = Pin::new(pins, name);
        let interface = device.name.clone();
        Ok(Self {
            interface,
            mode,
            sockets: RefCell::new(sockets),
            counters,
            _pin: pin,
            _link: link,
        })
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached")
            .field("interface", &self.interface)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// A filled slot of the map, emptied when dropped: RX of its socket stops at once (F18).
#[derive(Debug)]
pub struct Slot {
    redirect: Redirect,
    queue: u32,
    redirected_before: u64,
}

impl Slot {
    /// Packets handed to the socket since the slot was filled.
    pub fn redirected(&self) -> u64 {
        self.redirect
            .counters(self.queue)
            .redirected
            .saturating_sub(self.redirected_before)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let attached = &self.redirect.0;
        match attached.sockets.borrow_mut().unset(self.queue) {
            Ok(()) => {}
            // The kernel empties the slot itself when the socket or the device goes (F12): ENOENT or EINVAL then.
            Err(error) => {
                tracing::debug!(interface = %attached.interface, queue = self.queue, %error, "slot was empty");
            }
        }
    }
}

fn load(device: &Device) -> Result<Ebpf, Failure> {
    EbpfLoader::new()
        .map_max_entries(xdp_ebpf::XSKS_MAP, device.max_queues)
        .map_max_entries(xdp_ebpf::QUEUE_COUNTERS, device.max_queues)
        .load(xdp_ebpf::OBJECT)
        .map_err(|source| xdp_failure("load the XDP object", &device.name, source))
}

/// Loads the program; its fd lives as long as the object.
fn program<'a>(ebpf: &'a mut Ebpf, device: &Device) -> Result<BorrowedFd<'a>, Failure> {
    let program = ebpf
        .program_mut(xdp_ebpf::PROGRAM)
        .ok_or_else(|| xdp_failure("find the program in the object", &device.name, xdp_ebpf::PROGRAM))?;
    let program: &mut Xdp = program
        .try_into()
        .map_err(|source: ProgramError| xdp_failure("take the XDP program", &device.name, source))?;
    let failed = |source: ProgramError| xdp_failure("load the XDP program", &device.name, source);
    program.load().map_err(failed)?;
    Ok(program.fd().map_err(failed)?.as_fd())
}

fn attach_as(
    program: BorrowedFd<'_>,
    device: &Device,
    mode: XdpMode,
) -> Result<(OwnedFd, XdpMode), AttachError> {
    let error = match bpf_link::attach(program, device.index, mode) {
        Ok(link) => return Ok((link, mode)),
        Err(error) => error,
    };
    Err(match error.raw_os_error() {
        // `dev_xdp_attach` (net/core/dev.c): the former for a program in the same mode, the latter for one in another.
        Some(libc::EBUSY | libc::EEXIST) => AttachError::Foreign(None),
        Some(libc::EOPNOTSUPP | libc::ERANGE) if mode == XdpMode::Native => AttachError::NotNative(error),
        // `bpf_xdp_link_attach`: this is how it calls a device that is not there.
        Some(libc::EINVAL) => AttachError::Failed(xdp_failure(
            "attach the XDP program",
            &device.name,
            io::Error::from_raw_os_error(libc::ENODEV),
        )),
        _ => AttachError::Failed(xdp_failure("attach the XDP program", &device.name, error)),
    })
}

fn xdp_failure(
    step: &'static str,
    interface: &InterfaceName,
    source: impl Into<Box<dyn StdError + Send + Sync>>,
) -> Failure {
    Failure::Xdp {
        step,
        interface: interface.clone(),
        source: source.into(),
    }
}
