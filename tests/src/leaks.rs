//! What is left over. Only what belongs to one world, and to processes that a test names, is ever counted, so that
//! whatever else happens on the machine meanwhile makes no difference.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::bpf::{self, Kind};
use crate::patience::stretched;
use crate::world::{Side, World};

/// What there was before, to be compared with what there is after.
#[derive(Debug)]
pub struct Leaks {
    before: BTreeSet<String>,
    fds: BTreeMap<u32, Fds>,
    objects: BTreeSet<(Kind, u32)>,
}

impl Leaks {
    /// Looks at the world's devices, XDP programs, AF_XDP sockets, pins and files below `/run`.
    pub fn snapshot(world: &World) -> Result<Self> {
        Ok(Self {
            before: state(world)?,
            fds: BTreeMap::new(),
            objects: BTreeSet::new(),
        })
    }

    /// From now on this process's fds are to stay what they are, for as long as it lives.
    pub fn watch_fds(&mut self, pid: u32) -> Result<()> {
        self.fds.insert(pid, Fds::of(pid)?);
        Ok(())
    }

    /// The BPF objects that this process has open now, or has attached in this world, are to be gone at the end.
    pub fn expect_objects_gone(&mut self, world: &World, pid: u32) -> Result<()> {
        self.objects.extend(objects_of(pid)?);
        for side in world.sides() {
            let links = world.netlink(side).links()?;
            self.objects
                .extend(links.iter().filter_map(|link| Some((Kind::Program, link.xdp?))));
        }
        Ok(())
    }

    /// Everything that is other than before, one line each.
    pub fn differences(&self, world: &World) -> Result<Vec<String>> {
        let after = state(world)?;
        let mut lines: Vec<String> = Vec::new();
        lines.extend(
            after
                .difference(&self.before)
                .map(|thing| format!("left behind: {thing}")),
        );
        lines.extend(
            self.before
                .difference(&after)
                .map(|thing| format!("gone: {thing}")),
        );
        for (pid, before) in &self.fds {
            if Path::new(&format!("/proc/{pid}")).exists() {
                lines.extend(
                    Fds::of(*pid)?
                        .differences(before)
                        .map(|line| format!("process {pid}: {line}")),
                );
            }
        }
        for &(kind, id) in &self.objects {
            if bpf::exists(kind, id)? {
                lines.push(format!("left behind: BPF {kind:?} {id}"));
            }
        }
        Ok(lines)
    }

    /// Waits until nothing is left over; the kernel takes its time with sockets and programs.
    pub fn wait_none(&self, world: &World, patience: Duration) -> Result<()> {
        wait_empty(patience, || self.differences(world))
    }
}

/// Waits until no process uses these namespaces (as [`World`] tells their inodes) any more.
pub fn wait_namespaces_gone(inodes: &BTreeSet<u64>, patience: Duration) -> Result<()> {
    wait_empty(patience, || users_of_namespaces(inodes))
}

/// The inodes of all namespaces of a world.
pub fn namespaces(world: &World) -> Result<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    for side in world.sides() {
        inodes.extend(world.namespace(side).inodes()?);
    }
    Ok(inodes)
}

/// The fds of a process: how many of each kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fds(BTreeMap<String, usize>);

impl Fds {
    /// Of a process.
    pub fn of(pid: u32) -> Result<Self> {
        let mut kinds = BTreeMap::new();
        for (_, target) in fds(pid)? {
            // "socket:[1234]" is a socket, "anon_inode:[pidfd]" says it all.
            let kind = match target.split_once(":[") {
                Some((kind, number)) if number.starts_with(|c: char| c.is_ascii_digit()) => kind,
                _ => &target,
            };
            *kinds.entry(kind.to_owned()).or_insert(0) += 1;
        }
        Ok(Self(kinds))
    }

    /// How many in all.
    pub fn count(&self) -> usize {
        self.0.values().sum()
    }

    /// The same with one more of a kind.
    #[must_use]
    pub fn with_one_more(mut self, kind: &str) -> Self {
        *self.0.entry(kind.to_owned()).or_insert(0) += 1;
        self
    }

    /// What there is more of than before, one line each.
    pub fn more_than<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = String> + 'a {
        self.0.iter().filter_map(|(kind, now)| {
            let then = before.0.get(kind).copied().unwrap_or(0);
            (*now > then).then(|| format!("{now} fds of {kind}, there were {then}"))
        })
    }

    /// What is other than before, one line each.
    pub fn differences<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = String> + 'a {
        let kinds: BTreeSet<&String> = self.0.keys().chain(before.0.keys()).collect();
        kinds.into_iter().filter_map(|kind| {
            let now = self.0.get(kind).copied().unwrap_or(0);
            let then = before.0.get(kind).copied().unwrap_or(0);
            (now != then).then(|| format!("{now} fds of {kind}, there were {then}"))
        })
    }
}

/// The programs, maps and links that a process has open, as its fdinfo tells.
pub fn objects_of(pid: u32) -> Result<BTreeSet<(Kind, u32)>> {
    let mut objects = BTreeSet::new();
    for (number, _) in fds(pid)? {
        // It may have been closed since.
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")) else {
            continue;
        };
        for line in text.lines() {
            let Some((name, id)) = line.split_once(':') else {
                continue;
            };
            let kind = match name {
                "prog_id" => Kind::Program,
                "map_id" => Kind::Map,
                "link_id" => Kind::Link,
                _ => continue,
            };
            objects.insert((kind, id.trim().parse().with_context(|| line.to_owned())?));
        }
    }
    Ok(objects)
}

/// How many AF_XDP sockets exist that were made in a side's network namespace, whoever holds them.
///
/// Counted by the kernel (`/proc/net/protocols`) from socket() until the last fd is closed; `None` where it is built
/// without procfs for the network.
pub fn xdp_sockets(world: &World, side: Side) -> Result<Option<u32>> {
    let text = world.run_in(side, || fs::read_to_string("/proc/thread-self/net/protocols"))?;
    let Ok(text) = text else { return Ok(None) };
    let line = text.lines().find(|line| line.starts_with("XDP "));
    let Some(sockets) = line.and_then(|line| line.split_whitespace().nth(2)) else {
        return Ok(None);
    };
    Ok(Some(sockets.parse()?))
}

fn state(world: &World) -> Result<BTreeSet<String>> {
    let mut state = BTreeSet::new();
    for side in world.sides() {
        for link in world.netlink(side).links()? {
            let xdp = if link.xdp.is_some() { " with XDP" } else { "" };
            state.insert(format!("{side:?}: device {}{xdp}", link.name));
        }
        if let Some(sockets) = xdp_sockets(world, side)? {
            // One line each, so that one too many reads as such.
            state.extend((1..=sockets).map(|number| format!("{side:?}: AF_XDP socket {number}")));
        }
    }
    files(&world.path(""), "/run", &mut state)?;
    // The fixture's own: programs, and the policies that it wrote.
    state.retain(|thing| !thing.starts_with("/run/bin/") && !is_policy(thing) && !is_kept(thing));
    Ok(state)
}

/// What an orderly stop leaves on purpose: the broker's two directories, whose parents are not its own, and the lock
/// file, which cannot be removed without a race for the next lock.
fn is_kept(thing: &str) -> bool {
    let name = thing
        .strip_prefix("/run/bpf/")
        .or_else(|| thing.strip_prefix("/run/"))
        .unwrap_or(thing);
    let directory = name.strip_suffix("/lock").unwrap_or(name);
    directory.starts_with("xsk-broker") && !directory.contains('/')
}

fn is_policy(thing: &str) -> bool {
    thing
        .strip_prefix("/run/")
        .is_some_and(|name| name.ends_with(".toml") && !name.contains('/'))
}

fn files(directory: &Path, name: &str, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| name.to_owned())? {
        let entry = entry?;
        let name = format!("{name}/{}", entry.file_name().display());
        if entry.file_type()?.is_dir() {
            files(&entry.path(), &name, found)?;
        }
        found.insert(name);
    }
    Ok(())
}

fn fds(pid: u32) -> Result<Vec<(String, String)>> {
    let directory = format!("/proc/{pid}/fd");
    let mut fds = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.clone())? {
        let entry = entry?;
        // It may have been closed since.
        if let Ok(target) = fs::read_link(entry.path()) {
            fds.push((
                entry.file_name().display().to_string(),
                target.display().to_string(),
            ));
        }
    }
    Ok(fds)
}

fn users_of_namespaces(inodes: &BTreeSet<u64>) -> Result<Vec<String>> {
    let wanted: Vec<String> = inodes
        .iter()
        .flat_map(|inode| [format!("net:[{inode}]"), format!("mnt:[{inode}]")])
        .collect();
    let mut users = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        // Threads have namespaces of their own; processes that end meanwhile have none.
        let threads = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
        let places = threads
            .map(|thread| thread.path().join("ns"))
            .chain([process.join("fd")]);
        for link in places
            .filter_map(|place| fs::read_dir(place).ok())
            .flatten()
            .flatten()
        {
            let Ok(target) = fs::read_link(link.path()) else {
                continue;
            };
            if wanted.iter().any(|wanted| target.as_os_str() == wanted.as_str()) {
                users.push(format!("{} is {}", link.path().display(), target.display()));
            }
        }
    }
    Ok(users)
}

fn wait_empty(patience: Duration, mut list: impl FnMut() -> Result<Vec<String>>) -> Result<()> {
    let patience = stretched(patience);
    let deadline = Instant::now() + patience;
    loop {
        let lines = list()?;
        if lines.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("after {patience:?}:\n{}", lines.join("\n"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
