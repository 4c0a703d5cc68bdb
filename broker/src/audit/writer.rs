//! The thread that writes the audit log. It may wait for its reader as long as that one likes.
//!
//! A write that fails is tried again, from the byte at which it stopped, until it succeeds: a disk that is full may be
//! emptied. Meanwhile lines wait, as behind a reader that stalls.

use std::io::{self, ErrorKind, Write};
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use super::sink::{Reopened, Sink};
use super::{Audit, Shared};
use crate::error::{Failure, chain};

/// How long the end of the broker waits for a reader that stalls.
const PATIENCE: Duration = Duration::from_secs(5);

/// The running thread. Dropping it has everything written that waits, which it waits for only so long.
#[derive(Debug)]
#[must_use = "dropping it ends the log"]
pub struct Writer(Audit);

impl Writer {
    /// Starts it, with the capabilities of the calling thread, which should have none.
    ///
    /// # Errors
    ///
    /// As clone(2).
    pub fn start(audit: &Audit, sink: Sink) -> Result<Self, Failure> {
        let (own, writer) = (audit.clone(), Self(audit.clone()));
        thread::Builder::new()
            .name("audit".into())
            .spawn(move || {
                let _ended = Ended(&own.0);
                write_all(&own.0, sink);
            })
            .map_err(|source| Failure::kernel("clone", "audit thread", source))?;
        Ok(writer)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let mut state = shared.lock();
        state.closing = true;
        state.backlog.close();
        shared.news.notify_one();
        let waited = shared
            .ended
            .wait_timeout_while(state, PATIENCE, |state| !state.ended);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let left = state.backlog.lines();
        if left > 0 {
            tracing::error!("lines of the audit log that nobody took, and that are lost: {left}");
        }
    }
}

/// Says so when the thread ends.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.ended.notify_all();
    }
}

fn write_all(shared: &Shared, mut sink: Sink) {
    loop {
        match next(shared) {
            // One write for a line: lines of several writers to one file stay whole.
            Next::Line(line) => {
                if write(shared, &mut sink, line.as_bytes()) == Written::Never {
                    return;
                }
            }
            Next::Reopen => reopen(shared, &mut sink),
            Next::End => return,
        }
    }
}

fn reopen(shared: &Shared, sink: &mut Sink) {
    let misplaced = match sink.reopen() {
        Ok(Reopened::Another) => {
            tracing::info!("the audit log was opened anew: lines go to another file of its name");
            None
        }
        Ok(Reopened::Same) => None,
        Err(failure) => {
            let uid = rustix::process::geteuid().as_raw();
            let why = format!(
                "{}: lines go on to the file that was open; whoever rotates it has to make the next one uid {uid}'s to write to \
                 (logrotate: `create`), or to copy and truncate it (`copytruncate`), and then reload again",
                chain(&failure)
            );
            tracing::error!("{why}");
            Some(why)
        }
    };
    shared.lock().misplaced = misplaced;
}

/// What the thread is to do.
enum Next {
    Line(String),
    Reopen,
    End,
}

/// Waits for what is next.
fn next(shared: &Shared) -> Next {
    let mut state = shared.lock();
    loop {
        if std::mem::take(&mut state.reopen) {
            return Next::Reopen;
        }
        let now = Instant::now();
        let line = state.backlog.next(now);
        state.see_room();
        if let Some(line) = line {
            return Next::Line(line);
        }
        if state.closing {
            return Next::End;
        }
        state = match state.backlog.due() {
            None => shared.news.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(due) => {
                let waited = shared
                    .news
                    .wait_timeout(state, due.saturating_duration_since(now));
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Written {
    All,
    /// It fails, and the broker ends.
    Never,
}

fn write(shared: &Shared, sink: &mut Sink, mut bytes: &[u8]) -> Written {
    /// Before a write that failed is tried again.
    const AGAIN: Duration = Duration::from_millis(100);
    /// The same where somebody has made the pipe non-blocking.
    const SOON: Duration = Duration::from_millis(5);

    while !bytes.is_empty() {
        let error = match sink.write(bytes) {
            Ok(0) => io::Error::from(ErrorKind::WriteZero),
            Ok(written) => {
                bytes = bytes.get(written..).unwrap_or_default();
                works_again(shared);
                continue;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(SOON);
                continue;
            }
            Err(error) => error,
        };
        let mut state = shared.lock();
        if state.trouble.is_none() {
            tracing::error!(%error, "cannot write to the audit log, and goes on trying");
        }
        state.trouble = Some(error.to_string());
        if state.closing {
            return Written::Never;
        }
        drop(state);
        thread::sleep(AGAIN);
    }
    Written::All
}

fn works_again(shared: &Shared) {
    if shared.lock().trouble.take().is_some() {
        tracing::info!("the audit log is written again");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::super::line::{Event, Line};
    use super::super::{Audit, Bounds};
    use super::*;

    #[test]
    fn nobody_waits_for_a_reader_and_every_line_comes_in_order() {
        const LINES: u64 = 5000;

        let (mut reader, pipe) = io::pipe().unwrap();
        let audit = Audit::new();
        let writer = Writer::start(&audit, OwnedFd::from(pipe).into()).unwrap();
        // More than the pipe takes, while nobody reads.
        for count in 0..LINES {
            audit.write(&Line::new(Event::Granted).count(count));
        }
        assert!(audit.status().waiting_lines > 0);
        let read = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        drop(writer);
        let text = read.join().unwrap();
        let counts: Vec<u64> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["count"]
                    .as_u64()
                    .unwrap()
            })
            .collect();
        assert_eq!(counts, (0..LINES).collect::<Vec<_>>());
        assert_eq!(audit.status().waiting_lines, 0);
    }

    #[test]
    fn a_full_disk_loses_nothing_and_ends_the_broker_in_time() {
        let audit = Audit::within(Bounds {
            refusals: 100,
            reserve: 1000,
        });
        let full = File::options().write(true).open("/dev/full").unwrap();
        let writer = Writer::start(&audit, OwnedFd::from(full).into()).unwrap();
        while audit.check_room(0).is_ok() {
            audit.write(&Line::new(Event::Ended));
        }
        audit.write(&Line::new(Event::Ended));
        let patience = Instant::now() + PATIENCE;
        while audit.status().trouble.is_none() {
            assert!(Instant::now() < patience);
            thread::sleep(Duration::from_millis(1));
        }
        assert!(audit.status().waiting_bytes > 1000);
        let began = Instant::now();
        drop(writer);
        assert!(began.elapsed() < PATIENCE, "it waited for what cannot be");
        assert!(audit.status().waiting_lines > 0);
    }

    /// As logrotate does it, by somebody who may make files there.
    #[test]
    fn a_file_that_was_renamed_is_made_anew_when_asked_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let [path, old] = ["audit.log", "audit.log.1"].map(|name| directory.path().join(name));
        let audit = Audit::new();
        let writer = Writer::start(&audit, Sink::open(&path).unwrap()).unwrap();
        let lines =
            |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
        let wait = |path: &std::path::Path, count| {
            let patience = Instant::now() + PATIENCE;
            while lines(path) != count {
                assert!(Instant::now() < patience, "{} of {count}", lines(path));
                thread::sleep(Duration::from_millis(1));
            }
        };
        audit.write(&Line::new(Event::Granted));
        wait(&path, 1);
        audit.reopen();
        audit.write(&Line::new(Event::Granted));
        wait(&path, 2);
        std::fs::rename(&path, &old).unwrap();
        audit.write(&Line::new(Event::Granted));
        wait(&old, 3);
        audit.reopen();
        audit.write(&Line::new(Event::Granted));
        wait(&path, 1);
        // Something else of that name is not written to.
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        audit.reopen();
        audit.write(&Line::new(Event::Granted));
        drop(writer);
        assert_eq!(audit.status().waiting_lines, 0);
        assert_eq!(lines(&old), 3);
    }
}
