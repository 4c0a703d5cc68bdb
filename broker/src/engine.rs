//! The engine: the one thread that owns policy, leases and kernel objects, and may raise a capability.
//!
//! It runs plain synchronous code, one job at a time. What the kernel finishes later is a state of a lease that the
//! engine comes back to, so that nobody waits for another's queue. There is one crossing there and one back:
//! [`EngineHandle::call`]. Users have turns there (`turns.rs`).

use std::collections::HashMap;
use std::fmt;
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::adopt::{self, Adopted};
use crate::audit::Audit;
use crate::charge::Accounts;
use crate::end;
use crate::error::Failure;
use crate::fd_store::{self, FdStore};
use crate::heritage::Heritage;
use crate::journal::Journal;
use crate::kernel::pins::PinDirectory;
use crate::kernel::queue_lock::{self, QueueLocks};
use crate::kernel::queue_probe::QueueProbe;
use crate::kernel::redirect::Redirect;
use crate::kernel::ring_probe;
use crate::lease::Leases;
use crate::links::{self, Links};
use crate::manager::Manager;
use crate::misfit::{self, Misfits};
use crate::monitor::Monitors;
use crate::policy::Policy;
use crate::reload::PolicySource;
pub use crate::turns::Turn;
use crate::turns::Turns;
use crate::uplink::Uplinks;

/// What the engine owns. Never shared, never sent.
#[derive(Debug)]
pub struct Engine {
    /// What it decides by.
    pub policy: Policy,
    /// Where that was read from.
    pub policy_source: Arc<PolicySource>,
    /// What is held. Dropped before the programs that fill its slots.
    pub leases: Leases,
    /// Our XDP programs, by the index of their device.
    pub redirects: HashMap<u32, Redirect>,
    /// Which of them are attached otherwise than the policy wants.
    pub misfits: Misfits,
    /// Which devices the host itself is connected by.
    pub uplinks: Uplinks,
    /// What confines sockets that leave unbound.
    pub locks: QueueLocks,
    /// Devices as the kernel last described them.
    pub links: Links,
    /// What it asks the kernel with whether a queue is taken.
    pub probe: QueueProbe,
    /// Who wants to hear of it.
    pub monitors: Monitors,
    /// Where it writes down what it did.
    pub audit: Audit,
    /// Where XDP programs are pinned.
    pub pins: Rc<PinDirectory>,
    /// Where leases are written down.
    pub journal: Journal,
    /// Who keeps their sockets for the next broker.
    pub fd_store: FdStore,
    /// Who has started the broker, and is told of it.
    pub manager: Manager,
    /// Whether the rings of a bound socket can be mapped; `None` until that was told.
    pub rings_can_be_mapped: Option<bool>,
    /// When it began.
    pub started: Instant,
    /// Whether it has ended everything and grants nothing any more.
    pub stopping: bool,
}

impl Engine {
    /// Whether the rings of a bound socket can be mapped. `None`: the first one that is bound will tell.
    pub fn rings_can_be_mapped(&mut self) -> Option<bool> {
        if self.rings_can_be_mapped.is_none() {
            self.rings_can_be_mapped = ring_probe::rings_can_be_mapped();
        }
        self.rings_can_be_mapped
    }
}

type Job = Box<dyn FnOnce(&mut Engine) + Send>;

/// What waits for the engine, and whether it is still there to do it.
#[derive(Default)]
struct Inbox {
    state: Mutex<InboxState>,
    news: Condvar,
}

#[derive(Default)]
struct InboxState {
    turns: Turns<Job>,
    /// After what waits now, nothing more is done.
    stop: bool,
    /// The thread has ended.
    ended: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        // Nothing panics while it holds the lock: each change is a push or a pop.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` to stop, or an error when that time has come.
    fn next(&self, until: Option<Instant>) -> Result<Option<Job>, TimeIsUp> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.turns.pop() {
                return Ok(Some(job));
            }
            if state.stop {
                return Ok(None);
            }
            let left = match until {
                None => Duration::MAX,
                Some(until) => until.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() {
                return Err(TimeIsUp);
            }
            state = match until {
                None => self.news.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(_) => {
                    let waited = self.news.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

struct TimeIsUp;

/// The way to the engine. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle(Arc<Inbox>);

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineHandle")
    }
}

impl EngineHandle {
    /// Has the engine do something when it is that one's turn, and waits for what comes out.
    ///
    /// # Errors
    ///
    /// [`Failure::EngineStopped`].
    pub async fn call<T: Send + 'static>(
        &self,
        turn: Turn,
        job: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (reply, result) = oneshot::channel();
        // A caller that is gone leaves its result to be dropped here, and dropping undoes.
        self.send(turn, Box::new(move |engine| drop(reply.send(job(engine)))));
        result.await.map_err(|_| Failure::EngineStopped)
    }

    /// Has the engine do something before anything that users ask for.
    pub fn post(&self, job: impl FnOnce(&mut Engine) + Send + 'static) {
        self.send(Turn::First, Box::new(job));
    }

    fn send(&self, turn: Turn, job: Job) {
        let mut state = self.0.lock();
        if state.ended {
            tracing::debug!("a job came after the engine had stopped");
            // Not under the lock: what a job drops may send another one.
            drop(state);
            return;
        }
        state.turns.push(turn, job);
        drop(state);
        self.0.news.notify_one();
    }

    /// Ends the engine's thread after all jobs that came before.
    pub fn stop(&self) {
        self.0.lock().stop = true;
        self.0.news.notify_one();
    }
}

/// When the thread ends, by a panic too, whoever waits for a job learns of it: the jobs are dropped.
struct Closing(Arc<Inbox>);

impl Drop for Closing {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        let left = std::mem::take(&mut state.turns);
        drop(state);
        drop(left);
    }
}

/// What the engine starts with.
#[derive(Debug)]
pub struct Parts {
    /// What it decides by.
    pub policy: Policy,
    /// Where that was read from.
    pub policy_source: PolicySource,
    /// Where it charges.
    pub accounts: Accounts,
    /// Where it writes down what it did.
    pub audit: Audit,
    /// Where XDP programs are pinned.
    pub pins: PinDirectory,
    /// Where leases are written down.
    pub journal: Journal,
    /// What a broker before this one has left.
    pub heritage: Heritage,
    /// What it has stored with the service manager.
    pub stored: fd_store::Passed,
    /// That one.
    pub manager: Manager,
    /// What the queue locks are made of.
    pub locks: queue_lock::Parts,
}

/// The running thread.
#[derive(Debug)]
pub struct Running {
    /// The way to it.
    pub handle: EngineHandle,
    /// Resolves when the thread has ended, for whatever reason.
    pub ended: oneshot::Receiver<()>,
    /// Resolves when it has taken over the leases of a broker before, which are to be watched.
    pub adopted: oneshot::Receiver<Vec<Adopted>>,
    /// To wait for its end with.
    pub thread: JoinHandle<()>,
}

/// Starts the engine's thread. It keeps the permitted capabilities of the calling thread.
///
/// # Errors
///
/// As clone(2).
pub fn start(parts: Parts) -> Result<Running, Failure> {
    let inbox = Arc::new(Inbox::default());
    let (alive, ended) = oneshot::channel();
    let (tell, adopted) = oneshot::channel();
    let own = Arc::clone(&inbox);
    let thread = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            // Dropped when the thread ends, by a panic too.
            let _alive = alive;
            let closing = Closing(own);
            run(parts, &closing.0, tell);
        })
        .map_err(|source| Failure::kernel("clone", "engine thread", source))?;
    Ok(Running {
        handle: EngineHandle(inbox),
        ended,
        adopted,
        thread,
    })
}

fn run(parts: Parts, inbox: &Inbox, tell: oneshot::Sender<Vec<Adopted>>) {
    let fd_store = FdStore::new(parts.stored, parts.manager.clone());
    // Never dropped, neither at the end nor by a panic: what is held then goes on, for the next broker to take over. What
    // is to be undone at the end is undone by `end::stop`.
    let mut engine = ManuallyDrop::new(Engine {
        policy: parts.policy,
        policy_source: Arc::new(parts.policy_source),
        leases: Leases::new(parts.accounts),
        redirects: HashMap::new(),
        misfits: Misfits::default(),
        uplinks: Uplinks::default(),
        locks: QueueLocks::new(parts.locks, fd_store.keeper().clone()),
        links: Links::default(),
        probe: QueueProbe::default(),
        monitors: Monitors::default(),
        audit: parts.audit,
        pins: Rc::new(parts.pins),
        journal: parts.journal,
        fd_store,
        manager: parts.manager,
        rings_can_be_mapped: None,
        started: Instant::now(),
        stopping: false,
    });
    if engine.policy.wants_queue_lock() {
        engine.locks.try_out();
    }
    links::look_at_all(&mut engine);
    let adopted = adopt::take_over(&mut engine, parts.heritage);
    // Nobody listens where the start has failed meanwhile; then the process ends.
    drop(tell.send(adopted));
    loop {
        let due = engine
            .leases
            .agenda()
            .next()
            .into_iter()
            .chain(engine.locks.due())
            .chain(engine.misfits.due())
            .min();
        match inbox.next(due) {
            Ok(Some(job)) => job(&mut engine),
            Ok(None) => return,
            Err(TimeIsUp) => {}
        }
        let now = Instant::now();
        end::settle(&mut engine, now);
        misfit::settle(&mut engine, now);
    }
}
