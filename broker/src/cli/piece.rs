//! One piece of what a broker has left, and what is done about it: as `serve --dry-run` and `purge` print it.

use std::io::{self, Write as _};

use serde::Serialize;

use super::table::{Column, layout};

/// What is done about a piece, or would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Action {
    /// It goes on, with the next broker.
    TakeOver,
    /// It ends.
    End,
    /// It is not believed, and stays where it is.
    Refuse,
    /// It is taken away.
    Remove,
    /// It stays as it is.
    Leave,
    /// It gives nothing of some kind until something has happened.
    HoldBack,
}

impl Action {
    const fn word(self) -> &'static str {
        match self {
            Self::TakeOver => "take over",
            Self::End => "end",
            Self::Refuse => "refuse",
            Self::Remove => "remove",
            Self::Leave => "leave",
            Self::HoldBack => "hold back",
        }
    }
}

/// What sort of thing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// An XDP program with its link and maps.
    Program,
    /// A lease, by its record.
    Lease,
    /// A record.
    Record,
    /// A name in the directory of pins.
    Pin,
    /// A file of the run directory.
    File,
    /// A slot of a device's map of sockets.
    Slot,
    /// A device.
    Device,
    /// A broker that would start.
    Start,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Lease => "lease",
            Self::Record => "record",
            Self::Pin => "pin",
            Self::File => "file",
            Self::Slot => "slot",
            Self::Device => "device",
            Self::Start => "start",
        }
    }
}

/// A piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Piece {
    pub(super) action: Action,
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) why: String,
}

impl Piece {
    pub(super) fn new(action: Action, kind: Kind, name: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            action,
            kind,
            name: name.into(),
            why: why.into(),
        }
    }
}

/// Prints them: a table, or a JSON array on one line.
///
/// # Errors
///
/// Those of standard output.
pub(super) fn print(pieces: &[Piece], json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, pieces)?;
        writeln!(out)?;
    } else if pieces.is_empty() {
        writeln!(out, "nothing is left")?;
    } else {
        let columns = [
            Column::Left("ACTION"),
            Column::Left("WHAT"),
            Column::Left("NAME"),
            Column::Left("WHY"),
        ];
        let row = |piece: &Piece| {
            [
                piece.action.word().to_owned(),
                piece.kind.word().to_owned(),
                piece.name.clone(),
                piece.why.clone(),
            ]
        };
        let rows: Vec<_> = pieces.iter().map(row).collect();
        out.write_all(layout(columns, &rows).as_bytes())?;
    }
    Ok(out.flush()?)
}
