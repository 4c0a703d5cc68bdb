//! What the tests of the kind `bound` share: a holder that does by hand what the protocol says, without the library's
//! datapath, so that it can also do what the library would not.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use e2e::raw_xsk::{CHUNK_BYTES, RawXsk, RingEntries};
use rustix::io::Errno;
use xsk_client::Broker;
use xsk_client::sys::{Mapping, Prefault};
use xsk_client::wire::{Acquire, Acquired, BindReply, Direction, RingSizes, SocketKind, UmemShape};
use xsk_client::{CallError, wire::BrokerError};

use crate::lease_scene::{PATIENCE, interface};

/// Leaves the test where the kernel is too old for the kind; `kernel_status` shows what the broker says there.
macro_rules! needs_bound {
    () => {
        if let Some(lack) = e2e::kernel::lacks_for_bound() {
            e2e::skip!(lack);
        }
    };
}
pub(crate) use needs_bound;

/// A rule for sockets of kind `bound`, of every device.
pub(crate) fn allow(uid: u32, queues: &str, more: &str) -> String {
    format!(
        "[[allow]]\nname = \"uid-{uid}\"\nuser = {uid}\ninterface = \"*\"\nqueues = \"{queues}\"\n\
         sockets = [\"bound\"]\n{more}\n"
    )
}

/// eth0, and that rule for each of these.
pub(crate) fn policy(rules: &[(u32, &str)]) -> String {
    let rules: String = rules
        .iter()
        .map(|(uid, queues)| allow(*uid, queues, ""))
        .collect();
    interface("eth0", "") + &rules
}

/// All that is not reserved.
pub(crate) const EVERY_QUEUE: &str = "1-7";

/// Chunks of a raw holder's umem, for each of its queues.
pub(crate) const CHUNKS: u32 = 512;

/// What a raw holder asks for.
pub(crate) fn wish(target: &str, direction: Direction) -> Acquire {
    let acquire = Acquire::new(target.parse().unwrap(), SocketKind::Bound);
    let queues = u32::try_from(acquire.queues.len()).unwrap();
    Acquire {
        direction: Some(direction),
        umem: Some(UmemShape {
            chunk_bytes: CHUNK_BYTES,
            chunks: CHUNKS * queues,
            ..UmemShape::default()
        }),
        rings: Some(RingSizes::all(CHUNKS)),
        ..acquire
    }
}

/// A lease whose sockets are still to be bound.
pub(crate) struct Acquisition {
    pub(crate) broker: Broker,
    pub(crate) acquired: Acquired,
    pub(crate) memfd: OwnedFd,
}

impl Acquisition {
    /// Acquires, as whoever runs this.
    pub(crate) fn new(socket: &Path, wish: &Acquire) -> Result<Self, CallError> {
        let mut broker = Broker::connect_to(socket).unwrap();
        let (acquired, mut fds) = broker.acquire(wish)?;
        assert_eq!((fds.len(), acquired.sockets.len()), (1, 0));
        Ok(Self {
            broker,
            acquired,
            memfd: fds.remove(0),
        })
    }

    /// The same for a queue that a slow kernel may not have let go of yet.
    pub(crate) fn when_free(socket: &Path, wish: &Acquire) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::new(socket, wish) {
                Ok(acquisition) => return acquisition,
                Err(error) => match error.retry_after() {
                    Some(pause) if Instant::now() < deadline => std::thread::sleep(pause),
                    _ => panic!("{error}"),
                },
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        usize::try_from(self.acquired.umem.unwrap().bytes()).unwrap()
    }

    /// Maps the umem, and touches all of it.
    pub(crate) fn populate(&self) -> Mapping {
        Mapping::new(&self.memfd, 0, self.bytes(), Prefault::Yes).unwrap()
    }

    /// `Bind`
    pub(crate) fn bind(&mut self) -> Result<(BindReply, Vec<OwnedFd>), CallError> {
        self.broker.bind(self.acquired.lease)
    }

    /// Populates, binds, and maps the rings; activates nothing yet.
    pub(crate) fn hold(mut self) -> Held {
        drop(self.populate());
        let (reply, sockets) = self.bind().unwrap();
        let (direction, sizes) = (self.acquired.direction, self.acquired.rings);
        let rings = RingEntries {
            fill: sizes.fill,
            completion: sizes.completion,
            rx: direction.receives().then_some(sizes.rx),
            tx: direction.sends().then_some(sizes.tx),
        };
        let queues: Vec<u32> = reply.sockets.iter().map(|socket| socket.queue).collect();
        let sockets = (0..).zip(sockets).map(|(share, socket)| {
            RawXsk::over_bound(socket, &self.memfd, share * CHUNKS..(share + 1) * CHUNKS, rings).unwrap()
        });
        Held {
            sockets: queues.into_iter().zip(sockets).collect(),
            broker: self.broker,
            lease: self.acquired.lease,
            memfd: self.memfd,
        }
    }
}

/// A lease with its sockets, mapped.
pub(crate) struct Held {
    pub(crate) broker: Broker,
    pub(crate) lease: u64,
    pub(crate) memfd: OwnedFd,
    /// By queue.
    pub(crate) sockets: Vec<(u32, RawXsk)>,
}

impl Held {
    /// All the way.
    pub(crate) fn new(socket: &Path, wish: &Acquire) -> Self {
        let mut held = Acquisition::when_free(socket, wish).hold();
        held.broker.activate(held.lease).unwrap();
        held
    }

    pub(crate) fn socket(&mut self, queue: u32) -> &mut RawXsk {
        let (_, socket) = self.sockets.iter_mut().find(|(of, _)| *of == queue).unwrap();
        socket
    }

    pub(crate) fn fd(&self, queue: u32) -> BorrowedFd<'_> {
        let (_, socket) = self.sockets.iter().find(|(of, _)| *of == queue).unwrap();
        socket.as_fd()
    }
}

/// The broker's reason.
pub(crate) fn refusal<T>(result: Result<T, CallError>) -> BrokerError {
    match result {
        Err(CallError::Refused { cause, .. }) => *cause,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was granted"),
    }
}

/// What the kernel refused it with.
pub(crate) fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result
        .err()
        .map(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Of all that is in the memory.
pub(crate) fn digest(memory: impl AsFd) -> u64 {
    let mut file = File::from(memory.as_fd().try_clone_to_owned().unwrap());
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(!bytes.is_empty());
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
