//! What is said of a queue that another lease has: no more than concerns the one who asks.

use xsk_client::wire::{BrokerError, LeaseState};

use super::{LeaseId, Leases};
use crate::device::Device;
use crate::identity::Peer;

impl Leases {
    /// Why a queue cannot be had, and whether it is worth asking again soon.
    pub(super) fn busy(&self, device: &Device, queue: u32, holder: LeaseId, peer: &Peer) -> BrokerError {
        let lease = self.by_id.get(&holder);
        let state = lease.map(|lease| lease.state);
        let ends = matches!(state, Some(LeaseState::Ending | LeaseState::Lingering));
        let own = lease.is_some_and(|lease| lease.reservation.requester.subject.uid == peer.subject().uid);
        let name = &device.name;
        // Whose it is is nobody else's business.
        let whose = if own {
            format!("lease {holder} of your own")
        } else {
            "another lease".to_owned()
        };
        let message = if state == Some(LeaseState::Lingering) {
            format!(
                "queue {queue} of {name} was held by {whose}, whose socket is still bound to it; it is free when that socket is gone"
            )
        } else if ends {
            format!("queue {queue} of {name} was held by {whose}, whose end is not over yet; ask again")
        } else {
            format!(
                "queue {queue} of {name} is held by {whose}; ask for another queue, or wait for its release"
            )
        };
        let retry_after_ms = ends.then_some(10);
        BrokerError::QueueBusy {
            interface: name.clone(),
            queue,
            retry_after_ms,
            message,
        }
    }
}
