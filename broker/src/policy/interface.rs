//! Which devices a policy names: patterns, and the `[interface.NAME]` sections with what holds for a device.
//!
//! Invariant: only devices that a section names are ever touched.

use globset::{Glob, GlobSet};
use toml::de::{DeTable, DeValue};
use xsk_client::wire::InterfaceName;

use super::diagnostic::{Findings, Place, Source};
use super::mistake::{Mistake, Section, section_header, shown};
use super::queues::QueueRanges;
use super::table::{Item, Table};

/// No pattern for names of 15 bytes needs more.
const MAX_GLOB: usize = 64;

/// Where the XDP program is to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpSetting {
    /// In the driver, or not at all.
    Native,
    /// In the stack.
    Generic,
    /// In the driver, else in the stack; `list` says which.
    #[default]
    Auto,
}

impl XdpSetting {
    /// The word for it in the policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Auto => "auto",
        }
    }
}

/// What is to keep an unbound socket from binding to a queue that was not granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueLockSetting {
    /// The BPF LSM where it is in force, else placeholders.
    #[default]
    Auto,
    /// The BPF LSM, or no sockets that leave unbound.
    Lsm,
    /// Sockets of the broker's own on every queue that nobody holds.
    Placeholders,
    /// Nothing.
    None,
}

impl QueueLockSetting {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Lsm, Self::Placeholders, Self::None];

    /// The word for it in the policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Lsm => "lsm",
            Self::Placeholders => "placeholders",
            Self::None => "none",
        }
    }
}

/// What holds for a device, whoever asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSettings {
    /// Where the XDP program is to run.
    pub xdp: XdpSetting,
    /// Queues that are never granted: the host's own traffic.
    pub reserved: QueueRanges,
    /// What is to confine unbound sockets to their queues.
    pub queue_lock: QueueLockSetting,
    /// Whether a device that carries the default route, or is a port of a bridge or bond, may be used.
    pub uplink: bool,
}

impl InterfaceSettings {
    /// Of a device that the policy does not name any more, while a lease of it lives: nothing is granted there.
    pub(super) fn of_no_section() -> Self {
        Self {
            xdp: XdpSetting::default(),
            reserved: QueueRanges::default(),
            queue_lock: QueueLockSetting::default(),
            uplink: false,
        }
    }
}

/// An `[interface.…]` section.
#[derive(Debug)]
pub(crate) struct InterfaceSection {
    pub(crate) pattern: Pattern,
    pub(crate) settings: InterfaceSettings,
    /// `file:line`.
    pub(crate) at: String,
    pub(super) place: Place,
}

/// The section that counts for a device: the one with exactly this name, else the first whose pattern matches.
pub(super) fn section_for<'s>(
    sections: &'s [InterfaceSection],
    name: &InterfaceName,
) -> Option<&'s InterfaceSection> {
    let exact = |section: &&InterfaceSection| matches!(&section.pattern, Pattern::Exact(it) if it == name);
    let found = sections.iter().find(exact);
    found.or_else(|| sections.iter().find(|section| section.pattern.matches(name)))
}

/// The name of a device, or a pattern with `*`, `?`, `[…]`, `{…,…}`.
#[derive(Debug)]
pub(crate) enum Pattern {
    Exact(InterfaceName),
    Glob { written: String, set: GlobSet },
}

impl Pattern {
    pub(crate) fn matches(&self, name: &InterfaceName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Glob { set, .. } => set.is_match(name.as_str()),
        }
    }

    pub(crate) fn written(&self) -> &str {
        match self {
            Self::Exact(name) => name.as_str(),
            Self::Glob { written, .. } => written,
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, Mistake> {
        if !text.contains(['*', '?', '[', ']', '{', '}', '\\']) {
            let name = text.parse().map_err(|_| Mistake::BadInterface(text.to_owned()))?;
            return Ok(Self::Exact(name));
        }
        let bad = |why: String| Mistake::BadGlob {
            glob: text.to_owned(),
            why,
        };
        // Classes of globset work on bytes: a range of letters beyond ASCII would match other names than it says.
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
        if text.len() > MAX_GLOB || !text.bytes().all(plain) {
            let why = format!("at most {MAX_GLOB} ASCII characters, no `/`, `:` or white space");
            return Err(bad(why));
        }
        let glob = Glob::new(text).map_err(|error| bad(error.kind().to_string()))?;
        // Through a set, not `compile_matcher`, which panics where the set returns an error.
        let set = GlobSet::new([&glob]).map_err(|error| bad(error.kind().to_string()))?;
        Ok(Self::Glob {
            written: text.to_owned(),
            set,
        })
    }
}

/// Reads all `[interface.…]` sections of a file, in the order in which they stand there.
pub(super) fn read_sections(
    item: &Item<'_>,
    source: &Source,
    sections: &mut Vec<InterfaceSection>,
    findings: &mut Findings,
) {
    let Some(named) = item.value.as_table() else {
        match item.value {
            DeValue::Array(_) => findings.error(&item.place, Mistake::InterfaceIsList),
            _ => item.wrong("a table of devices, as in [interface.eth0]", None, findings),
        }
        return;
    };
    let mut in_order: Vec<_> = named.iter().collect();
    in_order.sort_by_key(|(name, _)| name.span().start);
    for (name, value) in in_order {
        let place = Place {
            file: item.place.file,
            span: name.span(),
        };
        let name = name.get_ref().as_ref();
        let Some(entries) = value.get_ref().as_table() else {
            let mistake = Mistake::WrongType {
                key: name.to_owned(),
                expected: "a device's table, as in [interface.eth0]",
                found: "a value",
                write: None,
            };
            findings.error(&place, mistake);
            continue;
        };
        let dotted = report_unquoted_dots(name, entries, item.place.file, findings);
        if !dotted.is_empty() && dotted.len() == entries.len() {
            continue;
        }
        let pattern = Pattern::parse(name).map_err(|mistake| findings.error(&place, mistake));
        let table = Table::new(entries, Section::Interface, place.clone()).ignoring(dotted);
        let settings = read_settings(table, findings);
        let at = source.at(place.span.start);
        if let Some(first) = sections.iter().find(|section| section.pattern.written() == name) {
            let (name, first) = (name.to_owned(), first.at.clone());
            findings.error(&place, Mistake::DuplicateInterface { name, first });
        } else if let (Ok(pattern), Some(settings)) = (pattern, settings) {
            sections.push(InterfaceSection {
                pattern,
                settings,
                at,
                place,
            });
        }
    }
}

/// `[interface.eth0.100]` is a table `100` inside `eth0` to TOML, and a VLAN to whoever wrote it. Gives the keys
/// that were reported.
fn report_unquoted_dots<'t>(
    name: &str,
    entries: &'t DeTable<'_>,
    file: usize,
    findings: &mut Findings,
) -> Vec<&'t str> {
    const KEYS: [&str; 4] = ["xdp", "reserved", "queue-lock", "uplink"];
    let mut dotted = Vec::new();
    for (key, value) in entries {
        let inner = key.get_ref().as_ref();
        if value.get_ref().is_table() && !KEYS.contains(&inner) {
            let header = shown(&section_header(&format!("{name}.{inner}")));
            let span = key.span();
            findings.error(&Place { file, span }, Mistake::UnquotedDot(header));
            dotted.push(inner);
        }
    }
    dotted
}

fn read_settings(mut table: Table<'_>, findings: &mut Findings) -> Option<InterfaceSettings> {
    let xdp = match table.take("xdp") {
        Some(item) => {
            let words = [XdpSetting::Native, XdpSetting::Generic, XdpSetting::Auto];
            item.word(&words.map(|setting| (setting.as_str(), setting)), findings)
        }
        None => Some(XdpSetting::default()),
    };
    let reserved = match table.take("reserved") {
        Some(item) => read_queues(&item, findings),
        None => Some(QueueRanges::default()),
    };
    let queue_lock = match table.take("queue-lock") {
        Some(item) => item.word(
            &QueueLockSetting::ALL.map(|setting| (setting.as_str(), setting)),
            findings,
        ),
        None => Some(QueueLockSetting::default()),
    };
    let uplink = match table.take("uplink") {
        Some(item) => item.boolean(findings),
        None => Some(false),
    };
    table.finish(findings);
    Some(InterfaceSettings {
        xdp: xdp?,
        reserved: reserved?,
        queue_lock: queue_lock?,
        uplink: uplink?,
    })
}

/// Reads the names and patterns of a rule's `interface`.
pub(super) fn read_patterns(item: &Item<'_>, findings: &mut Findings) -> Option<Vec<(Pattern, Place)>> {
    let mut patterns: Vec<(Pattern, Place)> = Vec::new();
    let mut whole = true;
    for entry in item.entries(findings)? {
        let parsed = entry.text(findings).map(Pattern::parse);
        match parsed {
            Some(Ok(pattern)) if patterns.iter().any(|(had, _)| had.written() == pattern.written()) => {
                let twice = pattern.written().to_owned();
                findings.error(
                    &entry.place,
                    Mistake::Twice {
                        key: "interface",
                        entry: twice,
                    },
                );
            }
            Some(Ok(pattern)) => patterns.push((pattern, entry.place)),
            Some(Err(mistake)) => {
                findings.error(&entry.place, mistake);
                whole = false;
            }
            None => whole = false,
        }
    }
    whole.then_some(patterns)
}

/// Reads a set of queue ids.
pub(super) fn read_queues(item: &Item<'_>, findings: &mut Findings) -> Option<QueueRanges> {
    let parsed = item.text(findings)?.parse();
    parsed
        .map_err(|error| findings.error(&item.place, Mistake::BadQueues(error)))
        .ok()
}
