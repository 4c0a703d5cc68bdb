//! A network device as the broker sees it now: looked up anew for each request, never kept.

use std::io;

use netlink_packet_route::link::XdpAttached;
use xsk_client::wire::InterfaceName;

use crate::error::Failure;
use crate::kernel::ethtool::Channels;
use crate::kernel::netlink;

/// A device of the broker's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its index: what everything of ours is keyed by, since a name may change.
    pub index: u32,
    /// Its name.
    pub name: InterfaceName,
    /// Queues that packets arrive on now.
    pub rx_queues: u32,
    /// The most queues that it can have: the size of the XSKMAP.
    pub max_queues: u32,
    /// The bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// The XDP program that is attached, and where.
    pub xdp: Option<(XdpAttached, u32)>,
}

impl Device {
    /// Looks a device up. `None`: there is none of that name.
    ///
    /// # Errors
    ///
    /// Other failures of rtnetlink and ethtool than that the device or the question is unknown.
    pub fn look_up(name: &InterfaceName) -> Result<Option<Self>, Failure> {
        let missing = |error: &io::Error| error.raw_os_error() == Some(libc::ENODEV);
        let link = match netlink::link(name) {
            Ok(link) => link,
            Err(error) if missing(&error) => return Ok(None),
            Err(error) => return Err(Failure::kernel("RTM_GETLINK", name, error)),
        };
        let (rx_queues, max_queues) = match Channels::of(name) {
            Ok(channels) => (channels.rx(), channels.max().max(channels.rx())),
            Err(error) if missing(&error) => return Ok(None),
            // A driver that does not tell has the queues that were allocated for it, all in use.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                (link.allocated_queues, link.allocated_queues)
            }
            Err(error) => return Err(Failure::kernel("ETHTOOL_GCHANNELS", name, error)),
        };
        Ok(Some(Self {
            index: link.index,
            name: name.clone(),
            rx_queues,
            max_queues,
            controller: link.controller,
            xdp: link.xdp,
        }))
    }

    /// Why taking packets from this device may cut the host off, if it may.
    ///
    /// # Errors
    ///
    /// As rtnetlink says.
    pub fn uplink_role(&self) -> Result<Option<&'static str>, Failure> {
        if self.controller.is_some() {
            return Ok(Some("is a port of a bridge, bond or other controller"));
        }
        let default = netlink::carries_default_route(self.index)
            .map_err(|source| Failure::kernel("RTM_GETROUTE", &self.name, source))?;
        Ok(default.then_some("carries a default route"))
    }
}
