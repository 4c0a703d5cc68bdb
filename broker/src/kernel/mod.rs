//! The kernel objects of a grant: sockets, the XDP program and its map, and what only the kernel can tell.
//!
//! Only the engine's thread makes them, and only with [`Terms`](crate::policy::Terms) in its hand.

pub mod bpf_link;
pub mod ethtool;
pub mod link_events;
pub mod missing_pages;
pub mod multi_buffer;
pub mod namespace;
pub mod netlink;
pub mod origin;
pub mod peer;
pub mod pinned;
pub mod pins;
pub mod queue_lock;
pub mod queue_probe;
pub mod readable;
pub mod redirect;
pub mod ring_probe;
pub mod slots;
pub mod umem;
pub mod xsk;
