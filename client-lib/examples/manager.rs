//! A manager's day: takes a queue for a VMM, starts that as another user, moves the lease to it, watches, and when it has
//! ended takes the queue for the next one. If the manager itself dies the VMM goes on, and the next manager finds it.
//!
//!     manager eth0:4 107 vmm --its arguments        # as root; 107 is the VMM's uid, and `transfer-to` has it
//!
//! The VMM finds its sockets as `xsk-broker grant` leaves them: `Grant::from_env` takes them.

#[path = "support/vmm.rs"]
mod vmm;

use std::thread;

use anyhow::bail;
use xsk_client::wire::{Lease, LeaseState, Target};
use xsk_client::{Broker, Error, Grant, Monitor, News, ProcessId, Request};

fn main() -> anyhow::Result<()> {
    let Some((target, uid, command)) = vmm::arguments()? else {
        return vmm::become_it();
    };
    let (mut broker, mut monitor) = (Broker::connect()?, Broker::connect()?.monitor()?);
    let Some(News::Leases { leases, .. }) = monitor.next(None)? else {
        bail!("a monitor begins with the leases");
    };
    // What is ours was asked for by our uid; its holder is the VMM of an earlier manager.
    if let Some(Lease { lease, holder, .. }) = leases.iter().find(|lease| is_ours(lease, &target)) {
        println!("found lease {lease} pid {}", holder.pid);
        until_freed(&mut monitor, *lease)?;
    }
    loop {
        let grant = acquire(&mut broker, &target)?;
        let lease = grant.acquired().lease;
        let mut vmm = vmm::start(grant, uid, &command)?;
        broker.transfer(lease, &ProcessId::of_child(&vmm)?)?;
        vmm::go(&mut vmm)?;
        println!("started lease {lease} pid {}", vmm.id());
        until_freed(&mut monitor, lease)?;
        println!("ended {}", vmm.wait()?);
    }
}

fn is_ours(lease: &Lease, target: &Target) -> bool {
    let wanted = lease
        .queues
        .iter()
        .all(|queue| target.queues.contains(queue.queue));
    lease.interface == target.interface && wanted
}

/// Asks until it is granted: of the last VMM's socket the kernel lets go only some time after its end.
fn acquire(broker: &mut Broker, target: &Target) -> anyhow::Result<Grant> {
    loop {
        match Grant::acquire(broker, Request::new(target.clone())) {
            Err(Error::Call(error)) => match error.retry_after() {
                Some(pause) => thread::sleep(pause),
                None => return Err(error.into()),
            },
            granted => return Ok(granted?),
        }
    }
}

/// Prints what becomes of a lease, until its queue is free again.
fn until_freed(monitor: &mut Monitor, lease: u64) -> anyhow::Result<()> {
    loop {
        // A broker that is restarted is found again; meanwhile the VMM's packets flow.
        match monitor.next(None) {
            Ok(Some(News::Event(event))) if event.lease == lease => {
                println!("lease {lease} {}", event.state);
                if event.state == LeaseState::Freed {
                    return Ok(());
                }
            }
            Ok(Some(News::Leases { leases, .. })) if leases.iter().all(|one| one.lease != lease) => {
                return Ok(());
            }
            Ok(_) => {}
            Err(error) => println!("{error}"),
        }
    }
}
