//! The objects that are committed, and what each is built from.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::toolchain::LLVM;
use crate::shell;

/// One object, by paths from the repository's top.
#[derive(Debug)]
pub(crate) struct Object {
    /// The binary of the programs' package.
    pub(super) binary: &'static str,
    pub(super) path: &'static str,
    /// What it was built from and with.
    pub(super) record: &'static str,
    pub(super) sources: &'static [&'static str],
    pub(super) types: Types,
}

/// Whether an object describes its types (BTF), which the kernel wants of maps that it keeps with sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Types {
    No,
    Btf,
}

/// The XDP program and the queue lock's: apart, since a kernel that takes the one may not take the other.
pub(super) const OBJECTS: [Object; 2] = [
    Object {
        binary: "xsk_redirect",
        path: "xdp-ebpf/xsk_redirect.o",
        record: "xdp-ebpf/xsk_redirect.toml",
        sources: &[
            "xdp-ebpf/program/Cargo.toml",
            "xdp-ebpf/program/Cargo.lock",
            "xdp-ebpf/program/src/main.rs",
            "xdp-ebpf/src/queue_counters.rs",
        ],
        types: Types::No,
    },
    Object {
        binary: "xsk_queue_lock",
        path: "xdp-ebpf/xsk_queue_lock.o",
        record: "xdp-ebpf/xsk_queue_lock.toml",
        sources: &[
            "xdp-ebpf/program/Cargo.toml",
            "xdp-ebpf/program/Cargo.lock",
            "xdp-ebpf/program/src/bin/xsk_queue_lock.rs",
            "xdp-ebpf/src/permit.rs",
        ],
        types: Types::Btf,
    },
];

impl Object {
    /// The compiler's flags. BTF is made of debug information.
    pub(super) fn flags(&self) -> &'static [&'static str] {
        match self.types {
            // It would carry the builder's paths, and nothing reads it.
            Types::No => &["-Cdebuginfo=0"],
            Types::Btf => &["-Cdebuginfo=2", "-Clink-arg=--btf"],
        }
    }

    /// Takes out of what was built what nothing reads: of debug information BTF is all that is wanted.
    pub(super) fn strip(&self, built: &Path) -> Result<()> {
        match self.types {
            Types::No => Ok(()),
            Types::Btf => {
                let strip = Path::new(LLVM).join("bin/llvm-strip");
                shell::run(Command::new(strip).arg("--strip-debug").arg(built))
            }
        }
    }
}
