//! Whether a BPF LSM program is in force shows by its effect alone: `cargo xtask vm` boots one kernel twice, once with
//! `bpf` among its security modules and once without.

use std::fs;
use std::net::UdpSocket;

use e2e::kernel;
use e2e::lsm::RefusesBinds;

const FACT: &str = "BPF LSM in force";

#[test]
fn an_lsm_program_is_in_force_where_bpf_is_among_the_security_modules_and_nowhere_else() {
    let bind = || UdpSocket::bind("127.0.0.1:0").map(drop);
    bind().unwrap();
    let program = match RefusesBinds::of_this_thread() {
        Ok(program) => program,
        Err(error) => {
            // A kernel without it, or one that is locked down: the load says so itself.
            println!("{error:#}");
            kernel::tell(FACT, "no: it cannot be loaded").unwrap();
            return;
        }
    };
    let refused = bind().is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    // Everybody else binds as before.
    std::thread::spawn(move || bind().unwrap()).join().unwrap();
    drop(program);
    kernel::tell(
        FACT,
        if refused {
            "yes"
        } else {
            "no: it loads, and nobody asks it"
        },
    )
    .unwrap();
    // What the kernel lists is what it does: see `lsm=` in Documentation/admin-guide/kernel-parameters.txt.
    if let Ok(modules) = fs::read_to_string("/sys/kernel/security/lsm") {
        let listed = modules.trim().split(',').any(|module| module == "bpf");
        assert_eq!(refused, listed, "{modules}");
    }
}
