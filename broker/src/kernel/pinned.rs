//! What another broker has pinned for a device, opened and looked at before it is believed.
//!
//! **Invariant**: looking changes nothing. What is not wholly ours is left as it is: a link of something else, a program of
//! another name, maps that the program does not use, a device that runs another program.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::maps::{MapData, MapType};
use netlink_packet_route::link::XdpAttached;
use xsk_client::wire::XdpMode;

use super::bpf_link::{self, ProgramInfo};
use super::netlink;
use super::pins::{PinDirectory, Pinned};
use super::queue_lock;
use super::slots;
use crate::error::{Failure, chain};

/// A program on a device of this network namespace, with its maps.
#[derive(Debug)]
pub struct PinnedProgram {
    /// The device.
    pub index: u32,
    /// Where the program runs.
    pub mode: XdpMode,
    /// What attaches it.
    pub link: OwnedFd,
    /// The program that the link runs.
    pub program: OwnedFd,
    /// What that is.
    pub info: ProgramInfo,
    /// Whether the program is pinned under the name for a new one still: the broker was killed right then.
    pub is_new: bool,
    /// The map of sockets.
    pub sockets: MapData,
    /// The map of counters.
    pub counters: MapData,
    /// How many queues the map of sockets has room for.
    pub queues: u32,
    /// Those in whose slot there is a socket; `None` where the kernel did not let us look.
    pub filled: Option<BTreeSet<u32>>,
    /// Whether the map of counters is as this broker's program would have it.
    pub counters_fit: bool,
}

/// What is pinned for a device.
#[derive(Debug)]
pub enum Found {
    /// All that there has to be.
    Whole(Box<PinnedProgram>),
    /// Something is missing, or the device is gone: it is of no use, and can be taken down.
    Useless(String),
    /// Its device is not in this network namespace, or runs another program by now: it is left as it is.
    Elsewhere(String),
    /// It is not ours: it is left as it is.
    Foreign(String),
}

/// Looks at what is pinned for a device.
pub fn look(pins: &PinDirectory, index: u32) -> Found {
    match whole(pins, index) {
        Ok(program) => Found::Whole(Box::new(program)),
        Err(found) => found,
    }
}

/// Whether a device of this network namespace runs a broker's XDP program, wherever that is pinned. For root; a program that
/// cannot be looked at counts as one.
pub fn runs_ours(index: u32) -> bool {
    let attached = netlink::link_of(index).ok().and_then(|link| link.xdp);
    let Some((_, id)) = attached else {
        return false;
    };
    match bpf_link::program_by_id(id) {
        Ok(program) => bpf_link::program_info(program.as_fd())
            .ok()
            .flatten()
            .is_none_or(|info| info.name == xdp_ebpf::PROGRAM),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

fn whole(pins: &PinDirectory, index: u32) -> Result<PinnedProgram, Found> {
    let open = |pinned: Pinned| {
        let name = pinned.name(index);
        match bpf_link::open_pinned(&pins.path_for(&name)) {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Found::Foreign(format!("{name} cannot be opened: {error}"))),
        }
    };
    let missing = |pinned: Pinned| move || Found::Useless(format!("{} is missing", pinned.name(index)));
    let foreign = |pinned: Pinned, what: &str| Found::Foreign(format!("{} is {what}", pinned.name(index)));

    let link = open(Pinned::Link)?.ok_or_else(missing(Pinned::Link))?;
    let link_info = match bpf_link::link_info(link.as_fd()) {
        Ok(Some(info)) => info,
        _ => return Err(foreign(Pinned::Link, "no link of an XDP program")),
    };
    if link_info.interface_index == 0 {
        return Err(Found::Useless("its device is gone".to_owned()));
    }
    let [new, old] = [open(Pinned::NewProgram)?, open(Pinned::Program)?].map(|program| {
        let program = program?;
        let info = bpf_link::program_info(program.as_fd()).ok().flatten()?;
        (info.id == link_info.program).then_some((program, info))
    });
    let is_new = new.is_some();
    let (program, info) = new.or(old).ok_or_else(missing(Pinned::Program))?;
    if info.name != xdp_ebpf::PROGRAM {
        return Err(foreign(
            Pinned::Program,
            &format!("a program named {:?}", info.name),
        ));
    }
    let sockets = map(open(Pinned::Sockets)?.ok_or_else(missing(Pinned::Sockets))?);
    let sockets = sockets.ok_or_else(|| foreign(Pinned::Sockets, "no map"))?;
    let counters = map(open(Pinned::Counters)?.ok_or_else(missing(Pinned::Counters))?);
    let counters = counters.ok_or_else(|| foreign(Pinned::Counters, "no map"))?;
    let (of_sockets, of_counters) = (shape(&sockets), shape(&counters));
    let (Some(of_sockets), Some(of_counters)) = (of_sockets, of_counters) else {
        return Err(foreign(Pinned::Sockets, "a map that cannot be looked at"));
    };
    if of_sockets.kind != MapType::XskMap || !info.maps.contains(&of_sockets.id) {
        return Err(foreign(Pinned::Sockets, "no map of sockets of the program's"));
    }
    if link_info.interface_index != index {
        return Err(foreign(
            Pinned::Link,
            &format!("on the device of index {}", link_info.interface_index),
        ));
    }
    // Ids of programs are the whole machine's: a device of another network namespace has another one.
    let attached = netlink::link_of(index).ok().and_then(|link| link.xdp);
    let mode = match attached {
        Some((XdpAttached::Driver, id)) if id == info.id => XdpMode::Native,
        Some((_, id)) if id == info.id => XdpMode::Generic,
        _ => {
            let why = format!(
                "the device of index {index} is not in this network namespace, or runs another program"
            );
            return Err(Found::Elsewhere(why));
        }
    };
    let counters_fit = of_counters.kind == MapType::PerCpuArray
        && of_counters.value_bytes == size_of::<xdp_ebpf::QueueCounters>()
        && of_counters.entries >= of_sockets.entries
        && info.maps.contains(&of_counters.id);
    let filled = slots::filled(sockets.fd().as_fd(), of_sockets.entries)
        .inspect_err(|error| tracing::warn!(ifindex = index, %error, "cannot see which slots are filled"));
    Ok(PinnedProgram {
        index,
        mode,
        link,
        program,
        info,
        is_new,
        sockets,
        counters,
        queues: of_sockets.entries,
        filled: filled.ok(),
        counters_fit,
    })
}

impl PinnedProgram {
    /// The program's fd.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

struct Shape {
    id: u32,
    kind: MapType,
    value_bytes: usize,
    entries: u32,
}

fn shape(map: &MapData) -> Option<Shape> {
    let info = map.info().ok()?;
    Some(Shape {
        id: info.id(),
        kind: info.map_type().ok()?,
        value_bytes: usize::try_from(info.value_size()).ok()?,
        entries: info.max_entries(),
    })
}

fn map(fd: OwnedFd) -> Option<MapData> {
    MapData::from_fd(fd)
        .inspect_err(|error| tracing::debug!("{}", chain(error)))
        .ok()
}

/// The devices for which something is pinned, by the names in the directory; and the names that are none of ours. Those of
/// the queue lock are its own business.
///
/// # Errors
///
/// What getdents(2) says.
pub fn devices(pins: &PinDirectory) -> Result<(Vec<u32>, Vec<String>), Failure> {
    let (mut indexes, mut strange) = (Vec::new(), Vec::new());
    for name in pins.names()? {
        match Pinned::parse(&name) {
            Some((_, index)) => indexes.push(index),
            None if queue_lock::is_pin(&name) => {}
            None => strange.push(name),
        }
    }
    indexes.sort_unstable();
    indexes.dedup();
    Ok((indexes, strange))
}
