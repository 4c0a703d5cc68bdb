//! Devices by which the host itself is connected: XDP there may cut it off, so that the policy has to name them
//! (`uplink = true`). A device can become one at any time, by a route or a bridge, so each grant asks; and the kernel's news
//! of it have devices in use looked at (`misfit.rs`).

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use xsk_client::wire::{BrokerError, InterfaceName};

use crate::device::Device;
use crate::error::{Error, Failure};
use crate::kernel::netlink;
use crate::policy::InterfaceSettings;

/// How old an answer may be by which a grant is refused, and one about ports.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// How old an answer may be that there is no default route. The kernel has news of each that comes, at which all answers are
/// forgotten. To find them it tells all routes: with 300,000 that takes 0.4 s, in which the engine does nothing else.
const NONE_KEPT_FOR: Duration = Duration::from_secs(60);

/// What was last seen of devices.
#[derive(Debug, Default)]
pub struct Uplinks {
    /// Whether a device is somebody's port, by its index.
    ports: HashMap<u32, Seen<bool>>,
    /// Which devices default routes leave by.
    routes: Option<Seen<HashSet<u32>>>,
}

#[derive(Debug)]
struct Seen<T> {
    at: Instant,
    what: T,
}

impl<T> Seen<T> {
    fn now(what: T) -> Self {
        Self {
            at: Instant::now(),
            what,
        }
    }

    fn is_younger_than(&self, age: Duration) -> bool {
        self.at.elapsed() < age
    }
}

impl Uplinks {
    /// Refuses a device that is an uplink where the policy does not allow it.
    ///
    /// # Errors
    ///
    /// [`BrokerError::DeviceUnavailable`] with its role; what rtnetlink says.
    pub fn check(&mut self, device: &Device, settings: &InterfaceSettings) -> Result<(), Error> {
        if settings.uplink {
            return Ok(());
        }
        match self.role(&device.name, device.index)? {
            Some(role) => Err(refusal(&device.name, role).into()),
            None => Ok(()),
        }
    }

    /// Forgets a device that is gone: its index may be another's one day.
    pub fn forget(&mut self, index: u32) {
        self.ports.remove(&index);
        self.routes = None;
    }

    /// Forgets everything: there are news.
    pub fn forget_all(&mut self) {
        *self = Self::default();
    }

    /// Why taking packets from this device may cut the host off, if it may. Nothing of one that is gone, which whoever wants it
    /// will find.
    ///
    /// # Errors
    ///
    /// As rtnetlink says.
    pub fn role(&mut self, interface: &InterfaceName, index: u32) -> Result<Option<&'static str>, Failure> {
        if self.is_port(interface, index)? {
            return Ok(Some("is a port of a bridge, bond or other controller"));
        }
        let default = self.carries_default_route(interface, index)?;
        Ok(default.then_some("carries a default route"))
    }

    fn is_port(&mut self, interface: &InterfaceName, index: u32) -> Result<bool, Failure> {
        if let Some(seen) = self
            .ports
            .get(&index)
            .filter(|seen| seen.is_younger_than(KEPT_FOR))
        {
            return Ok(seen.what);
        }
        let is_port = match netlink::link_of(index) {
            Ok(link) => link.controller.is_some(),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
            Err(error) => return Err(Failure::kernel("RTM_GETLINK", interface, error)),
        };
        self.ports.insert(index, Seen::now(is_port));
        Ok(is_port)
    }

    fn carries_default_route(&mut self, interface: &InterfaceName, index: u32) -> Result<bool, Failure> {
        if let Some(seen) = &self.routes {
            let carries = seen.what.contains(&index);
            let kept_for = if carries { KEPT_FOR } else { NONE_KEPT_FOR };
            if seen.is_younger_than(kept_for) {
                return Ok(carries);
            }
        }
        let routes = netlink::default_route_devices()
            .map_err(|source| Failure::kernel("RTM_GETROUTE", interface, source))?;
        let carries = routes.contains(&index);
        self.routes = Some(Seen::now(routes));
        Ok(carries)
    }
}

fn refusal(interface: &InterfaceName, role: &str) -> BrokerError {
    let message = format!(
        "{interface} {role}: XDP there may cut the host off; the operator allows it with `uplink = true` under [interface.{interface}]"
    );
    BrokerError::DeviceUnavailable {
        interface: interface.clone(),
        message,
    }
}
