//! One line of the audit log: what happened, to whom, and why. Whatever of it a client chose is escaped when it becomes
//! text.

use std::time::SystemTime;

use serde::Serialize;
use xsk_client::wire::{InterfaceName, QueueLock, QueueSet, SocketKind, XdpMode};

use crate::ascii;
use crate::identity::Peer;
use crate::lease::Lease;
use crate::record::Record;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The daemon serves.
    Started,
    /// A request was granted, its sockets are on their way.
    Granted,
    /// A request was refused.
    Refused,
    /// A request could not be done, for a reason of our own.
    Failed,
    /// The broker has bound a lease's sockets, they are on their way.
    Bound,
    /// Packets are redirected to a lease's sockets.
    Activated,
    /// A holder bound its socket to something else than it was granted.
    RogueBind,
    /// A holder bound its socket in a mode that its rule does not allow.
    ModeNotAllowed,
    /// A lease has ended.
    Ended,
    /// A lease was moved to another process.
    Transferred,
    /// An ended lease's queues and charges are free again: the kernel has let go of them, or their device is gone.
    Freed,
    /// A device that has our program was set up or down, renamed, or got another MTU; or the program does not fit the policy, as
    /// a start has found too, or fits it again.
    DeviceChanged,
    /// The XDP program was attached to a device.
    Attached,
    /// The XDP program was detached from a device, because the policy wants it otherwise or not at all.
    Detached,
    /// The policy in force would not give a lease: after a reload, or since its device has changed.
    NotAllowed,
    /// It would give it, after all.
    AllowedAgain,
    /// The policy was read anew and is in force.
    Reloaded,
    /// The policy was read anew, has mistakes, and the former one stays in force.
    ReloadRefused,
    /// A lease of the broker before this one goes on.
    TakenOver,
    /// What the broker before this one has written down of a lease is not believed.
    RecordRefused,
    /// The broker before this one has left a socket in a slot, and no record that is believed says whose it is.
    SlotEmptied,
    /// A device has this broker's XDP program in place of the one before.
    ProgramUpdated,
    /// So many requests of one user came to nothing, beyond those that have a line of their own.
    RefusalsSummed,
    /// So many refusals have no line, because nobody took the lines before them.
    EventsDropped,
    /// The daemon ends.
    Stopped,
}

impl Event {
    /// Whether anybody can make any number of them, without ever having been granted anything.
    fn is_refusal(self) -> bool {
        matches!(self, Self::Refused | Self::Failed)
    }

    /// Whether it may have to do without a line: it is a refusal, or of no grant and no end, and could be any number.
    fn is_droppable(self) -> bool {
        self.is_refusal() || matches!(self, Self::RefusalsSummed | Self::NotAllowed | Self::AllowedAgain)
    }
}

/// One line. Members that say nothing are left out.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    time: String,
    event: Event,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<&'a InterfaceName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queues: Option<&'a QueueSet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sockets: Option<SocketKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none", rename = "umemBytes")]
    umem_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", rename = "queueLock")]
    queue_lock: Option<QueueLock>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xdp: Option<XdpMode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

impl<'a> Line<'a> {
    /// A line about nobody yet.
    pub fn new(event: Event) -> Self {
        Self {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            event,
            lease: None,
            uid: None,
            gid: None,
            pid: None,
            interface: None,
            queues: None,
            sockets: None,
            direction: None,
            umem_bytes: None,
            rule: None,
            queue_lock: None,
            xdp: None,
            label: None,
            reason: None,
            message: None,
            count: None,
        }
    }

    /// About a peer.
    #[must_use]
    pub fn peer(self, peer: &Peer) -> Self {
        let (subject, process) = (peer.subject(), peer.process());
        Self {
            uid: Some(subject.uid),
            gid: Some(subject.gid),
            pid: Some(process.pid()),
            ..self
        }
    }

    /// About a lease and its requester.
    #[must_use]
    pub fn lease(self, lease: &'a Lease) -> Self {
        let terms = lease.terms();
        Self {
            lease: Some(lease.id().0),
            interface: Some(&lease.device().name),
            queues: Some(terms.queues()),
            sockets: Some(terms.sockets()),
            direction: Some(terms.direction().as_str()),
            umem_bytes: terms.umem().map(|umem| umem.bytes()),
            rule: Some(terms.rule()),
            queue_lock: Some(lease.queue_lock()),
            xdp: Some(lease.redirect().mode()),
            label: lease.label.as_deref(),
            uid: Some(lease.requester().subject.uid),
            gid: Some(lease.requester().subject.gid),
            pid: Some(lease.requester().pid),
            ..self
        }
    }

    /// About a lease of which nothing is left but what was written down.
    #[must_use]
    pub fn record(self, record: &'a Record) -> Self {
        Self {
            lease: Some(record.lease),
            uid: Some(record.requester.uid),
            gid: Some(record.requester.gid),
            pid: Some(record.requester.pid),
            interface: Some(&record.interface),
            queues: Some(record.terms.queues()),
            rule: Some(record.terms.rule()),
            queue_lock: Some(record.queue_lock),
            label: record.label.as_deref(),
            ..self
        }
    }

    /// About queues of a device.
    #[must_use]
    pub fn target(self, interface: &'a InterfaceName, queues: &'a QueueSet) -> Self {
        Self {
            interface: Some(interface),
            queues: Some(queues),
            ..self
        }
    }

    /// About a device.
    #[must_use]
    pub fn device(self, interface: &'a InterfaceName, xdp: XdpMode) -> Self {
        Self {
            interface: Some(interface),
            xdp: Some(xdp),
            ..self
        }
    }

    /// By this rule.
    #[must_use]
    pub fn rule(self, rule: Option<&'a str>) -> Self {
        Self { rule, ..self }
    }

    /// For this reason, a word for programs.
    #[must_use]
    pub fn reason(self, reason: &'a str) -> Self {
        Self {
            reason: Some(reason),
            ..self
        }
    }

    /// In these words, for people.
    #[must_use]
    pub fn message(self, message: &'a str) -> Self {
        Self {
            message: Some(message),
            ..self
        }
    }

    /// About a user of whom nothing else is known any more.
    #[must_use]
    pub(super) fn uid(self, uid: u32) -> Self {
        Self {
            uid: Some(uid),
            ..self
        }
    }

    /// So many of them.
    #[must_use]
    pub(super) fn count(self, count: u64) -> Self {
        Self {
            count: Some(count),
            ..self
        }
    }

    /// Whose request came to nothing, and for which reason: only of such lines, of which there can be any number.
    pub(super) fn refusal(&self) -> Option<(u32, &str)> {
        let uid = self.uid.filter(|_| self.event.is_refusal())?;
        Some((uid, self.reason.unwrap_or("refused")))
    }

    /// Who loses it where there is no room: only of lines that may be dropped.
    pub(super) fn droppable(&self) -> Option<u32> {
        self.uid.filter(|_| self.event.is_droppable())
    }

    /// Whom it is about, and counts for.
    pub(super) fn whose(&self) -> Option<u32> {
        self.uid
    }

    /// As it is written, with the end of the line.
    pub(super) fn text(&self) -> Result<String, serde_json::Error> {
        let mut text = ascii::json(&serde_json::to_string(self)?);
        text.push('\n');
        Ok(text)
    }
}
