//! Who connected, asked of the kernel in earnest.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use xsk_client::wire::{BrokerError, Transfer};

use super::process::ToldApart;
use super::*;

#[test]
fn both_ends_of_a_pair_are_this_process() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = Peer::from_connection(ours.as_fd()).unwrap();
    assert_eq!(peer.subject().uid, rustix::process::geteuid().as_raw());
    assert_eq!(peer.process().pid(), std::process::id());
    assert!(!peer.process().has_exited());
    assert!(
        peer.process()
            .is(Peer::from_connection(theirs.as_fd()).unwrap().process())
    );
}

#[test]
fn the_way_without_peerpidfd_agrees() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = Peer::from_connection(ours.as_fd()).unwrap();
    let pid = rustix::process::getpid();
    let uid = peer.subject().uid;
    let process = Process::by_pid(pid, uid, ours.as_fd()).unwrap();
    assert!(process.is(peer.process()));
    // Who sends no more still waits for an answer.
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(Process::by_pid(pid, uid, ours.as_fd()).is_ok());
    drop(theirs);
    // A child that another test forks has a copy of it until its exec.
    let gone = (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        matches!(Process::by_pid(pid, uid, ours.as_fd()), Err(IdentityError::Gone))
    });
    assert!(gone);
}

/// Before Linux 6.9 the start time must be given, and decides; an inode says nothing there, and is not asked.
#[test]
fn a_process_is_named_by_what_the_kernel_has() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let here = Peer::from_connection(ours.as_fd()).unwrap();
    let process = here.process();
    let (inode, start) = (process.inode(), process.start_ticks());
    let named = |told_apart, pidfd_inode, start_ticks| {
        let call = Transfer {
            lease: 1,
            pid: process.pid(),
            pidfd_inode,
            start_ticks,
        };
        match process.check_named(&call, told_apart) {
            Ok(()) => "it",
            Err(BrokerError::NoSuchProcess { .. }) => "another",
            Err(BrokerError::InvalidRequest { .. }) => "not told",
            Err(other) => panic!("{other}"),
        }
    };
    for (pidfd_inode, start_ticks, by_inode, by_start) in [
        (Some(inode), Some(start), "it", "it"),
        (Some(inode), None, "it", "not told"),
        (None, Some(start), "not told", "it"),
        (None, None, "not told", "not told"),
        (Some(inode), Some(start + 1), "another", "another"),
        (Some(inode + 1), Some(start), "another", "it"),
    ] {
        let told = (pidfd_inode, start_ticks);
        assert_eq!(
            named(ToldApart::ByInode, pidfd_inode, start_ticks),
            by_inode,
            "{told:?}"
        );
        assert_eq!(
            named(ToldApart::ByStart, pidfd_inode, start_ticks),
            by_start,
            "{told:?}"
        );
    }
}

#[test]
fn two_processes_differ_and_an_exit_shows() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let here = Peer::from_connection(ours.as_fd()).unwrap();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = Pid::from_child(&child);
    let other = Process::new(pid, pidfd_open(pid, PidfdFlags::empty()).unwrap()).unwrap();
    assert!(!other.is(here.process()));
    assert!(!other.has_exited());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(other.has_exited());
}
