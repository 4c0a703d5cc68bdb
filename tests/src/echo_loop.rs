//! UDP echoes in a closed loop: every datagram is numbered, tagged and filled from its number, and each answer is
//! compared byte for byte.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::patience::stretched;

/// A loop to run.
#[derive(Debug, Clone, Copy)]
pub struct EchoLoop {
    /// Who echoes.
    pub target: SocketAddr,
    /// Datagrams to send.
    pub count: u32,
    /// At most this many are on their way at a time.
    pub window: u32,
    /// Each datagram's contents, at least 16.
    pub payload_bytes: usize,
    /// One that is not back after this time is lost.
    pub patience: Duration,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoCount {
    /// Datagrams sent.
    pub sent: u32,
    /// Of these, came back as they were sent.
    pub echoed: u32,
    /// Of these, never came back.
    pub lost: u32,
    /// Answers that came again.
    pub duplicated: u32,
    /// Datagrams that are no echo of ours: of another length, other contents, or from somebody else.
    pub corrupted: u32,
    /// From the first sent to the last received.
    pub elapsed: Duration,
}

impl EchoCount {
    /// Whether every datagram came back once, as it was sent.
    pub fn is_perfect(&self) -> bool {
        self.echoed == self.sent && self.lost == 0 && self.duplicated == 0 && self.corrupted == 0
    }
}

impl EchoLoop {
    /// A loop of `count` datagrams of 64 bytes, 32 at a time.
    pub fn new(target: SocketAddr, count: u32) -> Self {
        Self {
            target,
            count,
            window: 32,
            payload_bytes: 64,
            patience: stretched(Duration::from_secs(1)),
        }
    }

    /// Runs it over a bound socket, which is for nothing else meanwhile.
    pub fn run(&self, socket: &UdpSocket) -> Result<EchoCount> {
        ensure!(
            self.payload_bytes >= HEADER_BYTES,
            "a payload has at least {HEADER_BYTES} bytes"
        );
        ensure!(self.window > 0, "a window of 0 sends nothing");
        socket
            .set_read_timeout(Some(self.patience))
            .context("setting the time-out")?;
        // Told apart from datagrams of an earlier loop over the same port.
        let tag = u64::from(std::process::id()) << 32 | u64::from(nanoseconds_of_now());

        let begun = Instant::now();
        let mut last_received = begun;
        let mut state = vec![State::Unsent; usize::try_from(self.count)?];
        let mut count = EchoCount {
            sent: 0,
            echoed: 0,
            lost: 0,
            duplicated: 0,
            corrupted: 0,
            elapsed: Duration::ZERO,
        };
        let mut on_their_way = 0;
        let mut datagram = vec![0; self.payload_bytes];
        let mut answer = vec![0; self.payload_bytes + 1];
        while count.sent < self.count || on_their_way > 0 {
            while count.sent < self.count && on_their_way < self.window {
                fill(&mut datagram, tag, count.sent);
                socket
                    .send_to(&datagram, self.target)
                    .context("sending a datagram")?;
                state[usize::try_from(count.sent)?] = State::Sent;
                count.sent += 1;
                on_their_way += 1;
            }
            let Some((len, from)) = receive(socket, &mut answer)? else {
                // Nothing came for so long that whatever is on its way is lost; it may still be counted if it comes.
                count.lost += on_their_way;
                on_their_way = 0;
                for one in state.iter_mut().filter(|one| **one == State::Sent) {
                    *one = State::Lost;
                }
                continue;
            };
            last_received = Instant::now();
            on_their_way -= count.take(
                &answer[..len],
                from == self.target,
                &mut datagram,
                tag,
                &mut state,
            );
        }
        count.elapsed = last_received - begun;

        // Doubles of the last ones come late.
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .context("setting the time-out")?;
        while let Some((len, from)) = receive(socket, &mut answer)? {
            count.take(
                &answer[..len],
                from == self.target,
                &mut datagram,
                tag,
                &mut state,
            );
        }
        Ok(count)
    }
}

const HEADER_BYTES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unsent,
    Sent,
    Lost,
    Echoed,
}

impl EchoCount {
    /// Counts one answer; returns how many fewer are on their way.
    fn take(
        &mut self,
        answer: &[u8],
        from_target: bool,
        expected: &mut [u8],
        tag: u64,
        state: &mut [State],
    ) -> u32 {
        let number = answer
            .get(8..12)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_be_bytes);
        let Some(number) = number.filter(|_| from_target) else {
            self.corrupted += 1;
            return 0;
        };
        fill(expected, tag, number);
        let known = usize::try_from(number)
            .ok()
            .and_then(|index| state.get_mut(index));
        match known {
            Some(known) if answer == &*expected => match *known {
                State::Sent => {
                    *known = State::Echoed;
                    self.echoed += 1;
                    return 1;
                }
                State::Lost => {
                    *known = State::Echoed;
                    self.lost -= 1;
                    self.echoed += 1;
                }
                State::Echoed => self.duplicated += 1,
                State::Unsent => self.corrupted += 1,
            },
            _ => self.corrupted += 1,
        }
        0
    }
}

fn receive(socket: &UdpSocket, answer: &mut [u8]) -> Result<Option<(usize, SocketAddr)>> {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    loop {
        match socket.recv_from(answer) {
            Ok(received) => return Ok(Some(received)),
            Err(error) if matches!(error.kind(), WouldBlock | TimedOut) => return Ok(None),
            Err(error) if error.kind() == Interrupted => {}
            Err(error) => return Err(error).context("receiving a datagram"),
        }
    }
}

/// Tag, number, then bytes that differ for each number and place (a linear congruential generator).
fn fill(datagram: &mut [u8], tag: u64, number: u32) {
    datagram[..8].copy_from_slice(&tag.to_be_bytes());
    datagram[8..12].copy_from_slice(&number.to_be_bytes());
    let mut state = number ^ 0x9e37_79b9;
    for byte in &mut datagram[12..] {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = state.to_be_bytes()[0];
    }
}

fn nanoseconds_of_now() -> u32 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_nanos()
}
