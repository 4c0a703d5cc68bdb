//! Devices whose XDP program is attached otherwise than the policy in force wants it, which another one wanted.
//!
//! **Invariants**: nothing more is granted on such a device; and its program is detached as soon as no lease uses it, so
//! that the next grant, if there is to be one, attaches it as the policy wants.

use std::collections::HashMap;

use xsk_client::wire::{BrokerError, InterfaceName, XdpMode};

use crate::audit::{Event, Line};
use crate::device::Device;
use crate::engine::Engine;
use crate::error::{Failure, chain};
use crate::policy::{Policy, XdpSetting};

/// Why, for each such device, by its index.
#[derive(Debug, Default)]
pub struct Misfits(HashMap<u32, String>);

impl Misfits {
    /// Why the program of a device does not fit, if it does not.
    pub fn get(&self, index: u32) -> Option<&str> {
        self.0.get(&index).map(String::as_str)
    }

    /// Refuses to grant anything more on a device whose program does not fit.
    ///
    /// # Errors
    ///
    /// [`BrokerError::DeviceUnavailable`] with the reason.
    pub fn check(&self, device: &Device) -> Result<(), BrokerError> {
        let Some(why) = self.get(device.index) else {
            return Ok(());
        };
        let interface = device.name.clone();
        let message = format!(
            "{interface}: {why}; nothing is granted there until the leases that it has now have ended, and its program is \
             attached anew"
        );
        Err(BrokerError::DeviceUnavailable { interface, message })
    }
}

/// Holds every device that has a program of ours against the policy.
pub fn look(engine: &mut Engine) {
    let mut misfits = HashMap::new();
    for (index, redirect) in &engine.redirects {
        let Some(now) = engine.links.get(*index) else {
            continue;
        };
        if let Some(why) = misfit(&engine.policy, &now.name, redirect.mode()) {
            misfits.insert(*index, why);
        }
    }
    engine.misfits = Misfits(misfits);
}

/// Detaches the program of a device that it does not fit, if no lease uses it. Tells whether it did.
pub fn detach_unused(engine: &mut Engine, index: u32) -> bool {
    let is_used = || engine.leases.iter().any(|lease| lease.device().index == index);
    if engine.misfits.get(index).is_none() || is_used() {
        return false;
    }
    engine.misfits.0.remove(&index);
    let (redirect, now) = (engine.redirects.remove(&index), engine.links.get(index));
    if let (Some(redirect), Some(now)) = (redirect, now) {
        let line = Line::new(Event::Detached).device(&now.name, redirect.mode());
        engine.audit.write(&line);
    }
    true
}

/// Why a program that runs so on a device does not fit the policy, if it does not.
pub fn misfit(policy: &Policy, name: &InterfaceName, mode: XdpMode) -> Option<String> {
    let Some(settings) = policy.interface(name) else {
        return Some(format!("no section [interface.{name}] names it"));
    };
    match (settings.xdp, mode) {
        (XdpSetting::Auto, _)
        | (XdpSetting::Native, XdpMode::Native)
        | (XdpSetting::Generic, XdpMode::Generic) => {}
        (setting, mode) => {
            let setting = setting.as_str();
            return Some(format!(
                "its XDP program runs {mode}, and the policy says `xdp = \"{setting}\"`"
            ));
        }
    }
    if settings.uplink {
        return None;
    }
    match uplink_role(name) {
        Ok(role) => role.map(|role| format!("it {role}, and the policy does not say `uplink = true`")),
        Err(failure) => {
            tracing::warn!(error = chain(&failure), "cannot see whether {name} is an uplink");
            None
        }
    }
}

fn uplink_role(name: &InterfaceName) -> Result<Option<&'static str>, Failure> {
    let Some(device) = Device::look_up(name)? else {
        return Ok(None);
    };
    match device.link()? {
        Some(link) => device.uplink_role(&link),
        None => Ok(None),
    }
}
