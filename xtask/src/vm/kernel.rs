//! A kernel of Debian's: its image, its release, and the modules that the tests need, in an order that loads.
//!
//! The packages have no `modules.dep`, which depmod makes on installation; so each module is asked itself, by the
//! `depends=` that modpost wrote into it. Modules are `.ko` in 6.1 and `.ko.xz` from 6.12.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::apt::{Apt, Package};

/// A line of kernels, of which Debian has one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Series {
    /// The folder that it is unpacked to, and its row in the table.
    pub(super) name: &'static str,
    suite: &'static str,
    metapackage: &'static str,
}

/// For virtual machines: a quarter of the others' size.
const CLOUD: &str = "linux-image-cloud-amd64";
/// With the drivers of real devices.
const GENERIC: &str = "linux-image-amd64";

pub(super) const CLOUD_6_1: Series = Series {
    name: "6.1",
    suite: "bookworm-security",
    metapackage: CLOUD,
};
pub(super) const CLOUD_6_12: Series = Series {
    name: "6.12",
    suite: "bookworm-backports",
    metapackage: CLOUD,
};
pub(super) const CLOUD_7: Series = Series {
    name: "7",
    suite: "trixie-backports",
    metapackage: CLOUD,
};
pub(super) const GENERIC_7: Series = Series {
    name: "7-generic",
    suite: "trixie-backports",
    metapackage: GENERIC,
};

/// What the tests, the fixture and the virtual machine use, where it is not built in.
const MODULES: [&str; 12] = [
    "af_packet",
    "bridge",
    "cls_bpf",
    "dummy",
    "fuse",
    "igb",
    "ipv6",
    "sch_ingress",
    "tun",
    "unix",
    "veth",
    "virtio_net",
];
/// What carries virtio_net on kernels that have it as a module; nothing depends on it by name.
const TRANSPORT: &str = "virtio_pci";

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    pub(super) series: Series,
    /// As `uname -r` says it.
    pub(super) release: String,
    pub(super) image: PathBuf,
    modules: PathBuf,
}

/// A module as it is loaded.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

impl Kernel {
    /// The kernel that was unpacked before, if there is one.
    pub(super) fn cached(series: Series, cache: &Path) -> Result<Option<Self>> {
        let folder = Self::folder(series, cache);
        if folder.is_dir() {
            Self::open(series, &folder).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Fetches the kernel that the series has now.
    pub(super) fn fetch(series: Series, cache: &Path, apt: &Apt) -> Result<Self> {
        let folder = Self::folder(series, cache);
        let image = apt
            .pinned_dependencies(&apt.candidate(series.metapackage, series.suite)?)?
            .into_iter()
            .find(|package| package.name.starts_with("linux-image-"))
            .with_context(|| format!("{} of {} leads to no image", series.metapackage, series.suite))?;
        // From 7 on the image's package is a metapackage as well.
        let mut parts: Vec<Package> = apt.pinned_dependencies(&image)?;
        parts
            .retain(|part| part.name.starts_with("linux-binary-") || part.name.starts_with("linux-modules-"));
        if parts.is_empty() {
            parts.push(image);
        }
        apt.unpack(&parts, &folder)?;
        Self::open(series, &folder)
    }

    fn folder(series: Series, cache: &Path) -> PathBuf {
        cache.join(format!("kernel-{}", series.name))
    }

    fn open(series: Series, folder: &Path) -> Result<Self> {
        let parents = [folder.join("lib/modules"), folder.join("usr/lib/modules")];
        let modules = parents
            .iter()
            .filter_map(|parent| fs::read_dir(parent).ok()?.next()?.ok())
            .map(|entry| entry.path())
            .next()
            .with_context(|| format!("{} has no modules", folder.display()))?;
        let release = modules
            .file_name()
            .and_then(|name| name.to_str())
            .context("a release that is no text")?
            .to_owned();
        let images = [
            folder.join(format!("boot/vmlinuz-{release}")),
            modules.join("vmlinuz"),
        ];
        let image = images
            .into_iter()
            .find(|image| image.is_file())
            .with_context(|| format!("{} has no image", folder.display()))?;
        Ok(Self {
            series,
            release,
            image,
            modules,
        })
    }

    /// What has to be loaded, each module after those that it depends on. What is built in is not there.
    pub(super) fn modules(&self) -> Result<Vec<Module>> {
        let mut files = BTreeMap::new();
        find_modules(&self.modules.join("kernel"), &mut files)?;
        let mut loaded = Vec::new();
        for name in MODULES.into_iter().chain([TRANSPORT]) {
            load(name, &files, &mut loaded)?;
        }
        Ok(loaded)
    }
}

fn load(name: &str, files: &BTreeMap<String, PathBuf>, loaded: &mut Vec<Module>) -> Result<()> {
    let Some(file) = files.get(name) else {
        return Ok(());
    };
    if loaded.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let bytes = read_module(file)?;
    for dependency in dependencies(&bytes) {
        load(&dependency, files, loaded)?;
    }
    loaded.push(Module {
        name: name.to_owned(),
        bytes,
    });
    Ok(())
}

fn find_modules(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            find_modules(&path, found)?;
        } else if let Some((name, _)) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.split_once(".ko"))
        {
            found.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read_module(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(file).with_context(|| file.display().to_string());
    }
    // dpkg-deb has xz as a library only; the program is in Debian's standard system.
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(file)
        .output()
        .context("xz, which unpacks kernel modules, cannot be started: apt-get install xz-utils")?;
    if !output.status.success() {
        bail!(
            "xz cannot unpack {}: {}",
            file.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

/// The modules that one says it depends on, in its section `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else {
        return Vec::new();
    };
    let value: Vec<u8> = module[at + KEY.len()..]
        .iter()
        .copied()
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_depends_on() {
        let bytes = b"\x7fELF\0license=GPL\0depends=net_failover,virtio-ring\0intree=Y\0";
        assert_eq!(dependencies(bytes), ["net_failover", "virtio_ring"]);
        assert!(dependencies(b"license=GPL\0depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
