//! The engine: the one thread that owns policy, leases and kernel objects, and may raise a capability.
//!
//! It runs plain synchronous code, one job at a time. What the kernel finishes later is a state of a lease that the
//! engine comes back to, so that nobody waits for another's queue. There is one crossing there and one back:
//! [`EngineHandle::call`].

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::audit::Audit;
use crate::charge::Accounts;
use crate::end;
use crate::error::Failure;
use crate::kernel::pins::PinDirectory;
use crate::kernel::queue_lock::{self, QueueLocks};
use crate::kernel::queue_probe::QueueProbe;
use crate::kernel::redirect::Redirect;
use crate::kernel::ring_probe;
use crate::lease::Leases;
use crate::policy::Policy;

/// What the engine owns. Never shared, never sent.
#[derive(Debug)]
pub struct Engine {
    /// What it decides by.
    pub policy: Policy,
    /// What is held. Dropped before the programs that fill its slots.
    pub leases: Leases,
    /// Our XDP programs, by the index of their device.
    pub redirects: HashMap<u32, Redirect>,
    /// What confines sockets that leave unbound.
    pub locks: QueueLocks,
    /// What it asks the kernel with whether a queue is taken.
    pub probe: QueueProbe,
    /// Where it writes down what it did.
    pub audit: Audit,
    /// Where links are pinned.
    pub pins: Rc<PinDirectory>,
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

enum Message {
    Do(Job),
    Stop,
}

/// The way to the engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EngineHandle(mpsc::Sender<Message>);

impl EngineHandle {
    /// Has the engine do something, and waits for what comes out.
    ///
    /// # Errors
    ///
    /// [`Failure::EngineStopped`].
    pub async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (reply, result) = oneshot::channel();
        // A caller that is gone leaves its result to be dropped here, and dropping undoes.
        self.post(move |engine| drop(reply.send(job(engine))));
        result.await.map_err(|_| Failure::EngineStopped)
    }

    /// Has the engine do something, some time.
    pub fn post(&self, job: impl FnOnce(&mut Engine) + Send + 'static) {
        if self.0.send(Message::Do(Box::new(job))).is_err() {
            tracing::debug!("a job came after the engine had stopped");
        }
    }

    /// Ends the engine's thread after all jobs that came before.
    pub fn stop(&self) {
        if self.0.send(Message::Stop).is_err() {
            tracing::debug!("the engine had stopped already");
        }
    }
}

/// What the engine starts with.
#[derive(Debug)]
pub struct Parts {
    /// What it decides by.
    pub policy: Policy,
    /// Where it charges.
    pub accounts: Accounts,
    /// Where it writes down what it did.
    pub audit: Audit,
    /// Where links are pinned.
    pub pins: PinDirectory,
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
    /// To wait for its end with.
    pub thread: JoinHandle<()>,
}

/// Starts the engine's thread. It keeps the permitted capabilities of the calling thread.
///
/// # Errors
///
/// As clone(2).
pub fn start(parts: Parts) -> Result<Running, Failure> {
    let (sender, messages) = mpsc::channel();
    let (alive, ended) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            // Dropped when the thread ends, by a panic too.
            let _alive = alive;
            run(parts, &messages);
        })
        .map_err(|source| Failure::kernel("clone", "engine thread", source))?;
    Ok(Running {
        handle: EngineHandle(sender),
        ended,
        thread,
    })
}

fn run(parts: Parts, messages: &mpsc::Receiver<Message>) {
    /// Long enough to cost nothing, where nothing is due.
    const IDLE: Duration = Duration::from_secs(3600);

    let mut engine = Engine {
        policy: parts.policy,
        leases: Leases::new(parts.accounts),
        redirects: HashMap::new(),
        locks: QueueLocks::new(parts.locks),
        probe: QueueProbe::default(),
        audit: parts.audit,
        pins: Rc::new(parts.pins),
        rings_can_be_mapped: None,
        started: Instant::now(),
        stopping: false,
    };
    loop {
        let due = engine.leases.iter().filter_map(|lease| lease.due);
        let due = due.chain(engine.locks.due()).min();
        let wait = due.map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
        match messages.recv_timeout(wait) {
            Ok(Message::Do(job)) => job(&mut engine),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
        end::settle(&mut engine, Instant::now());
    }
}
