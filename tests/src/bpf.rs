//! `bpf(2)` by hand, as little as the fixture needs: so that the tests judge the broker's XDP program and its loader
//! with neither of them. Numbers and offsets are those of `union bpf_attr` in `include/uapi/linux/bpf.h`.

#![expect(
    unsafe_code,
    reason = "bpf(2) has no safe wrapper, and its attributes hold pointers"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};

use crate::instructions::Instruction;

/// A kind of object that has an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A program.
    Program,
    /// A map.
    Map,
    /// A link, which attaches a program to something.
    Link,
}

/// What a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ProgramType {
    /// A traffic classifier.
    SchedCls = 3,
    /// At a device's receive queues.
    Xdp = 6,
}

/// What a map holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MapType {
    /// Values by index.
    Array = 2,
    /// The same, with a value for each CPU.
    PerCpuArray = 6,
    /// AF_XDP sockets by index.
    XskMap = 17,
}

/// Where an XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum XdpAttach {
    /// In the stack (`XDP_FLAGS_SKB_MODE`).
    Generic = 1 << 1,
    /// In the driver (`XDP_FLAGS_DRV_MODE`).
    Native = 1 << 2,
}

/// Loads a program. What the verifier says is in the error.
pub fn load(kind: ProgramType, name: &str, program: &[Instruction]) -> Result<OwnedFd> {
    load_with(kind as u32, name, program, |_| {})
}

/// Loads an XDP program that may take the place of another one in a link: for the same attach type.
pub fn load_xdp_for_link(name: &str, program: &[Instruction]) -> Result<OwnedFd> {
    const BPF_XDP: u32 = 37;
    load_with(ProgramType::Xdp as u32, name, program, |attr| {
        attr.u32(68, BPF_XDP);
    })
}

/// Loads a BPF LSM program for a hook, by the id of its function among the kernel's types.
pub fn load_lsm(name: &str, program: &[Instruction], hook: u32) -> Result<OwnedFd> {
    const BPF_PROG_TYPE_LSM: u32 = 29;
    const BPF_LSM_MAC: u32 = 27;
    load_with(BPF_PROG_TYPE_LSM, name, program, |attr| {
        attr.u32(68, BPF_LSM_MAC);
        attr.u32(108, hook);
    })
}

/// Attaches a BPF LSM program, until the link's fd is closed.
pub fn attach_lsm(program: &OwnedFd) -> io::Result<OwnedFd> {
    let mut attr = Attr::new();
    attr.fd(8, program);
    attr.new_fd(BPF_RAW_TRACEPOINT_OPEN)
}

fn load_with(
    kind: u32,
    name: &str,
    program: &[Instruction],
    more: impl FnOnce(&mut Attr),
) -> Result<OwnedFd> {
    let code: Vec<u64> = program.iter().map(|instruction| instruction.encode()).collect();
    let mut log = vec![0_u8; 64 * 1024];
    let mut attr = Attr::new();
    attr.u32(0, kind);
    attr.u32(4, u32::try_from(code.len())?);
    attr.pointer(8, code.as_ptr().cast());
    attr.pointer(16, c"Dual MIT/GPL".as_ptr().cast());
    attr.u32(24, 1);
    attr.u32(28, u32::try_from(log.len())?);
    attr.pointer(32, log.as_mut_ptr().cast_const());
    attr.name(48, name);
    more(&mut attr);
    attr.new_fd(BPF_PROG_LOAD).with_context(|| {
        let said = log.split(|&byte| byte == 0).next().unwrap_or_default();
        format!("loading the program {name}: {}", String::from_utf8_lossy(said))
    })
}

/// Makes a map with keys of 4 bytes.
pub fn create_map(kind: MapType, name: &str, value_bytes: u32, entries: u32) -> Result<OwnedFd> {
    let mut attr = Attr::new();
    attr.u32(0, kind as u32);
    attr.u32(4, 4);
    attr.u32(8, value_bytes);
    attr.u32(12, entries);
    attr.name(28, name);
    attr.new_fd(BPF_MAP_CREATE)
        .with_context(|| format!("making the map {name}"))
}

/// Puts a socket into an XSKMAP.
pub fn insert_socket(map: &OwnedFd, key: u32, socket: impl AsFd) -> io::Result<()> {
    let value = socket.as_fd().as_raw_fd();
    let mut attr = Attr::element(map, &key);
    attr.pointer(16, (&raw const value).cast());
    attr.call(BPF_MAP_UPDATE_ELEM).map(drop)
}

/// The same, unless the slot is filled: `EEXIST`.
pub fn insert_new_socket(map: &OwnedFd, key: u32, socket: impl AsFd) -> io::Result<()> {
    const BPF_NOEXIST: u32 = 1;
    let value = socket.as_fd().as_raw_fd();
    let mut attr = Attr::element(map, &key);
    attr.pointer(16, (&raw const value).cast());
    attr.u32(24, BPF_NOEXIST);
    attr.call(BPF_MAP_UPDATE_ELEM).map(drop)
}

/// Empties a slot.
pub fn delete(map: &OwnedFd, key: u32) -> io::Result<()> {
    Attr::element(map, &key).call(BPF_MAP_DELETE_ELEM).map(drop)
}

/// Reads an array's value of 8 bytes.
pub fn lookup_u64(map: &OwnedFd, key: u32) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut attr = Attr::element(map, &key);
    attr.pointer(16, (&raw mut value).cast_const().cast());
    attr.call(BPF_MAP_LOOKUP_ELEM)?;
    Ok(value)
}

/// Attaches an XDP program to a device of the calling thread's network namespace, until the link's fd is closed.
pub fn attach_xdp(program: &OwnedFd, interface_index: u32, mode: XdpAttach) -> io::Result<OwnedFd> {
    const BPF_XDP: u32 = 37;
    let mut attr = Attr::new();
    attr.fd(0, program);
    attr.u32(4, interface_index);
    attr.u32(8, BPF_XDP);
    attr.u32(12, mode as u32);
    attr.new_fd(BPF_LINK_CREATE)
}

/// What a test run is to do, and with what.
#[derive(Debug, Clone, Copy)]
pub enum TestRun<'a> {
    /// The program is run on the frame and its verdict is only told.
    Dry {
        /// The frame.
        frame: &'a [u8],
        /// `struct xdp_md`, if the program looks at more than the frame.
        context: &'a [u8],
        /// How often.
        repeat: u32,
    },
    /// Copies of the frame go where the program sends them (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18): redirected, in
    /// the calling thread's network namespace, as fast as the kernel can.
    Live {
        /// The frame.
        frame: &'a [u8],
        /// How many copies.
        repeat: u32,
    },
}

/// Runs an XDP program (`BPF_PROG_TEST_RUN`). Returns its last verdict and the mean nanoseconds of a run, as the kernel
/// measured them; both are 0 for a live run.
///
/// A signal ends a long one with `EINTR`.
pub fn test_run(program: &OwnedFd, run: TestRun<'_>) -> io::Result<(u32, u32)> {
    const LIVE_FRAMES: u32 = 1 << 1;
    let (frame, context, repeat, flags) = match run {
        TestRun::Dry {
            frame,
            context,
            repeat,
        } => (frame, context, repeat, 0),
        TestRun::Live { frame, repeat } => (frame, [].as_slice(), repeat, LIVE_FRAMES),
    };
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput);
    let mut attr = Attr::new();
    attr.fd(0, program);
    attr.u32(8, size(frame)?);
    attr.pointer(16, frame.as_ptr());
    attr.u32(32, repeat);
    if !context.is_empty() {
        attr.u32(40, size(context)?);
        attr.pointer(48, context.as_ptr());
    }
    attr.u32(64, flags);
    attr.call(BPF_PROG_TEST_RUN)?;
    Ok((attr.get_u32(4), attr.get_u32(36)))
}

/// Pins an object.
pub fn pin(object: &OwnedFd, path: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr::new();
    attr.pointer(0, name.as_ptr().cast());
    attr.fd(8, object);
    attr.call(BPF_OBJ_PIN)
        .with_context(|| format!("pinning {}", path.display()))?;
    Ok(())
}

/// Opens what is pinned there.
pub fn open_pinned(path: &Path) -> Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr::new();
    attr.pointer(0, name.as_ptr().cast());
    attr.new_fd(BPF_OBJ_GET)
        .with_context(|| format!("opening {}", path.display()))
}

/// Has a link run another program.
pub fn update_link(link: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    let mut attr = Attr::new();
    attr.fd(0, link);
    attr.fd(4, program);
    attr.call(BPF_LINK_UPDATE).map(drop)
}

/// Whether an object of this id exists.
pub fn exists(kind: Kind, id: u32) -> Result<bool> {
    let mut attr = Attr::new();
    attr.u32(0, id);
    let command = match kind {
        Kind::Program => BPF_PROG_GET_FD_BY_ID,
        Kind::Map => BPF_MAP_GET_FD_BY_ID,
        Kind::Link => BPF_LINK_GET_FD_BY_ID,
    };
    match attr.new_fd(command) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        // A link whose program or device is going away just now.
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error).with_context(|| format!("looking for {kind:?} {id}")),
    }
}

const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_LOOKUP_ELEM: i64 = 1;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_MAP_DELETE_ELEM: i64 = 3;
const BPF_PROG_LOAD: i64 = 5;
const BPF_OBJ_PIN: i64 = 6;
const BPF_OBJ_GET: i64 = 7;
const BPF_PROG_TEST_RUN: i64 = 10;
const BPF_PROG_GET_FD_BY_ID: i64 = 13;
const BPF_MAP_GET_FD_BY_ID: i64 = 14;
const BPF_RAW_TRACEPOINT_OPEN: i64 = 17;
const BPF_LINK_CREATE: i64 = 28;
const BPF_LINK_UPDATE: i64 = 29;
const BPF_LINK_GET_FD_BY_ID: i64 = 30;

/// `union bpf_attr`. Private, so that every pointer in it is put there by a function above, which keeps what it
/// points to alive and large enough.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Self {
        Self([0; 128])
    }

    fn element(map: &OwnedFd, key: &u32) -> Self {
        let mut attr = Self::new();
        attr.fd(0, map);
        attr.pointer(8, std::ptr::from_ref(key).cast());
        attr
    }

    fn u32(&mut self, offset: usize, value: u32) {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn get_u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_ne_bytes(bytes)
    }

    fn fd(&mut self, offset: usize, fd: &OwnedFd) {
        self.u32(offset, fd.as_raw_fd().cast_unsigned());
    }

    fn pointer(&mut self, offset: usize, pointer: *const u8) {
        let address = pointer.expose_provenance() as u64;
        self.0[offset..offset + 8].copy_from_slice(&address.to_ne_bytes());
    }

    /// `BPF_OBJ_NAME_LEN` is 16 with the NUL.
    fn name(&mut self, offset: usize, name: &str) {
        for (to, from) in self.0[offset..offset + 15].iter_mut().zip(name.bytes()) {
            *to = from;
        }
    }

    fn call(&mut self, command: i64) -> io::Result<i32> {
        // SAFETY: the kernel reads and writes this union, whose size is told, and what its pointers lead to: buffers
        // of the functions above, which outlive the call and have the sizes that the attributes say.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        i32::try_from(result)
            .ok()
            .filter(|&result| result >= 0)
            .ok_or_else(io::Error::last_os_error)
    }

    fn new_fd(&mut self, command: i64) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: these commands return a new fd, close-on-exec, that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
