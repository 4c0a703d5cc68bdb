//! A record as it is found in the run directory: read as strictly as it was written, or refused.

use std::io;

use super::{MOST_BYTES, Record};
use crate::error::Failure;
use crate::run_dir::{RunDirectory, SmallFile};

/// One that is right in itself, with its text, by which to say where something is said that cannot be true.
#[derive(Debug)]
pub struct FoundRecord {
    /// What it says.
    pub record: Record,
    file: String,
    text: Vec<u8>,
}

/// A record that is not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {why}", position(*.at))]
pub struct BadRecord {
    /// The name of the file.
    pub file: String,
    /// Line and column, from 1.
    pub at: Option<(usize, usize)>,
    /// In words.
    pub why: String,
}

fn position(at: Option<(usize, usize)>) -> String {
    at.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"))
}

impl BadRecord {
    fn of_file(file: &str, why: String) -> Self {
        Self {
            file: file.to_owned(),
            at: None,
            why,
        }
    }
}

impl FoundRecord {
    /// Reads one. `owners` may have written it: the broker's account, and root.
    ///
    /// # Errors
    ///
    /// EMFILE, ENFILE, ENOMEM, which say nothing of the record. Within: [`BadRecord`].
    pub fn read(
        directory: &RunDirectory,
        file: &str,
        owners: &[u32],
    ) -> Result<Result<Self, BadRecord>, Failure> {
        match directory.read(file, MOST_BYTES) {
            Ok(small) => Ok(Self::parse(file, small, owners)),
            Err(error) if is_the_broker_short(&error) => Err(Failure::kernel(
                "open",
                directory.path().join(file).display(),
                error,
            )),
            Err(error) => Ok(Err(BadRecord::of_file(file, format!("cannot be read: {error}")))),
        }
    }

    fn parse(file: &str, small: SmallFile, owners: &[u32]) -> Result<Self, BadRecord> {
        let bad = |why| BadRecord::of_file(file, why);
        let SmallFile { text, owner, mode } = small;
        if !owners.contains(&owner) {
            return Err(bad(format!(
                "belongs to uid {owner}, and only the broker's own are believed"
            )));
        }
        if mode & 0o022 != 0 {
            return Err(bad(format!("can be written by others (mode {mode:04o})")));
        }
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > MOST_BYTES {
            return Err(bad(format!("is longer than {MOST_BYTES} bytes")));
        }
        Ok(Self {
            record: Record::decode(file, &text)?,
            file: file.to_owned(),
            text,
        })
    }

    /// Refuses it for what a member says, which is found by its own name and those of what it is in.
    pub fn refuse(&self, member: &[&str], why: String) -> BadRecord {
        BadRecord {
            file: self.file.clone(),
            at: Some(place_of(&self.text, member)),
            why,
        }
    }
}

fn is_the_broker_short(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
    )
}

/// Line and column of a member of the record itself, or of a member of a member.
pub(super) fn place_of(text: &[u8], member: &[&str]) -> (usize, usize) {
    let text = String::from_utf8_lossy(text);
    let mut found = 0;
    for (depth, name) in member.iter().enumerate() {
        // As it is written: members of members stand further to the right.
        let line = format!("\n{}\"{name}\"", "  ".repeat(depth + 1));
        let Some(at) = text.get(found..).and_then(|rest| rest.find(&line)) else {
            break;
        };
        found += at + line.len() - name.len() - 2;
    }
    let before = text.get(..found).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}
