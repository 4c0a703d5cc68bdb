//! The inside of a [`puppet`](crate::puppet): one thread that does what it is told with the client library.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::Duration;

use e2e::holder::{ARGUMENTS, BODY};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use serde_json::{Value, json};
use xsk_client::sys::{self, BindFlags, Mapping, Prefault};
use xsk_client::wire::{Acquired, RingSizes, SocketKind};
use xsk_client::{BindOptions, Broker, CallError, Error, Grant, ProcessId, Request, Umem, UmemOptions, Xsk};

use crate::lease_scene::{END, read_frame};
use crate::puppet::{Failure, Introduction, Order, Seen};

/// A body: takes its strings at the path that it is given, and ends when they are cut.
pub(crate) fn puppet(arguments: &[String]) {
    let mut puppet = Puppet {
        fds: open_fds(),
        ..Puppet::default()
    };
    let mut strings = UnixStream::connect(&arguments[0]).unwrap();
    let orders = BufReader::new(strings.try_clone().unwrap());
    for line in orders.lines() {
        let answer = puppet.obey(serde_json::from_str(&line.unwrap()).unwrap());
        let answer = serde_json::to_string(&answer).unwrap() + "\n";
        strings.write_all(answer.as_bytes()).unwrap();
    }
}

#[derive(Default)]
struct Puppet {
    fds: BTreeMap<i32, String>,
    broker: Option<Broker>,
    leases: BTreeMap<u64, Held>,
    children: Vec<Child>,
}

/// The sockets of a lease.
struct Held {
    acquired: Acquired,
    sockets: Vec<OwnedFd>,
    bound: Vec<Xsk>,
    /// What was registered by hand.
    memory: Option<(Mapping, File)>,
}

impl Puppet {
    fn obey(&mut self, order: Order) -> Result<Value, Failure> {
        match order {
            Order::Introduce => value(Introduction {
                pid: std::process::id(),
                environment: std::env::vars().collect(),
                fds: self.fds.clone(),
            }),
            Order::CallItself { name } => {
                std::fs::write("/proc/self/comm", name).unwrap();
                value(())
            }
            Order::Reconnect => {
                self.broker = None;
                self.broker()?;
                value(())
            }
            Order::Disconnect => {
                self.broker = None;
                value(())
            }
            Order::Patience { ms } => {
                self.broker()?.set_timeout(Duration::from_millis(ms));
                value(())
            }
            Order::Acquire {
                target,
                kind,
                ring_entries,
            } => {
                let request = Request::new(target.parse().unwrap())
                    .kind(kind)
                    .rings(RingSizes::all(ring_entries));
                let grant = Grant::acquire(self.broker()?, request)?;
                self.keep(grant)
            }
            Order::AcquireBound {
                target,
                direction,
                chunks,
            } => {
                let umem = UmemOptions::new().chunks(chunks);
                let request = Request::bound(target.parse().unwrap(), &umem).direction(direction);
                let grant = Grant::acquire(self.broker()?, request)?;
                self.keep(grant)
            }
            Order::FromEnv => {
                let grant = Grant::from_env()?;
                self.keep(grant)
            }
            Order::Bind {
                lease,
                chunk_bytes,
                chunks,
            } => self.bind(lease, chunk_bytes, chunks),
            Order::BindTo { lease, index, queue } => self.bind_to(lease, index, queue),
            Order::BrokerBind { lease } => value(self.broker()?.bind(lease)?.0),
            // The reply as it came, for tests that read all of it.
            Order::Activate { lease } => Ok(self.broker()?.call("Activate", &json!({ "lease": lease }))?),
            Order::Release { lease } => value(self.broker()?.release(lease)?),
            Order::Close { lease } => value(self.leases.remove(&lease).is_some()),
            Order::Receive {
                lease,
                queue,
                wanted,
                idle_ms,
            } => value(take(self.socket(lease, queue), wanted, idle_ms, Then::Drop)?),
            Order::Reflect {
                lease,
                queue,
                wanted,
                idle_ms,
            } => value(take(self.socket(lease, queue), wanted, idle_ms, Then::SendBack)?),
            Order::Send {
                lease,
                queue,
                frame,
                frames,
            } => value(send(self.socket(lease, queue), &frame, frames)?),
            Order::Transmit { lease, queue, frames } => transmit(self.socket(lease, queue), &frames),
            Order::KeepMapping { lease } => {
                let socket = &self.leases[&lease].sockets[0];
                let ring = Mapping::new(socket, sys::Ring::Rx.page_offset(), 4096, Prefault::No).unwrap();
                std::mem::forget(ring);
                value(())
            }
            Order::Transfer { lease, pid } => {
                let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
                let to = ProcessId::of(pidfd.as_fd()).unwrap();
                value(self.broker()?.transfer(lease, &to)?)
            }
            Order::Call { method, parameters } => {
                // A puppet is told few methods in its life.
                let answer: Value = self.broker()?.call(method.leak(), &parameters)?;
                value(answer)
            }
            Order::Beget { lease, strings } => self.beget(lease, &strings),
        }
    }

    fn broker(&mut self) -> Result<&mut Broker, Failure> {
        if self.broker.is_none() {
            self.broker = Some(Broker::connect()?);
        }
        Ok(self.broker.as_mut().unwrap())
    }

    fn keep(&mut self, grant: Grant) -> Result<Value, Failure> {
        let (acquired, sockets) = grant.into_parts();
        let answer = value(&acquired);
        let held = Held {
            acquired,
            sockets,
            bound: Vec::new(),
            memory: None,
        };
        self.leases.insert(held.acquired.lease, held);
        answer
    }

    fn bind(&mut self, lease: u64, chunk_bytes: u32, chunks: u32) -> Result<Value, Failure> {
        let held = self.leases.get_mut(&lease).unwrap();
        if held.acquired.kind == SocketKind::Bound {
            let grant = Grant::from_parts(held.acquired.clone(), std::mem::take(&mut held.sockets))?;
            let broker = self.broker.as_mut().unwrap();
            held.bound = grant.bind_by_broker(broker)?.into_inner();
            return value(());
        }
        // Copies, so that a bind that fails leaves something to try again with.
        let sockets: Vec<OwnedFd> = held
            .sockets
            .iter()
            .map(|socket| socket.try_clone().unwrap())
            .collect();
        let options = UmemOptions::new().chunk_bytes(chunk_bytes).chunks(chunks);
        let umems = sockets
            .iter()
            .map(|_| Umem::new(&options))
            .collect::<Result<_, _>>()?;
        let grant = Grant::from_parts(held.acquired.clone(), sockets)?;
        held.bound = grant.bind(umems, &BindOptions::new())?.into_inner();
        value(())
    }

    fn bind_to(&mut self, lease: u64, index: u32, queue: u32) -> Result<Value, Failure> {
        const BYTES: u32 = 4096;
        let held = self.leases.get_mut(&lease).unwrap();
        let socket = &held.sockets[0];
        if held.memory.is_none() {
            let file = rustix::fs::memfd_create("by hand", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&file, u64::from(BYTES)).unwrap();
            let mapping = Mapping::new(&file, 0, usize::try_from(BYTES).unwrap(), Prefault::Yes).unwrap();
            sys::register_umem(socket, &mapping, BYTES, 0).unwrap();
            held.memory = Some((mapping, file.into()));
        }
        sys::bind(socket, index, queue, BindFlags::XDP_COPY).map_err(|error| Failure {
            kind: "bind".to_owned(),
            text: error.to_string(),
            details: json!(error.raw_os_error()),
        })?;
        value(())
    }

    fn socket(&mut self, lease: u64, queue: u32) -> &mut Xsk {
        let bound = &mut self.leases.get_mut(&lease).unwrap().bound;
        bound.iter_mut().find(|xsk| xsk.queue().id == queue).unwrap()
    }

    fn beget(&mut self, lease: u64, strings: &str) -> Result<Value, Failure> {
        for socket in &self.leases[&lease].sockets {
            rustix::io::fcntl_setfd(socket.as_fd(), rustix::io::FdFlags::empty()).unwrap();
        }
        let child = Command::new("/proc/self/exe")
            .args(std::env::args_os().skip(1))
            .env(BODY, "puppet")
            .env(ARGUMENTS, json!([strings]).to_string())
            .spawn()
            .unwrap();
        self.children.push(child);
        value(())
    }
}

/// What becomes of a received frame.
#[derive(Clone, Copy)]
enum Then {
    Drop,
    SendBack,
}

fn take(xsk: &mut Xsk, wanted: u64, idle_ms: u64, then: Then) -> Result<Seen, Failure> {
    let mut seen = Seen::default();
    let mut known = HashSet::new();
    let mut count = 0;
    let mut ended = false;
    while count < wanted && !ended {
        let mut batch = xsk.receive(64)?;
        let mut came = 0;
        while let Some(mut frame) = batch.next_frame() {
            came += 1;
            match read_frame(&frame) {
                Some((_, END)) => ended = true,
                Some(tag) if known.insert(tag) => *seen.frames.entry(tag.0).or_default() += 1,
                Some(_) => seen.doubled += 1,
                None => seen.strange += 1,
            }
            if let (Then::SendBack, Some((to, from))) = (then, frame.split_at_mut_checked(6)) {
                to.swap_with_slice(&mut from[..6]);
                assert!(frame.send().is_ok(), "no room to send back");
            }
        }
        drop(batch);
        count += came;
        if came == 0 && !xsk.wait(Some(Duration::from_millis(idle_ms)))? {
            break;
        }
    }
    Ok(seen)
}

/// Sends a frame again and again, as fast as it can.
fn send(xsk: &mut Xsk, frame: &[u8], frames: u64) -> Result<u64, Failure> {
    let mut sent = 0;
    while sent < frames {
        let mut batch = xsk.transmit(64)?;
        while sent < frames
            && let Some(mut place) = batch.next_frame()
        {
            place[..frame.len()].copy_from_slice(frame);
            assert!(place.send(frame.len()).is_ok());
            sent += 1;
        }
    }
    Ok(sent)
}

fn transmit(xsk: &mut Xsk, frames: &[Vec<u8>]) -> Result<Value, Failure> {
    let mut batch = xsk.transmit(u32::try_from(frames.len()).unwrap())?;
    for bytes in frames {
        let mut frame = batch.next_frame().expect("room for a few frames");
        frame[..bytes.len()].copy_from_slice(bytes);
        assert!(frame.send(bytes.len()).is_ok());
    }
    drop(batch);
    // What went wrong is told by the next call.
    drop(xsk.transmit(1)?);
    value(())
}

fn open_fds() -> BTreeMap<i32, String> {
    let mut fds = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let target = std::fs::read_link(entry.path()).unwrap().display().to_string();
        // The directory that is being read is ours.
        if !target.ends_with("/fd") {
            fds.insert(entry.file_name().to_str().unwrap().parse().unwrap(), target);
        }
    }
    fds
}

fn value(value: impl Serialize) -> Result<Value, Failure> {
    Ok(serde_json::to_value(value).unwrap())
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Error::from(error).into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        if let Error::Call(CallError::Refused { cause, .. }) = &error {
            let on_the_wire = serde_json::to_value(cause).unwrap();
            let name = on_the_wire["error"].as_str().unwrap();
            return Self {
                kind: name.rsplit('.').next().unwrap().to_owned(),
                text,
                details: on_the_wire["parameters"].clone(),
            };
        }
        let debug = format!("{error:?}");
        let variant = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap();
        Self {
            kind: format!("Error::{variant}"),
            text,
            details: Value::Null,
        }
    }
}
