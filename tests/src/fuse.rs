//! A file whose pages take as long to be read as it likes: a FUSE file system that is one file, and that never answers a
//! read. Any user may mount one in a user namespace of its own, where /dev/fuse is open to all, as udev makes it.
//!
//! Whoever serves it has to be a process of its own: when that ends, so do all who wait for a page.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::net::sockopt;
use rustix::net::xdp::{XdpUmemReg, XdpUmemRegFlags};

use crate::sys;

/// The file's length: one page.
pub const BYTES: u32 = 4096;

/// `struct fuse_in_header` (include/uapi/linux/fuse.h).
const HEADER_BYTES: usize = 40;
/// More than the kernel asks for (`FUSE_MIN_READ_BUFFER`, and what a write would take).
const BUFFER_BYTES: usize = 256 * 1024;

const FUSE_FORGET: u32 = 2;
const FUSE_GETATTR: u32 = 3;
const FUSE_OPEN: u32 = 14;
const FUSE_READ: u32 = 15;
const FUSE_INIT: u32 = 26;
const FUSE_INTERRUPT: u32 = 36;
const FUSE_BATCH_FORGET: u32 = 42;

/// Maps the calling process's ids to root's of the user namespace that it is in, which has no map yet.
pub fn become_root_of_own_namespace(uid: u32) -> Result<()> {
    for (file, line) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {uid} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        fs::write(&path, line).context(path)?;
    }
    Ok(())
}

/// The file system, mounted.
#[derive(Debug)]
pub struct Unread(File);

impl Unread {
    /// Mounts it over a regular file.
    pub fn mount(over: &Path) -> Result<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.context("/dev/fuse")?;
        let options = format!("fd={},rootmode=100000,user_id=0,group_id=0\0", device.as_raw_fd());
        let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes())?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("unread", over, "fuse", flags, options)
            .with_context(|| format!("mounting fuse over {}", over.display()))?;
        Ok(Self(device))
    }

    /// Serves it until a page is asked for, which is never given.
    pub fn serve_until_read(&mut self) -> Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = self.0.read(&mut buffer).context("reading /dev/fuse")?;
            let request = buffer.get(..read).context("more than there is")?;
            ensure!(read >= HEADER_BYTES, "half a request");
            let unique = request.get(8..16).context("no number")?;
            let answer = match word(request, 4)? {
                FUSE_READ => return Ok(()),
                FUSE_INIT => Ok(init()),
                FUSE_GETATTR => Ok(attributes()),
                // A handle, no flags.
                FUSE_OPEN => Ok(vec![0; 16]),
                FUSE_FORGET | FUSE_BATCH_FORGET | FUSE_INTERRUPT => continue,
                _ => Err(-libc::ENOSYS),
            };
            let (error, body) = match answer {
                Ok(body) => (0, body),
                Err(error) => (error, Vec::new()),
            };
            let mut reply = u32::try_from(16 + body.len())?.to_ne_bytes().to_vec();
            reply.extend(error.to_ne_bytes());
            reply.extend(unique);
            reply.extend(body);
            self.0.write_all(&reply).context("writing /dev/fuse")?;
        }
    }
}

/// `struct fuse_init_out` of version 7.31: no feature at all.
fn init() -> Vec<u8> {
    let mut body = Vec::new();
    for value in [7_u32, 31, 0, 0, 0, 4096, 1] {
        body.extend(value.to_ne_bytes());
    }
    body.resize(64, 0);
    body
}

/// `struct fuse_attr_out`: a regular file of that length.
fn attributes() -> Vec<u8> {
    let mut body = vec![0; 104];
    // `attr_valid`, then `ino`, `size` and `mode` of `struct fuse_attr` behind 16 bytes.
    body[0..8].copy_from_slice(&3600_u64.to_ne_bytes());
    body[16..24].copy_from_slice(&1_u64.to_ne_bytes());
    body[24..32].copy_from_slice(&u64::from(BYTES).to_ne_bytes());
    body[76..80].copy_from_slice(&(libc::S_IFREG | 0o600).to_ne_bytes());
    body[80..84].copy_from_slice(&1_u32.to_ne_bytes());
    body
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..at + 4).context("half a word")?;
    Ok(u32::from_ne_bytes(bytes.try_into()?))
}

/// A private mapping of the file, made ready to be registered as the memory of an AF_XDP socket. (A shared one is refused
/// from about Linux 6.5 on.) It stays mapped.
#[derive(Debug, Clone, Copy)]
pub struct Memory(u64);

impl Memory {
    /// Maps it; nothing is read yet.
    pub fn of(file: &File) -> Result<Self> {
        // The length is known to the kernel only once it has asked for it.
        let length = file.metadata()?.len();
        ensure!(length == u64::from(BYTES), "it has {length} bytes");
        let bytes = usize::try_from(BYTES)?;
        Ok(Self(sys::map_privately(file, bytes).context("mmap")?))
    }

    /// Registers it with a socket, which takes as long as the file is not read.
    pub fn register(self, socket: impl std::os::fd::AsFd) -> rustix::io::Result<()> {
        let registration = XdpUmemReg {
            addr: self.0,
            len: u64::from(BYTES),
            chunk_size: BYTES,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(socket, registration)
    }
}
