//! The XDP program on a device, and its map of sockets.
//!
//! **Invariants**: a foreign XDP program is never detached or replaced; of what is made here nothing leaves the
//! broker, since a map's fd deletes other holders' slots, a link's detaches XDP for all, and a program's can be
//! attached by anyone (F21). A [`Slot`] is emptied when dropped.

mod program;
mod slot;

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray, XskMap};
use caps::Capability;
use xsk_client::wire::{InterfaceName, XdpMode};

use super::bpf_link;
use super::netlink::Link;
use super::pinned::PinnedProgram;
use super::pins::{PinDirectory, Pinned, Pins};
use super::xsk::Xsk;
use crate::error::Failure;
use crate::fail_point;
use crate::lease::Reservation;
use crate::policy::XdpSetting;
use crate::privileges;

pub use program::{Takeover, own_tag};
use program::{attach_as, load, program, update, xdp_failure};
pub use slot::Slot;

/// Our program on one device. It is detached when this, its clones and all its slots are dropped.
#[derive(Debug, Clone)]
pub struct Redirect(Rc<Attached>);

struct Attached {
    interface: InterfaceName,
    mode: XdpMode,
    sockets: RefCell<XskMap<MapData>>,
    /// `redirected` and `passed`, in the order of [`xdp_ebpf::QueueCounters`]. None where a program of another broker
    /// counts in another way.
    counters: Option<PerCpuArray<MapData, [u64; 2]>>,
    /// Before the fd of the link: without its file in bpffs, the fd is the last thing that holds the link.
    _pins: Pins,
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
        if pins.has(device.index)? {
            return Err(AttachError::Failed(xdp_failure(
                "pin the XDP program",
                &device.name,
                "something is pinned for a device of this index, which this broker could not take over: see \
                 `xsk-broker serve --dry-run`",
            )));
        }
        let pins = Pins::of(pins, device.index);
        let attached = privileges::with(&[Capability::CAP_BPF, Capability::CAP_NET_ADMIN], || {
            // The maps are pinned by this.
            let mut ebpf = load(&device.name, device.max_queues, &pins)?;
            let program = program(&mut ebpf, &device.name)?;
            bpf_link::pin(program, &pins.path(Pinned::Program))
                .map_err(|source| xdp_failure("pin the XDP program", &device.name, source))?;
            fail_point::pass("attach: maps and program pinned");
            let (link, mode) = match setting {
                XdpSetting::Native => attach_as(program, device, XdpMode::Native)?,
                XdpSetting::Generic => attach_as(program, device, XdpMode::Generic)?,
                XdpSetting::Auto => match attach_as(program, device, XdpMode::Native) {
                    Err(AttachError::NotNative(_)) => attach_as(program, device, XdpMode::Generic)?,
                    other => other?,
                },
            };
            fail_point::pass("attach: attached");
            Attached::new(ebpf, link, mode, &device.name, pins).map_err(AttachError::Failed)
        })??;
        fail_point::pass("attach: link pinned");
        Ok(Self(Rc::new(attached)))
    }

    /// Takes over what another broker has attached and pinned. This broker's program takes its place without a moment in
    /// which there is none, where it is another one and its maps would be the same.
    ///
    /// # Errors
    ///
    /// What aya says of the maps, and the kernel of the pins; what was pinned is taken down.
    pub fn take_over(
        pinned: PinnedProgram,
        interface: &InterfaceName,
        pins: &Rc<PinDirectory>,
    ) -> Result<(Self, Takeover), Failure> {
        let pins = Pins::of(pins, pinned.index);
        match pinned.is_new {
            true => pins.settle_program()?,
            false => pins.discard_new_program()?,
        }
        let takeover = match pinned.counters_fit {
            true => update(&pinned, interface, &pins),
            false => Takeover::Kept(
                "this broker's program counts in another way, which takes another map".to_owned(),
            ),
        };
        let sockets = Map::from_map_data(pinned.sockets)
            .and_then(XskMap::try_from)
            .map_err(|source| xdp_failure("open xsks_map", interface, source))?;
        let counters = match pinned.counters_fit {
            true => Some(
                Map::from_map_data(pinned.counters)
                    .and_then(PerCpuArray::try_from)
                    .map_err(|source| xdp_failure("open queue_counters", interface, source))?,
            ),
            false => None,
        };
        let attached = Attached {
            interface: interface.clone(),
            mode: pinned.mode,
            sockets: RefCell::new(sockets),
            counters,
            _pins: pins,
            _link: pinned.link,
        };
        Ok((Self(Rc::new(attached)), takeover))
    }

    /// How many queues the map has room for.
    pub fn queues(&self) -> u32 {
        self.0.sockets.borrow().len()
    }

    /// Empties every slot that is not to be `kept`.
    pub fn empty_slots(&self, kept: impl Fn(u32) -> bool) {
        let mut sockets = self.0.sockets.borrow_mut();
        for queue in (0..sockets.len()).filter(|queue| !kept(*queue)) {
            if let Err(error) = sockets.unset(queue) {
                tracing::debug!(interface = %self.0.interface, queue, %error, "slot was empty");
            }
        }
    }

    /// The slot of a socket that another broker has put there, when its queue had counted so many.
    pub fn filled_slot(&self, queue: u32, redirected_before: u64) -> Slot {
        Slot {
            redirect: self.clone(),
            queue,
            redirected_before,
        }
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
        let cpus = self.0.counters.as_ref().map(|counters| counters.get(&queue, 0));
        let sum = |index: usize| {
            cpus.iter()
                .flatten()
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
        (0..self.queues()).map(|queue| self.counters(queue).passed).sum()
    }
}

impl Attached {
    fn new(
        mut ebpf: Ebpf,
        link: OwnedFd,
        mode: XdpMode,
        interface: &InterfaceName,
        pins: Pins,
    ) -> Result<Self, Failure> {
        let mut map = |name| {
            ebpf.take_map(name)
                .ok_or_else(|| xdp_failure("find a map in the object", interface, name))
        };
        let sockets = XskMap::try_from(map(xdp_ebpf::XSKS_MAP)?)
            .map_err(|source| xdp_failure("open xsks_map", interface, source))?;
        let counters = PerCpuArray::try_from(map(xdp_ebpf::QUEUE_COUNTERS)?)
            .map_err(|source| xdp_failure("open queue_counters", interface, source))?;
        bpf_link::pin(link.as_fd(), &pins.path(Pinned::Link))
            .map_err(|source| xdp_failure("pin the link", interface, source))?;
        Ok(Self {
            interface: interface.clone(),
            mode,
            sockets: RefCell::new(sockets),
            counters: Some(counters),
            _pins: pins,
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
