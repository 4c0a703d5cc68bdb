//! How many queues a device has: `ETHTOOL_GCHANNELS`, which needs no capability.
//!
//! struct ethtool_channels in include/uapi/linux/ethtool.h; `ethtool_get_channels` in net/ethtool/ioctl.c.

#![expect(unsafe_code, reason = "the SIOCETHTOOL ioctl")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use xsk_client::wire::InterfaceName;

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GCHANNELS: u32 = 0x0000_003c;

/// A device's channels, as `ethtool -l` prints them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

impl Channels {
    /// Asks the driver, over any socket of the device's network namespace.
    ///
    /// # Errors
    ///
    /// EOPNOTSUPP where the driver does not tell, ENODEV where there is no such device.
    pub fn of(socket: impl AsFd, interface: &InterfaceName) -> io::Result<Self> {
        let mut channels = Self {
            command: ETHTOOL_GCHANNELS,
            ..Self::default()
        };
        let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
        // An InterfaceName is at most 15 bytes: the last one stays 0.
        for (slot, byte) in name
            .iter_mut()
            .zip(interface.as_str().bytes().take(libc::IFNAMSIZ - 1))
        {
            *slot = libc::c_char::from_ne_bytes([byte]);
        }
        let mut request = libc::ifreq {
            ifr_name: name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: (&raw mut channels).cast(),
            },
        };
        // SAFETY: `request` is an ifreq whose data points to the 36 bytes of an ethtool_channels, and both live
        // across the call; ETHTOOL_GCHANNELS writes no more than that.
        let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if result == 0 {
            Ok(channels)
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Queues that packets arrive on now.
    pub fn rx(&self) -> u32 {
        self.rx.saturating_add(self.combined)
    }

    /// Queues that a socket can be bound to now: packets arrive on them or leave by them (`xsk_reg_pool_at_qid`,
    /// net/xdp/xsk.c).
    pub fn bindable(&self) -> u32 {
        self.rx.max(self.tx).saturating_add(self.combined)
    }

    /// The most queues that packets may ever arrive on or leave by.
    pub fn max(&self) -> u32 {
        self.max_rx.max(self.max_tx).saturating_add(self.max_combined)
    }
}
