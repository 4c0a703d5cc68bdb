//! The service manager that has started this process, if one has: what it is told (sd_notify(3)), and what it is given to
//! keep.
//!
//! It may be slow to read, or never do: so a thread of its own tells it, one message after the other, and nobody waits for
//! that but who wants to. What it was not told yet is bounded, and what it was not given yet can be taken back
//! ([`Manager::remove`]): an fd that waits here keeps a queue as one that it has.

mod outbox;
mod talker;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::Failure;
use outbox::{Message, Outbox};

/// The way to it. Cheap to clone; without a manager nobody is told anything.
#[derive(Clone, Default)]
pub struct Manager(Option<Arc<Shared>>);

struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    outbox: Outbox,
    patience: Patience,
}

/// How often it did not take fds in time.
#[derive(Debug, Default)]
struct Patience {
    missed: u32,
    last: Option<Instant>,
    is_over: bool,
}

/// How long whoever wants fds to be kept waits for it.
pub const TAKES_FDS_WITHIN: Duration = Duration::from_secs(1);
/// After so many times in a row it is given none any more.
const MISSES: u32 = 3;

/// Resolves when the manager was sent all that was ordered before.
#[derive(Debug)]
pub struct Sent {
    sent: oneshot::Receiver<()>,
    manager: Manager,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it has the lock: each change is a push, a pop or a count.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Manager {
    /// Looks whether there is one (`NOTIFY_SOCKET`), and has a thread talk to it.
    ///
    /// # Errors
    ///
    /// As clone(2).
    pub fn of_this_process() -> Result<Self, Failure> {
        let Some(address) = talker::Address::of_this_process() else {
            return Ok(Self::default());
        };
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            news: Condvar::new(),
        });
        talker::start(address, Arc::clone(&shared))?;
        Ok(Self(Some(shared)))
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Tells it something, `NAME=VALUE` a line.
    pub fn tell(&self, states: String) {
        self.push(Message::States(states));
    }

    /// Tells it that the broker lives. Once is enough until it is told.
    pub fn tell_alive(&self) {
        self.push(Message::Alive);
    }

    /// Has it keep an fd by that name.
    pub fn keep(&self, name: String, fd: OwnedFd) {
        self.push(Message::Keep(name, fd));
    }

    /// Has it keep nothing by that name any more.
    pub fn remove(&self, name: String) {
        let Some(shared) = &self.0 else { return };
        shared.lock().outbox.remove(name);
        shared.news.notify_one();
    }

    /// Resolves when it was sent all that was ordered up to here. `None`: there is none.
    pub fn sent(&self) -> Option<Sent> {
        let (tell, sent) = oneshot::channel();
        self.0.as_ref()?;
        self.push(Message::Tell(tell));
        let manager = self.clone();
        Some(Sent { sent, manager })
    }

    /// Waits for that, for the end of the broker alone.
    pub fn wait_sent(&self, give_up: Instant) {
        const LOOK: Duration = Duration::from_millis(2);

        let Some(mut sent) = self.sent() else { return };
        while sent.sent.try_recv() == Err(oneshot::error::TryRecvError::Empty) && Instant::now() < give_up {
            std::thread::sleep(LOOK);
        }
    }

    /// Why it is given nothing to keep any more, if it is not.
    pub fn trouble(&self) -> Option<String> {
        let is_over = self.0.as_ref()?.lock().patience.is_over;
        is_over.then(|| {
            format!(
                "the service manager took no fds {MISSES} times in a row, {TAKES_FDS_WITHIN:?} each: it is given none to keep until \
                 the broker is started again, so that leases may not outlive a restart as they would with them"
            )
        })
    }

    fn push(&self, message: Message) {
        let Some(shared) = &self.0 else { return };
        shared.lock().outbox.push(message);
        shared.news.notify_one();
    }

    /// It has not taken fds in time. Of several who wait at once one counts.
    fn missed(&self) {
        let Some(shared) = &self.0 else { return };
        let gives_up = shared.lock().patience.miss(Instant::now());
        if gives_up && let Some(trouble) = self.trouble() {
            tracing::warn!("{trouble}");
        }
    }

    fn caught_up(&self) {
        let Some(shared) = &self.0 else { return };
        shared.lock().patience.missed = 0;
    }
}

impl Patience {
    /// Whether it is over just now.
    fn miss(&mut self, now: Instant) -> bool {
        if self.is_over || self.last.is_some_and(|last| now < last + TAKES_FDS_WITHIN) {
            return false;
        }
        self.last = Some(now);
        self.missed += 1;
        self.is_over = self.missed >= MISSES;
        self.is_over
    }
}

impl Sent {
    /// Waits for it, not for ever. Whether it came to that.
    pub async fn in_time(self) -> bool {
        let in_time = tokio::time::timeout(TAKES_FDS_WITHIN, self.sent).await.is_ok();
        match in_time {
            true => self.manager.caught_up(),
            false => self.manager.missed(),
        }
        in_time
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Manager")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_over_after_three_times_in_a_row_that_are_not_one() {
        let (mut patience, began) = (Patience::default(), Instant::now());
        let at = |misses: u32| began + TAKES_FDS_WITHIN * misses;
        assert!((0..10).all(|_| !patience.miss(began)), "many who waited at once");
        assert!(!patience.miss(at(1)));
        patience.missed = 0;
        assert!(!patience.miss(at(2)) && !patience.miss(at(3)));
        assert!(patience.miss(at(4)) && patience.is_over);
        assert!(!patience.miss(at(5)), "it is told once");
    }
}
