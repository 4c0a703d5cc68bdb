//! Devices as they are now, and what becomes of leases when one changes.
//!
//! | what happens to the device | what becomes of its leases |
//! | --- | --- |
//! | set down, set up again | they go on; nothing is received or sent while it is down |
//! | renamed | they go on under its new name, and are weighed by what the policy says of it; what is asked for later is decided by that name |
//! | a default route leaves by it, it becomes a port of a bridge | they go on; without `uplink = true` the policy would not give them now |
//! | another MTU | they go on; a packet that is longer than a chunk of the umem is dropped and counted |
//! | fewer queues | those whose queue is gone end; the kernel allows it only where their sockets are not bound |
//! | more queues | they can be had from the next request on |
//! | deleted, moved to another network namespace | they end, and nothing of them lingers: the kernel has closed the sockets |
//!
//! `list` and `Monitor` show each of them.

use std::collections::HashMap;

use xsk_client::wire::Change;

use crate::audit::{Event, Line};
use crate::device::Device;
use crate::end::{self, Reason};
use crate::engine::Engine;
use crate::error::chain;
use crate::kernel::link_events::{LinkEvent, LinkNow};
use crate::kernel::netlink;
use crate::{misfit, objection};

/// What the kernel has last said of each device, by its index.
#[derive(Debug, Default)]
pub struct Links(HashMap<u32, LinkNow>);

impl Links {
    /// What is known of a device; `None` before the first news of it.
    pub fn get(&self, index: u32) -> Option<&LinkNow> {
        self.0.get(&index)
    }
}

/// Does what a piece of news asks for.
pub fn heed(engine: &mut Engine, event: LinkEvent) {
    match event {
        LinkEvent::Now(index, now) => changed(engine, index, &now),
        LinkEvent::Gone(index) => {
            engine.links.0.remove(&index);
            end::device_gone(engine, index);
        }
        LinkEvent::Queues(index) => count_queues(engine, index),
        LinkEvent::Routes => misfit::look_soon(engine),
        LinkEvent::Address(index) if engine.redirects.contains_key(&index) => misfit::look_soon(engine),
        LinkEvent::Address(_) => {}
        LinkEvent::Lost => {
            look_at_all(engine);
            misfit::look_soon(engine);
        }
    }
}

/// Learns of all devices that there are: at the start, and where news was lost.
pub fn look_at_all(engine: &mut Engine) {
    let devices = match netlink::devices() {
        Ok(devices) => devices,
        Err(error) => {
            tracing::warn!(%error, "cannot ask the kernel for its devices");
            return;
        }
    };
    let gone = |index: &u32| !devices.iter().any(|(_, link)| link.index == *index);
    let known = engine.links.0.keys().chain(engine.redirects.keys());
    for index in known.copied().filter(gone).collect::<Vec<_>>() {
        heed(engine, LinkEvent::Gone(index));
    }
    for (name, link) in devices {
        changed(engine, link.index, &LinkNow::new(name, &link));
        count_queues(engine, link.index);
    }
}

fn changed(engine: &mut Engine, index: u32, now: &LinkNow) {
    let Some(before) = engine.links.0.insert(index, now.clone()) else {
        return;
    };
    if before == *now {
        return;
    }
    let is_shown = before.clone().as_port_of(now.controller) != *now;
    for id in engine.leases.ids(|lease| lease.device().index == index) {
        if let Some(lease) = engine.leases.get_mut(id) {
            lease.device_is_now(now.clone());
            // A device that gets this one's former name later is not to be taken for it.
            if before.name != now.name
                && let Err(failure) = lease.write_down()
            {
                tracing::warn!(
                    lease = id.0,
                    "cannot write down that its device was renamed: {}",
                    chain(&failure)
                );
            }
            if is_shown {
                engine.monitors.publish(lease, Change::Device);
            }
        }
    }
    let Some(redirect) = engine.redirects.get(&index) else {
        return;
    };
    if is_shown {
        let line = Line::new(Event::DeviceChanged).device(&now.name, redirect.mode());
        engine.audit.write(&line.message(&differences(&before, now)));
    }
    if before.name != now.name {
        // The policy speaks of names.
        engine.uplinks.forget(index);
        misfit::look_again(engine);
        objection::weigh_on(engine, index);
    }
    if (before.up, before.controller) != (now.up, now.controller) {
        // With a device that is set down go its routes, of which the kernel says nothing.
        misfit::look_soon(engine);
    }
}

/// What of a device has changed, in words.
fn differences(before: &LinkNow, now: &LinkNow) -> String {
    let mut what = Vec::new();
    if before.name != now.name {
        what.push(format!("renamed from {}", before.name));
    }
    if before.up != now.up {
        what.push(if now.up { "up" } else { "down" }.to_owned());
    }
    if before.carrier != now.carrier && now.up {
        let carrier = if now.carrier {
            "has a carrier"
        } else {
            "no carrier"
        };
        what.push(carrier.to_owned());
    }
    if before.mtu != now.mtu {
        what.push(format!("MTU {}, was {}", now.mtu, before.mtu));
    }
    what.join(", ")
}

/// Ends leases whose queue the device has no more.
fn count_queues(engine: &mut Engine, index: u32) {
    if !engine.redirects.contains_key(&index) {
        return;
    }
    let Some(name) = engine.links.get(index).map(|now| now.name.clone()) else {
        return;
    };
    let device = match Device::look_up(&name) {
        Ok(Some(device)) if device.index == index => device,
        // It is gone, or has another name already, and news of that is on its way.
        Ok(_) => return,
        Err(error) => {
            tracing::warn!(error = chain(&error), "cannot count the queues of {name}");
            return;
        }
    };
    let lacks = |queue: u32| queue >= device.rx_queues;
    let lost = |lease: &crate::lease::Lease| {
        lease.device().index == index && lease.is_live() && lease.terms().queues().iter().any(lacks)
    };
    for id in engine.leases.ids(lost) {
        end::end(engine, id, Reason::QueueGone);
    }
}
