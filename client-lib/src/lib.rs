//! AF_XDP sockets for processes that hold no capability.
//!
//! An [xsk-broker](https://github.com/xsk-broker/xsk-broker) opens the sockets and hands them over; this library
//! asks for them, registers memory of the caller's own, binds, and runs the rings. It starts no thread, keeps
//! no global and needs no async runtime.
//!
//! Three features: `wire` is the protocol as data, `sys` the kernel's names, `datapath` (the default) the client.
//! The broker itself uses the first two, so that it links no ring code.

#![warn(missing_docs)]

#[cfg(feature = "sys")]
pub mod sys;
#[cfg(feature = "wire")]
pub mod wire;
