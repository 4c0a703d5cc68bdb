//! Tests of the policy as a whole, on an imagined machine.

mod decisions;
mod diagnostics;
mod hostile;
mod loading;
mod sockets;

use std::path::Path;

use xsk_client::wire::{Acquire, InterfaceName, RingSizes, SocketKind};

use crate::identity::Subject;

use super::diagnostic::Findings;
use super::names::Machine;
use super::{Loaded, Policy, PolicyError, Request};

/// A machine with the users alice, bob and carol, the groups kvm and guests, and four interfaces.
struct Imagined;

impl Machine for Imagined {
    fn user(&mut self, name: &str) -> Option<u32> {
        let users = [("root", 0), ("alice", 1001), ("bob", 1002), ("carol", 1003)];
        users.into_iter().find(|user| user.0 == name).map(|user| user.1)
    }

    fn group(&mut self, name: &str) -> Option<u32> {
        let groups = [("kvm", 109), ("guests", 2000)];
        groups
            .into_iter()
            .find(|group| group.0 == name)
            .map(|group| group.1)
    }

    fn interfaces(&mut self) -> Option<Vec<String>> {
        Some(["lo", "eth0", "eth1", "eth0.100"].map(str::to_owned).to_vec())
    }

    fn most_queues(&mut self, name: &InterfaceName) -> Option<u32> {
        (name.as_str() == "eth0.100").then_some(4)
    }

    fn has_bpf_lsm(&mut self) -> Option<bool> {
        Some(false)
    }
}

/// Reads these texts as `p0.toml`, `p1.toml` and so on.
fn read(texts: &[&[u8]]) -> Result<Loaded, PolicyError> {
    let mut findings = Findings::default();
    let decode = |(index, text): (usize, &&[u8])| {
        let name = format!("p{index}.toml");
        super::file::decode(Path::new(&name), text.to_vec(), index, &mut findings)
    };
    let sources: Vec<_> = texts.iter().enumerate().map(decode).collect();
    super::read::read_policy(&sources, &mut Imagined, findings)
}

/// Reads a policy that has no mistake.
fn policy(text: &str) -> Policy {
    match read(&[text.as_bytes()]) {
        Ok(loaded) => loaded.policy,
        Err(error) => panic!("{error}"),
    }
}

/// `NAME`, with the groups that these users are in.
fn subject(name: &str) -> Subject {
    let (uid, gid, groups) = match name {
        "alice" => (1001, 1001, vec![1001]),
        "bob" => (1002, 1002, vec![109]),
        "carol" => (1003, 2000, vec![]),
        "root" => (0, 0, vec![]),
        name => (name.parse().unwrap(), 9999, vec![]),
    };
    Subject { uid, gid, groups }
}

/// `IF:QUEUES`, or `IF:QUEUES/ENTRIES` with that size of rings.
fn request(text: &str) -> Request {
    let (target, entries) = text.split_once('/').unwrap_or((text, "2048"));
    Request {
        rings: RingSizes::all(entries.parse().unwrap()),
        ..Acquire::new(target.parse().unwrap(), SocketKind::Prepared).into()
    }
}
