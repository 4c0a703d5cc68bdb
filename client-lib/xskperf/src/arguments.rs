//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use xsk_client::wire::Target;

/// Move packets over one AF_XDP queue and tell how fast, without a capability.
///
/// The socket comes from xsk-broker: this program asks for the queue that is named, or inherits it from
/// `xsk-broker grant`. Each second it prints packets per second and what was dropped, where, and why; Ctrl-C ends it with
/// the sums.
#[derive(Debug, clap::Parser)]
#[command(
    name = "xskperf",
    version,
    max_term_width = 100,
    after_help = "Columns:\n  \
        ring full   arrived, and the RX ring had no room: this program was too slow (rx_ring_full)\n  \
        no chunk    arrived, and the fill ring was empty, or the packet longer than a chunk (rx_dropped)\n  \
        refused     descriptors that the kernel or the library refused: should be 0\n\n\
        From xdpsock: the same letters mean the same, and `xskperf -l -i eth0 -q 4 -z -b 32` is taken for\n\
        `xskperf l2fwd eth0:4 -z -b 32`. What differs: where there is nothing to do it sleeps, as\n\
        xdpsock does with -p, unless told --busy; a chunk has 2048 bytes unless -f says 4096; how XDP\n\
        is attached is the policy's; copy or zero-copy is never left to the kernel, and the first line\n\
        says which it is.\n\n\
        Examples:\n  \
        xskperf rxdrop eth0:4\n  \
        xskperf txonly eth0:4 --destination 02:00:00:00:00:01 --frame-bytes 1500 --seconds 10\n  \
        xsk-broker grant eth0:4 -- xskperf l2fwd --json\n  \
        xskperf pingpong eth0:4        # while `xskperf l2fwd` runs at the other end"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) mode: Subcommand,
}

/// The words for [`Subcommand`].
pub(crate) const MODES: [&str; 4] = ["rxdrop", "txonly", "l2fwd", "pingpong"];

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Receive packets and drop them
    Rxdrop(Options),
    /// Send packets, as many as the device takes
    Txonly(Options),
    /// Send each received packet back, with its Ethernet addresses swapped
    L2fwd(Options),
    /// Send one packet, wait until it comes back, and again: tells round-trip times
    Pingpong(Options),
}

/// What the loop does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Rxdrop,
    Txonly,
    L2fwd,
    Pingpong,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The queue, as eth0:4; not needed where `xsk-broker grant` has started this
    #[arg(value_name = "IF:QUEUE")]
    pub(crate) target: Option<Target>,

    /// End after so many seconds
    #[arg(long, short = 'd', alias = "duration", value_name = "SECONDS")]
    pub(crate) seconds: Option<f64>,

    /// End after so many packets, or round trips
    #[arg(long, short = 'C', alias = "tx-pkt-count", value_name = "PACKETS")]
    pub(crate) packets: Option<u64>,

    /// How often a line is printed, in seconds
    #[arg(long, short = 'n', default_value_t = 1.0, value_name = "SECONDS")]
    pub(crate) interval: f64,

    /// Packets that are looked at or made at a time
    #[arg(long, short = 'b', alias = "batch-size", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096), value_name = "PACKETS")]
    pub(crate) batch: u32,

    /// Entries of each ring, a power of two; 2048 if not told
    #[arg(long, value_name = "ENTRIES")]
    pub(crate) rings: Option<u32>,

    /// Chunks of the umem
    #[arg(long, default_value_t = 2048, value_name = "CHUNKS")]
    pub(crate) chunks: u32,

    /// Bytes of a chunk: 2048 or 4096. A packet that is longer, with 256 bytes for the kernel, is dropped
    #[arg(
        long,
        short = 'f',
        alias = "frame-size",
        default_value_t = 2048,
        value_name = "BYTES"
    )]
    pub(crate) chunk_bytes: u32,

    /// Packets may be of several chunks (Linux 6.6): jumbo frames
    #[arg(long, short = 'F')]
    pub(crate) frags: bool,

    /// Bytes of the packets that are made here, without the wire's checksum; one chunk's at most, or 18 with --frags
    #[arg(long, short = 's', alias = "tx-pkt-size", default_value_t = 64, value_parser = clap::value_parser!(u32).range(60..=65535), value_name = "BYTES")]
    pub(crate) frame_bytes: u32,

    /// To whom the packets go that are made here
    #[arg(
        long,
        short = 'G',
        alias = "tx-dmac",
        default_value = "ff:ff:ff:ff:ff:ff",
        value_name = "MAC"
    )]
    pub(crate) destination: Mac,

    /// From whom they come
    #[arg(
        long,
        short = 'H',
        alias = "tx-smac",
        default_value = "02:00:00:00:00:02",
        value_name = "MAC"
    )]
    pub(crate) source: Mac,

    /// Whether the kernel copies each packet, or the device uses our memory itself; if not told, as the rule requires,
    /// else copy
    #[arg(long, value_enum, group = "copying")]
    pub(crate) mode: Option<Copying>,

    /// As --mode zero-copy
    #[arg(long, short = 'z', group = "copying")]
    pub(crate) zero_copy: bool,

    /// As --mode copy
    #[arg(long, short = 'c', group = "copying")]
    pub(crate) copy: bool,

    /// Never sleep: look again at once where there is nothing to do
    #[arg(long)]
    pub(crate) busy: bool,

    /// The broker's socket
    #[arg(long, value_name = "PATH", env = "XSK_BROKER_SOCKET", default_value = xsk_client::wire::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,

    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Copy or zero-copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Copying {
    /// The kernel copies; works on every device
    Copy,
    /// Zero-copy, or fail
    ZeroCopy,
    /// Zero-copy where it can be had, else copy; the first line says which
    Auto,
}

impl Options {
    /// What was told of it.
    pub(crate) fn copying(&self) -> Option<Copying> {
        match (self.zero_copy, self.copy) {
            (true, _) => Some(Copying::ZeroCopy),
            (_, true) => Some(Copying::Copy),
            _ => self.mode,
        }
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "an Ethernet address is six bytes in hexadecimal, as 02:00:00:00:00:01";
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts
                .next()
                .filter(|part| (1..=2).contains(&part.len()))
                .ok_or(FORM)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| FORM)?;
        }
        match parts.next() {
            None => Ok(Self(mac)),
            Some(_) => Err(FORM),
        }
    }
}

impl Subcommand {
    pub(crate) fn parts(&self) -> (Mode, &Options) {
        match self {
            Self::Rxdrop(options) => (Mode::Rxdrop, options),
            Self::Txonly(options) => (Mode::Txonly, options),
            Self::L2fwd(options) => (Mode::L2fwd, options),
            Self::Pingpong(options) => (Mode::Pingpong, options),
        }
    }
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rxdrop => "rxdrop",
            Self::Txonly => "txonly",
            Self::L2fwd => "l2fwd",
            Self::Pingpong => "pingpong",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        let modes: Vec<_> = Arguments::command()
            .get_subcommands()
            .map(|it| it.get_name().to_owned())
            .collect();
        assert_eq!(modes, MODES);
    }

    #[test]
    fn the_mode_is_told_once() {
        let options = |words: &[&str]| {
            let words = ["xskperf", "rxdrop", "eth0:4"].iter().chain(words);
            let Arguments { mode } = Arguments::try_parse_from(words).ok()?;
            Some(mode.parts().1.copying())
        };
        assert_eq!(options(&[]), Some(None));
        assert_eq!(options(&["-z"]), Some(Some(Copying::ZeroCopy)));
        assert_eq!(options(&["--mode", "auto"]), Some(Some(Copying::Auto)));
        assert_eq!(options(&["-z", "-c"]), None);
        assert_eq!(options(&["-c", "--mode", "auto"]), None);
    }

    #[test]
    fn ethernet_addresses() {
        assert_eq!("02:0:ff:00:00:1".parse(), Ok(Mac([2, 0, 255, 0, 0, 1])));
        for wrong in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02:00:00:00:00:g1",
            "020:0:0:0:0:0",
        ] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
