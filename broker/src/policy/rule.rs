//! The rules: `[[allow]]` and `[[deny]]`, as data and as they are read.
//!
//! Invariant: a rule without a name of its own, without who, or without interface does not exist; an allow rule
//! has queues and kinds of sockets, too. No such key has a default.

use std::time::Duration;

use xsk_client::wire::{Direction, InterfaceName, SocketKind, ZeroCopy};

use super::diagnostic::{Findings, Place};
use super::interface::{Pattern, read_patterns, read_queues};
use super::mistake::{Mistake, Section};
use super::names::{Account, Machine, Who, read_users, read_who};
use super::queues::QueueRanges;
use super::table::{Item, Table};

/// The limit of each ring where a rule names none: twice what the client library asks for by itself.
pub(super) const DEFAULT_RING_ENTRIES: u32 = 4096;
/// The limit of umem bytes where a rule names none: memory that the kernel pins though its holder may pin none, by
/// the broker's CAP_IPC_LOCK.
pub(super) const DEFAULT_UMEM_BYTES: u64 = 64 << 20;
/// More than any machine has.
const MAX_UMEM_BYTES: u64 = 1 << 50;
/// As in [`RingSizes`](xsk_client::wire::RingSizes). Ring memory is charged to nobody, so a rule sets a lower one.
const MAX_RING_ENTRIES: u32 = 1 << 20;
const DEFAULT_ACTIVATE_WITHIN_MS: u32 = 5000;
const MIN_ACTIVATE_WITHIN_MS: u32 = 100;
/// Ten minutes: until then a queue is kept from others by somebody who does not use it.
const MAX_ACTIVATE_WITHIN_MS: u32 = 600_000;
/// More than any device has queues.
const MAX_LIMIT_QUEUES: u32 = 65_536;

/// An entry of the policy.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: String,
    /// `file:line`.
    pub(crate) at: String,
    pub(crate) who: Who,
    pub(crate) interfaces: Vec<Pattern>,
    pub(crate) queues: QueueRanges,
    pub(crate) effect: Effect,
}

/// What a rule does.
#[derive(Debug)]
pub(crate) enum Effect {
    Allow(Allowance),
    Deny,
}

/// What an allow rule gives.
#[derive(Debug)]
pub(crate) struct Allowance {
    pub(crate) sockets: Vec<SocketKind>,
    /// Which way frames may go.
    pub(crate) direction: Direction,
    /// Whether umems may be on huge pages.
    pub(crate) hugepages: bool,
    /// Queues that one user may hold by this rule at a time.
    pub(crate) max_queues: Option<u32>,
    /// Entries of each ring.
    pub(crate) max_ring_entries: u32,
    /// Umem that the broker registers for one user by this rule at a time.
    pub(crate) max_umem_bytes: u64,
    /// Packets of one busy poll; 0 for no busy polling.
    pub(crate) max_busy_poll_budget: u16,
    pub(crate) activate_within: Duration,
    pub(crate) insert: Insert,
    pub(crate) zero_copy: ZeroCopy,
    /// Whose processes a lease may be transferred to.
    pub(crate) transfer_to: Vec<Account>,
}

impl Allowance {
    /// The uids of those that a lease may be transferred to.
    pub(super) fn transfer_to_uids(&self) -> Vec<u32> {
        self.transfer_to.iter().filter_map(|user| user.id).collect()
    }
}

/// When a socket goes into its slot of `xsks_map`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Insert {
    /// When its holder says that it is bound, and the broker sees that it is.
    #[default]
    WhenBound,
    /// Before it is handed over. Until it is bound, the queue's packets are lost: neither delivered nor passed to
    /// the host.
    AtGrant,
}

impl Rule {
    pub(crate) fn names(&self, interface: &InterfaceName) -> bool {
        self.interfaces.iter().any(|pattern| pattern.matches(interface))
    }

    pub(crate) fn interfaces_written(&self) -> String {
        let written: Vec<&str> = self.interfaces.iter().map(Pattern::written).collect();
        written.join(", ")
    }
}

/// A rule as it was read, with the places that later checks point to.
#[derive(Debug)]
pub(super) struct ReadRule {
    /// The whole rule, unless it has a mistake.
    pub(super) rule: Option<Rule>,
    /// Its name, and where that stands.
    pub(super) name: Option<(String, Place)>,
    /// Where the rule begins.
    pub(super) place: Place,
    /// Where its interfaces stand, in their order.
    pub(super) interface_places: Vec<Place>,
}

/// Reads the rules of one kind in a file.
pub(super) fn read_rules(
    item: &Item<'_>,
    section: Section,
    machine: &mut dyn Machine,
    findings: &mut Findings,
) -> Vec<ReadRule> {
    let Some(list) = item.value.as_array() else {
        match item.value.as_table() {
            Some(_) => findings.error(&item.place, Mistake::RuleIsTable(item.key)),
            None => item.wrong("a list of rules", None, findings),
        }
        return Vec::new();
    };
    let mut rules = Vec::with_capacity(list.len());
    for value in list {
        let entry = Item::new(item.key, value, item.place.file);
        if let Some(table) = entry.table(section, findings) {
            rules.push(read_rule(table, section, machine, findings));
        }
    }
    rules
}

fn read_rule(
    mut table: Table<'_>,
    section: Section,
    machine: &mut dyn Machine,
    findings: &mut Findings,
) -> ReadRule {
    let place = table.place.clone();
    let named = read_name(&mut table, findings);
    let who = read_who(&mut table, section, machine, findings);
    let interfaces = table
        .require("interface", "interface = \"eth0\"", findings)
        .and_then(|item| read_patterns(&item, findings));
    let (queues, effect) = match section {
        Section::Deny => {
            let queues = match table.take("queues") {
                Some(item) => read_queues(&item, findings),
                None => Some(QueueRanges::all()),
            };
            (queues, Some(Effect::Deny))
        }
        _ => {
            let queues = table
                .require("queues", "queues = \"2-4\"", findings)
                .and_then(|item| read_queues(&item, findings));
            (
                queues,
                read_allowance(&mut table, machine, findings).map(Effect::Allow),
            )
        }
    };
    table.finish(findings);

    let (patterns, interface_places) = match interfaces {
        Some(interfaces) => {
            let (patterns, places): (Vec<_>, Vec<_>) = interfaces.into_iter().unzip();
            (Some(patterns), places)
        }
        None => (None, Vec::new()),
    };
    let rule = || {
        Some(Rule {
            name: named.as_ref()?.0.clone(),
            at: String::new(),
            who: who?,
            interfaces: patterns?,
            queues: queues?,
            effect: effect?,
        })
    };
    ReadRule {
        rule: rule(),
        name: named,
        place,
        interface_places,
    }
}

fn read_name(table: &mut Table<'_>, findings: &mut Findings) -> Option<(String, Place)> {
    let item = table.require("name", "name = \"tenant-alice\"", findings)?;
    let name = item.text(findings)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !(1..=64).contains(&name.len()) || !name.bytes().all(plain) {
        findings.error(&item.place, Mistake::BadRuleName(name.to_owned()));
        return None;
    }
    Some((name.to_owned(), item.place))
}

fn read_allowance(
    table: &mut Table<'_>,
    machine: &mut dyn Machine,
    findings: &mut Findings,
) -> Option<Allowance> {
    let sockets = table
        .require("sockets", "sockets = [\"prepared\"]", findings)
        .and_then(|item| read_sockets(&item, findings));
    let direction = match table.take("direction") {
        Some(item) => read_direction(&item, sockets.as_deref(), findings),
        None => Some(Direction::RxTx),
    };
    let hugepages = match table.take("hugepages") {
        Some(item) => item.boolean(findings),
        None => Some(false),
    };
    let limits = match table.take("limits") {
        Some(item) => read_limits(&item, findings),
        None => Some(Limits::default()),
    };
    let activate_within_ms = match table.take("activate-within-ms") {
        Some(item) => item.number(MIN_ACTIVATE_WITHIN_MS, MAX_ACTIVATE_WITHIN_MS, findings),
        None => Some(DEFAULT_ACTIVATE_WITHIN_MS),
    };
    let insert = match table.take("insert") {
        Some(item) => item.word(
            &[("when-bound", Insert::WhenBound), ("at-grant", Insert::AtGrant)],
            findings,
        ),
        None => Some(Insert::default()),
    };
    let zero_copy = match table.take("zero-copy") {
        Some(item) => {
            let words: Vec<_> = ZeroCopy::ALL.iter().map(|word| (word.as_str(), *word)).collect();
            item.word(&words, findings)
        }
        None => Some(ZeroCopy::default()),
    };
    let transfer_to = match table.take("transfer-to") {
        Some(item) => read_users(&item, machine, findings),
        None => Some(Vec::new()),
    };
    let limits = limits?;
    Some(Allowance {
        sockets: sockets?,
        direction: direction?,
        hugepages: hugepages?,
        max_queues: limits.queues,
        max_ring_entries: limits.ring_entries,
        max_umem_bytes: limits.umem_bytes,
        max_busy_poll_budget: limits.busy_poll_budget,
        activate_within: Duration::from_millis(activate_within_ms?.into()),
        insert: insert?,
        zero_copy: zero_copy?,
        transfer_to: transfer_to?,
    })
}

fn read_sockets(item: &Item<'_>, findings: &mut Findings) -> Option<Vec<SocketKind>> {
    let mut kinds = Vec::new();
    let mut whole = true;
    for entry in item.entries(findings)? {
        let words: Vec<_> = SocketKind::ALL
            .iter()
            .map(|kind| (kind.as_str(), *kind))
            .collect();
        match entry.word(&words, findings) {
            Some(kind) if kinds.contains(&kind) => {
                let twice = kind.to_string();
                findings.error(
                    &entry.place,
                    Mistake::Twice {
                        key: "sockets",
                        entry: twice,
                    },
                );
            }
            Some(kind) => kinds.push(kind),
            None => whole = false,
        }
    }
    whole.then_some(kinds)
}

/// Reads which way frames may go: less than both only where the kernel holds every socket to it.
fn read_direction(
    item: &Item<'_>,
    sockets: Option<&[SocketKind]>,
    findings: &mut Findings,
) -> Option<Direction> {
    let words: Vec<_> = Direction::ALL
        .iter()
        .map(|direction| (direction.as_str(), *direction))
        .collect();
    let direction = item.word(&words, findings)?;
    let not_kept = |kind: &&SocketKind| direction != Direction::RxTx && **kind != SocketKind::Bound;
    match sockets.unwrap_or_default().iter().find(not_kept) {
        Some(kind) => {
            findings.error(
                &item.place,
                Mistake::DirectionNotKept {
                    direction,
                    kind: *kind,
                },
            );
            None
        }
        None => Some(direction),
    }
}

/// How much of everything one user may have.
#[derive(Debug, Clone, Copy)]
struct Limits {
    queues: Option<u32>,
    ring_entries: u32,
    umem_bytes: u64,
    busy_poll_budget: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queues: None,
            ring_entries: DEFAULT_RING_ENTRIES,
            umem_bytes: DEFAULT_UMEM_BYTES,
            busy_poll_budget: 0,
        }
    }
}

fn read_limits(item: &Item<'_>, findings: &mut Findings) -> Option<Limits> {
    let mut table = item.table(Section::Limits, findings)?;
    let queues = match table.take("queues") {
        Some(item) => item.number(1, MAX_LIMIT_QUEUES, findings).map(Some),
        None => Some(None),
    };
    let ring_entries = match table.take("ring-entries") {
        Some(item) => {
            item.number(1, MAX_RING_ENTRIES, findings)
                .filter(|entries| match entries.is_power_of_two() {
                    true => true,
                    false => {
                        findings.error(&item.place, Mistake::NotPowerOfTwo(*entries));
                        false
                    }
                })
        }
        None => Some(DEFAULT_RING_ENTRIES),
    };
    let umem_bytes = match table.take("umem-bytes") {
        Some(item) => item.number64(4096, MAX_UMEM_BYTES, findings),
        None => Some(DEFAULT_UMEM_BYTES),
    };
    let busy_poll_budget = match table.take("busy-poll-budget") {
        Some(item) => item.number(1, u16::MAX.into(), findings),
        None => Some(0),
    };
    table.finish(findings);
    Some(Limits {
        queues: queues?,
        ring_entries: ring_entries?,
        umem_bytes: umem_bytes?,
        busy_poll_budget: u16::try_from(busy_poll_budget?).ok()?,
    })
}
