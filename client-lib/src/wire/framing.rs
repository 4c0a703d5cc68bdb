//! Framing: a message is a JSON object, a NUL byte ends it.
//!
//! The buffer holds at most one message above its limit's worth of bytes, whatever the sender does. It knows
//! nothing of sockets and nothing of JSON.

use serde::Serialize;

/// The longest request that the broker reads, in bytes without the NUL.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// The limit was passed without a NUL. There is no way to find the next message: close the connection.
    #[error("message of more than {limit} bytes")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
}

/// Collects bytes from a stream and gives whole messages.
#[derive(Debug)]
pub struct MessageBuffer {
    bytes: Vec<u8>,
    /// How many of `bytes` are known to hold no NUL.
    searched: usize,
    limit: usize,
}

impl MessageBuffer {
    /// A buffer for messages of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            searched: 0,
            limit,
        }
    }

    /// Adds bytes as they came from the stream.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole message, without its NUL. `None`: not complete yet.
    ///
    /// # Errors
    ///
    /// [`FramingError::TooLong`], then and for ever after.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        let end = self.bytes.iter().skip(self.searched).position(|byte| *byte == 0);
        let length = end.map_or(self.bytes.len(), |end| self.searched + end);
        if length > self.limit {
            return Err(FramingError::TooLong { limit: self.limit });
        }
        if end.is_none() {
            self.searched = length;
            return Ok(None);
        }
        let mut message: Vec<u8> = self.bytes.drain(..=length).collect();
        message.pop();
        self.searched = 0;
        Ok(Some(message))
    }

    /// Whether a message has begun.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// A message as it goes over the stream: JSON and its NUL.
///
/// # Errors
///
/// Only what `Serialize` of the value itself fails with.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_messages_come_out_whole_at_every_split_point() {
        let stream = b"{\"method\":\"a.B\"}\0{}\0";
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let mut buffer = MessageBuffer::new(64);
                let mut messages = Vec::new();
                for part in [&stream[..first], &stream[first..second], &stream[second..]] {
                    buffer.extend(part);
                    while let Some(message) = buffer.next_message().unwrap() {
                        messages.push(message);
                    }
                }
                assert_eq!(messages, [&stream[..16], b"{}"], "split at {first} and {second}");
                assert!(buffer.is_empty());
            }
        }
    }

    #[test]
    fn the_limit_is_the_longest_message() {
        let mut buffer = MessageBuffer::new(4);
        buffer.extend(b"1234\0");
        assert_eq!(buffer.next_message(), Ok(Some(b"1234".to_vec())));
        buffer.extend(b"1234");
        assert_eq!(buffer.next_message(), Ok(None));
        buffer.extend(b"5\0");
        assert_eq!(buffer.next_message(), Err(FramingError::TooLong { limit: 4 }));
        assert_eq!(buffer.next_message(), Err(FramingError::TooLong { limit: 4 }));
    }

    #[test]
    fn a_long_message_without_end_is_refused_early() {
        let mut buffer = MessageBuffer::new(4);
        buffer.extend(b"12345");
        assert_eq!(buffer.next_message(), Err(FramingError::TooLong { limit: 4 }));
    }
}
