//! The place where a test happens: a host with a multi-queue device, one or several peers on the other ends of its
//! wires, and private mounts. It is made of file descriptors alone: when they are closed, by whatever end, all of it
//! is gone.
//!
//! ```text
//!   host                       wire 0                        peer 0
//!   eth0  10.77.0.1/24  ══ 8 queues each way ══  10.77.0.2/24  peer0
//!   eth1  10.77.1.1/24  ══ …           wire 1 ═  10.77.1.2/24  peer1      peer 1
//! ```
//!
//! All sides share one mount namespace, in which `/run` is a fresh tmpfs: so the broker may use the paths that it
//! uses in earnest, and a client finds it from every side. `/run/bpf` is a bpffs of mode 0700, `/run/bin` has the
//! programs that a test installed.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};

use crate::ethtool::{Channels, Ethtool, Offload};
use crate::namespace::Namespace;
use crate::netlink::{LinkState, Netlink, VethEnd};
use crate::packets::{End, Mac};
use crate::steering::{self, Steer};
use crate::uids::User;

/// Whose namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Where the broker is.
    Host,
    /// Who sends to it.
    Peer(usize),
}

impl Side {
    /// The first peer, in most tests the only one.
    pub const PEER: Self = Self::Peer(0);
}

/// A device at one end of a wire.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its index in its namespace.
    pub index: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its IPv4 address, in a network of 24 bits.
    pub address: Ipv4Addr,
    /// The queues that it was made with, each of rx and tx.
    pub queues: u32,
}

impl Device {
    /// The device as sender or receiver of UDP from that port.
    pub fn end(&self, port: u16) -> End {
        End {
            mac: self.mac,
            address: self.address,
            port,
        }
    }
}

/// One side's namespaces and what works in them from afar.
#[derive(Debug)]
struct Place {
    namespace: Namespace,
    netlink: Netlink,
    ethtool: Ethtool,
}

/// A veth pair between the host and a peer.
#[derive(Debug)]
pub struct Wire {
    /// The host's end.
    pub host: Device,
    /// The peer's end.
    pub peer: Device,
}

/// What a world is made of.
#[derive(Debug, Clone, Copy)]
pub struct WorldBuilder {
    queues: u32,
    peers: usize,
}

impl WorldBuilder {
    /// Queues of every device, each of rx and tx. 8 if not told.
    #[must_use]
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = queues;
        self
    }

    /// How many peers. 1 if not told.
    #[must_use]
    pub fn peers(mut self, peers: usize) -> Self {
        self.peers = peers;
        self
    }

    /// Makes it.
    pub fn build(self) -> Result<World> {
        ensure!((1..=200).contains(&self.peers), "a world has 1 to 200 peers");
        crate::skip::require_root()?;
        let host = Place::new(Namespace::new(mount_run)?)?;
        let run = host.namespace.run(|| {
            rustix::fs::open(
                "/run",
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        })??;
        let mut world = World {
            host,
            peers: Vec::new(),
            wires: Vec::new(),
            run,
        };
        for number in 0..self.peers {
            let peer = Place::new(world.host.namespace.sibling()?)?;
            world.wires.push(wire(&world.host, &peer, number, self.queues)?);
            world.peers.push(peer);
        }
        Ok(world)
    }
}

/// See the module.
#[derive(Debug)]
pub struct World {
    host: Place,
    peers: Vec<Place>,
    wires: Vec<Wire>,
    run: OwnedFd,
}

impl World {
    /// One peer, 8 queues.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Another world than that.
    pub fn builder() -> WorldBuilder {
        WorldBuilder { queues: 8, peers: 1 }
    }

    /// The wire to a peer.
    ///
    /// # Panics
    ///
    /// Where the world has no such peer.
    pub fn wire(&self, peer: usize) -> &Wire {
        &self.wires[peer]
    }

    /// Has the host send all else to a peer; routes to several differ by their metric.
    ///
    /// # Panics
    ///
    /// Where the world has no such peer.
    pub fn add_default_route(&self, peer: usize, metric: u32) -> Result<()> {
        let Wire { host, peer, .. } = self.wire(peer);
        self.netlink(Side::Host)
            .add_default_route(host.index, peer.address, metric)
    }

    /// A side's device; the host's is the one on the first wire.
    ///
    /// # Panics
    ///
    /// Where the world has no such peer.
    pub fn device(&self, side: Side) -> &Device {
        match side {
            Side::Host => &self.wires[0].host,
            Side::Peer(number) => &self.wires[number].peer,
        }
    }

    /// Runs `f` on a thread of its own on that side. A panic there goes on here.
    ///
    /// Sockets made there stay there, and may be used from anywhere.
    pub fn run_in<T: Send>(&self, side: Side, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespace(side).run(f)
    }

    /// The same, as an ordinary user: see [`User::run`] for what a thread of that user is and is not.
    pub fn run_as<T: Send>(&self, side: Side, user: &User, f: impl FnOnce() -> T + Send) -> Result<T> {
        user.run(self.namespace(side), f)
    }

    /// A side's namespaces.
    ///
    /// # Panics
    ///
    /// Where the world has no such peer.
    pub fn namespace(&self, side: Side) -> &Namespace {
        &self.place(side).namespace
    }

    /// Devices, addresses and neighbours of a side.
    ///
    /// # Panics
    ///
    /// Where the world has no such peer.
    pub fn netlink(&self, side: Side) -> &Netlink {
        &self.place(side).netlink
    }

    /// Offloads, queue counts and driver's counters of a side's devices.
    ///
    /// # Panics
    ///
    /// Where the world has no such peer.
    pub fn ethtool(&self, side: Side) -> &Ethtool {
        &self.place(side).ethtool
    }

    /// The sides that there are, the host first.
    pub fn sides(&self) -> impl Iterator<Item = Side> {
        std::iter::once(Side::Host).chain((0..self.peers.len()).map(Side::Peer))
    }

    /// Replaces the rules by which a peer's packets choose the host's queue.
    pub fn steer(&self, peer: usize, rules: &[Steer]) -> Result<()> {
        let device = &self.wire(peer).peer;
        steering::replace(self.netlink(Side::Peer(peer)), device.index, rules)
    }

    /// How many queues the host's device of a wire uses; the peer's follow, since a veth's sender may have no more
    /// than its receiver once XDP is attached.
    pub fn set_queues(&self, wire: usize, queues: u32) -> Result<()> {
        let Wire { host, peer } = self.wire(wire);
        let channels = Channels {
            rx: queues,
            tx: queues,
        };
        let host = (self.ethtool(Side::Host), &host.name);
        let peer = (self.ethtool(Side::Peer(wire)), &peer.name);
        // Whichever order keeps the receiver's count from falling below the sender's.
        let (first, second) = if host.0.channels(host.1)?.rx < queues {
            (host, peer)
        } else {
            (peer, host)
        };
        first.0.set_channels(first.1, channels)?;
        second.0.set_channels(second.1, channels)
    }

    /// A path below `/run` of the world, as this process can open it from any thread.
    ///
    /// Processes inside use `/run/…` itself.
    pub fn path(&self, below_run: impl AsRef<Path>) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.run.as_raw_fd())).join(below_run)
    }

    /// Writes a file below `/run`, root's, with exactly that mode, and returns its path inside of the world.
    pub fn write(&self, below_run: impl AsRef<Path>, text: &str, mode: u32) -> Result<PathBuf> {
        let path = self.path(&below_run);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&path)
            .with_context(|| format!("writing {}", below_run.as_ref().display()))?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        Ok(Path::new("/run").join(below_run))
    }

    /// Makes a program executable for everybody inside, as `/run/bin/NAME`, and returns that path.
    ///
    /// It is a mount of the file itself: so it costs nothing, its real place may be below a directory of mode 0700,
    /// and it is gone with the world. Installing a name twice is harmless.
    pub fn install(&self, name: &str, program: &Path) -> Result<PathBuf> {
        let inside = Path::new("/run/bin").join(name);
        let context = || format!("installing {} as {}", program.display(), inside.display());
        if self.path(Path::new("bin").join(name)).exists() {
            return Ok(inside);
        }
        // A clone is tied to no namespace until it is mounted, and so passes into the world's.
        let clone = open_tree(
            CWD,
            program,
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .with_context(context)?;
        self.run_in(Side::Host, || -> Result<()> {
            fs::write(&inside, "")?;
            move_mount(&clone, "", CWD, &inside, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            Ok(())
        })?
        .with_context(context)?;
        Ok(inside)
    }

    fn place(&self, side: Side) -> &Place {
        match side {
            Side::Host => &self.host,
            Side::Peer(number) => &self.peers[number],
        }
    }
}

impl Place {
    fn new(namespace: Namespace) -> Result<Self> {
        let (netlink, ethtool) = namespace.run(|| -> Result<_> {
            // Else each device sends router solicitations and reports, at times of its own, into what tests count.
            for which in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
                if Path::new(&path).exists() {
                    fs::write(&path, "1").context(path)?;
                }
            }
            Ok((Netlink::new()?, Ethtool::new()?))
        })??;
        netlink.set_link(netlink.link("lo")?.index, LinkState::Up)?;
        Ok(Self {
            namespace,
            netlink,
            ethtool,
        })
    }
}

fn mount_run() -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", "/run", "tmpfs", flags, c"mode=0755").context("mounting a tmpfs at /run")?;
    fs::create_dir("/run/bin").context("/run/bin")?;
    fs::create_dir("/run/bpf").context("/run/bpf")?;
    let flags = flags | MountFlags::NOEXEC;
    mount("bpf", "/run/bpf", "bpf", flags, c"mode=0700").context("mounting a bpffs at /run/bpf")
}

fn wire(host: &Place, peer: &Place, number: usize, queues: u32) -> Result<Wire> {
    let octet = u8::try_from(number)?;
    let mut host_end = Device {
        name: format!("eth{number}"),
        index: 0,
        mac: Mac([2, 0, 0, 0, octet, 1]),
        address: Ipv4Addr::new(10, 77, octet, 1),
        queues,
    };
    let mut peer_end = Device {
        name: format!("peer{number}"),
        index: 0,
        mac: Mac([2, 0, 0, 0, octet, 2]),
        address: Ipv4Addr::new(10, 77, octet, 2),
        queues,
    };
    host.netlink.add_veth(
        &VethEnd {
            name: &host_end.name,
            mac: host_end.mac,
            queues,
            net: host.namespace.net(),
        },
        &VethEnd {
            name: &peer_end.name,
            mac: peer_end.mac,
            queues,
            net: peer.namespace.net(),
        },
    )?;
    host_end.index = host.netlink.link(&host_end.name)?.index;
    peer_end.index = peer.netlink.link(&peer_end.name)?.index;

    for (place, own, other) in [(host, &host_end, &peer_end), (peer, &peer_end, &host_end)] {
        place.netlink.add_address(own.index, own.address)?;
        place.netlink.set_link(own.index, LinkState::Up)?;
        place.netlink.add_neighbour(own.index, other.address, other.mac)?;
        // An AF_XDP receiver sees a frame as the veth passes it: else unsegmented, and with its checksum to be made.
        for offload in [Offload::Tso, Offload::Gso, Offload::TxChecksum] {
            place.ethtool.switch_off(&own.name, offload)?;
        }
    }
    steering::prepare(&peer.netlink, peer_end.index)?;
    steering::replace(&peer.netlink, peer_end.index, &[])?;
    Ok(Wire {
        host: host_end,
        peer: peer_end,
    })
}
