//! Sockets that were granted: from the request to the [`Xsk`].
//!
//! `Grant` → `bind` → [`Bound`] → `activate` → [`Xsk`]: each step gives what the next one takes. How the fds came
//! (asked for, inherited, or received in some other way) makes no difference after the first.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::bind::BindOptions;
use crate::call_error::{CallError, ProtocolError};
use crate::connection::{Broker, in_order};
use crate::error::{Error, Queue};
use crate::inherit;
use crate::pool::Pool;
use crate::raw;
use crate::request::Request;
use crate::setup::{Opened, RingEntries};
use crate::umem::Umem;
use crate::wire::{Acquired, SocketKind};
use crate::xsk::Xsk;

/// Sockets of one lease, not yet bound. The lease ends by itself if it is not activated in time.
///
/// ```no_run
/// use xsk_client::{BindOptions, Broker, Grant, Request, Umem, UmemOptions};
///
/// let mut broker = Broker::connect()?;
/// let grant = Grant::acquire(&mut broker, Request::new("eth0:4".parse()?))?;
/// let umem = Umem::new(&UmemOptions::new())?;
/// let mut xsk = grant.bind_one(umem, &BindOptions::new())?.activate(&mut broker)?;
/// println!("{} in {} mode", xsk.queue(), xsk.mode());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Grant {
    acquired: Acquired,
    /// The sockets in the order of the reply; the umem alone for those of kind `bound`.
    fds: Vec<OwnedFd>,
}

impl Grant {
    /// Asks the broker.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`] says why not; [`Error::retry_after`] whether to ask again.
    pub fn acquire(broker: &mut Broker, request: Request) -> Result<Self, Error> {
        let (acquired, fds) = broker.acquire(&request.into_acquire())?;
        Ok(Self { acquired, fds })
    }

    /// Whether this process was started with sockets to take: `LISTEN_FDS` and `XSK_LEASE` are set.
    pub fn is_in_env() -> bool {
        inherit::is_offered()
    }

    /// Takes the sockets that `xsk-broker grant IF:QUEUES -- COMMAND` has left to this process, once.
    ///
    /// They are named by `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` (`xsk-eth0-4`) as in `sd_listen_fds(3)`, and
    /// described by `XSK_LEASE`. Take them early, before anything else in the process could use these fds. They become
    /// close-on-exec; the environment is left as it is, since changing it is not safe while other threads run.
    ///
    /// # Errors
    ///
    /// [`Error::Inherit`] says which variable is missing, or does not fit the others.
    pub fn from_env() -> Result<Self, Error> {
        let (acquired, fds) = inherit::take()?;
        Self::from_parts(acquired, fds)
    }

    /// Takes sockets that came by another way, with the reply that describes them: from a manager over SCM_RIGHTS, say.
    /// `fds` in the order of the reply's fd indexes, as they came.
    ///
    /// # Errors
    ///
    /// [`CallError::Protocol`] where the indexes and the fds do not match.
    pub fn from_parts(acquired: Acquired, fds: Vec<OwnedFd>) -> Result<Self, Error> {
        let fds = in_order(&acquired, fds).map_err(|cause| CallError::Protocol {
            method: "Acquire",
            cause,
        })?;
        acquired.rings.check().map_err(|error| CallError::Protocol {
            method: "Acquire",
            cause: ProtocolError::Json(serde::de::Error::custom(error)),
        })?;
        Ok(Self { acquired, fds })
    }

    /// The reply and the fds, in the order of its fd indexes: to hand them on.
    pub fn into_parts(self) -> (Acquired, Vec<OwnedFd>) {
        let sockets = self.acquired.sockets.iter();
        let indexes = sockets.map(|socket| socket.socket_file_descriptor);
        let mut indexed: Vec<_> = indexes
            .chain(self.acquired.umem_file_descriptor)
            .zip(self.fds)
            .collect();
        indexed.sort_by_key(|(index, _)| *index);
        (self.acquired, indexed.into_iter().map(|(_, fd)| fd).collect())
    }

    /// What was granted.
    pub fn acquired(&self) -> &Acquired {
        &self.acquired
    }

    /// The sockets, in the order of `acquired().sockets`; none yet where the broker binds.
    pub fn sockets(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.fds.iter().take(self.acquired.sockets.len()).map(AsFd::as_fd)
    }

    /// Has the broker bind the sockets of a grant of kind `bound`: touches its umem, which is charged to this process's
    /// cgroup thereby, and maps the rings that come back. Each socket gets an equal share of the umem, in the order of the
    /// queues, as with [`Self::bind_shared`].
    ///
    /// # Errors
    ///
    /// [`Error::Kind`] for a grant whose sockets one binds oneself; [`Error::Umem`]; [`CallError::Refused`] with
    /// `QueueBusy`, `ZeroCopyUnavailable` or `SocketKindUnsupported`; [`Error::UmemShares`], [`Error::Socket`]. The
    /// sockets are closed then, and the broker ends the lease at its deadline, or when it is released.
    pub fn bind_by_broker(self, broker: &mut Broker) -> Result<Bound<Vec<Xsk>>, Error> {
        let Self { acquired, mut fds } = self;
        let (SocketKind::Bound, Some(shape), Some(memfd)) = (acquired.kind, acquired.umem, fds.pop()) else {
            return Err(Error::Kind {
                kind: acquired.kind,
                instead: "bind its sockets with Grant::bind, bind_shared or bind_one",
            });
        };
        let umem = Umem::adopt(memfd, shape)?;
        let (reply, sockets) = broker.bind(acquired.lease)?;
        let (chunks, count) = (umem.chunks(), sockets.len());
        let shares = Pool::divide(umem, count).ok_or(Error::UmemShares {
            chunks,
            sockets: count,
        })?;
        let queues = reply.sockets.iter().map(|socket| socket.queue);
        let opened = opened(&acquired, queues.zip(sockets));
        let sockets = opened.into_iter().zip(shares);
        Ok(Bound {
            lease: acquired.lease,
            sockets: sockets
                .map(|(opened, share)| Xsk::adopt(opened, share))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Binds every socket, each with a umem of its own, in the order of the queues.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] unless there is one umem for each socket; [`Error::MemlockTooLow`], [`Error::QueueBusy`],
    /// [`Error::NoZeroCopy`], [`Error::ModeNotAllowed`], [`Error::Socket`]. The sockets are closed then, and the broker ends
    /// the lease.
    pub fn bind(self, umems: Vec<Umem>, options: &BindOptions) -> Result<Bound<Vec<Xsk>>, Error> {
        let count = self.acquired.sockets.len();
        if umems.len() != count {
            return Err(Error::Count {
                what: "umems",
                sockets: count,
                given: umems.len(),
            });
        }
        let options = options.clone().under(self.acquired.zero_copy);
        let (lease, opened) = self.into_opened()?;
        let mut sockets = Vec::new();
        for (opened, umem) in opened.into_iter().zip(umems) {
            sockets.append(&mut Xsk::bind(vec![opened], umem, &options)?);
        }
        Ok(Bound { lease, sockets })
    }

    /// Binds every socket with one umem, of which each gets an equal share of chunks, in the order of the queues. What
    /// one of them has received, the others can send without a copy: [`RxFrame::forward`](crate::RxFrame::forward), or
    /// as an owned [`Frame`](crate::Frame) from thread to thread. A chunk that another socket has sent comes back to
    /// the socket that it came from, so that none runs dry.
    ///
    /// Needs Linux 5.10. All sockets are in the mode of the first.
    ///
    /// ```no_run
    /// # fn run(grant: xsk_client::Grant, broker: &mut xsk_client::Broker) -> Result<(), xsk_client::Error> {
    /// use xsk_client::{BindOptions, Umem, UmemOptions};
    ///
    /// let umem = Umem::new(&UmemOptions::new())?;
    /// let mut sockets = grant.bind_shared(umem, &BindOptions::new())?.activate(broker)?;
    /// if let [from, to] = &mut sockets[..] {
    ///     let mut sending = to.transmit(64)?;
    ///     let mut received = from.receive(64)?;
    ///     while let Some(frame) = received.next_frame() {
    ///         // Where the TX ring is full, the frame comes back in the error and is recycled.
    ///         frame.forward(&mut sending).ok();
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UmemShares`] where the umem has fewer chunks than the grant has sockets; else as [`Self::bind`].
    pub fn bind_shared(self, umem: Umem, options: &BindOptions) -> Result<Bound<Vec<Xsk>>, Error> {
        let options = options.clone().under(self.acquired.zero_copy);
        let (lease, opened) = self.into_opened()?;
        let sockets = Xsk::bind(opened, umem, &options)?;
        Ok(Bound { lease, sockets })
    }

    /// Binds every socket with one umem of the raw layer, in the order of the queues: for who manages memory by himself.
    /// The fill rings are empty; [`Bound::sockets_mut`] gives them before packets arrive.
    ///
    /// # Errors
    ///
    /// As [`Self::bind`].
    pub fn bind_raw(self, umem: &raw::Umem, options: &BindOptions) -> Result<Bound<Vec<raw::Xsk>>, Error> {
        let options = options.clone().under(self.acquired.zero_copy);
        let (lease, opened) = self.into_opened()?;
        let sockets = raw::Xsk::bind(opened, umem, &options)?;
        Ok(Bound { lease, sockets })
    }

    /// As [`Self::bind`], for a grant of one queue.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] where the grant has several.
    pub fn bind_one(self, umem: Umem, options: &BindOptions) -> Result<Bound<Xsk>, Error> {
        let Bound { lease, mut sockets } = self.bind(vec![umem], options)?;
        match sockets.pop() {
            Some(sockets) => Ok(Bound { lease, sockets }),
            None => Err(Error::Count {
                what: "umems",
                sockets: 0,
                given: 1,
            }),
        }
    }

    fn into_opened(self) -> Result<(u64, Vec<Opened>), Error> {
        let Self { acquired, fds } = self;
        if acquired.kind == SocketKind::Bound {
            return Err(Error::Kind {
                kind: acquired.kind,
                instead: "the broker binds its sockets: Grant::bind_by_broker",
            });
        }
        let queues = acquired.sockets.iter().map(|granted| granted.queue);
        let opened = opened(&acquired, queues.zip(fds));
        if acquired.kind == SocketKind::Bare {
            for opened in &opened {
                opened.make_rings(acquired.rings)?;
            }
        }
        Ok((acquired.lease, opened))
    }
}

/// Sockets of a grant, with what is known of their rings.
fn opened(acquired: &Acquired, sockets: impl Iterator<Item = (u32, OwnedFd)>) -> Vec<Opened> {
    let opened = sockets.map(|(queue, socket)| Opened {
        socket,
        queue: Queue {
            interface: acquired.interface.clone(),
            id: queue,
        },
        interface_index: acquired.interface_index,
        rings: RingEntries::new(acquired.rings, acquired.direction),
    });
    opened.collect()
}

/// Bound sockets (`Xsk`, or `Vec<Xsk>`) that no packet is redirected to yet.
#[derive(Debug)]
pub struct Bound<S> {
    lease: u64,
    sockets: S,
}

impl<S> Bound<S> {
    /// The lease's number.
    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// Has the broker redirect packets to the sockets.
    ///
    /// # Errors
    ///
    /// As [`Broker::activate`]. The sockets are closed then.
    pub fn activate(self, broker: &mut Broker) -> Result<S, Error> {
        broker.activate(self.lease)?;
        Ok(self.sockets)
    }

    /// The sockets, for what has to be done before packets arrive.
    pub fn sockets_mut(&mut self) -> &mut S {
        &mut self.sockets
    }

    /// The sockets, for who activates the lease in another way. They can send; nothing arrives yet.
    pub fn into_inner(self) -> S {
        self.sockets
    }
}

impl Bound<Vec<Xsk>> {
    /// The only socket.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] where there are several.
    pub fn one(self) -> Result<Bound<Xsk>, Error> {
        let Self { lease, sockets } = self;
        match <[Xsk; 1]>::try_from(sockets) {
            Ok([sockets]) => Ok(Bound { lease, sockets }),
            Err(sockets) => Err(Error::Count {
                what: "places for a socket",
                sockets: sockets.len(),
                given: 1,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::inherit::tests::acquired;

    #[test]
    fn parts_go_round() {
        let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
        let numbers = [one.as_raw_fd(), two.as_raw_fd()];
        let grant = Grant::from_parts(acquired(), vec![one.into(), two.into()]).unwrap();
        // The first socket names index 1.
        let sockets: Vec<_> = grant.sockets().map(|socket| socket.as_raw_fd()).collect();
        assert_eq!(sockets, [numbers[1], numbers[0]]);
        let (again, fds) = grant.into_parts();
        assert_eq!(again, acquired());
        assert_eq!(fds.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(), numbers);
    }
}
