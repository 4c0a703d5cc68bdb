//! Who connected, asked of the kernel in earnest.

use std::io::Read as _;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;

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

/// A process can be asked whose it is now, and not whose it was: only where it could not have changed that, is it known.
#[test]
fn whose_a_process_was_is_known_of_who_could_not_change_it() {
    const OWN: u32 = 64_321;
    const OTHER: u32 = 64_322;

    if !rustix::process::geteuid().is_root() {
        println!("SKIP: takes root, to start a process of another user");
        return;
    }
    let asked = |program: &[&str], uid: u32| {
        let mut command = std::process::Command::new(program[0]);
        let mut child = command
            .uid(uid)
            .args(&program[1..])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It says when it is what it is going to be.
        let mut line = [0];
        let is_there = child.stdout.as_mut().unwrap().read_exact(&mut line).is_ok();
        let pid = Pid::from_child(&child);
        let process = Process::new(pid, pidfd_open(pid, PidfdFlags::empty()).unwrap());
        let answers = [0, OWN, OTHER].map(|uid| process.as_ref().is_ok_and(|it| it.may_have_been_of(uid)));
        child.kill().unwrap();
        child.wait().unwrap();
        is_there.then_some(answers)
    };
    let says_so = ["sh", "-c", "echo; read _"];
    assert_eq!(asked(&says_so, OWN), Some([true, true, false]));
    assert_eq!(asked(&says_so, 0), Some([true; 3]));
    let elsewhere = [&["unshare", "--user"][..], &says_so].concat();
    match asked(&elsewhere, OWN) {
        Some(answers) => assert_eq!(answers, [true; 3]),
        None => println!("SKIP of user namespaces: this machine gives users none"),
    }
}
