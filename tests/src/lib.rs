//! The fixture of the end-to-end suite, and of the demo: network namespaces, wires with several queues, unprivileged
//! users, and the real programs running among them.
//!
//! Set-up is netlink and ioctl alone: no other program is run, so that all of it works in an initramfs. Whatever is
//! made ends with the value that stands for it, and all of it with the process, however that ends.
//!
//! Start with [`world::World`].

pub mod allocations;
pub mod binaries;
pub mod bpf;
pub mod broker;
pub mod connector;
pub mod echo_loop;
pub mod ethtool;
pub mod figures;
pub mod fuse;
pub mod generator;
pub mod holder;
pub mod huge_pages;
pub mod instructions;
pub mod kernel;
pub mod leaks;
pub mod lsm;
pub mod memory_cgroup;
pub mod namespace;
pub mod netlink;
pub mod nics;
pub mod packet_socket;
pub mod packets;
pub mod patience;
pub mod process;
pub mod qemu_netdev;
pub mod queue_program;
pub mod raw_client;
pub mod raw_xsk;
pub mod service_manager;
pub mod sink_program;
pub mod skip;
pub mod status;
pub mod steering;
mod sys;
pub mod trace;
pub mod tracing;
pub mod uids;
pub mod world;
