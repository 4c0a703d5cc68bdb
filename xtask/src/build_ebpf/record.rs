//! What is written beside the object: from which sources, with which flags and tool chain it was built.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::object::Object;
use super::read;
use super::toolchain::{Toolchain, Versions};

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    flags: Vec<String>,
    pub(super) toolchain: Versions,
    /// SHA-256 by path from the repository's top: the sources and the object.
    sha256: BTreeMap<String, String>,
}

impl Record {
    pub(super) fn new(root: &Path, object: &Object, toolchain: &Toolchain, built: &[u8]) -> Result<Self> {
        let mut sha256 = BTreeMap::from([(object.path.to_owned(), hash(built))]);
        for source in object.sources {
            sha256.insert((*source).to_owned(), hash(&read(&root.join(source))?));
        }
        Ok(Self {
            flags: object.flags().iter().map(ToString::to_string).collect(),
            toolchain: toolchain.versions.clone(),
            sha256,
        })
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| {
            format!(
                "{} cannot be read; `cargo xtask build-ebpf` writes it",
                path.display()
            )
        })?;
        toml::from_str(&text).with_context(|| format!("{} is not a record of a build", path.display()))
    }

    pub(super) fn to_text(&self, object: &Object) -> Result<String> {
        let name = object.path.rsplit('/').next().unwrap_or(object.path);
        let body =
            toml::to_string_pretty(self).context("the record of the build cannot be written as TOML")?;
        Ok(format!(
            "# Written by `cargo xtask build-ebpf`, checked by `cargo xtask build-ebpf --check`; not to be edited by hand.\n\
             # What {name} was built with and from: the same again gives the same bytes.\n\n{body}"
        ))
    }

    /// That sources, flags and object are those of the record. This needs no tool chain, and finds a source
    /// that was changed without building the object anew, as well as an object that came from elsewhere.
    pub(super) fn check_hashes(&self, root: &Path, object: &Object) -> Result<()> {
        const FIX: &str = "run `cargo xtask build-ebpf` and commit what it changes";

        let (built, record) = (object.path, object.record);
        if self.flags != object.flags() {
            bail!(
                "{built} was built with the flags {:?}, now they are {:?}; {FIX}",
                self.flags,
                object.flags()
            );
        }
        for &path in object.sources.iter().chain([&built]) {
            let now = hash(&read(&root.join(path))?);
            match self.sha256.get(path) {
                Some(recorded) if *recorded == now => {}
                Some(_) => bail!("{path} has changed since {built} was built, as {record} shows; {FIX}"),
                None => bail!("{record} does not mention {path}; {FIX}"),
            }
        }
        Ok(())
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::object::OBJECTS;
    use super::*;

    #[test]
    fn the_hash_is_that_of_sha256sum() {
        assert_eq!(
            hash(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let record = Record {
            flags: vec!["-Cdebuginfo=0".into()],
            toolchain: Versions {
                rustc: "r 1".into(),
                bpf_linker: "b 2".into(),
                llvm: "3".into(),
            },
            sha256: BTreeMap::from([(OBJECTS[0].path.to_owned(), hash(b""))]),
        };
        let text = record.to_text(&OBJECTS[0]).unwrap();
        assert_eq!(toml::from_str::<Record>(&text).unwrap(), record);
    }

    #[test]
    fn a_source_that_changed_is_named() {
        let root = std::env::temp_dir().join(format!("xtask-record-{}", std::process::id()));
        for object in &OBJECTS {
            let files = || object.sources.iter().chain([&object.path]);
            for path in files() {
                fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
                fs::write(root.join(path), path).unwrap();
            }
            let record = Record {
                flags: object.flags().iter().map(ToString::to_string).collect(),
                toolchain: Versions {
                    rustc: String::new(),
                    bpf_linker: String::new(),
                    llvm: String::new(),
                },
                sha256: files()
                    .map(|path| ((*path).to_owned(), hash(path.as_bytes())))
                    .collect(),
            };
            record.check_hashes(&root, object).unwrap();

            fs::write(root.join(object.sources[2]), "something else").unwrap();
            let error = record.check_hashes(&root, object).unwrap_err().to_string();
            assert!(error.starts_with(object.sources[2]), "{error}");
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
