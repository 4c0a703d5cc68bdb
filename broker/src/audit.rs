//! The audit log: one JSON object a line for each decision and for what became of it.
//!
//! It is written by the engine, in the order in which things happened. A line that cannot be written is reported in
//! the ordinary log and does not stop the broker.

use std::fmt;
use std::io::Write;
use std::time::SystemTime;

use serde::Serialize;
use xsk_client::wire::{InterfaceName, QueueLock, QueueSet, SocketKind, XdpMode};

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
    /// The kernel has let go of an ended lease's queues.
    Freed,
    /// A device that has our program was set up or down, renamed, or got another MTU.
    DeviceChanged,
    /// The XDP program was attached to a device.
    Attached,
    /// The XDP program was detached from a device, because the policy wants it otherwise or not at all.
    Detached,
    /// The policy was read anew and is in force.
    Reloaded,
    /// The policy was read anew, has mistakes, and the former one stays in force.
    ReloadRefused,
    /// A lease of the broker before this one goes on.
    TakenOver,
    /// What the broker before this one has written down of a lease is not believed.
    RecordRefused,
    /// A device has this broker's XDP program in place of the one before.
    ProgramUpdated,
    /// The daemon ends.
    Stopped,
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
}

/// Where the lines go.
pub struct Audit(Box<dyn Write + Send>);

impl Audit {
    /// Writes to this.
    pub fn new(sink: Box<dyn Write + Send>) -> Self {
        Self(sink)
    }

    /// Writes one line.
    pub fn write(&mut self, line: &Line<'_>) {
        let written = serde_json::to_string(line)
            .map_err(std::io::Error::from)
            .and_then(|json| {
                let mut bytes = ascii(&json).into_bytes();
                bytes.push(b'\n');
                // One write for a line: lines of several writers to one file stay whole.
                self.0.write_all(&bytes)?;
                self.0.flush()
            });
        if let Err(error) = written {
            tracing::error!(%error, ?line, "cannot write to the audit log");
        }
    }
}

/// The same JSON in printable ASCII: a log is read on terminals, and what a client chose must not move their cursor or
/// turn their writing around. In JSON such characters stand inside of strings only.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && !c.is_ascii_control() {
            text.push(c);
        } else {
            let mut units = [0; 2];
            let escapes = c
                .encode_utf16(&mut units)
                .iter()
                .map(|unit| format!("\\u{unit:04x}"));
            text.extend(escapes);
        }
    }
    text
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Audit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_printable_and_means_the_same() {
        let text = "vm\u{9b}31m\u{7f}\u{202e}\u{1f600}\n";
        let line = ascii(&serde_json::to_string(text).unwrap());
        assert!(line.chars().all(|c| c.is_ascii_graphic()), "{line}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }
}
