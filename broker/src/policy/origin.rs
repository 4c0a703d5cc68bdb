//! Where the policy in force was read from, so that it can be read anew.
//!
//! The daemon reads the files itself, as the user that it has become: what a reload puts into force is what a restart
//! would, whoever asked for it. So they have to be readable for that user, and are checked as at the start: root's, and
//! written by nobody else.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostic, Findings, PolicyError, Severity};
use super::mistake::Mistake;
use super::names::Here;
use super::names_later::{Later, Remembered};
use super::{Loaded, Ownership, file, read};

/// What warnings mean for a policy that is to be in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// It is taken with them.
    WarningsPass,
    /// It is not taken.
    WarningsAreErrors,
}

/// Where a policy came from, and what the names in it meant then.
#[derive(Debug)]
pub struct Origin {
    main: PathBuf,
    strictness: Strictness,
    remembered: Remembered,
}

impl Origin {
    /// Reads the policy for the first time, as root: with NSS.
    ///
    /// # Errors
    ///
    /// Every mistake in every file; with [`Strictness::WarningsAreErrors`] every warning.
    pub fn load(main: &Path, strictness: Strictness) -> Result<(Self, Loaded), PolicyError> {
        let mut findings = Findings::default();
        let sources = file::read_all(main, Ownership::Demand, &mut findings);
        let mut here = Here::default();
        let loaded = read::read_policy(&sources, &mut here, findings)?;
        let origin = Self {
            main: main.to_owned(),
            strictness,
            remembered: Remembered::of(here),
        };
        let loaded = origin.weigh(loaded)?;
        Ok((origin, loaded))
    }

    /// Reads it anew, as whoever this thread is: without NSS.
    ///
    /// # Errors
    ///
    /// As [`Origin::load`].
    pub fn load_anew(&self) -> Result<Loaded, PolicyError> {
        let mut findings = Findings::default();
        let sources = file::read_all(&self.main, Ownership::Demand, &mut findings);
        let loaded = read::read_policy(&sources, &mut Later::new(&self.remembered), findings)?;
        self.weigh(loaded)
    }

    /// The first of these files, or of their directories, that this thread cannot read: with it the policy cannot be
    /// read anew.
    pub fn first_unreadable(&self, files: &[PathBuf]) -> Option<(PathBuf, io::Error)> {
        let beside = self.main.with_extension("d");
        let listed = match fs::read_dir(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Some((beside, error)),
            _ => None,
        };
        let unreadable = |file: &PathBuf| Some((file.clone(), File::open(file).err()?));
        listed.or_else(|| files.iter().find_map(unreadable))
    }

    fn weigh(&self, loaded: Loaded) -> Result<Loaded, PolicyError> {
        if self.strictness == Strictness::WarningsPass || loaded.warnings.is_empty() {
            return Ok(loaded);
        }
        let mut diagnostics = loaded.warnings;
        let strict = Mistake::Strict(diagnostics.len());
        diagnostics.push(Diagnostic::of_file(Severity::Error, &self.main, strict));
        Err(PolicyError { diagnostics })
    }
}
