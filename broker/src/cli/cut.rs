//! `revoke --cut-device`: what ends every AF_XDP socket of a device for good, what it costs, and the doing of it.
//!
//! Why it works: a device that leaves its network namespace is unregistered there, and `xsk_notifier` (net/xdp/xsk.c)
//! unbinds all sockets from it, for good: they answer ENXIO from then on, whoever has them. Nothing milder stops a bound
//! socket from transmitting (F18).

use std::io;

use anyhow::Context;
use xsk_client::wire::Lease;

use crate::kernel::{namespace, netlink};

/// What it takes and what it costs, for people.
pub(super) fn recipe(lease: &Lease) -> String {
    let name = &lease.interface;
    format!(
        "What cuts {name} for good is to move it to another network namespace and back:\n\
         \x20 ip netns add xsk-cut\n\
         \x20 ip link set dev {name} netns xsk-cut\n\
         \x20 ip -n xsk-cut link set dev {name} netns 1     # 1: a process of the namespace that it belongs to\n\
         \x20 ip netns delete xsk-cut\n\
         \x20 ip link set dev {name} up\n\
         It costs: every AF_XDP socket of {name} ends, those of all its leases and of other programs; its addresses, \
         routes, neighbours, traffic rules and XDP program are gone; it leaves its bridge or bond; its network is cut for a \
         moment. Set it up anew afterwards.\n\
         With --lose-all-leases-addresses-and-routes this command does the first five lines itself.\n"
    )
}

/// Does it. The device must be in this process's network namespace, and be the one that the lease is of.
///
/// # Errors
///
/// As the kernel says; EINVAL for devices that cannot leave their namespace.
pub(super) fn cut(lease: &Lease) -> anyhow::Result<()> {
    let name = &lease.interface;
    let link = here(lease)?;
    let (home, away) = (
        namespace::here()?,
        namespace::fresh().context("unshare(CLONE_NEWNET)")?,
    );
    netlink::move_device(link.index, &away)
        .with_context(|| format!("cannot move {name} to another network namespace"))?;
    // Its index may be another one there, its name is not: nothing else has it in a fresh namespace.
    let back = namespace::inside(&away, || {
        let devices = netlink::devices()?;
        let moved = devices.into_iter().find(|(found, _)| found == name);
        let (_, moved) = moved.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        netlink::move_device(moved.index, &home)
    });
    back.with_context(|| format!("cannot move {name} back to its network namespace"))?;
    if link.up {
        let (_, back) = find(name)?.with_context(|| format!("{name} has not come back"))?;
        netlink::set_up(back.index).with_context(|| format!("cannot set {name} up again"))?;
    }
    Ok(())
}

fn here(lease: &Lease) -> anyhow::Result<netlink::Link> {
    let found = find(&lease.interface)?.filter(|(_, link)| link.index == lease.interface_index);
    let (_, link) = found.with_context(|| {
        format!(
            "{} with index {} is not in this network namespace: run this where the broker runs",
            lease.interface, lease.interface_index
        )
    })?;
    Ok(link)
}

type Found = (xsk_client::wire::InterfaceName, netlink::Link);

fn find(name: &xsk_client::wire::InterfaceName) -> io::Result<Option<Found>> {
    Ok(netlink::devices()?.into_iter().find(|(found, _)| found == name))
}
