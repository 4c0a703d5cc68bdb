//! Two real network devices joined by a wire, where there are such: in the virtual machine of `cargo xtask vm`. Their
//! driver has what a veth has not, zero-copy above all.
//!
//! They live in the first network namespace, and a test takes them into its world. When the world ends the kernel puts
//! them back, which the next taker waits for.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netlink::{LinkState, Netlink};
use crate::packets::Mac;
use crate::patience::stretched;
use crate::world::{Device, Side, World};

/// The variable that has their driver and the two devices' addresses, with commas.
pub const NICS: &str = "XSK_E2E_NICS";

/// The variable that has the address of a device with more queues than are in use.
pub const QUEUES_NIC: &str = "XSK_E2E_QUEUES_NIC";

/// The two devices, in a world: the host's is `nic0`, the first peer's is `nic1`. Nobody else has them meanwhile.
#[derive(Debug)]
pub struct Nics {
    /// On the host's side.
    pub host: Device,
    /// On the first peer's side.
    pub peer: Device,
    /// Their driver.
    pub driver: String,
    _taken: MutexGuard<'static, ()>,
}

impl Nics {
    /// Whether there are such devices here.
    pub fn are_there() -> bool {
        std::env::var_os(NICS).is_some()
    }

    /// Takes them into a world, up and with addresses.
    pub fn take(world: &World) -> Result<Self> {
        static TAKEN: Mutex<()> = Mutex::new(());
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let told = std::env::var(NICS).context(NICS)?;
        let [driver, first, second] = told.split(',').collect::<Vec<_>>()[..] else {
            bail!("{NICS} has not a driver and two addresses: {told}");
        };
        let outside = Netlink::new()?;
        let mut host = enter(&outside, world, Side::Host, first, "nic0")?;
        let mut peer = enter(&outside, world, Side::PEER, second, "nic1")?;
        host.address = Ipv4Addr::new(10, 78, 0, 1);
        peer.address = Ipv4Addr::new(10, 78, 0, 2);
        for (side, own, other) in [(Side::Host, &host, &peer), (Side::PEER, &peer, &host)] {
            let netlink = world.netlink(side);
            netlink.add_address(own.index, own.address)?;
            netlink.set_link(own.index, LinkState::Up)?;
            netlink.add_neighbour(own.index, other.address, other.mac)?;
        }
        let nics = Self {
            host,
            peer,
            driver: driver.to_owned(),
            _taken: taken,
        };
        nics.wait_carriers(world)?;
        if nics.driver == "igb" {
            // All to one queue, so that a test with one holder needs no luck.
            world.ethtool(Side::Host).steer_all_to(&nics.host.name, 0)?;
        }
        Ok(nics)
    }

    /// Waits until both have a carrier: a driver may reset its device when it gets an XDP program or a socket, which takes
    /// the wire down for seconds.
    pub fn wait_carriers(&self, world: &World) -> Result<()> {
        for (side, device) in [(Side::Host, &self.host), (Side::PEER, &self.peer)] {
            wait_carrier(world, side, &device.name)?;
        }
        Ok(())
    }
}

/// A device with more queues than are in use, where there is one: it is called `many0` on the host's side.
#[derive(Debug)]
pub struct ManyQueues {
    /// The device; `queues` are those in use when it was taken.
    pub device: Device,
    _taken: MutexGuard<'static, ()>,
}

impl ManyQueues {
    /// Whether there is such a device here.
    pub fn are_there() -> bool {
        std::env::var_os(QUEUES_NIC).is_some()
    }

    /// Takes it into a world, and sets it up.
    pub fn take(world: &World) -> Result<Self> {
        static TAKEN: Mutex<()> = Mutex::new(());
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let mac = std::env::var(QUEUES_NIC).context(QUEUES_NIC)?;
        let device = enter(&Netlink::new()?, world, Side::Host, &mac, "many0")?;
        world.netlink(Side::Host).set_link(device.index, LinkState::Up)?;
        Ok(Self {
            device,
            _taken: taken,
        })
    }
}

fn wait_carrier(world: &World, side: Side, name: &str) -> Result<()> {
    let deadline = Instant::now() + stretched(Duration::from_secs(10));
    while !world.netlink(side).link(name)?.carrier {
        if Instant::now() > deadline {
            bail!("{name} has no carrier");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn enter(outside: &Netlink, world: &World, side: Side, mac: &str, name: &str) -> Result<Device> {
    let index = wait_for(mac)?;
    // In a world there are devices by the names that the kernel gives.
    outside.set_link(index, LinkState::Down)?;
    outside.rename(index, name)?;
    outside.move_to(index, world.namespace(side).net())?;
    // It keeps its index unless that is taken inside.
    let index = world.netlink(side).link(name)?.index;
    let queues = world.ethtool(side).channels(name)?.rx;
    Ok(Device {
        name: name.to_owned(),
        index,
        mac: parse(mac)?,
        address: Ipv4Addr::UNSPECIFIED,
        queues,
    })
}

/// The index of the device with that address, once it is out here.
fn wait_for(mac: &str) -> Result<u32> {
    let deadline = Instant::now() + stretched(Duration::from_secs(10));
    loop {
        for device in fs::read_dir("/sys/class/net").context("/sys/class/net")? {
            let device = device?.path();
            if read(&device, "address").is_some_and(|address| address == mac) {
                let index = read(&device, "ifindex").context("a device without an index")?;
                return Ok(index.parse()?);
            }
        }
        if Instant::now() > deadline {
            bail!("there is no network device {mac}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn read(device: &Path, attribute: &str) -> Option<String> {
    let text = fs::read_to_string(device.join(attribute)).ok()?;
    Some(text.trim().to_owned())
}

fn parse(mac: &str) -> Result<Mac> {
    let bytes: Vec<u8> = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    let bytes = bytes
        .try_into()
        .map_err(|_| anyhow::anyhow!("{mac} is no Ethernet address"))?;
    Ok(Mac(bytes))
}
