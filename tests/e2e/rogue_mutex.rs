//! What remains, shown: a holder that keeps its socket's mutex in the kernel, by registering memory that it serves itself and
//! does not serve, has everybody who comes to that mutex with the kernel's RTNL lock keep that too. Then nobody on the
//! machine configures a network device, in whatever namespace.
//!
//! Two come with it: a bind, which its holder can ask for (`xsk_bind`, net/xdp/xsk.c, 6.1 to 7.3), and whoever deletes a device
//! in the broker's network namespace, since each AF_XDP socket there is asked whether it was bound to that (`xsk_notifier`).
//! So no lock on binds would help; sockets of kind `bound` have their memory before they leave.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, Scope};
use std::time::Duration;

use e2e::fuse::{self, Memory, Unread};
use e2e::holder::{self, Holder};
use e2e::patience::stretched;
use e2e::skip;
use e2e::skip::Skip;
use e2e::world::{Side, World};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process};
use xsk_client::Broker;
use xsk_client::sys::{self, BindFlags};
use xsk_client::wire::{Acquire, SocketKind};

use crate::lease_scene::PATIENCE;
use crate::puppet::Puppet;
use crate::rogue_scene::{ROGUES, Scene, VICTIMS, errno};

/// For what is held up: it would take milliseconds.
const LONG: Duration = Duration::from_millis(500);
const FILE: &str = "/tmp/unread";

/// A body: serves the file, and keeps whoever reads it waiting.
pub(crate) fn serve_unread(_arguments: &[String]) {
    // It is its parent's main thread that it must not outlive: the others may wait for it in the kernel.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let mut file = Unread::mount(Path::new(FILE)).unwrap();
    println!("mounted {}", std::process::id());
    file.serve_until_read().unwrap();
    println!("held");
    loop {
        thread::park();
    }
}

/// A body: the rogue's inside. Its argument: its uid.
pub(crate) fn hold_a_mutex(arguments: &[String]) {
    fuse::become_root_of_own_namespace(arguments[0].parse().unwrap()).unwrap();
    mount("tmpfs", "/tmp", "tmpfs", MountFlags::empty(), None).unwrap();
    std::fs::write(FILE, "").unwrap();
    let mut child = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env(holder::BODY, "serve_unread")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let is_mounted = || std::fs::metadata(FILE).is_ok_and(|file| file.len() > 0);
    while !is_mounted() {
        assert!(child.try_wait().unwrap().is_none(), "the file is not served");
        thread::sleep(Duration::from_millis(5));
    }
    let mut broker = Broker::connect().unwrap();
    let request = Acquire::new(format!("eth0:{ROGUES}").parse().unwrap(), SocketKind::Prepared);
    let (acquired, mut sockets) = broker.acquire(&request).unwrap();
    let socket = sockets.remove(0);
    let options = std::fs::OpenOptions::new().read(true).write(true).open(FILE);
    let memory = Memory::of(&options.unwrap()).unwrap();

    // Who registers keeps the process's map of its memory as well: all else that takes any has to be there before.
    let (ask_to_bind, asked) = mpsc::channel();
    let mut line = String::new();
    let (socket, index) = (&socket, acquired.interface_index);
    thread::scope(|scope| {
        scope.spawn(move || {
            println!("ready to bind");
            asked.recv().unwrap();
            let bound = sys::bind(socket, index, ROGUES, BindFlags::XDP_COPY);
            println!("bound {:?}", errno(bound));
        });
        let mut strings = std::io::stdin().lock();
        strings.read_line(&mut line).unwrap();
        scope.spawn(|| println!("registered {:?}", memory.register(socket)));
        while strings.read_line(&mut line).unwrap() > 0 {
            ask_to_bind.send(()).unwrap();
        }
    });
    child.wait().unwrap();
}

/// Sets a device of another network namespace up, which it is already; what comes back tells that it was done.
fn configure<'s>(scope: &'s Scope<'s, '_>, world: &'s World) -> Receiver<()> {
    let (done, told) = mpsc::sync_channel(1);
    let index = world.device(Side::PEER).index;
    scope.spawn(move || {
        let up = e2e::netlink::LinkState::Up;
        world.netlink(Side::PEER).set_link(index, up).unwrap();
        if done.send(()).is_err() {
            // Who has stopped listening knows enough.
        }
    });
    told
}

#[derive(Clone, Copy)]
enum Comes {
    ByABind,
    ByADeletion,
}

fn holds_up(comes: Comes) {
    if let Err(skip) = Skip::unless_the_machine_is_ours() {
        skip!(skip);
    }
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions("/dev/fuse", open).unwrap();
    let world = World::builder().peers(2).build().unwrap();
    let scene = Scene::new(&world, "none", SocketKind::Prepared);
    let uid = scene.rogue.number().to_string();
    let user = scene.rogue.user().in_own_namespaces();
    thread::scope(|scope| {
        // Within, so that it is killed before those are waited for whom it holds up, should anything here fail.
        let (holder, mut strings) =
            Holder::driven_body(&world, Side::Host, &user, "hold_a_mutex", &[&uid]).unwrap();
        let mounted = holder.wait_line("mounted", PATIENCE).unwrap();
        let server: i32 = mounted.strip_prefix("mounted ").unwrap().parse().unwrap();
        holder.wait_line("ready to bind", PATIENCE).unwrap();
        strings.write_all(b"register\n").unwrap();
        holder.wait_line("held", PATIENCE).unwrap();
        // That alone is nobody's business.
        configure(scope, &world)
            .recv_timeout(stretched(PATIENCE))
            .unwrap();

        match comes {
            Comes::ByABind => strings.write_all(b"bind\n").unwrap(),
            Comes::ByADeletion => {
                let (host, other) = (world.netlink(Side::Host), scene.others[0]);
                scope.spawn(move || host.delete(other).unwrap());
            }
        }
        thread::sleep(stretched(LONG));
        let configured = configure(scope, &world);
        let waited = configured.recv_timeout(stretched(4 * LONG));
        assert_eq!(waited, Err(mpsc::RecvTimeoutError::Timeout), "it was not held up");
        let lines = holder.process().stdout();
        assert!(
            !lines.iter().any(|line| line.starts_with("registered")),
            "{lines:?}"
        );

        // It is for its holder to say when that ends.
        kill_process(Pid::from_raw(server).unwrap(), Signal::KILL).unwrap();
        configured.recv_timeout(stretched(PATIENCE)).unwrap();
        let registered = holder.wait_line("registered", PATIENCE).unwrap();
        assert!(registered.contains("Err"), "{registered}");
    });
    let mut victim = Puppet::start(&world, Side::Host, &scene.victim.user());
    victim.hold(&format!("eth0:{VICTIMS}"));
}

#[test]
fn its_own_bind_waits_with_the_lock_of_all_network_configuration() {
    holds_up(Comes::ByABind);
}

#[test]
fn who_deletes_a_device_waits_with_the_lock_of_all_network_configuration() {
    holds_up(Comes::ByADeletion);
}
