//! Devices whose XDP program is attached otherwise than the policy in force wants it: another one wanted it so, or the
//! device has changed, by its name, a default route, a bridge.
//!
//! **Invariants**: nothing more is granted on such a device; and its program is detached as soon as no lease uses it, so
//! that the next grant, if there is to be one, attaches it as the policy wants. What is told of it is as the kernel's last
//! news have it.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use xsk_client::wire::{BrokerError, InterfaceName, XdpMode};

use crate::audit::{Event, Line};
use crate::device::Device;
use crate::engine::Engine;
use crate::error::chain;
use crate::objection;
use crate::policy::{Policy, XdpSetting};
use crate::uplink::Uplinks;

/// Such devices.
#[derive(Debug, Default)]
pub struct Misfits {
    /// Why, by their index.
    why: HashMap<u32, String>,
    /// When they are to be looked at, after news.
    due: Option<Instant>,
}

impl Misfits {
    /// Why the program of a device does not fit, if it does not.
    pub fn get(&self, index: u32) -> Option<&str> {
        self.why.get(&index).map(String::as_str)
    }

    /// When to [`settle`].
    pub fn due(&self) -> Option<Instant> {
        self.due
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
    let mut misfits = Misfits::default();
    for (index, redirect) in &engine.redirects {
        let Some(now) = engine.links.get(*index) else {
            continue;
        };
        if let Some(why) = misfit(
            &engine.policy,
            &mut engine.uplinks,
            &now.name,
            *index,
            redirect.mode(),
        ) {
            misfits.why.insert(*index, why);
        }
    }
    engine.misfits = misfits;
}

/// Has them looked at soon: the kernel has news of what a device is to the host. One look is for all that come together.
pub fn look_soon(engine: &mut Engine) {
    const TOGETHER: Duration = Duration::from_millis(100);

    engine.uplinks.forget_all();
    if !engine.redirects.is_empty() {
        let soon = Instant::now() + TOGETHER;
        engine.misfits.due = engine.misfits.due.or(Some(soon));
    }
}

/// Does what is due.
pub fn settle(engine: &mut Engine, now: Instant) {
    if engine.misfits.due.is_some_and(|due| due <= now) {
        look_again(engine);
    }
}

/// Looks at what may have changed since the last look, and does and says what comes of it.
pub fn look_again(engine: &mut Engine) {
    let before = std::mem::take(&mut engine.misfits.why);
    look(engine);
    let either = before.keys().chain(engine.misfits.why.keys());
    let changed: BTreeSet<u32> = either
        .copied()
        .filter(|index| before.get(index).map(String::as_str) != engine.misfits.get(*index))
        .collect();
    for index in changed {
        tell(engine, index);
        detach_unused(engine, index);
        objection::weigh_on(engine, index);
    }
}

/// Tells of all that there are, after a start: what a broker before has told is in no log of this one.
pub fn tell_all(engine: &Engine) {
    let indexes: BTreeSet<u32> = engine.misfits.why.keys().copied().collect();
    indexes.into_iter().for_each(|index| tell(engine, index));
}

fn tell(engine: &Engine, index: u32) {
    let (Some(now), Some(redirect)) = (engine.links.get(index), engine.redirects.get(&index)) else {
        return;
    };
    let name = &now.name;
    let message = match engine.misfits.get(index) {
        Some(why) => {
            let message = format!("{why}: nothing more is granted there");
            tracing::warn!("{name}: {message}");
            message
        }
        None => {
            let message = "as the policy wants it again".to_owned();
            tracing::info!("{name}: {message}");
            message
        }
    };
    let line = Line::new(Event::DeviceChanged).device(&now.name, redirect.mode());
    engine.audit.write(&line.message(&message));
}

/// Detaches the program of a device that it does not fit, if no lease uses it. Tells whether it did.
pub fn detach_unused(engine: &mut Engine, index: u32) -> bool {
    let is_used = || engine.leases.iter().any(|lease| lease.device().index == index);
    if engine.misfits.get(index).is_none() || is_used() {
        return false;
    }
    engine.misfits.why.remove(&index);
    let (redirect, now) = (engine.redirects.remove(&index), engine.links.get(index));
    if let (Some(redirect), Some(now)) = (redirect, now) {
        let line = Line::new(Event::Detached).device(&now.name, redirect.mode());
        engine.audit.write(&line);
    }
    true
}

/// Why a program that runs so on a device does not fit the policy, if it does not.
pub fn misfit(
    policy: &Policy,
    uplinks: &mut Uplinks,
    name: &InterfaceName,
    index: u32,
    mode: XdpMode,
) -> Option<String> {
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
    match uplinks.role(name, index) {
        Ok(role) => role.map(|role| format!("it {role}, and the policy does not say `uplink = true`")),
        Err(failure) => {
            tracing::warn!(error = chain(&failure), "cannot see whether {name} is an uplink");
            None
        }
    }
}
