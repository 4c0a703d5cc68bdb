//! Packets of several frames: taken whole, sent whole.
//!
//! Where a socket was bound with [`BindOptions::multi_buffer`](crate::BindOptions::multi_buffer), a packet that is larger
//! than a chunk is several frames, one behind the other in the rings. Who walks frames by himself has to remember where a
//! packet is cut by a batch's edge, and may find no room for its second half. Here a batch ends where a packet does,
//! whatever the edges of the rings, and a packet is sent as a whole or not at all.
//!
//! This is not the hot path of small frames: each frame is admitted by itself, and entries of the RX ring are given back
//! before a packet of them is published to the TX ring. So a batch that is leaked gives no chunk away twice.

mod received;
mod transmit;

pub use received::{ReceivedPackets, RxPacket};
pub use transmit::TransmitPackets;

pub(crate) use crate::ring::MOST_PACKET_FRAMES as MOST_FRAMES;
