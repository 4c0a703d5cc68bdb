//! `Monitor`: what becomes of leases, streamed to whoever may see them.
//!
//! The engine publishes and never waits: each reader has a [`Feed`] of bounded length. A reader that is too slow loses
//! events, is told how many, and gets all leases anew, which say what the lost events said. So it is never wrong for
//! long, and costs the broker no more than its feed.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use xsk_client::wire::{Change, LeaseEvent, Monitored, encode};

use crate::engine::{Engine, EngineHandle, Turn};
use crate::error::Failure;
use crate::identity::Peer;
use crate::lease::Lease;
use crate::report::{self, Scope};

/// How many events wait for one reader.
const BACKLOG: usize = 64;

/// Who reads. The engine's.
#[derive(Debug, Default)]
pub struct Monitors(Vec<Weak<Feed>>);

impl Monitors {
    /// One more reader, from the next event on.
    pub fn subscribe(&mut self, scope: Scope, peer: &Peer) -> Arc<Feed> {
        self.0.retain(|feed| feed.strong_count() > 0);
        let feed = Arc::new(Feed {
            scope,
            uid: peer.subject().uid,
            backlog: Mutex::default(),
            news: Notify::new(),
        });
        self.0.push(Arc::downgrade(&feed));
        feed
    }

    /// Tells everybody who may see the lease.
    pub fn publish(&self, lease: &Lease, change: Change) {
        for feed in self.0.iter().filter_map(Weak::upgrade) {
            if report::sees(feed.scope, feed.uid, lease) {
                feed.push(report::event(lease, change, feed.scope));
            }
        }
    }
}

/// Between the engine and one reader.
#[derive(Debug)]
pub struct Feed {
    scope: Scope,
    uid: u32,
    backlog: Mutex<Backlog>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Backlog {
    events: VecDeque<LeaseEvent>,
    lost: u64,
}

/// What is next for a reader.
#[derive(Debug)]
enum News {
    Event(LeaseEvent),
    /// That many were lost, and what is left of the others is not worth reading.
    Lost,
}

impl Feed {
    fn lock(&self) -> MutexGuard<'_, Backlog> {
        // A panic while the lock is held cannot leave it half changed: each change is one push or one pop.
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: LeaseEvent) {
        let mut backlog = self.lock();
        if backlog.events.len() < BACKLOG {
            backlog.events.push_back(event);
        } else {
            backlog.lost += 1;
        }
        drop(backlog);
        self.news.notify_one();
    }

    async fn next(&self) -> News {
        loop {
            {
                let mut backlog = self.lock();
                if backlog.lost > 0 {
                    return News::Lost;
                }
                if let Some(event) = backlog.events.pop_front() {
                    return News::Event(event);
                }
            }
            self.news.notified().await;
        }
    }

    /// Forgets everything, and says how many events that were, those that were lost before included.
    fn start_anew(&self) -> u64 {
        let mut backlog = self.lock();
        let lost = backlog.lost + u64::try_from(backlog.events.len()).unwrap_or(u64::MAX);
        *backlog = Backlog::default();
        lost
    }
}

/// A reader's feed, and the leases at its beginning: nothing comes between the two.
pub fn begin(engine: &mut Engine, scope: Scope, peer: &Peer) -> (Arc<Feed>, Monitored) {
    let feed = engine.monitors.subscribe(scope, peer);
    (feed, snapshot(engine, scope, peer.subject().uid, None))
}

fn snapshot(engine: &Engine, scope: Scope, uid: u32, lost: Option<u64>) -> Monitored {
    Monitored {
        leases: Some(report::leases(engine, scope, uid).leases),
        lost,
        event: None,
    }
}

/// Why a stream of events ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Closed {
    #[error("a client that monitors sent something: it gets no further answers on this connection")]
    Surplus,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Engine(#[from] Failure),
}

/// Writes events until the client hangs up. It may read as slowly as it likes, or never.
pub(crate) async fn stream(
    stream: &mut UnixStream,
    engine: &EngineHandle,
    turn: Turn,
    begun: (Arc<Feed>, Monitored),
) -> Result<(), Closed> {
    let (feed, mut reply) = begun;
    loop {
        let message = encode(&Continued {
            parameters: &reply,
            continues: true,
        })
        .map_err(io::Error::from)?;
        stream.write_all(&message).await?;
        let news = tokio::select! {
            news = feed.next() => news,
            closed = hung_up(stream) => return closed,
        };
        reply = match news {
            News::Event(event) => Monitored {
                leases: None,
                lost: None,
                event: Some(event),
            },
            News::Lost => {
                let feed = Arc::clone(&feed);
                let anew = move |engine: &mut Engine| {
                    let lost = feed.start_anew();
                    snapshot(engine, feed.scope, feed.uid, Some(lost))
                };
                engine.call(turn, anew).await?
            }
        };
    }
}

/// Waits for the client to hang up; anything else that it sends is none of its business here.
async fn hung_up(stream: &UnixStream) -> Result<(), Closed> {
    loop {
        stream.readable().await?;
        match stream.try_read(&mut [0; 1]) {
            Ok(0) => return Ok(()),
            Ok(_) => return Err(Closed::Surplus),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[derive(serde::Serialize)]
struct Continued<'a> {
    parameters: &'a Monitored,
    continues: bool,
}
