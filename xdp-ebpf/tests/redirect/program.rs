//! The loaded program with its two maps, and one frame through it.

use std::os::fd::{AsRawFd as _, OwnedFd};

use aya::maps::{PerCpuArray, XskMap};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use xdp_ebpf::{OBJECT, PROGRAM, QUEUE_COUNTERS, QueueCounters, XSKS_MAP};

use crate::veth::Veth;

// enum xdp_action, include/uapi/linux/bpf.h.
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_REDIRECT: u32 = 4;

pub(crate) struct Program {
    ebpf: Ebpf,
    map_entries: u32,
}

impl Program {
    /// Loads the committed object as the broker does, with both maps sized at load.
    pub(crate) fn load(map_entries: u32) -> Self {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(XSKS_MAP, map_entries)
            .map_max_entries(QUEUE_COUNTERS, map_entries)
            .load(OBJECT)
            .expect("the committed object loads");
        xdp(&mut ebpf).load().expect("the verifier takes the program");
        Self { ebpf, map_entries }
    }

    pub(crate) fn fill_slot(&mut self, queue: u32, socket: &OwnedFd) {
        self.xsks_map()
            .set(queue, socket.as_raw_fd(), 0)
            .expect("an AF_XDP socket goes into its slot");
    }

    pub(crate) fn empty_slot(&mut self, queue: u32) {
        self.xsks_map()
            .unset(queue)
            .expect("a filled slot can be emptied");
    }

    /// One frame that arrived on `queue` of `veth`; the action that the program chose.
    pub(crate) fn run(&mut self, frame: &[u8], veth: &Veth, queue: u32) -> u32 {
        let length = u32::try_from(frame.len()).expect("a frame is no longer than 64 KiB");
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex. The
        // kernel (xdp_convert_md_to_buff, net/bpf/test_run.c) takes a queue only together with its device,
        // and only below real_num_rx_queues.
        let context: Vec<u8> = [0, length, 0, veth.index(), queue, 0]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        xdp(&mut self.ebpf)
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|error| {
                panic!("BPF_PROG_TEST_RUN, queue {queue}, frame of {length} bytes: {error:?}")
            })
            .return_value
    }

    /// One entry a queue, added up over the CPUs.
    pub(crate) fn counters(&self) -> Vec<QueueCounters> {
        let map = self
            .ebpf
            .map(QUEUE_COUNTERS)
            .expect("the object has the counters' map");
        let counters: PerCpuArray<_, [u64; 2]> =
            PerCpuArray::try_from(map).expect("the counters are two 64-bit words a queue and CPU");
        (0..self.map_entries)
            .map(|queue| {
                let cpus = counters
                    .get(&queue, 0)
                    .expect("each queue within the map has its counters");
                cpus.iter().copied().map(QueueCounters::from).sum()
            })
            .collect()
    }

    fn xsks_map(&mut self) -> XskMap<&mut aya::maps::MapData> {
        let map = self
            .ebpf
            .map_mut(XSKS_MAP)
            .expect("the object has the sockets' map");
        XskMap::try_from(map).expect("the sockets' map is an XSKMAP")
    }
}

fn xdp(ebpf: &mut Ebpf) -> &mut Xdp {
    let program = ebpf.program_mut(PROGRAM).expect("the object has the program");
    program.try_into().expect("the program is an XDP program")
}

/// A socket as the broker makes it: enough to fill a slot, though no frame would be delivered before it is
/// bound.
pub(crate) fn unbound_socket() -> OwnedFd {
    socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .expect("this kernel has AF_XDP and we hold CAP_NET_RAW")
}
