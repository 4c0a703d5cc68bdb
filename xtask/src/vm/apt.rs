//! Debian packages, fetched and unpacked but never installed, by an apt that has everything of its own.
//!
//! **Invariant**: the system's sources, package lists and package state are read at most, never changed; no root
//! is needed. Versions are never written down here: they come from Debian's metapackages.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// Where packages come from. The key ring is the package debian-archive-keyring, which every Debian has.
const SOURCES: &str = "\
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security bookworm-security main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie-backports main
";

/// An apt whose sources, lists and downloads are below one folder of ours.
#[derive(Debug)]
pub(super) struct Apt {
    folder: PathBuf,
    /// Of packages; the lists are not counted.
    fetched_bytes: Cell<u64>,
}

/// A package of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
}

impl Apt {
    /// Fetches the package lists.
    pub(super) fn update(folder: PathBuf) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg"] {
            if shell::find(program).is_none() {
                bail!("kernels and QEMU come as Debian packages, and this system has no {program}");
            }
        }
        for below in ["state/lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(folder.join(below)).with_context(|| folder.display().to_string())?;
        }
        fs::write(folder.join("sources.list"), SOURCES)?;
        let fetched_bytes = Cell::new(0);
        let apt = Self {
            folder,
            fetched_bytes,
        };
        shell::run(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    /// The version of a package that a suite has now.
    pub(super) fn candidate(&self, name: &str, suite: &str) -> Result<Package> {
        let policy = shell::output(self.of_suite("apt-cache", suite).args(["policy", name]))?;
        let version = policy
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "))
            .filter(|version| *version != "(none)")
            .with_context(|| format!("{suite} has no package {name}"))?;
        Ok(Package {
            name: name.to_owned(),
            version: version.to_owned(),
        })
    }

    /// What a package depends on in exactly one version: how a metapackage leads to what it stands for.
    pub(super) fn pinned_dependencies(&self, package: &Package) -> Result<Vec<Package>> {
        let text = shell::output(self.command("apt-cache").arg("show").arg(package.to_string()))?;
        let depends = text.lines().find_map(|line| line.strip_prefix("Depends: "));
        Ok(depends.map(pinned).unwrap_or_default())
    }

    /// A package and whatever it needs that this system does not have installed.
    pub(super) fn closure(&self, name: &str, suite: &str) -> Result<Vec<Package>> {
        let mut command = self.of_suite("apt-get", suite);
        command.args(["--simulate", "--no-install-recommends", "install", name]);
        let plan = shell::output(&mut command)?;
        Ok(plan.lines().filter_map(planned).collect())
    }

    /// Fetches packages and unpacks them into a folder, which appears when all of it is there.
    pub(super) fn unpack(&self, packages: &[Package], into: &Path) -> Result<()> {
        let downloads = self.folder.join("packages");
        let partial = into.with_extension("partial");
        for folder in [&downloads, &partial] {
            if folder.exists() {
                fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
            }
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let mut download = self.command("apt-get");
        download.current_dir(&downloads).arg("download");
        shell::run(download.args(packages.iter().map(ToString::to_string)))?;
        for entry in fs::read_dir(&downloads)? {
            let package = entry?.path();
            let bytes = self.fetched_bytes.get() + fs::metadata(&package)?.len();
            self.fetched_bytes.set(bytes);
            shell::output(Command::new("dpkg").arg("--extract").arg(package).arg(&partial))?;
        }
        fs::remove_dir_all(&downloads)?;
        if into.exists() {
            fs::remove_dir_all(into)?;
        }
        fs::rename(&partial, into).with_context(|| into.display().to_string())
    }

    /// How large the packages were that were fetched until now.
    pub(super) fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.get()
    }

    fn of_suite(&self, program: &str, suite: &str) -> Command {
        let mut command = self.command(program);
        command.arg("-o").arg(format!("APT::Default-Release={suite}"));
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let ours = |name: &str| self.folder.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::SourceList={}", ours("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State={}", ours("state")),
            // What is installed is the system's to say, or else QEMU's libraries would come with all of theirs.
            "Dir::State::status=/var/lib/dpkg/status".to_owned(),
            format!("Dir::Cache={}", ours("cache")),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.env("LC_ALL", "C").arg("--quiet");
        command
    }
}

impl std::fmt::Display for Package {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}={}", self.name, self.version)
    }
}

/// `a (= 1), b | c, d (>= 2)` names exactly one package in one version.
fn pinned(depends: &str) -> Vec<Package> {
    depends
        .split(", ")
        .filter_map(|dependency| {
            let (name, version) = dependency.split_once(" (= ")?;
            Some(Package {
                name: name.to_owned(),
                version: version.strip_suffix(')')?.to_owned(),
            })
        })
        .collect()
}

/// `Inst NAME [INSTALLED] (VERSION SUITE [ARCHITECTURE])`, a line of apt's plan.
fn planned(line: &str) -> Option<Package> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let (_, version) = rest.split_once('(')?;
    Some(Package {
        name: name.to_owned(),
        version: version.split_once(' ')?.0.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
        }
    }

    #[test]
    fn a_metapackage_leads_to_what_it_stands_for() {
        let depends =
            "dracut | initramfs-tools (>= 0.120), linux-binary-7 (= 7.3.4-1), linux-modules-7 (= 7.3.4-1)";
        assert_eq!(
            pinned(depends),
            [
                package("linux-binary-7", "7.3.4-1"),
                package("linux-modules-7", "7.3.4-1")
            ]
        );
    }

    #[test]
    fn apts_plan_is_read() {
        let fresh = "Inst libslirp0 (4.7.0-1 Debian:12.15/oldstable [amd64])";
        assert_eq!(planned(fresh), Some(package("libslirp0", "4.7.0-1")));
        let newer = "Inst seabios [1.16.2-1] (1.16.3-2~bpo12+1 Debian Backports:oldstable-backports [all])";
        assert_eq!(planned(newer), Some(package("seabios", "1.16.3-2~bpo12+1")));
        assert_eq!(planned("Conf seabios (1.16.3 x [all])"), None);
    }
}
