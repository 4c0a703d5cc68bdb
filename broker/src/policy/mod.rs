//! The policy: who may have which queues of which devices.
//!
//! [`Policy::load`] reads files into an immutable value or says everything that is wrong with them;
//! [`Policy::decide`] is the only maker of [`Terms`], and without terms nothing can be granted. Deciding does no
//! I/O and changes nothing.
//!
//! One rule must cover all of a request; the first such in file order gives all its terms; a deny rule that
//! touches any part refuses all; reserved queues and devices without a section are refused whatever a rule says.

mod advice;
mod decide;
mod diagnostic;
mod explain;
mod file;
mod interface;
mod kept;
mod limits;
mod mistake;
mod names;
mod names_later;
mod origin;
mod queues;
mod read;
mod refusal;
mod rule;
mod table;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use xsk_client::wire::{
    Acquire, BusyPoll, Direction, InterfaceName, ModeWish, QueueSet, RingSizes, SocketKind, UmemShape,
};

use crate::identity::Subject;
use crate::quota::Limits;

pub use decide::{StillGiven, Terms, Verdict};
pub use diagnostic::{Diagnostic, PolicyError, Position, Severity};
pub use explain::{Explanation, View};
pub use file::Ownership;
pub use interface::{InterfaceSettings, QueueLockSetting, XdpSetting};
pub use kept::KeptTerms;
pub use origin::{Origin, Strictness};
pub use queues::{QueueRanges, QueuesError};
pub use refusal::{Refusal, Why};
pub use rule::Insert;

pub(crate) use interface::InterfaceSection;
pub(crate) use mistake::none_costs;
pub(crate) use rule::{Effect, Rule};

/// What somebody asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The device.
    pub interface: InterfaceName,
    /// Its queues: all of them or none.
    pub queues: QueueSet,
    /// In which state the sockets are to leave the broker.
    pub sockets: SocketKind,
    /// Which way frames are to go.
    pub direction: Direction,
    /// In which mode the broker is to bind, where it does; `None`: as the rule has it.
    pub mode: Option<ModeWish>,
    /// The umem, where the broker registers it.
    pub umem: Option<UmemShape>,
    /// How large the rings are to be.
    pub rings: RingSizes,
    /// Busy polling from the start.
    pub busy_poll: Option<BusyPoll>,
}

impl From<Acquire> for Request {
    /// What is left out is what the protocol says of it.
    fn from(call: Acquire) -> Self {
        Self {
            umem: (call.sockets == SocketKind::Bound).then(|| call.umem.unwrap_or_default()),
            interface: call.interface,
            queues: call.queues,
            sockets: call.sockets,
            direction: call.direction.unwrap_or_default(),
            mode: call.mode,
            rings: call.rings.unwrap_or_default(),
            busy_poll: call.busy_poll,
        }
    }
}

/// Rules and settings of devices, checked and resolved.
#[derive(Debug)]
pub struct Policy {
    sections: Vec<InterfaceSection>,
    rules: Vec<Rule>,
    limits: Limits,
    files: Vec<PathBuf>,
}

/// A policy that was taken.
#[derive(Debug)]
pub struct Loaded {
    /// The policy.
    pub policy: Policy,
    /// What its author may want to know.
    pub warnings: Vec<Diagnostic>,
    /// The files that it was read from, in the order in which they count.
    pub files: Vec<PathBuf>,
}

impl Policy {
    /// Whether a rule is for that group.
    pub fn names_group(&self, gid: u32) -> bool {
        self.rules.iter().any(|rule| rule.who.names_group(gid))
    }

    /// Reads `main`, and the `*.toml` of the directory beside it that is named alike (`policy.d` beside
    /// `policy.toml`) in the order of their names.
    ///
    /// Asks NSS for users and groups, so it is for whoever may; the daemon has an [`Origin`].
    ///
    /// # Errors
    ///
    /// Every mistake in every file.
    pub fn load(main: &Path, ownership: Ownership) -> Result<Loaded, PolicyError> {
        let mut findings = diagnostic::Findings::default();
        let sources = file::read_all(main, ownership, &mut findings);
        read::read_policy(&sources, &mut names::Here::default(), findings)
    }

    /// Reads a policy from bytes as if they were the file `name`: for tests and for fuzzing.
    ///
    /// # Errors
    ///
    /// Every mistake.
    pub fn parse(name: &Path, bytes: &[u8]) -> Result<Loaded, PolicyError> {
        let mut findings = diagnostic::Findings::default();
        let source = file::decode(name, bytes.to_owned(), 0, &mut findings);
        read::read_policy(&[source], &mut names::Here::default(), findings)
    }

    /// What holds for a device; `None` where no section names it, so that it is never touched.
    ///
    /// The section with exactly this name, else the first whose pattern matches, in file order.
    pub fn interface(&self, name: &InterfaceName) -> Option<&InterfaceSettings> {
        self.section(name).map(|section| &section.settings)
    }

    fn section(&self, name: &InterfaceName) -> Option<&InterfaceSection> {
        interface::section_for(&self.sections, name)
    }

    /// Whether an allow rule for this subject names the device.
    pub fn covers(&self, subject: &Subject, interface: &InterfaceName) -> bool {
        let allows = |rule: &Rule| matches!(rule.effect, Effect::Allow(_));
        self.rules
            .iter()
            .any(|rule| allows(rule) && rule.who.matches(subject) && rule.names(interface))
    }

    /// Whether any device has a queue lock.
    pub fn wants_queue_lock(&self) -> bool {
        self.sections
            .iter()
            .any(|section| section.settings.queue_lock != QueueLockSetting::None)
    }

    /// Whether any device has the BPF LSM for a lock, where that is in force.
    pub fn wants_lsm(&self) -> bool {
        self.sections.iter().any(|section| {
            matches!(
                section.settings.queue_lock,
                QueueLockSetting::Auto | QueueLockSetting::Lsm
            )
        })
    }

    /// How many rules there are, allow and deny.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// What one user and all users together may have, whatever a rule allows.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The files that it was read from, in the order in which they count.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The rules in file order.
    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The sections in file order.
    pub(crate) fn sections(&self) -> &[InterfaceSection] {
        &self.sections
    }

    /// How a user is called in messages for operators. By what the policy itself says: NSS is not asked.
    fn call(&self, uid: u32) -> String {
        match self.rules.iter().find_map(|rule| rule.who.name_of(uid)) {
            Some(name) => format!("user {name} ({uid})"),
            None => format!("uid {uid}"),
        }
    }
}
