//! What becomes of one's leases, as it happens.
//!
//! **Invariant**: nothing is missed for good. Where events were lost, and after a new connection, the leases come anew,
//! and what is not among them has ended.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::call_error::{CallError, ProtocolError};
use crate::channel::Channel;
use crate::connection::Broker;
use crate::wire::{INTERFACE, Lease, LeaseEvent, Monitored};

const METHOD: &str = "Monitor";

/// A connection that the broker tells news over. It is readable (poll(2), [`AsFd`]) when there is some.
///
/// On the broker socket it tells of leases that this process's uid asked for or holds, on the control socket of all.
///
/// ```no_run
/// use xsk_client::{Broker, News};
///
/// let mut monitor = Broker::connect()?.monitor()?;
/// while let Some(news) = monitor.next(None)? {
///     match news {
///         News::Leases { leases, .. } => println!("{} leases", leases.len()),
///         News::Event(event) => println!("lease {}: {}", event.lease, event.state),
///     }
/// }
/// # Ok::<(), xsk_client::CallError>(())
/// ```
#[derive(Debug)]
pub struct Monitor {
    channel: Channel,
    asked: bool,
}

/// A piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// All leases as they are now: the first news of every connection, and after events that were not read in time. A
    /// lease that is not among them has ended.
    Leases {
        /// All of them.
        leases: Vec<Lease>,
        /// How many events were lost before this.
        lost: Option<u64>,
    },
    /// Something happened to a lease.
    Event(Box<LeaseEvent>),
}

impl Broker {
    /// Listens for what becomes of leases; the connection serves for nothing else from then on.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub fn monitor(self) -> Result<Monitor, CallError> {
        let mut monitor = Monitor {
            channel: self.channel,
            asked: false,
        };
        monitor.ask()?;
        Ok(monitor)
    }
}

impl Monitor {
    /// The next piece of news; `None` when the time is over, which is never without a timeout.
    ///
    /// Where the connection broke, the call after that connects anew, and begins with the leases. Sockets and rings go
    /// on meanwhile: they need no broker.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<News>, CallError> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        if !self.asked {
            self.ask()?;
        }
        let protocol = |cause| CallError::Protocol {
            method: METHOD,
            cause,
        };
        let received = self.channel.next_reply(METHOD, until);
        let Some(monitored) = received.inspect_err(|_| self.asked = false)? else {
            return Ok(None);
        };
        match monitored {
            Monitored {
                leases: Some(leases),
                lost,
                ..
            } => Ok(Some(News::Leases { leases, lost })),
            Monitored {
                event: Some(event), ..
            } => Ok(Some(News::Event(Box::new(event)))),
            Monitored { .. } => Err(protocol(ProtocolError::Empty)),
        }
    }

    fn ask(&mut self) -> Result<(), CallError> {
        #[derive(Serialize)]
        struct More {
            method: String,
            more: bool,
        }

        let call = More {
            method: format!("{INTERFACE}.{METHOD}"),
            more: true,
        };
        self.channel.send_call(METHOD, &call)?;
        self.asked = true;
        Ok(())
    }
}

impl AsFd for Monitor {
    /// Readable when there may be news: then call [`Monitor::next`] with a timeout of zero until it has none. After an
    /// error it is another one.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.stream().as_fd()
    }
}
