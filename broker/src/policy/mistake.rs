//! Every mistake that a policy can have, in words, with what to write instead.
//!
//! All sentences of `check` are here. What comes from a file goes through [`shown`].

use std::fmt;
use std::path::PathBuf;

use xsk_client::wire::{Direction, SocketKind};

use super::diagnostic::harmless;
use super::queues::QueuesError;
use crate::quota::Resource;

/// Which kind of table something stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Top,
    Interface,
    Allow,
    Deny,
    Limits,
    AllLimits,
    /// `per-user` or `in-all` of these.
    Amounts(&'static str),
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Top => "a policy file",
            Self::Interface => "[interface.NAME]",
            Self::Allow => "[[allow]]",
            Self::Deny => "[[deny]]",
            Self::Limits => "limits",
            Self::AllLimits => "[limits]",
            Self::Amounts(key) => return write!(f, "[limits.{key}]"),
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Mistake {
    // The text itself.
    #[error("{message}")]
    Syntax { message: String },
    #[error("the value of `{key}` is not in quotes")]
    Unquoted { key: &'static str, value: String },
    #[error("the name of the interface is not in quotes")]
    UnquotedName { name: String },
    #[error("not UTF-8 from here on")]
    NotUtf8,

    // Keys and types.
    #[error("unknown key `{}` in {section}", shown(key))]
    UnknownKey {
        section: Section,
        key: String,
        known: Vec<&'static str>,
    },
    #[error("`{}` is {found}, where {expected} is expected", shown(key))]
    WrongType {
        key: String,
        expected: &'static str,
        found: &'static str,
        write: Option<String>,
    },
    #[error("`{}` is not a value of `{key}`", shown(word))]
    UnknownWord {
        key: &'static str,
        word: String,
        known: Vec<&'static str>,
    },
    #[error("`{key}` is {}, it must be {min} to {max}", shown(value))]
    OutOfRange {
        key: &'static str,
        value: String,
        min: u64,
        max: u64,
    },
    #[error("`ring-entries` is {0}, it must be a power of two as the kernel's rings are")]
    NotPowerOfTwo(u32),
    #[error(
        "`direction = \"{direction}\"` cannot be kept for sockets {kind}, whose holder has the rings of both directions"
    )]
    DirectionNotKept { direction: Direction, kind: SocketKind },
    #[error("{section} without `{key}`")]
    MissingKey {
        section: Section,
        key: &'static str,
        example: &'static str,
    },
    #[error("`{0}` is an empty list")]
    EmptyList(&'static str),
    #[error("`{0}` has more than {1} entries")]
    TooMany(&'static str, usize),
    #[error("{} is given twice in `{key}`", shown(entry))]
    Twice { key: &'static str, entry: String },

    // Tables.
    #[error("[{0}] is a single table, where rules are a list of them")]
    RuleIsTable(&'static str),
    #[error("[[interface]] is a list, devices are named tables")]
    InterfaceIsList,
    #[error("[interface.{}] is there already, at {first}", shown(name))]
    DuplicateInterface { name: String, first: String },
    #[error("[limits] are there already, at {first}")]
    LimitsTwice { first: String },
    #[error("a name with a dot was not quoted")]
    UnquotedDot(String),

    // Rules.
    #[error("{0} does not say for whom")]
    MissingWho(Section),
    #[error("`{}` is no name for a rule", shown(.0))]
    BadRuleName(String),
    #[error("a rule is called `{name}` already, at {first}")]
    DuplicateRule { name: String, first: String },
    #[error("`{}` is no {kind} name", shown(name))]
    BadAccountName { kind: &'static str, name: String },
    #[error("`{}` is no id of a {kind}", shown(id))]
    BadId { kind: &'static str, id: String },
    #[error("`user = \"*\"` is everybody already, so the others beside it change nothing")]
    BesideEverybody,
    #[error("there is no `group = \"*\"`")]
    EveryGroup,
    #[error("`{}` is no interface name", shown(.0))]
    BadInterface(String),
    #[error("`{}` is no pattern for interfaces: {why}", shown(glob))]
    BadGlob { glob: String, why: String },
    #[error("{0}")]
    BadQueues(QueuesError),

    // Files.
    #[error("cannot be read: {0}")]
    Unreadable(std::io::Error),
    #[error("is {0}, not a file")]
    NotAFile(&'static str),
    #[error("has more than {0} bytes")]
    TooLarge(u64),
    #[error("has more than {0} policy files")]
    TooManyFiles(usize),
    #[error("belongs to uid {uid}, not to root: who can write it can hand out queues")]
    NotRoots {
        path: PathBuf,
        uid: u32,
        mode: &'static str,
    },
    #[error("can be written by {who} (mode {mode:04o}): who can write it can hand out queues")]
    WritableByOthers {
        path: PathBuf,
        who: &'static str,
        mode: u32,
    },

    #[error("--strict: the policy has {0} warnings, which count as errors")]
    Strict(usize),

    // Warnings.
    #[error("no {kind} `{}` on this machine: never matches here", shown(name))]
    NoSuchAccount { kind: &'static str, name: String },
    #[error(
        "{kind} `{}` is not in /etc/{}, and a running broker asks no other source of names: never matches here now",
        shown(name),
        file_of(kind)
    )]
    NotLookedUp { kind: &'static str, name: String },
    #[error(
        "{kind} `{}` is to be refused, is not in /etc/{}, and a running broker asks no other source of names",
        shown(name),
        file_of(kind)
    )]
    DeniesUnknown { kind: &'static str, name: String },
    #[error("no interface {} here now: never matches until there is one", shown(.0))]
    NoSuchInterface(String),
    #[error("no interface that matches {} here now: never matches until there is one", shown(.0))]
    NothingMatches(String),
    #[error("no [interface] section names {}: this rule never grants there", shown(.0))]
    NotListed(String),
    #[error(
        "all of queues {queues} are reserved on {}: this rule never grants there",
        shown(interface)
    )]
    AllReserved { interface: String, queues: String },
    #[error("queue {queue} is reserved on {interface}: this rule does not grant it there")]
    SomeReserved { interface: String, queue: u32 },
    #[error("{} has `xdp = \"generic\"`, where there is no zero-copy: this rule never grants there", shown(.0))]
    NeverZeroCopy(String),
    #[error(
        "queue {queue} is beyond the {most} queues that {interface} can have: this rule never grants it there"
    )]
    BeyondDevice {
        interface: String,
        queue: u32,
        most: u32,
    },
    #[error(
        "{} has `queue-lock = \"lsm\"`, and this kernel asks no BPF programs: no sockets that leave unbound are granted there",
        shown(.0)
    )]
    NoLsm(String),
    #[error(
        "each user may have {per_user} {resource}, and all of them together {in_all}: the smaller number holds"
    )]
    UserAboveAll {
        resource: Resource,
        per_user: u64,
        in_all: u64,
    },
    #[error(
        "can be read by root alone (mode {0:04o}), and a running broker reads its policy anew as its own user"
    )]
    RootsAlone(u32),
    #[error("no [[allow]] rule: this policy grants nothing to anybody")]
    NoAllow,
    #[error("no [interface.NAME] section: this policy touches no device")]
    NoInterface,
}

const WHO_EXAMPLE: &str = "user = \"alice\", or group = \"kvm\", or user = \"*\" for everybody";

impl Mistake {
    /// What to do about it.
    pub(super) fn help(&self) -> Option<String> {
        let help = match self {
            Self::Unquoted {
                key: "sockets",
                value,
            } => format!("write `sockets = [\"{}\"]`", shown(value)),
            Self::Unquoted { key, value } => format!("write `{key} = \"{}\"`", shown(value)),
            Self::UnquotedName { name } => {
                let name = shown(name);
                format!(
                    "patterns, and names with other than letters, digits, `-` and `_`: [interface.\"{name}\"]"
                )
            }
            Self::UnknownKey { key, known, .. } => did_you_mean(key, known),
            Self::UnknownWord { word, known, .. } => did_you_mean(word, known),
            Self::WrongType { write, .. } => return write.as_ref().map(|text| format!("write `{text}`")),
            Self::NotPowerOfTwo(value) => match value.checked_next_power_of_two() {
                Some(above) => format!("write {} or {above}", above / 2),
                None => return None,
            },
            Self::DirectionNotKept { .. } => {
                "write `sockets = [\"bound\"]`; or leave `direction` out, and give both".to_owned()
            }
            Self::MissingKey { example, .. } => format!("add `{example}`"),
            Self::EmptyList("interface") => {
                "name an interface, or \"*\" for all that have a section".to_owned()
            }
            Self::EmptyList("sockets") => "write `sockets = [\"prepared\"]`".to_owned(),
            Self::EmptyList(_) | Self::MissingWho(_) => format!("add {WHO_EXAMPLE}"),
            Self::RuleIsTable(name) => format!("write [[{name}]], with two brackets"),
            Self::InterfaceIsList => "write [interface.eth0], with one pair of brackets".to_owned(),
            Self::UnquotedDot(header) => format!("TOML takes the dot as a separator: write {header}"),
            Self::BadRuleName(_) => "1 to 64 letters, digits, `-`, `_` and `.`".to_owned(),
            Self::DuplicateRule { .. } => {
                "give each rule a name of its own: the log tells them apart by it".into()
            }
            Self::DuplicateInterface { .. } | Self::LimitsTwice { .. } => "join the two".to_owned(),
            Self::BesideEverybody => {
                "leave out \"*\", or everything else: each entry of `user` and `group` adds \
                                      people, none takes any away"
                    .to_owned()
            }
            Self::EveryGroup => "everybody is `user = \"*\"`".to_owned(),
            Self::BadInterface(_) => {
                "1 to 15 bytes, no `/`, `:` or white space; or a pattern, as in \"eth*\"".into()
            }
            Self::BadQueues(QueuesError::Backwards(first, last)) => format!("write {last}-{first}"),
            Self::BadQueues(QueuesError::Missing) => {
                "write ids and ranges with commas, as in \"2-4,7\"".to_owned()
            }
            Self::BadQueues(QueuesError::NotAnId(_)) => {
                "write ids and ranges with commas and without spaces, as in \"2-4,7\"; or \"*\" for all"
                    .to_owned()
            }
            Self::NotRoots { path, mode, .. } => {
                let path = quoted(path);
                format!(
                    "run: chown root:root {path} && chmod {mode} {path}{}",
                    install(&path, mode)
                )
            }
            Self::WritableByOthers { path, mode, .. } => {
                let path = quoted(path);
                let mode = if mode & 0o111 == 0 { "0644" } else { "0755" };
                format!("run: chmod go-w {path}{}", install(&path, mode))
            }
            Self::NoSuchAccount { kind, .. }
            | Self::NotLookedUp { kind, .. }
            | Self::DeniesUnknown { kind, .. } => format!(
                "make the {kind} in /etc/{file}, then reload the policy; if a directory service has it, write its number, or \
                 restart the broker, which asks there at its start",
                file = file_of(kind)
            ),
            Self::Unreadable(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                "let who reads it read it, by chmod 0644, or by chgrp and 0640: a reload does so as the broker's user"
                    .to_owned()
            }
            Self::NoLsm(_) => {
                "boot with `bpf` among the modules of `lsm=` (/sys/kernel/security/lsm has those of now), or write \
                 `queue-lock = \"auto\"`"
                    .to_owned()
            }
            Self::RootsAlone(_) => "chmod 0644; or 0640, and chgrp to the group of the broker's user".to_owned(),
            Self::NotListed(name) => format!("add {}", section_header(name)),
            Self::NeverZeroCopy(name) => {
                format!(
                    "write `xdp = \"native\"` in {}, or leave out `zero-copy`",
                    section_header(name)
                )
            }
            _ => return None,
        };
        Some(help)
    }
}

/// What `queue-lock = "none"` costs (a holder may bind any queue of the device until it is bound).
pub(crate) fn none_costs(interface: &str) -> String {
    format!(
        "nothing keeps a holder whose socket is not bound yet from binding another queue of {interface} than\n\
         its own: it can keep others from that queue and transmit there, and with a zero-copy driver read\n\
         what arrives there"
    )
}

/// The line of TOML that opens the section of a device.
pub(super) fn section_header(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match !name.is_empty() && name.chars().all(bare) {
        true => format!("[interface.{name}]"),
        false => format!("[interface.{}]", toml_text(name)),
    }
}

/// A text as TOML writes it.
pub(super) fn toml_text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A text from a file as it may stand in a message: harmless, and not long.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 80;
    let mut shown: String = text.chars().take(MOST).map(harmless).collect();
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}

fn did_you_mean(word: &str, known: &[&'static str]) -> String {
    match nearest(word, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => match known {
            [] => "nothing may stand here".to_owned(),
            known => format!("one of `{}`", known.join("`, `")),
        },
    }
}

/// The known word that was probably meant.
pub(super) fn nearest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    // The distance is quadratic in the lengths, and nobody means `queues` by a thousand letters.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase().replace('_', "-");
    let distance = |known: &str| strsim::damerau_levenshtein(&word, known);
    let near = known.iter().map(|known| (distance(known), *known)).min();
    near.filter(|(distance, known)| *distance <= (known.len() / 3).max(1))
        .map(|(_, known)| known)
}

/// A path as a shell takes it.
/// The file that has users or groups.
fn file_of(kind: &str) -> &'static str {
    match kind {
        "user" => "passwd",
        _ => "group",
    }
}

fn quoted(path: &std::path::Path) -> String {
    let path = shown(&path.to_string_lossy());
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,".contains(c);
    match path.chars().all(plain) {
        true => path,
        false => format!("'{}'", path.replace('\'', r"'\''")),
    }
}

/// The other way out, for a policy that is not yet where it belongs.
fn install(path: &str, mode: &str) -> String {
    match mode == "0755" || path.starts_with("/etc/xsk-broker/") {
        true => String::new(),
        false => format!(
            "\nor put a copy in place: install -D -o root -g root -m 0644 {path} /etc/xsk-broker/policy.toml"
        ),
    }
}
