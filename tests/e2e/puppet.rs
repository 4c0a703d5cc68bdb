//! A holder on strings: a process of its own, of an ordinary user, that does with the client library what a test
//! tells it, step by step. `puppet_body.rs` is its inside.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use e2e::holder::Holder;
use e2e::patience::stretched;
use e2e::uids::User;
use e2e::world::{Side, World};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xsk_client::wire::{Direction, SocketKind};

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Who it is, and what it was started with.
    Introduce,
    /// Has these bytes for its name from now on.
    CallItself { name: Vec<u8> },
    /// Makes a new connection to the broker in place of the one that it has.
    Reconnect,
    /// Closes its connection.
    Disconnect,
    /// Waits no longer for an answer than this.
    Patience { ms: u64 },
    /// `Acquire`, with rings of that size.
    Acquire {
        target: String,
        kind: SocketKind,
        ring_entries: u32,
    },
    /// `Acquire` of kind `bound`, with so many chunks.
    AcquireBound {
        target: String,
        direction: Direction,
        chunks: u32,
    },
    /// Takes the sockets that its environment names.
    FromEnv,
    /// Binds the sockets of a lease as it should. They can be bound again if that fails.
    Bind {
        lease: u64,
        chunk_bytes: u32,
        chunks: u32,
    },
    /// Binds the first socket of a lease by hand to whatever it is told.
    BindTo { lease: u64, index: u32, queue: u32 },
    /// `Bind`, and nothing with what comes back.
    BrokerBind { lease: u64 },
    /// `Activate`
    Activate { lease: u64 },
    /// `Release`
    Release { lease: u64 },
    /// Closes the sockets of a lease.
    Close { lease: u64 },
    /// Receives over the socket of a queue until so many frames have come, or none for that long.
    Receive {
        lease: u64,
        queue: u32,
        wanted: u64,
        idle_ms: u64,
    },
    /// The same, and sends each frame back with its Ethernet addresses swapped.
    Reflect {
        lease: u64,
        queue: u32,
        wanted: u64,
        idle_ms: u64,
    },
    /// Sends a frame so many times over the socket of a queue.
    Send {
        lease: u64,
        queue: u32,
        frame: Vec<u8>,
        frames: u64,
    },
    /// Sends these frames over the socket of a queue.
    Transmit {
        lease: u64,
        queue: u32,
        frames: Vec<Vec<u8>>,
    },
    /// Keeps a ring of a lease's first socket mapped, for as long as it lives.
    KeepMapping { lease: u64 },
    /// Moves a lease to the process with that pid.
    Transfer { lease: u64, pid: u32 },
    /// Calls any method.
    Call { method: String, parameters: Value },
    /// Starts another puppet, which inherits the sockets of a lease and takes its strings there.
    Beget { lease: u64, strings: String },
}

/// Why it could not do it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The broker's error without its interface; `Error::…` for one of the library's own.
    pub(crate) kind: String,
    /// In words.
    pub(crate) text: String,
    /// The broker's parameters.
    pub(crate) details: Value,
}

/// What it says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Introduction {
    pub(crate) pid: u32,
    /// All variables of its environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// What was open when it started, by number.
    pub(crate) fds: BTreeMap<i32, String>,
}

/// What it received.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Whole tagged frames by the queue that they were meant for, each once.
    pub(crate) frames: BTreeMap<u32, u64>,
    /// Frames that came again.
    pub(crate) doubled: u64,
    /// Anything else.
    pub(crate) strange: u64,
}

impl Seen {
    /// Exactly so many for that queue, and nothing else.
    pub(crate) fn only(queue: u32, frames: u64) -> Self {
        Self {
            frames: BTreeMap::from([(queue, frames)]),
            ..Self::default()
        }
    }
}

/// The test's end of the strings.
#[derive(Debug)]
pub(crate) struct Puppet {
    strings: BufReader<UnixStream>,
    holder: Option<Holder>,
}

impl Puppet {
    /// Starts one.
    pub(crate) fn start(world: &World, side: Side, user: &User) -> Self {
        let strings = Strings::new(world);
        let holder = Holder::body(world, side, user, "puppet", &[&strings.inside]).unwrap();
        strings.taken_by(Some(holder))
    }

    /// Starts one by the broker's `grant`, as `user` or else as root.
    pub(crate) fn granted(world: &World, user: Option<&User>, grant: &[&str]) -> Self {
        let strings = Strings::new(world);
        let holder = Holder::granted(world, user, grant, "puppet", &[&strings.inside]).unwrap();
        strings.taken_by(Some(holder))
    }

    /// Has it start another one that inherits a lease's sockets. That one ends when it is dropped here.
    pub(crate) fn beget(&mut self, world: &World, lease: u64) -> Self {
        let strings = Strings::new(world);
        let order = Order::Beget {
            lease,
            strings: strings.inside.clone(),
        };
        self.ask(&order).unwrap();
        strings.taken_by(None)
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.as_ref().unwrap().pid()
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(&mut self) {
        self.holder.as_mut().unwrap().kill().unwrap();
    }

    /// Tells it what to do and waits until it has done it.
    pub(crate) fn ask(&mut self, order: &Order) -> Result<Value, Failure> {
        let text = serde_json::to_string(order).unwrap() + "\n";
        let mut answer = String::new();
        let asked = self.strings.get_mut().write_all(text.as_bytes());
        let answered = asked.and_then(|()| self.strings.read_line(&mut answer));
        match answered {
            Ok(bytes) if bytes > 0 => serde_json::from_str(&answer).unwrap(),
            other => {
                let ended = self.holder.as_mut().map(|holder| {
                    let ended = holder.wait(Duration::from_secs(2));
                    (ended.ok(), holder.process().last_words())
                });
                panic!("{order:?}: {other:?}: {ended:?}")
            }
        }
    }

    pub(crate) fn introduce(&mut self) -> Introduction {
        serde_json::from_value(self.ask(&Order::Introduce).unwrap()).unwrap()
    }

    /// Acquires with rings of 2048; gives the lease.
    /// Waits no longer for the broker than this, where that is known to be gone.
    pub(crate) fn patience(&mut self, patience: Duration) {
        let ms = u64::try_from(patience.as_millis()).unwrap();
        self.ask(&Order::Patience { ms }).unwrap();
    }

    pub(crate) fn acquire(&mut self, target: &str) -> Result<u64, Failure> {
        self.acquire_kind(target, SocketKind::Prepared)
    }

    /// The same for sockets of another kind.
    pub(crate) fn acquire_kind(&mut self, target: &str, kind: SocketKind) -> Result<u64, Failure> {
        let reply = self.ask(&Order::Acquire {
            target: target.to_owned(),
            kind,
            ring_entries: 2048,
        })?;
        Ok(reply["lease"].as_u64().unwrap())
    }

    /// All three steps with sockets of kind `bound`.
    pub(crate) fn hold_bound(&mut self, target: &str, direction: Direction) -> Result<u64, Failure> {
        let reply = self.ask(&Order::AcquireBound {
            target: target.to_owned(),
            direction,
            chunks: 2048,
        })?;
        let lease = reply["lease"].as_u64().unwrap();
        self.bind(lease)?;
        self.activate(lease)?;
        Ok(lease)
    }

    /// Binds, with a umem of 1 MiB for each socket.
    pub(crate) fn bind(&mut self, lease: u64) -> Result<Value, Failure> {
        self.ask(&Order::Bind {
            lease,
            chunk_bytes: 2048,
            chunks: 512,
        })
    }

    pub(crate) fn activate(&mut self, lease: u64) -> Result<Value, Failure> {
        self.ask(&Order::Activate { lease })
    }

    pub(crate) fn release(&mut self, lease: u64) {
        self.ask(&Order::Release { lease }).unwrap();
    }

    /// Sends frames.
    pub(crate) fn transmit(
        &mut self,
        lease: u64,
        queue: u32,
        frames: Vec<Vec<u8>>,
    ) -> Result<Value, Failure> {
        self.ask(&Order::Transmit { lease, queue, frames })
    }

    pub(crate) fn transfer(&mut self, lease: u64, pid: u32) -> Result<Value, Failure> {
        self.ask(&Order::Transfer { lease, pid })
    }

    pub(crate) fn call(&mut self, method: &str, parameters: Value) -> Result<Value, Failure> {
        self.ask(&Order::Call {
            method: method.to_owned(),
            parameters,
        })
    }

    pub(crate) fn close(&mut self, lease: u64) {
        self.ask(&Order::Close { lease }).unwrap();
    }

    /// All three steps.
    pub(crate) fn hold(&mut self, target: &str) -> u64 {
        let lease = self.acquire(target).unwrap();
        self.bind(lease).unwrap();
        self.activate(lease).unwrap();
        lease
    }

    /// The same for a queue that a slow kernel may not have let go of yet: as often as the broker says that it is worth
    /// while to ask again.
    pub(crate) fn hold_when_free(&mut self, target: &str) -> u64 {
        self.hold_kind_when_free(target, SocketKind::Prepared)
    }

    /// The same with sockets of another kind.
    pub(crate) fn hold_kind_when_free(&mut self, target: &str, kind: SocketKind) -> u64 {
        let lease = self.acquire_kind_when_free(target, kind);
        self.bind(lease).unwrap();
        self.activate(lease).unwrap();
        lease
    }

    /// The first step of it.
    pub(crate) fn acquire_kind_when_free(&mut self, target: &str, kind: SocketKind) -> u64 {
        let deadline = Instant::now() + super::lease_scene::PATIENCE;
        loop {
            match self.acquire_kind(target, kind) {
                Ok(lease) => return lease,
                Err(failure) => match failure.details["retryAfterMs"].as_u64() {
                    Some(pause) if Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(pause));
                    }
                    _ => panic!("{failure:?}"),
                },
            }
        }
    }

    /// Receives until so many have come, or none for a while.
    pub(crate) fn receive(&mut self, lease: u64, queue: u32, wanted: u64, idle: Duration) -> Seen {
        let seen = self.ask(&Order::Receive {
            lease,
            queue,
            wanted,
            idle_ms: u64::try_from(idle.as_millis()).unwrap(),
        });
        serde_json::from_value(seen.unwrap()).unwrap()
    }
}

/// A socket at which a puppet takes its strings.
struct Strings {
    listener: UnixListener,
    path: PathBuf,
    inside: String,
}

impl Strings {
    fn new(world: &World) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("strings-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let path = world.path(&name);
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            listener,
            path,
            inside: format!("/run/{name}"),
        }
    }

    fn taken_by(self, mut holder: Option<Holder>) -> Puppet {
        let deadline = Instant::now() + super::lease_scene::PATIENCE;
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            if let Some(holder) = &mut holder {
                let ended = holder.wait(Duration::from_millis(2)).ok();
                assert_eq!(ended, None, "{}", holder.process().last_words());
            } else {
                std::thread::sleep(Duration::from_millis(2));
            }
            assert!(Instant::now() < deadline, "no puppet has come");
        };
        std::fs::remove_file(&self.path).unwrap();
        stream.set_nonblocking(false).unwrap();
        stream
            .set_read_timeout(Some(stretched(Duration::from_secs(60))))
            .unwrap();
        Puppet {
            strings: BufReader::new(stream),
            holder,
        }
    }
}
