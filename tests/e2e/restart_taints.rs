//! A file that is to say which process may have an unbound socket, and is damaged: its device gives none until somebody has
//! looked.

use std::fs;

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::lease_scene::{allow, eth0, wait_until};
use crate::puppet::Puppet;
use crate::restart_scene::{dry_run, file, pieces, purge, wait_told};

#[test]
fn a_damaged_file_holds_its_device_back_until_it_is_removed() {
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let text = "[interface.eth0]\nqueue-lock = \"placeholders\"\nreserved = \"0\"\n".to_owned()
        + &allow(alice.number(), "1-7")
        + &allow(bob.number(), "1-7");
    let mut broker = BrokerProcess::start(&world, &text).unwrap();
    let mut rogue = Puppet::start(&world, Side::Host, &alice.user());
    rogue.acquire("eth0:3").unwrap();
    broker.kill().unwrap();
    let name = format!("unbound-{}", world.device(Side::Host).index);
    let path = file(&world, &name);
    let inside = format!("/run/xsk-broker/{name}");
    let whole = fs::read(&path).unwrap();
    let damaged = [
        whole[..whole.len() / 2].to_vec(),
        Vec::new(),
        b"{\"pid\": -1}".to_vec(),
    ];
    for damaged in damaged {
        fs::write(&path, &damaged).unwrap();
        let told = pieces(&dry_run(&world, &broker, &["--json"]));
        let (action, why) = &told[&("device".to_owned(), "eth0".to_owned())];
        assert_eq!(action, "hold-back");
        assert!(why.contains(&inside), "{why}");
        let (action, why) = &pieces(&purge(&world, &["--json"]))[&("file".to_owned(), name.clone())];
        assert_eq!(action, "leave");
        assert!(why.contains("remove it"), "{why}");

        broker.restart().unwrap();
        wait_told(&broker, &format!("until {inside} is gone"));
        let mut holder = Puppet::start(&world, Side::Host, &bob.user());
        let refused = holder.acquire("eth0:1").unwrap_err();
        assert_eq!(refused.kind, "DeviceUnavailable", "{refused:?}");
        assert!(refused.text.contains(&format!("removed {inside}")), "{refused:?}");
        let seen = eth0(&broker);
        assert_eq!(
            (seen.tainted_by, seen.tainted_file.as_deref()),
            (None, Some(&*inside))
        );
        let status = broker.cli(&["status"]).unwrap().stdout;
        assert!(status.contains(&format!("until {inside} is gone")), "{status}");
        // Users are told what they can do nothing about when they ask, and no more.
        let mut client = broker.client_of(&bob).unwrap();
        let theirs = client.list_interfaces().unwrap().interfaces;
        assert!(theirs.iter().all(|it| it.tainted_file.is_none()), "{theirs:?}");
        broker.kill().unwrap();
        assert_eq!(fs::read(&path).unwrap(), damaged);
    }
    // Somebody has looked. No restart is needed.
    broker.restart().unwrap();
    rogue.kill();
    fs::remove_file(&path).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &bob.user());
    wait_until("sockets leave unbound again", || holder.acquire("eth0:3").is_ok());
    assert_eq!(eth0(&broker).tainted_file, None);
}
