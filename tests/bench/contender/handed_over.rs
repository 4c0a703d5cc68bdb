//! The socket that the parent has left to this process, as the broker would have sent it.

#![expect(unsafe_code, reason = "an inherited fd is a number until somebody owns it")]

use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use xsk_client::Grant;
use xsk_client::wire::{Acquired, RingSizes};

use crate::harness::{Place, RING_ENTRIES};

pub(crate) fn socket(place: &Place) -> Result<OwnedFd> {
    let fd = place.fd.context("no socket was handed over")?;
    // SAFETY: the bench left this fd to this process by number, nobody else here knows it, and each contender is made
    // once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn grant(place: &Place) -> Result<Grant> {
    let acquired: Acquired = serde_json::from_value(serde_json::json!({
        "lease": 1,
        "interface": place.interface,
        "interfaceIndex": place.interface_index,
        "rule": "bench",
        "queueLock": "none",
        "xdp": "native",
        "rings": RingSizes::all(RING_ENTRIES),
        "activateWithinMs": 0,
        "sockets": [{ "queue": place.queue, "socketFileDescriptor": 0 }],
    }))?;
    Ok(Grant::from_parts(acquired, vec![socket(place)?])?)
}
