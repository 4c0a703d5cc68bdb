//! AF_XDP sockets for processes that hold no capability.
//!
//! An [xsk-broker](https://github.com/xsk-broker/xsk-broker) opens the sockets and hands them over; this library
//! asks for them, registers memory of the caller's own, binds, and runs the rings. It starts no thread, keeps
//! no global and needs no async runtime.
//!
//! There are two layers. With **frames** ([`Xsk`]) safe code can neither alias nor lose one, nor use it after it was handed
//! over:
//!
//! ```no_run
//! use xsk_client::{BindOptions, Broker, Grant, Request, Umem, UmemOptions};
//!
//! let mut broker = Broker::connect()?;
//! let grant = Grant::acquire(&mut broker, Request::new("eth0:4".parse()?))?;
//! let bound = grant.bind_one(Umem::new(&UmemOptions::new())?, &BindOptions::new())?;
//! let mut xsk = bound.activate(&mut broker)?;
//! while xsk.wait(None)? {
//!     let mut batch = xsk.receive(64)?;
//!     while let Some(frame) = batch.next_frame() {
//!         // Back where it came from. Where the TX ring is full, it comes back in the error and is recycled.
//!         frame.send().ok();
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The **raw** one ([`raw`]) is rings and descriptors over memory that the caller manages, such as a guest's RAM:
//!
//! ```no_run
//! use std::time::Duration;
//! use xsk_client::{BindOptions, Broker, Grant, Request, UmemOptions, raw};
//!
//! let mut broker = Broker::connect()?;
//! let grant = Grant::acquire(&mut broker, Request::new("eth0:4".parse()?))?;
//! let umem = raw::Umem::new(&UmemOptions::new())?;
//! let mut bound = grant.bind_raw(&umem, &BindOptions::new())?;
//! for xsk in bound.sockets_mut() {
//!     xsk.fill.produce(&(0..2048).map(|chunk| chunk * 2048).collect::<Vec<u64>>())?;
//! }
//! for mut xsk in bound.activate(&mut broker)? {
//!     let Some(mut rx) = xsk.rx else { continue };
//!     while xsk.socket.wait(Some(Duration::from_secs(1)))? {
//!         rx.recycle(&mut xsk.fill, 64)?;
//!         xsk.socket.kick_fill(&xsk.fill)?;
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Linux 5.10 is enough for either (6.4 for sockets that the broker binds); what needs more says so. A holder that confines
//! itself finds the system calls in [`seccomp`].
//!
//! Features: `wire` is the protocol as data, `sys` the kernel's names, both together the connection to the broker, and
//! `datapath` (the default) adds grants, umem and rings; `tokio` adds `AsyncXsk`. The broker itself uses the first two, for
//! its command line too, so that it links no ring code.

#![deny(missing_docs)]

/// The README's examples compile.
#[cfg(all(doctest, feature = "datapath"))]
#[doc = include_str!("../../README.md")]
struct Readme;

#[cfg(feature = "datapath")]
mod bind;
#[cfg(all(feature = "wire", feature = "sys"))]
mod call_error;
#[cfg(feature = "datapath")]
mod cast;
#[cfg(all(feature = "wire", feature = "sys"))]
mod channel;
#[cfg(feature = "datapath")]
mod chunks;
#[cfg(all(feature = "wire", feature = "sys"))]
mod connection;
#[cfg(feature = "datapath")]
mod entries;
#[cfg(feature = "datapath")]
mod error;
#[cfg(feature = "datapath")]
mod frame;
#[cfg(feature = "datapath")]
mod grant;
#[cfg(all(feature = "datapath", any(test, fuzzing)))]
pub mod hostile;
#[cfg(feature = "datapath")]
mod inherit;
#[cfg(feature = "datapath")]
mod memfd;
#[cfg(feature = "sys")]
mod memlock;
#[cfg(feature = "datapath")]
mod metadata;
#[cfg(all(feature = "wire", feature = "sys"))]
mod monitor;
#[cfg(feature = "datapath")]
mod packet;
#[cfg(feature = "datapath")]
mod pool;
#[cfg(all(feature = "wire", feature = "sys"))]
mod process;
#[cfg(feature = "datapath")]
pub mod raw;
#[cfg(feature = "tokio")]
mod reactor;
#[cfg(feature = "datapath")]
mod receive;
#[cfg(feature = "datapath")]
mod request;
#[cfg(feature = "datapath")]
pub mod ring;
#[cfg(feature = "datapath")]
pub mod seccomp;
#[cfg(feature = "datapath")]
mod setup;
#[cfg(feature = "datapath")]
mod socket;
#[cfg(feature = "datapath")]
mod stamps;
#[cfg(feature = "sys")]
pub mod sys;
#[cfg(feature = "datapath")]
mod transmit;
#[cfg(feature = "datapath")]
mod umem;
#[cfg(feature = "wire")]
pub mod wire;
#[cfg(feature = "datapath")]
mod xsk;

#[cfg(feature = "datapath")]
pub use bind::{BindOptions, Mode};
#[cfg(all(feature = "wire", feature = "sys"))]
pub use call_error::{CallError, ProtocolError};
#[cfg(all(feature = "wire", feature = "sys"))]
pub use connection::{Broker, SOCKET_VARIABLE};
#[cfg(feature = "datapath")]
pub use error::{Error, InheritError, Queue};
#[cfg(feature = "datapath")]
pub use frame::{Frame, Unsent, UnsentReason};
#[cfg(feature = "datapath")]
pub use grant::{Bound, Grant};
#[cfg(feature = "sys")]
pub use memlock::MemlockTooLow;
#[cfg(all(feature = "wire", feature = "sys"))]
pub use monitor::{Monitor, News};
#[cfg(feature = "datapath")]
pub use packet::{ReceivedPackets, RxPacket, TransmitPackets};
#[cfg(all(feature = "wire", feature = "sys"))]
pub use process::ProcessId;
#[cfg(feature = "tokio")]
pub use reactor::AsyncXsk;
#[cfg(feature = "datapath")]
pub use receive::{Received, RxFrame};
#[cfg(feature = "datapath")]
pub use request::Request;
#[cfg(feature = "datapath")]
pub use stamps::{TxRequest, TxTimestamp};
#[cfg(feature = "datapath")]
pub use transmit::{Transmit, TxFrame};
#[cfg(feature = "datapath")]
pub use umem::{Umem, UmemOptions};
#[cfg(feature = "datapath")]
pub use xsk::Xsk;
