//! `[limits]`: what one user, and all users together, may have at a time, whatever a rule allows.

use super::diagnostic::{Findings, Source};
use super::mistake::{Mistake, Section};
use super::table::{Item, Table};
use crate::quota::{Amounts, Limits, Resource};

/// More than any machine serves.
const MAX_COUNT: u64 = 1 << 24;
/// More than any machine has.
const MAX_BYTES: u64 = 1 << 50;

/// The limits that were read, and where they stand, as `file:line`.
#[derive(Debug, Default)]
pub(super) struct ReadLimits {
    pub(super) limits: Limits,
    at: Option<String>,
}

/// Reads the `[limits]` of a file: one file of a policy may have them.
pub(super) fn read_limits(item: &Item<'_>, source: &Source, into: &mut ReadLimits, findings: &mut Findings) {
    if let Some(first) = &into.at {
        let first = first.clone();
        findings.error(&item.place, Mistake::LimitsTwice { first });
        return;
    }
    into.at = Some(source.at(item.place.span.start));
    let Some(mut table) = item.table(Section::AllLimits, findings) else {
        return;
    };
    let limits = &mut into.limits;
    let mut of_user = Vec::new();
    for (key, amounts) in [("per-user", &mut limits.per_user), ("in-all", &mut limits.in_all)] {
        if let Some(item) = table.take(key)
            && let Some(table) = item.table(Section::Amounts(key), findings)
        {
            let written = read_amounts(table, amounts, findings);
            if key == "per-user" {
                of_user = written;
            }
        }
    }
    table.finish(findings);
    // What is left out is no promise to anybody.
    for resource in of_user {
        let (per_user, in_all) = (limits.per_user.of(resource), limits.in_all.of(resource));
        if per_user > in_all {
            let mistake = Mistake::UserAboveAll {
                resource,
                per_user,
                in_all,
            };
            findings.warn(&item.place, mistake);
        }
    }
}

/// Gives what was written.
fn read_amounts(mut table: Table<'_>, amounts: &mut Amounts, findings: &mut Findings) -> Vec<Resource> {
    let mut written = Vec::new();
    for resource in Resource::ALL {
        let (min, max) = match resource {
            Resource::UmemBytes => (4096, MAX_BYTES),
            _ => (1, MAX_COUNT),
        };
        if let Some(item) = table.take(resource.as_str())
            && let Some(number) = item.number64(min, max, findings)
        {
            *amounts.of_mut(resource) = number;
            written.push(resource);
        }
    }
    table.finish(findings);
    written
}
