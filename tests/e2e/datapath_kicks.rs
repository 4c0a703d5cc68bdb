//! What can be asked of the calls that wake the kernel, by a holder without a capability.

use std::time::Duration;

use e2e::skip;
use e2e::skip::Skip;
use xsk_client::wire::BusyPoll;
use xsk_client::{AsyncXsk, BindOptions, Broker, Grant, Request, Umem, UmemOptions, raw};

use crate::datapath_options::{exchange, grant, lengths, open, with};
use crate::lease_scene::PATIENCE;

/// One call sends 32 frames, and with a budget for all, all.
pub(crate) fn send_within_budgets() {
    const FRAMES: u32 = 100;
    let umem = raw::Umem::new(&UmemOptions::new().chunks(128)).unwrap();
    let mut broker = Broker::connect().unwrap();
    let bound = grant(&mut broker, 128)
        .bind_raw(&umem, &BindOptions::new())
        .unwrap();
    let raw::Xsk {
        tx,
        mut completion,
        socket,
        ..
    } = bound.activate(&mut broker).unwrap().pop().unwrap();
    let mut tx = tx.unwrap();
    for frames in [31, 129] {
        let error = socket.set_tx_budget(frames).unwrap_err().to_string();
        if error.contains("os error 92") {
            println!("lacks {error}");
            return;
        }
        assert!(error.contains("os error 13"), "{error}");
    }
    println!("active");
    let mut sent_by_one_call = || {
        let frame = |chunk: u32| raw::Descriptor {
            address: u64::from(chunk) * 2048,
            length: 60,
            options: 0,
        };
        let mut free = tx.reserve(FRAMES).unwrap().unwrap();
        free.write_from((0..FRAMES).map(frame));
        free.commit();
        rustix::net::send(&socket, &[], rustix::net::SendFlags::DONTWAIT).ok();
        let left = tx.size()
            - tx.reserve(..=tx.size())
                .unwrap()
                .map_or(0, |free| free.remaining());
        // The rest goes, too, so that there is room for the next.
        assert_eq!(socket.kick_tx(&mut tx).unwrap(), raw::Kick::Done);
        let back = completion.peek(FRAMES).unwrap();
        assert_eq!(back.unwrap().release_all(), FRAMES);
        FRAMES - left
    };
    assert_eq!(sent_by_one_call(), 32);
    socket.set_tx_budget(128).unwrap();
    assert_eq!(sent_by_one_call(), FRAMES);
    println!("as budgeted");
    std::thread::sleep(Duration::from_secs(600));
}

/// In a task of tokio's, beside another one that never ends.
pub(crate) fn reflect_in_a_task() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::spawn(std::future::pending::<()>());
        let mut xsk = AsyncXsk::new(open(&UmemOptions::new().chunks(64), &BindOptions::new(), 64)).unwrap();
        loop {
            // One that is given up now and then takes nothing.
            let Ok(batch) = tokio::time::timeout(Duration::from_micros(500), xsk.receive(8)).await else {
                continue;
            };
            let mut batch = batch.unwrap();
            assert!(!batch.is_empty());
            while let Some(frame) = batch.next_frame() {
                frame.send().unwrap();
            }
        }
    });
}

/// Within what was granted, and no more of it than was asked for last.
pub(crate) fn poll_busily() {
    let mut broker = Broker::connect().unwrap();
    let request = Request::new("eth0:3".parse().unwrap()).busy_poll(BusyPoll {
        budget: 64,
        usecs: 20,
    });
    let grant = Grant::acquire(&mut broker, request).unwrap();
    let umem = Umem::new(&UmemOptions::new().chunks(256)).unwrap();
    let bound = grant.bind_one(umem, &BindOptions::new()).unwrap();
    let mut xsk = bound.activate(&mut broker).unwrap();
    xsk.lower_busy_poll(32, 10).unwrap();
    let error = xsk.lower_busy_poll(33, 10).unwrap_err().to_string();
    assert!(error.contains("os error 1)"), "{error}");
    println!("active");
    // Nobody but its own system calls has to look at the device.
    loop {
        xsk.wait(Some(Duration::from_millis(1))).unwrap();
        let mut batch = xsk.receive(64).unwrap();
        while let Some(frame) = batch.next_frame() {
            frame.send().unwrap();
        }
    }
}

#[test]
fn one_call_sends_as_much_as_the_budget() {
    let lacks = with("budget", None, |_, holder, _| {
        let told = holder.wait_line("as budgeted", PATIENCE);
        told.unwrap_or_else(|error| panic!("{error}: {}", holder.process().last_words()));
    });
    if let Some(probe) = lacks {
        skip!(Skip::KernelLacks { probe });
    }
}

#[test]
fn a_task_of_tokios_moves_packets() {
    let lacks = with("a task", None, |world, holder, peer| {
        exchange(world, holder, peer, lengths(), |came, sent| came == sent);
    });
    assert_eq!(lacks, None);
}

#[test]
fn busy_polling_is_lowered_by_its_holder_and_moves_packets() {
    let lacks = with("busy poll", None, |world, holder, peer| {
        exchange(world, holder, peer, lengths(), |came, sent| came == sent);
    });
    assert_eq!(lacks, None);
}
