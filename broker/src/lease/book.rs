//! All leases of the broker, with the queues that they hold and what is charged for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xsk_client::wire::{BrokerError, LeaseState, QueueLock};

use super::hold::{Hold, Holds};
use super::{Lease, LeaseId, Reservation};
use crate::agenda::Agenda;
use crate::charge::{Accounts, Charge, RuleLimit};
use crate::device::Device;
use crate::identity::{Peer, Requester};
use crate::limit::{self, LimitReached};
use crate::policy::Terms;
use crate::quota::Resource;

/// All leases of the broker.
#[derive(Debug)]
pub struct Leases {
    pub(super) last_id: u64,
    /// Up to here numbers are those of other brokers' leases.
    pub(super) last_taken_over: u64,
    pub(super) by_id: BTreeMap<LeaseId, Lease>,
    pub(super) holds: Holds,
    pub(super) agenda: Agenda,
    pub(super) accounts: Accounts,
    /// Charges for sockets that may live on though their leases have ended, and until when each is kept.
    abandoned: VecDeque<(Instant, Charge)>,
}

/// How long a socket that was left unbound counts: its rings may live on.
const ABANDONED_FOR: Duration = Duration::from_secs(60);

impl Leases {
    /// Charges to these accounts.
    pub fn new(accounts: Accounts) -> Self {
        Self {
            last_id: 0,
            last_taken_over: 0,
            by_id: BTreeMap::new(),
            holds: Holds::default(),
            agenda: Agenda::default(),
            accounts,
            abandoned: VecDeque::new(),
        }
    }

    /// When to look at which of them.
    pub fn agenda(&self) -> &Agenda {
        &self.agenda
    }

    /// Where it charges.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Takes the queues for a new lease and charges the requester for them, before anything is made.
    ///
    /// # Errors
    ///
    /// [`BrokerError::QueueBusy`], [`BrokerError::QuotaExceeded`], [`BrokerError::Denied`] for more than can ever be had; nothing
    /// was taken.
    pub fn reserve(
        &mut self,
        terms: Terms,
        device: Device,
        peer: &Arc<Peer>,
    ) -> Result<Reservation, BrokerError> {
        for queue in terms.queues().iter() {
            if let Some(holder) = self.holds.borrow().get(&(device.index, queue)) {
                return Err(self.busy(&device, queue, *holder, peer));
            }
        }
        let uid = peer.subject().uid;
        if let Some(never) = limit::never(self.accounts.limits(), &terms, uid) {
            return Err(never);
        }
        self.check_abandoned(uid)?;
        let charges = self.charge(&terms, uid)?;
        self.last_id += 1;
        let id = LeaseId(self.last_id);
        let hold = Hold::take(&self.holds, id, &device, &terms);
        Ok(Reservation {
            id,
            terms,
            device,
            requester: Requester::from(&**peer),
            holder: Arc::clone(peer.process()),
            since: Instant::now(),
            due: self.agenda.place_for(id),
            _hold: hold,
            _charges: charges,
        })
    }

    /// Charges for a lease: itself, its queues, and memory that the kernel will pin though its holder may pin none. What
    /// was charged before one of them is refused is given back.
    fn charge(&self, terms: &Terms, uid: u32) -> Result<Vec<Charge>, LimitReached> {
        let mut charges = vec![self.accounts.charge(uid, Resource::Leases, 1)?];
        for (resource, amount) in amounts(terms) {
            let limit = match resource {
                // Without a limit too: the rule may have one tomorrow.
                Resource::Queues => terms.max_queues().map_or(u64::MAX, u64::from),
                _ => terms.max_umem_bytes(),
            };
            let rule = terms.rule();
            let by = RuleLimit { rule, limit };
            charges.push(self.accounts.charge_by_rule(uid, resource, amount, by)?);
        }
        Ok(charges)
    }

    /// Refuses a uid that has left too many sockets unbound lately.
    fn check_abandoned(&mut self, uid: u32) -> Result<(), LimitReached> {
        self.forget_abandoned(Instant::now());
        self.accounts.check(uid, Resource::AbandonedSockets)
    }

    /// Forgets the sockets that were left unbound long enough ago.
    pub fn forget_abandoned(&mut self, now: Instant) {
        // In the order of their times: each is kept equally long.
        while self.abandoned.front().is_some_and(|(until, _)| *until <= now) {
            self.abandoned.pop_front();
        }
    }

    /// Charges for a lease's sockets that were handed over and never bound: whoever has them may keep them, and their
    /// rings.
    pub fn abandon(&mut self, id: LeaseId) {
        let Some(lease) = self.by_id.get_mut(&id) else {
            return;
        };
        // Under a lock they were retired, and can be bound no more.
        lease.abandoned = lease.queue_lock == QueueLock::None;
        let sockets = u64::try_from(lease.terms().queues().len()).unwrap_or(u64::MAX);
        let uid = lease.requester().subject.uid;
        let charge = self
            .accounts
            .charge_anyway(uid, Resource::AbandonedSockets, sockets);
        self.abandoned.push_back((Instant::now() + ABANDONED_FOR, charge));
    }

    /// Adds a lease.
    pub fn add(&mut self, lease: Lease) {
        self.by_id.insert(lease.id(), lease);
    }

    /// A lease by its number.
    pub fn get_mut(&mut self, id: LeaseId) -> Option<&mut Lease> {
        self.by_id.get_mut(&id)
    }

    /// Takes a lease out. With it go its queues and its charges.
    pub fn take(&mut self, id: LeaseId) -> Option<Lease> {
        self.by_id.remove(&id)
    }

    /// The queues of a device that bound sockets of ours are on.
    pub fn active_queues(&self, index: u32) -> BTreeSet<u32> {
        self.iter()
            .filter(|lease| lease.device().index == index && lease.state == LeaseState::Active)
            .flat_map(|lease| lease.terms().queues().iter())
            .collect()
    }

    /// All, ascending by number.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.by_id.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The numbers of those that `wanted` picks.
    pub fn ids(&self, wanted: impl Fn(&Lease) -> bool) -> Vec<LeaseId> {
        self.iter().filter(|lease| wanted(lease)).map(Lease::id).collect()
    }
}

/// What a lease takes of what its rule may limit.
pub(crate) fn amounts(terms: &Terms) -> impl Iterator<Item = (Resource, u64)> {
    let queues = u64::try_from(terms.queues().len()).unwrap_or(u64::MAX);
    let umem = terms.umem().map(|umem| (Resource::UmemBytes, umem.bytes()));
    std::iter::once((Resource::Queues, queues)).chain(umem)
}
