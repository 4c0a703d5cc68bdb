//! Charges of leases over their whole lives, and over those of brokers.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use proptest::prelude::*;
use serde_json::json;
use xsk_client::wire::Acquire;

use super::*;
use crate::charge::Accounts;
use crate::policy::{Policy, Request, Verdict};
use crate::quota::{Amounts, Limits, Resource};
use crate::record::Record;

/// 2048 chunks of 2048 bytes, where a request names no other umem.
const UMEM_BYTES: u64 = 4 << 20;
const QUEUES: u32 = 8;
/// What one user may have.
const MOST: [(Resource, u64); 3] = [
    (Resource::Leases, 4),
    (Resource::Queues, 6),
    (Resource::UmemBytes, 3 * UMEM_BYTES),
];
/// What rule `prepared` lets it have of queues, and rule `bound` of umem.
const QUEUES_OF_RULE: u64 = 4;
const UMEM_OF_RULE: u64 = 2 * UMEM_BYTES;

/// What happens.
#[derive(Debug, Clone)]
enum Step {
    /// Somebody asks for so many queues from that one on.
    Grant { first: u32, count: u32, bound: bool },
    /// A grant fails after its charges were taken, or a lease is freed.
    Drop(prop::sample::Index),
    /// The broker is killed; another one takes over what is written down, under limits that it may exceed.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..QUEUES, 1u32..4, any::<bool>())
            .prop_map(|(first, count, bound)| Step::Grant { first, count: count.min(QUEUES - first), bound }),
        3 => any::<prop::sample::Index>().prop_map(Step::Drop),
        1 => Just(Step::Restart),
    ]
}

struct Scene {
    policy: Policy,
    peer: Arc<Peer>,
    device: Device,
    leases: Leases,
    held: Vec<Reservation>,
    _connection: [UnixStream; 2],
}

impl Scene {
    fn new() -> Self {
        let connection: [UnixStream; 2] = UnixStream::pair().unwrap().into();
        let peer = Peer::from_connection(connection[0].as_fd()).unwrap();
        let rule = |kind: &str, limit: &str| {
            format!(
                "[[allow]]\nname = \"{kind}\"\nuser = {}\ninterface = \"eth0\"\nqueues = \"*\"\nsockets = [\"{kind}\"]\n\
                 limits = {{ {limit} }}\n",
                peer.subject().uid
            )
        };
        let text = "[interface.eth0]\n".to_owned()
            + &rule("prepared", &format!("queues = {QUEUES_OF_RULE}"))
            + &rule("bound", &format!("umem-bytes = {UMEM_OF_RULE}"));
        let policy = Policy::parse(Path::new("p.toml"), text.as_bytes())
            .unwrap()
            .policy;
        let device = Device {
            index: 2,
            name: "eth0".parse().unwrap(),
            rx_queues: QUEUES,
            bindable_queues: QUEUES,
            max_queues: QUEUES,
        };
        Self {
            policy,
            peer: Arc::new(peer),
            device,
            leases: Self::leases(),
            held: Vec::new(),
            _connection: connection,
        }
    }

    fn leases() -> Leases {
        let mut limits = Limits::default();
        for (resource, most) in MOST {
            *limits.per_user.of_mut(resource) = most;
        }
        Leases::new(Accounts::new(limits))
    }

    /// Asks, and says whether it was granted.
    fn grant(&mut self, first: u32, count: u32, bound: bool) -> bool {
        let target = format!("eth0:{first}-{}", first + count - 1).parse().unwrap();
        let kind = if bound {
            SocketKind::Bound
        } else {
            SocketKind::Prepared
        };
        let request = Request::from(Acquire::new(target, kind));
        // A request that alone is beyond its rule's limit does not come to this.
        let Verdict::Granted(terms) = self.policy.decide(self.peer.subject(), &request) else {
            panic!("refused by the policy: {request:?}");
        };
        match self.leases.reserve(terms, self.device.clone(), &self.peer) {
            Ok(reservation) => self.held.push(reservation),
            Err(_) => return false,
        }
        true
    }

    /// Whether it has to be granted, by what is held.
    fn fits(&self, first: u32, count: u32, bound: bool) -> bool {
        let free = (first..first + count).all(|queue| {
            self.held
                .iter()
                .all(|held| !held.terms.queues().iter().any(|it| it == queue))
        });
        let held = self.amounts(|_| true);
        let by_rule = self.amounts(|held| (held.terms.sockets() == SocketKind::Bound) == bound);
        let more = u64::from(count);
        let of = |resource, amount| {
            let most = MOST.iter().find(|(each, _)| *each == resource).unwrap().1;
            held.of(resource) + amount <= most
        };
        let umem = if bound { UMEM_BYTES } else { 0 };
        let rule = match bound {
            true => by_rule.of(Resource::UmemBytes) + umem <= UMEM_OF_RULE,
            false => by_rule.of(Resource::Queues) + more <= QUEUES_OF_RULE,
        };
        free && rule && of(Resource::Leases, 1) && of(Resource::Queues, more) && of(Resource::UmemBytes, umem)
    }

    /// A sum over what is held.
    fn amounts(&self, counts: impl Fn(&Reservation) -> bool) -> Amounts {
        let mut amounts = Amounts::default();
        for held in self.held.iter().filter(|held| counts(held)) {
            *amounts.of_mut(Resource::Leases) += 1;
            *amounts.of_mut(Resource::Queues) += u64::try_from(held.terms.queues().len()).unwrap();
            *amounts.of_mut(Resource::UmemBytes) += held.terms.umem().map_or(0, |umem| umem.bytes());
        }
        amounts
    }

    /// Another broker, which knows what the one before has written down.
    fn restart(&mut self) {
        let records: Vec<Record> = self.held.iter().map(record).collect();
        self.held.clear();
        self.leases = Self::leases();
        for record in records {
            let terms = self.policy.resume(&self.device.name, &record.terms);
            let holder = Arc::clone(self.peer.process());
            let resumed = self.leases.resume(&record, terms, self.device.clone(), holder);
            self.held.push(resumed.unwrap());
        }
    }
}

/// As it would be written down.
fn record(of: &Reservation) -> Record {
    let subject = &of.requester.subject;
    let record = json!({
        "version": 1, "lease": of.id.0, "stage": "active", "ended": null, "boot": "b", "sinceMs": 0,
        "requester": { "uid": subject.uid, "gid": subject.gid, "groups": subject.groups, "pid": 1 },
        "holder": { "uid": subject.uid, "pid": 1, "pidfdInode": 1, "startTicks": 1 },
        "interface": of.device.name, "interfaceIndex": of.device.index, "queueLock": "none",
        "terms": of.terms.kept(), "sockets": [], "label": null,
    });
    serde_json::from_value(record).unwrap()
}

proptest! {
    /// What is charged is at every moment what a sum over all that is held says, whatever came before; a request is refused
    /// exactly if a queue is taken or a limit would be exceeded, and then nothing changes.
    #[test]
    fn leases_give_back_exactly_what_they_took(steps in prop::collection::vec(step(), 0..48)) {
        let mut scene = Scene::new();
        for step in steps {
            match step {
                Step::Grant { first, count, bound } => {
                    let fits = scene.fits(first, count, bound);
                    prop_assert_eq!(scene.grant(first, count, bound), fits);
                }
                Step::Drop(index) if !scene.held.is_empty() => {
                    let index = index.index(scene.held.len());
                    drop(scene.held.swap_remove(index));
                }
                Step::Drop(_) => {}
                Step::Restart => scene.restart(),
            }
            let held = scene.amounts(|_| true);
            let accounts = scene.leases.accounts();
            prop_assert_eq!(accounts.in_all(), held);
            let uid = scene.peer.subject().uid;
            let expected = if scene.held.is_empty() { vec![] } else { vec![(uid, held)] };
            prop_assert_eq!(accounts.by_uid(), expected);
            let queues = scene.leases.holds.borrow().len();
            prop_assert_eq!(u64::try_from(queues).unwrap(), held.of(Resource::Queues));
        }
        scene.held.clear();
        prop_assert_eq!(scene.leases.accounts().in_all(), Amounts::default());
        prop_assert!(scene.leases.accounts().by_uid().is_empty() && scene.leases.agenda().next().is_none());
    }
}
