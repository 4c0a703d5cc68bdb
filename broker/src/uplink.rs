//! Devices by which the host itself is connected: XDP there may cut it off, so that the policy has to name them
//! (`uplink = true`). A device can become one at any time, by a route or a bridge, so each grant asks.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use xsk_client::wire::{BrokerError, InterfaceName};

use crate::device::Device;
use crate::error::{Error, Failure};
use crate::policy::InterfaceSettings;

/// How old an answer may be. To find the default routes all routes are told, which a host may have very many of: grants
/// that follow each other ask once.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// What was last seen of each device, by its index.
#[derive(Debug, Default)]
pub struct Uplinks(HashMap<u32, Seen>);

#[derive(Debug)]
struct Seen {
    at: Instant,
    role: Option<&'static str>,
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
        match self.role(device)? {
            Some(role) => Err(refusal(&device.name, role).into()),
            None => Ok(()),
        }
    }

    /// Forgets a device that is gone: its index may be another's one day.
    pub fn forget(&mut self, index: u32) {
        self.0.remove(&index);
    }

    fn role(&mut self, device: &Device) -> Result<Option<&'static str>, Failure> {
        let now = Instant::now();
        if let Some(seen) = self.0.get(&device.index)
            && now.duration_since(seen.at) < KEPT_FOR
        {
            return Ok(seen.role);
        }
        let role = match device.link()? {
            Some(link) => device.uplink_role(&link)?,
            // It is gone, which whoever wants it will find.
            None => return Ok(None),
        };
        self.0.insert(device.index, Seen { at: now, role });
        Ok(role)
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
