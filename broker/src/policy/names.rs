//! For whom a rule is: users and groups, resolved while the policy is loaded and never later.
//!
//! After start-up the daemon may not ask NSS any more, and a directory service that is down must not change what
//! is allowed. So a rule holds ids, and the words that they were written with.

use std::collections::HashMap;

use xsk_client::wire::InterfaceName;

use crate::device::Device;
use crate::identity::Subject;

use super::diagnostic::Findings;
use super::mistake::{Mistake, Section};
use super::table::{Item, Table};

/// Names are shorter (`LOGIN_NAME_MAX` is 256).
const MAX_NAME: usize = 256;

/// What exists on a machine. A trait, so that tests can imagine one.
pub(super) trait Machine {
    /// The uid of a user.
    fn user(&mut self, name: &str) -> Option<u32>;
    /// The gid of a group.
    fn group(&mut self, name: &str) -> Option<u32>;
    /// Whether a user that was not found was looked for everywhere.
    fn user_was_looked_for(&self, _name: &str) -> bool {
        true
    }
    /// Whether a group that was not found was looked for everywhere.
    fn group_was_looked_for(&self, _name: &str) -> bool {
        true
    }
    /// The names of all interfaces; `None` where that cannot be known.
    fn interfaces(&mut self) -> Option<Vec<String>>;
    /// The most queues that an interface can have; `None` where that cannot be known.
    fn most_queues(&mut self, _name: &InterfaceName) -> Option<u32> {
        None
    }
    /// Whether the kernel asks BPF programs as a security module; `None` where it does not tell.
    fn has_bpf_lsm(&mut self) -> Option<bool> {
        None
    }
}

/// This machine: NSS, and the network namespace of the calling thread.
#[derive(Debug, Default)]
pub(super) struct Here {
    users: HashMap<String, Option<u32>>,
    groups: HashMap<String, Option<u32>>,
}

/// What was answered to each name.
type Answers = HashMap<String, Option<u32>>;

impl Here {
    /// What was answered of users, and of groups.
    pub(super) fn into_answers(self) -> (Answers, Answers) {
        (self.users, self.groups)
    }
}

impl Machine for Here {
    fn user(&mut self, name: &str) -> Option<u32> {
        let look_up = || uzers::get_user_by_name(name).map(|user| user.uid());
        *self.users.entry(name.to_owned()).or_insert_with(look_up)
    }

    fn group(&mut self, name: &str) -> Option<u32> {
        let look_up = || uzers::get_group_by_name(name).map(|group| group.gid());
        *self.groups.entry(name.to_owned()).or_insert_with(look_up)
    }

    fn interfaces(&mut self) -> Option<Vec<String>> {
        interfaces_here()
    }

    fn most_queues(&mut self, name: &InterfaceName) -> Option<u32> {
        most_queues_here(name)
    }

    fn has_bpf_lsm(&mut self) -> Option<bool> {
        has_bpf_lsm_here()
    }
}

pub(super) fn most_queues_here(name: &InterfaceName) -> Option<u32> {
    // What the kernel fails with is told by the first request that meets it.
    Some(Device::look_up(name).ok()??.max_queues)
}

/// As the kernel lists what its command line (`lsm=`) or its configuration has left in. A "yes" is no proof: whether such
/// a program is asked shows when one refuses something, which `status` tells.
pub(super) fn has_bpf_lsm_here() -> Option<bool> {
    let list = std::fs::read_to_string("/sys/kernel/security/lsm").ok()?;
    Some(list.trim().split(',').any(|module| module == "bpf"))
}

/// The names of all interfaces. From /proc and not from /sys/class/net: a mounted sysfs goes on showing the network
/// namespace that it was mounted in.
pub(super) fn interfaces_here() -> Option<Vec<String>> {
    let table = std::fs::read("/proc/thread-self/net/dev").ok()?;
    let table = String::from_utf8_lossy(&table);
    let name = |line: &str| line.split_once(':').map(|(name, _)| name.trim().to_owned());
    Some(table.lines().skip(2).filter_map(name).collect())
}

/// For whom a rule is: everybody, or whoever is one of the users or in one of the groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    Everybody,
    Listed {
        users: Vec<Account>,
        groups: Vec<Account>,
    },
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// `None`: not on this machine, matches nobody.
    pub(crate) id: Option<u32>,
    /// As the policy has it.
    pub(crate) written: String,
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.id {
            Some(id) if self.written == id.to_string() => write!(f, "{id}"),
            Some(id) => write!(f, "{} ({id})", self.written),
            None => write!(f, "{} (not on this machine)", self.written),
        }
    }
}

impl Who {
    pub(crate) fn matches(&self, subject: &Subject) -> bool {
        match self {
            Self::Everybody => true,
            Self::Listed { users, groups } => {
                let in_group = |gid: u32| subject.gid == gid || subject.groups.contains(&gid);
                users.iter().any(|user| user.id == Some(subject.uid))
                    || groups.iter().any(|group| group.id.is_some_and(in_group))
            }
        }
    }

    /// Whether it is for a group of that number.
    pub(crate) fn names_group(&self, gid: u32) -> bool {
        match self {
            Self::Everybody => false,
            Self::Listed { groups, .. } => groups.iter().any(|group| group.id == Some(gid)),
        }
    }

    /// What this user is called here, if a rule says so by name.
    pub(crate) fn name_of(&self, uid: u32) -> Option<&str> {
        let Self::Listed { users, .. } = self else {
            return None;
        };
        let named = |user: &&Account| user.id == Some(uid) && user.written.parse::<u32>().is_err();
        users.iter().find(named).map(|user| user.written.as_str())
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::Listed { users, groups } = self else {
            return f.write_str("everybody");
        };
        let users = users.iter().map(|user| format!("user {user}"));
        let groups = groups.iter().map(|group| format!("group {group}"));
        f.write_str(&users.chain(groups).collect::<Vec<_>>().join(", "))
    }
}

/// Reads `user` and `group` of a rule.
pub(super) fn read_who(
    table: &mut Table<'_>,
    section: Section,
    machine: &mut dyn Machine,
    findings: &mut Findings,
) -> Option<Who> {
    let (users, groups) = (table.take("user"), table.take("group"));
    if users.is_none() && groups.is_none() {
        findings.error(&table.place, Mistake::MissingWho(section));
        return None;
    }
    let is_star = |item: &Item<'_>| item.value.as_str() == Some("*");
    let user_entries = match &users {
        Some(item) => item.entries(findings)?,
        None => Vec::new(),
    };
    if let Some(star) = user_entries.iter().find(|entry| is_star(entry)) {
        // "Everybody in kvm" is how `user = "*"` with `group = "kvm"` may be meant, and not what it would do.
        if user_entries.len() > 1 || groups.is_some() {
            findings.error(&star.place, Mistake::BesideEverybody);
            return None;
        }
        return Some(Who::Everybody);
    }
    let users = read_accounts(&user_entries, Kind::User, section, machine, findings);
    let groups = match &groups {
        Some(item) => {
            let entries = item.entries(findings)?;
            if let Some(star) = entries.iter().find(|entry| is_star(entry)) {
                findings.error(&star.place, Mistake::EveryGroup);
                return None;
            }
            read_accounts(&entries, Kind::Group, section, machine, findings)
        }
        None => Some(Vec::new()),
    };
    Some(Who::Listed {
        users: users?,
        groups: groups?,
    })
}

/// Reads a list of users under another key; "*" is none of them.
pub(super) fn read_users(
    item: &Item<'_>,
    machine: &mut dyn Machine,
    findings: &mut Findings,
) -> Option<Vec<Account>> {
    read_accounts(
        &item.entries(findings)?,
        Kind::User,
        Section::Allow,
        machine,
        findings,
    )
}

/// What a name is of.
#[derive(Debug, Clone, Copy)]
enum Kind {
    User,
    Group,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Group => "group",
        }
    }

    /// The id; or whether the name was looked for everywhere.
    fn look_up(self, name: &str, machine: &mut dyn Machine) -> Result<u32, bool> {
        match self {
            Self::User => machine
                .user(name)
                .ok_or_else(|| machine.user_was_looked_for(name)),
            Self::Group => machine
                .group(name)
                .ok_or_else(|| machine.group_was_looked_for(name)),
        }
    }
}

fn read_accounts(
    entries: &[Item<'_>],
    kind: Kind,
    section: Section,
    machine: &mut dyn Machine,
    findings: &mut Findings,
) -> Option<Vec<Account>> {
    let mut accounts: Vec<Account> = Vec::new();
    let mut whole = true;
    for entry in entries {
        match read_account(entry, kind, section, machine, findings) {
            Some(account) if accounts.iter().any(|had| had.written == account.written) => {
                let twice = account.written;
                findings.error(
                    &entry.place,
                    Mistake::Twice {
                        key: kind.word(),
                        entry: twice,
                    },
                );
            }
            Some(account) => accounts.push(account),
            None => whole = false,
        }
    }
    whole.then_some(accounts)
}

fn read_account(
    entry: &Item<'_>,
    of: Kind,
    section: Section,
    machine: &mut dyn Machine,
    findings: &mut Findings,
) -> Option<Account> {
    let kind = of.word();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = match (entry.value.as_integer(), entry.value.as_str()) {
        (Some(number), _) => Some((number.as_str(), number.radix())),
        (None, Some(text)) if digits(text) => Some((text, 10)),
        (None, Some(_)) => None,
        (None, None) => {
            entry.wrong("a name or a number", None, findings);
            return None;
        }
    };
    if let Some((number, radix)) = number {
        // u32::MAX is (uid_t)-1, which the kernel takes for "no change" and gives to nobody.
        let id = u32::from_str_radix(number, radix)
            .ok()
            .filter(|id| *id != u32::MAX);
        let Some(id) = id else {
            let id = number.to_owned();
            findings.error(&entry.place, Mistake::BadId { kind, id });
            return None;
        };
        return Some(Account {
            id: Some(id),
            written: id.to_string(),
        });
    }
    let name = entry.value.as_str()?;
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | ',');
    if name.is_empty() || name.len() > MAX_NAME || name.starts_with(['-', '*']) || name.contains(forbidden) {
        let name = name.to_owned();
        findings.error(&entry.place, Mistake::BadAccountName { kind, name });
        return None;
    }
    let found = of.look_up(name, machine);
    let name_given = || name.to_owned();
    match (found, section) {
        (Ok(_), _) => {}
        (Err(true), _) => {
            findings.warn(
                &entry.place,
                Mistake::NoSuchAccount {
                    kind,
                    name: name_given(),
                },
            );
        }
        // Who is to be refused, and might exist, would be let in.
        (Err(false), Section::Deny) => {
            findings.error(
                &entry.place,
                Mistake::DeniesUnknown {
                    kind,
                    name: name_given(),
                },
            );
        }
        (Err(false), _) => {
            findings.warn(
                &entry.place,
                Mistake::NotLookedUp {
                    kind,
                    name: name_given(),
                },
            );
        }
    }
    Some(Account {
        id: found.ok(),
        written: name.to_owned(),
    })
}
