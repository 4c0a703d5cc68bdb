//! What the example is told, and what it tells.

use std::net::Ipv4Addr;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use xsk_client::wire::{SocketKind, Target};
use xsk_client::{BindOptions, Mode, Queue, Request, UmemOptions};

pub(crate) struct Options {
    target: Option<Target>,
    kind: SocketKind,
    pub(crate) ip: Option<[u8; 4]>,
    /// Left out: as the rule wants it.
    mode: Option<Mode>,
    stats: bool,
}

impl Options {
    pub(crate) fn from_args() -> anyhow::Result<Self> {
        let mut options = Self {
            target: None,
            kind: SocketKind::Prepared,
            ip: None,
            mode: None,
            stats: false,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--ip" => {
                    let ip: Ipv4Addr = args.next().context("--ip needs an address")?.parse()?;
                    options.ip = Some(ip.octets());
                }
                "--kind" => {
                    let word = args.next().context("--kind needs a word")?;
                    let known = SocketKind::ALL.iter().find(|kind| kind.as_str() == word);
                    options.kind = *known.with_context(|| format!("--kind {word}: prepared or bound"))?;
                }
                "--zero-copy" => options.mode = Some(Mode::ZeroCopy),
                "--stats" => options.stats = true,
                "--help" | "-h" => {
                    bail!(
                        "usage: echo [IF:QUEUE] [--kind prepared|bound] [--ip ADDRESS] [--zero-copy] [--stats]"
                    )
                }
                target => options.target = Some(target.parse()?),
            }
        }
        Ok(options)
    }

    pub(crate) fn bind(&self) -> BindOptions {
        match self.mode {
            Some(mode) => BindOptions::new().mode(mode),
            None => BindOptions::new(),
        }
    }

    /// What was inherited is what was asked for.
    pub(crate) fn agree(&self, inherited: &Queue) -> anyhow::Result<()> {
        match &self.target {
            Some(target)
                if target.interface != inherited.interface || !target.queues.iter().eq([inherited.id]) =>
            {
                bail!("{target} is not what was inherited, which is {inherited}: leave it out")
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn request(&self) -> anyhow::Result<Request> {
        let target = self
            .target
            .clone()
            .context("which queue? echo eth0:4, or start it by `xsk-broker grant eth0:4 -- echo`")?;
        Ok(match (self.kind, self.mode) {
            (SocketKind::Bound, Some(mode)) => Request::bound(target, &UmemOptions::new()).mode(mode),
            (SocketKind::Bound, None) => Request::bound(target, &UmemOptions::new()),
            _ => Request::new(target),
        })
    }
}

/// Counts, prints, and knows when to end.
pub(crate) struct Report {
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) refused: u64,
    print: bool,
    next: Instant,
    over: Arc<AtomicBool>,
}

impl Report {
    pub(crate) fn new(options: &Options) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let at_end = over.clone();
        // Whoever holds the other end of a pipe ends us by closing it; a terminal or /dev/null does not.
        if std::fs::metadata("/proc/self/fd/0").is_ok_and(|input| input.file_type().is_fifo()) {
            thread::spawn(move || {
                std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).ok();
                at_end.store(true, Ordering::Relaxed);
            });
        }
        Self {
            received: 0,
            sent: 0,
            refused: 0,
            print: options.stats,
            next: Instant::now() + Duration::from_secs(1),
            over,
        }
    }

    /// Whether the input has ended. Prints when a second has passed, and at the end.
    pub(crate) fn is_over(&mut self) -> bool {
        let over = self.over.load(Ordering::Relaxed);
        if self.print && (over || Instant::now() >= self.next) {
            self.next = Instant::now() + Duration::from_secs(1);
            let Self {
                received,
                sent,
                refused,
                ..
            } = self;
            println!(r#"{{"received":{received},"sent":{sent},"refused":{refused}}}"#);
        }
        over
    }
}
