//! Scratch devices: a veth that is made for some sockets to be bound to, and deleted with them still bound.
//!
//! **Invariant**: no scratch device outlives the broker, however it ends. The other end of the pair lies in a network
//! namespace that only the broker's open file keeps: with the process goes the file, with it the namespace, with it that
//! end, and with that end the one in ours.

#![expect(unsafe_code, reason = "unshare(2), which rustix trusts its caller with")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use caps::Capability;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use xsk_client::wire::InterfaceName;

use crate::error::Failure;
use crate::kernel::netlink::{self, Link};
use crate::privileges;

/// Where scratch devices come from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Scratch(Arc<OwnedFd>);

impl Scratch {
    /// Makes the namespace for the other ends. To be called as root, on the only thread: it takes CAP_SYS_ADMIN, which the
    /// broker gives up right after.
    ///
    /// # Errors
    ///
    /// The inner one: there is none, and why. The outer one: the thread could not go back to its own namespace, and must
    /// not go on.
    pub fn create() -> Result<Result<Self, Failure>, Failure> {
        const NAMESPACE: &str = "/proc/thread-self/ns/net";

        let failed = |call, source: io::Error| {
            Failure::kernel(call, "a network namespace for scratch devices", source)
        };
        let own = match File::open(NAMESPACE) {
            Ok(own) => own,
            Err(source) => return Ok(Err(failed("open", source))),
        };
        // SAFETY: only the network namespace of this thread is another afterwards, and no table of fds.
        if let Err(errno) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
            return Ok(Err(failed("unshare(CLONE_NEWNET)", errno.into())));
        }
        let made = File::open(NAMESPACE);
        move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| failed("setns", errno.into()))?;
        Ok(made
            .map(|namespace| Self(Arc::new(namespace.into())))
            .map_err(|source| failed("open", source)))
    }

    /// A device with that many queues; down, without address, and gone when dropped.
    ///
    /// # Errors
    ///
    /// What the kernel says: EOPNOTSUPP where it has no veth.
    pub fn device(&self, queues: u32) -> Result<ScratchDevice, Failure> {
        /// More than other brokers of this network namespace, in other process namespaces, could have made in between.
        const TRIES: u32 = 16;

        let mut tries = 0;
        loop {
            let name = next_name();
            let request = new_veth(&name, queues, self.0.as_raw_fd());
            let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
            let failed = |call, source: io::Error| Failure::kernel(call, &name, source);
            match privileges::with(&[Capability::CAP_NET_ADMIN], || netlink::ask(request, flags))? {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) && tries < TRIES => {
                    tries += 1;
                    continue;
                }
                Err(error) => return Err(failed("RTM_NEWLINK", error)),
            }
            let socket = rustix::net::socket_with(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::DGRAM,
                rustix::net::SocketFlags::CLOEXEC,
                None,
            )
            .map_err(|errno| failed("socket", errno.into()))?;
            let index = rustix::net::netdevice::name_to_index(&socket, &name)
                .map_err(|errno| failed("SIOCGIFINDEX", errno.into()))?;
            return Ok(ScratchDevice { index });
        }
    }
}

/// A veth of ours, deleted when dropped: what is bound to it is bound to nothing then, for good.
#[derive(Debug)]
pub struct ScratchDevice {
    index: u32,
}

impl ScratchDevice {
    /// Its index.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for ScratchDevice {
    fn drop(&mut self) {
        let mut link = LinkMessage::default();
        link.header.index = self.index;
        let request = RouteNetlinkMessage::DelLink(link);
        let deleted = privileges::with(&[Capability::CAP_NET_ADMIN], || {
            netlink::ask(request, NLM_F_REQUEST | NLM_F_ACK)
        });
        match deleted {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(index = self.index, %error, "cannot delete a scratch device"),
            Err(error) => tracing::warn!(index = self.index, %error, "cannot delete a scratch device"),
        }
    }
}

/// Whether a device may have been a scratch device of a broker before this one: it is no more, or about to go.
pub fn was_scratch(index: u32) -> bool {
    let is_other = |(name, link): &(_, Link)| link.index == index && !is_name(name);
    index != 0 && netlink::devices().is_ok_and(|devices| !devices.iter().any(is_other))
}

const NAME: &str = "xskr";

/// At most 15 bytes: the largest process id has 7 digits.
fn next_name() -> String {
    static LAST: AtomicU32 = AtomicU32::new(0);

    let number = LAST.fetch_add(1, Ordering::Relaxed) % 1000;
    format!("{NAME}{}-{number}", std::process::id())
}

fn is_name(name: &InterfaceName) -> bool {
    name.as_str().starts_with(NAME)
}

fn new_veth(name: &str, queues: u32, peer_namespace: i32) -> RouteNetlinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![LinkAttribute::NetNsFd(peer_namespace)];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::NumTxQueues(queues),
        LinkAttribute::NumRxQueues(queues),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    RouteNetlinkMessage::NewLink(link)
}
