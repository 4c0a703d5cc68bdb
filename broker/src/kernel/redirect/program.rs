//! This broker's XDP program: loaded, attached by a link, and put in the place of another broker's.

use std::error::Error as StdError;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfLoader};
use caps::Capability;
use xsk_client::wire::{InterfaceName, XdpMode};

use super::AttachError;
use crate::device::Device;
use crate::error::{Failure, chain};
use crate::fail_point;
use crate::kernel::bpf_link;
use crate::kernel::pinned::PinnedProgram;
use crate::kernel::pins::{Pinned, Pins};
use crate::privileges;

/// What became of the program that another broker had attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Takeover {
    /// It is the same as this broker's.
    Same,
    /// This broker's runs in its place.
    Updated {
        /// What its instructions hashed to.
        from: u64,
        /// What this broker's do.
        to: u64,
    },
    /// It goes on, since this broker's would need other maps, or could not be loaded: why.
    Kept(String),
}

/// Loads the maps and the program's text. Maps that are pinned are used as they are, others are made and pinned.
pub(super) fn load(interface: &InterfaceName, queues: u32, pins: &Pins) -> Result<Ebpf, Failure> {
    EbpfLoader::new()
        .map_max_entries(xdp_ebpf::XSKS_MAP, queues)
        .map_max_entries(xdp_ebpf::QUEUE_COUNTERS, queues)
        .map_pin_path(xdp_ebpf::XSKS_MAP, pins.path(Pinned::Sockets))
        .map_pin_path(xdp_ebpf::QUEUE_COUNTERS, pins.path(Pinned::Counters))
        .load(xdp_ebpf::OBJECT)
        .map_err(|source| xdp_failure("load the XDP object", interface, source))
}

/// Loads the program; its fd lives as long as the object.
pub(super) fn program<'a>(ebpf: &'a mut Ebpf, interface: &InterfaceName) -> Result<BorrowedFd<'a>, Failure> {
    let program = ebpf
        .program_mut(xdp_ebpf::PROGRAM)
        .ok_or_else(|| xdp_failure("find the program in the object", interface, xdp_ebpf::PROGRAM))?;
    let program: &mut Xdp = program
        .try_into()
        .map_err(|source: ProgramError| xdp_failure("take the XDP program", interface, source))?;
    let failed = |source: ProgramError| xdp_failure("load the XDP program", interface, source);
    program.load().map_err(failed)?;
    Ok(program.fd().map_err(failed)?.as_fd())
}

/// Puts this broker's program in the place of another one, if it is another one. The one that is there goes on wherever
/// that fails.
pub(super) fn update(pinned: &PinnedProgram, interface: &InterfaceName, pins: &Pins) -> Takeover {
    let updated = privileges::with(&[Capability::CAP_BPF, Capability::CAP_NET_ADMIN], || {
        let mut ebpf = load(interface, pinned.queues, pins)?;
        let new = program(&mut ebpf, interface)?;
        let tag = tag(new).map_err(|source| xdp_failure("look at the XDP program", interface, source))?;
        if tag == pinned.info.tag {
            return Ok(Takeover::Same);
        }
        bpf_link::pin(new, &pins.path(Pinned::NewProgram))
            .map_err(|source| xdp_failure("pin the XDP program", interface, source))?;
        fail_point::pass("take over: new program pinned");
        bpf_link::update(pinned.link.as_fd(), pinned.program(), new)
            .map_err(|source| xdp_failure("update the link", interface, source))?;
        fail_point::pass("take over: link updated");
        pins.settle_program()?;
        Ok(Takeover::Updated {
            from: pinned.info.tag,
            to: tag,
        })
    });
    updated
        .and_then(|updated: Result<_, Failure>| updated)
        .unwrap_or_else(|failure| Takeover::Kept(chain(&failure)))
}

/// What this broker's program hashes to, whichever maps it uses.
///
/// # Errors
///
/// What aya says; it takes CAP_BPF and CAP_NET_ADMIN.
pub fn own_tag(interface: &InterfaceName) -> Result<u64, Failure> {
    let mut ebpf = Ebpf::load(xdp_ebpf::OBJECT)
        .map_err(|source| xdp_failure("load the XDP object", interface, source))?;
    tag(program(&mut ebpf, interface)?)
        .map_err(|source| xdp_failure("look at the XDP program", interface, source))
}

fn tag(program: BorrowedFd<'_>) -> io::Result<u64> {
    let info = bpf_link::program_info(program)?;
    info.map(|info| info.tag)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Attaches it in one mode, by a link.
pub(super) fn attach_as(
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

/// What failed, and at which step.
pub(super) fn xdp_failure(
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
