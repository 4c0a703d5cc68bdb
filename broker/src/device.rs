//! A network device as the broker sees it now: looked up anew for each request, never kept.

use std::io;

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use xsk_client::wire::InterfaceName;

use crate::error::Failure;
use crate::kernel::ethtool::Channels;
use crate::kernel::netlink::{self, Link};

/// A device of the broker's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its index: what everything of ours is keyed by, since a name may change.
    pub index: u32,
    /// Its name.
    pub name: InterfaceName,
    /// Queues that packets arrive on now.
    pub rx_queues: u32,
    /// Queues that a socket can be bound to now: those, and queues that packets only leave by.
    pub bindable_queues: u32,
    /// The most queues that it can have: the size of the XSKMAP.
    pub max_queues: u32,
}

impl Device {
    /// Looks a device up. `None`: there is none of that name.
    ///
    /// It asks for no more than every request needs: whatever rtnetlink knows waits for the lock of all network
    /// configuration on this machine, and takes longer to tell than a socket takes to make. See [`Device::link`].
    ///
    /// # Errors
    ///
    /// Other failures of the two ioctls than that the device or the question is unknown.
    pub fn look_up(name: &InterfaceName) -> Result<Option<Self>, Failure> {
        let missing = |error: &io::Error| error.raw_os_error() == Some(libc::ENODEV);
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(|source| Failure::kernel("socket", name, source))?;
        let index = match netdevice::name_to_index(&socket, name.as_str()).map_err(io::Error::from) {
            Ok(index) => index,
            Err(error) if missing(&error) => return Ok(None),
            Err(error) => return Err(Failure::kernel("SIOCGIFINDEX", name, error)),
        };
        // The kernel takes alternative names too, which no rule of the policy speaks of.
        if netdevice::index_to_name(&socket, index).ok().as_deref() != Some(name.as_str()) {
            return Ok(None);
        }
        let (rx_queues, bindable_queues, max_queues) = match Channels::of(&socket, name) {
            Ok(channels) => (
                channels.rx(),
                channels.bindable(),
                channels.max().max(channels.rx()),
            ),
            Err(error) if missing(&error) => return Ok(None),
            // A driver that does not tell has the queues that were allocated for it, all in use.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => match netlink::link_of(index) {
                Ok(link) => {
                    let queues = link.allocated_queues;
                    (queues, queues, queues)
                }
                Err(error) if missing(&error) => return Ok(None),
                Err(error) => return Err(Failure::kernel("RTM_GETLINK", name, error)),
            },
            Err(error) => return Err(Failure::kernel("ETHTOOL_GCHANNELS", name, error)),
        };
        Ok(Some(Self {
            index,
            name: name.clone(),
            rx_queues,
            bindable_queues,
            max_queues,
        }))
    }

    /// What rtnetlink says about it now: whose port it is, and which XDP program it has. `None`: it is gone.
    ///
    /// # Errors
    ///
    /// As rtnetlink says.
    pub fn link(&self) -> Result<Option<Link>, Failure> {
        match netlink::link_of(self.index) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(Failure::kernel("RTM_GETLINK", &self.name, error)),
        }
    }
}
