//! What ethtool does, by `SIOCETHTOOL` (numbers from `include/uapi/linux/ethtool.h`).

#![expect(unsafe_code, reason = "the ioctl takes a pointer inside of a structure")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
const ETHTOOL_GRXFHINDIR: u32 = 0x38;
const ETHTOOL_SRXFHINDIR: u32 = 0x39;
const ETH_SS_STATS: u32 = 1;
const ETH_GSTRING_LEN: usize = 32;

/// Something that a device computes later than its sender, or not at all on a veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Offload {
    /// Checksums of what is sent.
    TxChecksum = 0x17,
    /// TCP segmentation.
    Tso = 0x1f,
    /// Segmentation by the stack, as late as possible.
    Gso = 0x24,
    /// Merging of received segments.
    Gro = 0x2c,
}

/// Queues of a device that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    /// Receive queues.
    pub rx: u32,
    /// Transmit queues.
    pub tx: u32,
}

/// `SIOCETHTOOL` in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Ethtool(OwnedFd);

impl Ethtool {
    /// Opens the socket that carries the ioctl.
    pub fn new() -> Result<Self> {
        let fd = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .context("socket(AF_INET)")?;
        Ok(Self(fd))
    }

    /// Switches an offload off.
    pub fn switch_off(&self, device: &str, offload: Offload) -> Result<()> {
        let mut value = Buffer::new(offload as u32, 1);
        self.ioctl(device, &mut value)
            .with_context(|| format!("{device}: switching {offload:?} off"))
    }

    /// How many queues are in use.
    pub fn channels(&self, device: &str) -> Result<Channels> {
        let channels = self.get_channels(device)?;
        // struct ethtool_channels: cmd, max rx, tx, other, combined, then the same four in use.
        Ok(Channels {
            rx: channels.word(5) + channels.word(8),
            tx: channels.word(6) + channels.word(8),
        })
    }

    /// Changes how many queues are in use. Counted as rx and tx, as veth does.
    pub fn set_channels(&self, device: &str, wanted: Channels) -> Result<()> {
        let mut channels = self.get_channels(device)?;
        channels.0[0] = ETHTOOL_SCHANNELS;
        channels.0[5] = wanted.rx;
        channels.0[6] = wanted.tx;
        self.ioctl(device, &mut channels)
            .with_context(|| format!("{device}: setting {wanted:?}"))
    }

    /// Has RSS give everything to one queue, as `ethtool -X DEVICE start QUEUE equal 1` does.
    pub fn steer_all_to(&self, device: &str, queue: u32) -> Result<()> {
        // struct ethtool_rxfh_indir: cmd, the table's size, the table.
        let mut question = Buffer::new(ETHTOOL_GRXFHINDIR, 1);
        self.ioctl(device, &mut question)
            .with_context(|| format!("{device}: asking how large the table of RSS is"))?;
        let entries = usize::try_from(question.word(1))?;
        let mut table = Buffer::new(ETHTOOL_SRXFHINDIR, 1 + entries);
        table.0[1] = question.word(1);
        table.0[2..2 + entries].fill(queue);
        self.ioctl(device, &mut table)
            .with_context(|| format!("{device}: steering to queue {queue}"))
    }

    /// The driver's own counters, by name.
    pub fn statistics(&self, device: &str) -> Result<BTreeMap<String, u64>> {
        let mut info = Buffer::new(ETHTOOL_GSSET_INFO, 4);
        info.0[2] = 1 << ETH_SS_STATS;
        self.ioctl(device, &mut info)
            .with_context(|| format!("{device}: counting its counters"))?;
        let count = usize::try_from(info.word(4))?;

        let mut names = Buffer::new(ETHTOOL_GSTRINGS, 2 + count * ETH_GSTRING_LEN / 4);
        names.0[1] = ETH_SS_STATS;
        names.0[2] = info.word(4);
        self.ioctl(device, &mut names)
            .with_context(|| format!("{device}: naming its counters"))?;

        let mut values = Buffer::new(ETHTOOL_GSTATS, 1 + count * 2);
        values.0[1] = info.word(4);
        self.ioctl(device, &mut values)
            .with_context(|| format!("{device}: reading its counters"))?;
        if usize::try_from(values.word(1))? != count {
            bail!("{device}: its counters changed while they were read");
        }

        Ok((0..count)
            .map(|i| {
                let name: Vec<u8> = (0..ETH_GSTRING_LEN / 4)
                    .flat_map(|word| names.word(3 + i * ETH_GSTRING_LEN / 4 + word).to_ne_bytes())
                    .take_while(|&byte| byte != 0)
                    .collect();
                let value = u64::from(values.word(2 + 2 * i)) | u64::from(values.word(3 + 2 * i)) << 32;
                (String::from_utf8_lossy(&name).into_owned(), value)
            })
            .collect())
    }

    fn get_channels(&self, device: &str) -> Result<Buffer> {
        let mut channels = Buffer::new(ETHTOOL_GCHANNELS, 8);
        self.ioctl(device, &mut channels)
            .with_context(|| format!("{device}: reading its queue counts"))?;
        Ok(channels)
    }

    fn ioctl(&self, device: &str, buffer: &mut Buffer) -> io::Result<()> {
        let mut name = [0; libc::IFNAMSIZ];
        if device.len() >= name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in name.iter_mut().zip(device.bytes()) {
            *to = from.cast_signed();
        }
        let mut request = libc::ifreq {
            ifr_name: name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: buffer.0.as_mut_ptr().cast(),
            },
        };
        // SAFETY: `ifru_data` points to a buffer that lives through the call. The kernel writes no more into it than
        // the command's structure, which `Buffer::new` made room for, with slack for a driver whose number of
        // counters grows meanwhile.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// A command and the words that follow it.
struct Buffer(Vec<u32>);

impl Buffer {
    fn new(command: u32, words: usize) -> Self {
        const SLACK_WORDS: usize = 16 * 1024;
        let mut buffer = vec![0; 1 + words + SLACK_WORDS];
        buffer[0] = command;
        Self(buffer)
    }

    fn word(&self, index: usize) -> u32 {
        self.0[index]
    }
}
