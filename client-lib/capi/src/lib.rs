//! The client for C: connects to the broker, acquires, activates, releases, and hands over file descriptors.
//!
//! It has no rings: libxdp is C's library for those, and takes a socket that came from elsewhere. The header
//! `include/xsk-client.h` is made from the documentation here, and a test compares both.
//!
//! **Invariant**: no panic crosses the boundary (`outcome::guarded`), no pointer is used before it was compared with null,
//! and each fd has one owner: the grant, until it was taken.

mod client;
mod grant;
mod outcome;

pub use client::{
    Client, Kind, Request, Way, xsk_client_acquire, xsk_client_activate, xsk_client_bind, xsk_client_close,
    xsk_client_connect, xsk_client_release,
};
pub use grant::{
    Grant, Ring, xsk_client_inherit, xsk_grant_count, xsk_grant_fd, xsk_grant_free, xsk_grant_interface,
    xsk_grant_interface_index, xsk_grant_lease, xsk_grant_queue, xsk_grant_ring_entries, xsk_grant_take_fd,
    xsk_grant_umem_bytes, xsk_grant_umem_fd,
};
pub use outcome::{Status, xsk_client_error, xsk_client_retry_after_ms};
