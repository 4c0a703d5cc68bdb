//! What is taken before anything is made: queues, charges, and a place on the agenda.

use std::sync::Arc;
use std::time::Instant;

use super::LeaseId;
use super::hold::Hold;
use crate::agenda::Due;
use crate::charge::Charge;
use crate::device::Device;
use crate::identity::{Process, Requester};
use crate::policy::Terms;

/// Queues taken and charged for. Dropped, it gives both back.
#[derive(Debug)]
#[must_use = "dropping a reservation gives its queues back"]
pub struct Reservation {
    pub(super) id: LeaseId,
    pub(super) terms: Terms,
    pub(super) device: Device,
    pub(super) requester: Requester,
    pub(super) holder: Arc<Process>,
    pub(super) since: Instant,
    pub(super) due: Due,
    pub(super) _hold: Hold,
    pub(super) _charges: Vec<Charge>,
}

impl Reservation {
    /// The lease's number.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// What the rule allows.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The device, as it was when the queues were taken.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Who asked and is charged.
    pub fn requester(&self) -> &Requester {
        &self.requester
    }

    /// The same, to leave out of it what need not stay.
    pub fn requester_mut(&mut self) -> &mut Requester {
        &mut self.requester
    }

    /// The process that holds what is made of it, from its beginning: the requester's.
    pub fn holder(&self) -> &Arc<Process> {
        &self.holder
    }
}
