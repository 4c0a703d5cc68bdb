//! A veth pair with several queues, in a network namespace that only the calling thread is in.
#![expect(
    unsafe_code,
    reason = "unshare(2), which rustix marks unsafe for the sake of flags that are not used here"
)]

use std::{env, thread};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use rustix::process::geteuid;
use rustix::thread::{UnshareFlags, unshare_unsafe};

const NAME: &str = "xsk-test";

/// Runs `test` on a thread in an anonymous network namespace, which is gone with the thread and its sockets.
pub(crate) fn in_private_network(name: &str, test: impl FnOnce() + Send + 'static) {
    if !geteuid().is_root() {
        let in_ci = ["CI", "XSK_CI"]
            .iter()
            .any(|variable| env::var_os(variable).is_some_and(|it| it == "1"));
        assert!(!in_ci, "{name} needs root, and in CI no test may be left out");
        eprintln!("SKIP {name}: loading an XDP program needs root; `cargo xtask test` runs it through sudo");
        return;
    }
    let outcome = thread::spawn(move || {
        // SAFETY: the danger of unshare lies in CLONE_FILES; CLONE_NEWNET changes only this thread's
        // namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare(CLONE_NEWNET) as root");
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// One end of the pair; BPF_PROG_TEST_RUN needs no more of a device than that it has the queue, not even that
/// it is up.
pub(crate) struct Veth {
    index: u32,
}

impl Veth {
    pub(crate) fn create(queues: u32) -> Self {
        let mut peer = LinkMessage::default();
        peer.attributes
            .push(LinkAttribute::IfName(format!("{NAME}-peer")));
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(NAME.to_owned()),
            LinkAttribute::NumRxQueues(queues),
            LinkAttribute::NumTxQueues(queues),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        request(RouteNetlinkMessage::NewLink(link));

        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .expect("a socket to ask the index with");
        Self {
            index: netdevice::name_to_index(&socket, NAME).expect("the device was just made"),
        }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

/// Sends one request to rtnetlink and waits for its acknowledgement.
fn request(message: RouteNetlinkMessage) {
    let mut socket = Socket::new(NETLINK_ROUTE).expect("a netlink socket");
    socket.bind_auto().expect("an address for the netlink socket");
    socket
        .connect(&SocketAddr::new(0, 0))
        .expect("the kernel at the other end");

    let mut packet = NetlinkMessage::from(message);
    packet.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0).expect("rtnetlink takes a request");

    let (reply, _) = socket.recv_from_full().expect("rtnetlink answers");
    let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply).expect("a netlink message");
    match reply.payload {
        NetlinkPayload::Error(error) => {
            assert!(error.code.is_none(), "cannot make a veth pair: {}", error.to_io());
        }
        other => panic!("rtnetlink answered a request with {other:?}"),
    }
}
