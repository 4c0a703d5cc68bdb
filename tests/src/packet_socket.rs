//! Frames as they are: sent and received on a device past the stack, by `AF_PACKET`.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socket_with};

use crate::sys;
use crate::world::{Side, World};

/// An `AF_PACKET` socket on one device. It sees what the device receives, not what it sends.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one on the device on that side of the first wire.
    pub fn open(world: &World, side: Side) -> Result<Self> {
        Self::on(world, side, world.device(side).index)
    }

    /// Opens one on another device there.
    pub fn on(world: &World, side: Side, index: u32) -> Result<Self> {
        // Protocol 0: it receives nothing before it is bound to the one device.
        let socket = world
            .run_in(side, || {
                socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)
            })?
            .context("socket(AF_PACKET)")?;
        let on = 1_i32.to_ne_bytes();
        sys::set_socket_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &on)
            .context("PACKET_IGNORE_OUTGOING")?;
        let bytes = (32_i32 << 20).to_ne_bytes();
        sys::set_socket_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
            .context("SO_RCVBUFFORCE")?;
        sys::bind_packet(&socket, index).with_context(|| format!("bind(AF_PACKET, device {index})"))?;
        Ok(Self(socket))
    }

    /// From now on this socket's frames arrive on that queue, whatever the steering rules say.
    pub fn steer(&self, queue: u32) -> Result<()> {
        let mark = (queue + 1).to_ne_bytes();
        sys::set_socket_option(&self.0, libc::SOL_SOCKET, libc::SO_MARK, &mark).context("SO_MARK")
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.0, frame, SendFlags::empty())?;
        Ok(())
    }

    /// Receives one frame; `None` when the time is over.
    pub fn receive(&self, timeout: Duration) -> io::Result<Option<Vec<u8>>> {
        let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout))? == 0 {
            return Ok(None);
        }
        let mut frame = vec![0; 64 * 1024];
        let (_, len) = rustix::net::recv(&self.0, frame.as_mut_slice(), RecvFlags::DONTWAIT)?;
        frame.truncate(len);
        Ok(Some(frame))
    }

    /// Receives frames until one is wanted, and returns what `wanted` made of it.
    pub fn expect<T>(
        &self,
        timeout: Duration,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let deadline = Instant::now() + timeout;
        while let Some(frame) = self.receive(deadline.saturating_duration_since(Instant::now()))? {
            if let Some(found) = wanted(&frame) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}
