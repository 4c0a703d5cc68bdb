//! Which lease has which queue of which device: taken when it is reserved, given back on drop.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::LeaseId;
use crate::device::Device;
use crate::policy::Terms;

/// By the device's index and the queue.
pub(super) type Holds = Rc<RefCell<HashMap<(u32, u32), LeaseId>>>;

/// Queues of one lease.
#[derive(Debug)]
pub(super) struct Hold {
    holds: Holds,
    queues: Vec<(u32, u32)>,
}

impl Hold {
    pub(super) fn take(holds: &Holds, id: LeaseId, device: &Device, terms: &Terms) -> Self {
        let queues: Vec<_> = terms.queues().iter().map(|queue| (device.index, queue)).collect();
        holds.borrow_mut().extend(queues.iter().map(|queue| (*queue, id)));
        Self {
            holds: Rc::clone(holds),
            queues,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = self.holds.borrow_mut();
        for queue in &self.queues {
            holds.remove(queue);
        }
    }
}
