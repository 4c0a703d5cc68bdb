//! What the virtual machine has instead of a disk: our own programs, built statically, and nothing of a
//! distribution's.
//!
//! The end-to-end suite in it is the very test that runs everywhere else, compiled for a machine without libraries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::initramfs::{Initramfs, Mode};
use super::kernel::Kernel;
use crate::artifacts::{self, Build};
use crate::{peers, repository};

/// Static executables of the GNU target, which need no other tool chain than the one that is here.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The papers that tests read, by their paths in the repository.
const PAPERS: [&str; 2] = ["README.md", "policy.example.toml"];

/// The client library's examples, which tests run.
const EXAMPLES: [&str; 5] = ["async", "busy", "echo", "manager", "raw"];

/// The programs, built.
#[derive(Debug)]
pub(super) struct Programs {
    init: PathBuf,
    broker: PathBuf,
    examples: Vec<(&'static str, PathBuf)>,
    xskperf: PathBuf,
    suite: PathBuf,
    /// The C program with libxdp, where it could be built: what it is compiled with is not for this command to install.
    capi: Option<PathBuf>,
}

impl Programs {
    /// Builds them, in a target folder of their own: they share nothing with the host's.
    pub(super) fn build(cache: &Path) -> Result<Self> {
        let build = Build::new()
            .target_dir(&cache.join("build"))
            .target(TARGET)
            .rust_flags("-C target-feature=+crt-static");
        let programs = build.messages(&["build", "--workspace", "--locked", "--bins", "--examples"])?;
        let suite = build.messages(&[
            "test",
            "--package",
            "e2e",
            "--test",
            "e2e",
            "--locked",
            "--no-run",
        ])?;
        let capi = peers::build_capi(&build).unwrap_or_else(|error| {
            eprintln!("warning: no test in C: {error:#}");
            None
        });
        let mut examples = Vec::new();
        for name in EXAMPLES {
            examples.push((name, artifacts::executable(&programs, "example", name)?));
        }
        Ok(Self {
            init: artifacts::executable(&programs, "bin", "vm-init")?,
            broker: artifacts::executable(&programs, "bin", "xsk-broker")?,
            examples,
            xskperf: artifacts::executable(&programs, "bin", "xskperf")?,
            suite: artifacts::executable(&suite, "test", "e2e")?,
            capi,
        })
    }

    /// Writes the initial file system for one kernel, and gives its path.
    pub(super) fn write_image(&self, kernel: &Kernel, cache: &Path) -> Result<PathBuf> {
        let mut image = Initramfs::default();
        for folder in [
            "bin",
            "bin/examples",
            "dev",
            "etc",
            "modules",
            "papers",
            "proc",
            "run",
            "sys",
            "tmp",
        ] {
            image.folder(folder)?;
        }
        // The kernel opens it for the first program, before anything is mounted.
        image.device("dev/console", [5, 1])?;
        image.copy("init", Mode::Program, &self.init)?;
        for (path, program) in [
            ("bin/xsk-broker", &self.broker),
            ("bin/xskperf", &self.xskperf),
            ("bin/e2e", &self.suite),
        ] {
            image.copy(path, Mode::Program, program)?;
        }
        if let Some(capi) = &self.capi {
            image.copy("bin/peer-capi", Mode::Program, capi)?;
        }
        for (name, example) in &self.examples {
            image.copy(&format!("bin/examples/{name}"), Mode::Program, example)?;
        }
        for (number, module) in kernel.modules()?.iter().enumerate() {
            let path = format!("modules/{number:02}-{}.ko", module.name);
            image.file(&path, Mode::Text, &module.bytes)?;
        }
        let root = repository::root()?;
        for paper in PAPERS {
            image.copy(&format!("papers/{paper}"), Mode::Text, &root.join(paper))?;
        }
        image.file(
            "etc/passwd",
            Mode::Text,
            b"root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
        )?;
        image.file("etc/group", Mode::Text, b"root:x:0:\nnogroup:x:65534:\n")?;

        let path = cache.join(format!("initramfs-{}", kernel.series.name));
        fs::write(&path, image.finish()?).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}
