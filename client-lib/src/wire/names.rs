//! The small vocabulary of requests: interface names, sets of queue ids, `IF:QUEUES`, and the enumerations.
//!
//! Every value of these types is valid by construction: a name that the kernel would refuse, an empty set or a
//! queue twice cannot be expressed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::MAX_QUEUES;

/// Why a text is not a name of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a name of an interface, in printable ASCII (`dev_valid_name`, net/core/dev.c).
    #[error(
        "{0:?} is no interface name: 1 to 15 printable ASCII characters, not \".\" or \"..\", without '/' and ':'"
    )]
    Interface(String),
    /// Not a list of queue ids.
    #[error("{0:?} is no list of queue ids: write ids and ranges with commas, as in 0,2-4")]
    Queues(String),
    /// A list without any id.
    #[error("no queue id given: write ids and ranges with commas, as in 0,2-4")]
    NoQueue,
    /// The same id twice.
    #[error("queue {0} is given twice")]
    QueueTwice(u32),
    /// More than [`MAX_QUEUES`].
    #[error("{0} queues in one request, {MAX_QUEUES} are the most")]
    TooManyQueues(usize),
    /// Not of the form `IF:QUEUES`.
    #[error("{0:?} is not of the form IF:QUEUES, as in eth0:2-4")]
    Target(String),
    /// A ring size that the kernel would refuse.
    #[error("{ring} ring of {entries} entries: the kernel takes powers of two from 1 to 2^20")]
    RingSize {
        /// Which ring: `fill`, `completion`, `rx` or `tx`.
        ring: &'static str,
        /// What was asked for.
        entries: u32,
    },
}

/// The name of a network interface, as the kernel would accept it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = NameError;

    /// Takes what `dev_valid_name` (net/core/dev.c) takes, in printable ASCII: anything else could garble logs.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
        if text.is_empty() || text.len() > 15 || matches!(text, "." | "..") || !text.chars().all(allowed) {
            return Err(NameError::Interface(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for InterfaceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// 1 to [`MAX_QUEUES`] queue ids, ascending, each once.
///
/// As text: ids and ranges with commas (`2-4,7`). As JSON: a list of integers in any order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QueueSet(Vec<u32>);

impl QueueSet {
    /// Makes a set of these ids, in any order.
    ///
    /// # Errors
    ///
    /// No id, an id twice, more than [`MAX_QUEUES`].
    pub fn new(ids: impl IntoIterator<Item = u32>) -> Result<Self, NameError> {
        let mut ids: Vec<u32> = ids.into_iter().take(MAX_QUEUES + 1).collect();
        if ids.is_empty() {
            return Err(NameError::NoQueue);
        }
        if ids.len() > MAX_QUEUES {
            return Err(NameError::TooManyQueues(ids.len()));
        }
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(NameError::QueueTwice(pair[0])),
            None => Ok(Self(ids)),
        }
    }

    /// The ids, ascending.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// How many ids.
    #[expect(clippy::len_without_is_empty, reason = "a set is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether `id` is one of them.
    pub fn contains(&self, id: u32) -> bool {
        self.0.binary_search(&id).is_ok()
    }
}

impl FromStr for QueueSet {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = || NameError::Queues(text.to_owned());
        let number = |part: &str| match part.bytes().all(|b| b.is_ascii_digit()) {
            true => part.parse::<u32>().map_err(|_| bad()),
            false => Err(bad()),
        };
        let mut ids = Vec::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(bad());
            }
            // One more than fits is enough to know that it is too many: "0-4294967295" must cost nothing.
            ids.extend((first..=last).take(MAX_QUEUES + 1));
            if ids.len() > MAX_QUEUES {
                return Err(NameError::TooManyQueues(ids.len()));
            }
        }
        Self::new(ids)
    }
}

impl fmt::Display for QueueSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&ranges(&self.0))
    }
}

/// Ascending queue ids as people write them: `0,2-4`.
pub fn ranges(ids: &[u32]) -> String {
    let mut text = String::new();
    let mut ids = ids.iter().copied().peekable();
    while let Some(first) = ids.next() {
        let mut last = first;
        while let Some(next) = ids.next_if(|next| last.checked_add(1) == Some(*next)) {
            last = next;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&first.to_string());
        if last > first {
            text.push('-');
            text.push_str(&last.to_string());
        }
    }
    text
}

impl Serialize for QueueSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for QueueSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// `IF:QUEUES`, the one notation for queues of a device (`eth0:2-4`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The device.
    pub interface: InterfaceName,
    /// Its queues.
    pub queues: QueueSet,
}

impl FromStr for Target {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (interface, queues) = text
            .split_once(':')
            .ok_or_else(|| NameError::Target(text.to_owned()))?;
        Ok(Self {
            interface: interface.parse()?,
            queues: queues.parse()?,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}:{}", self.interface, self.queues))
    }
}

/// Gives an enumeration its one spelling, in JSON, in TOML and in tables.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Every value, in the order of the specification.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word for it in messages, in the policy and in tables.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.pad(self.as_str()) }
        }
    };
}
pub(super) use words;

words! {
    /// In which state a socket leaves the broker.
    SocketKind {
        /// Rings made by the broker, confined to the device; the holder registers memory of its own and binds.
        Prepared = "prepared",
        /// Registered and bound by the broker, with the rings of its direction alone; the holder maps these. Nothing
        /// is left of it that could be changed.
        Bound = "bound",
        /// No umem and no rings, confined to the device; the holder makes the rings, registers memory of its own and
        /// binds, as QEMU does with what its `sock-fds=` names.
        Bare = "bare",
    }
}

words! {
    /// What keeps a socket that left the broker unbound from binding to a queue that was not granted.
    QueueLock {
        /// A BPF LSM program refuses every other bind.
        Lsm = "lsm",
        /// Sockets of the broker's own keep all other queues busy while one lease's are unbound.
        Placeholders = "placeholders",
        /// Nothing: the device is pinned by the kernel, the queue is not. Only where the policy says so.
        None = "none",
    }
}

words! {
    /// Where the XDP program runs.
    XdpMode {
        /// In the driver (`XDP_FLAGS_DRV_MODE`).
        Native = "native",
        /// In the stack, after the skb was made (`XDP_FLAGS_SKB_MODE`).
        Generic = "generic",
    }
}

words! {
    /// How frames travel between the device and the umem, as `XDP_OPTIONS` reports it after the bind.
    BindMode {
        /// The kernel copies each frame.
        Copy = "copy",
        /// The device reads and writes the umem itself.
        ZeroCopy = "zerocopy",
    }
}

words! {
    /// What a rule says of zero-copy.
    #[derive(Default)]
    ZeroCopy {
        /// The sockets are bound in zero-copy mode, or the lease ends.
        Required = "required",
        /// The holder chooses.
        #[default]
        Allowed = "allowed",
        /// The sockets are bound in copy mode, or the lease ends.
        Forbidden = "forbidden",
    }
}

impl ZeroCopy {
    /// Whether it takes a socket that the kernel bound in this mode.
    pub const fn admits(self, mode: BindMode) -> bool {
        match (self, mode) {
            (Self::Allowed, _) | (Self::Required, BindMode::ZeroCopy) | (Self::Forbidden, BindMode::Copy) => {
                true
            }
            (Self::Required, BindMode::Copy) | (Self::Forbidden, BindMode::ZeroCopy) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_and_print_alike() {
        for text in ["eth0:2-4", "enp1s0f0:0", "veth-a:0,2-3,9", "a:63"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("e:4,3,2".parse::<Target>().unwrap().to_string(), "e:2-4");
        assert_eq!(
            "e:4294967295".parse::<Target>().unwrap().to_string(),
            "e:4294967295"
        );
    }

    #[test]
    fn what_is_no_target() {
        let cases = [
            ("eth0", NameError::Target("eth0".into())),
            ("eth0:", NameError::Queues(String::new())),
            ("eth0:a", NameError::Queues("a".into())),
            ("eth0:4-2", NameError::Queues("4-2".into())),
            ("eth0:-1", NameError::Queues("-1".into())),
            ("eth0:+1", NameError::Queues("+1".into())),
            ("eth0:1,", NameError::Queues("1,".into())),
            ("eth0:4294967296", NameError::Queues("4294967296".into())),
            ("eth0:1,1", NameError::QueueTwice(1)),
            ("eth0:1-3,2", NameError::QueueTwice(2)),
            ("eth0:0-4294967295", NameError::TooManyQueues(65)),
            (":1", NameError::Interface(String::new())),
            ("..:1", NameError::Interface("..".into())),
            ("a b:1", NameError::Interface("a b".into())),
            ("a/b:1", NameError::Interface("a/b".into())),
            (
                "sixteen-letters-:1",
                NameError::Interface("sixteen-letters-".into()),
            ),
            ("a\u{7f}:1", NameError::Interface("a\u{7f}".into())),
        ];
        for (text, expected) in cases {
            match text.parse::<Target>() {
                Err(error) => assert!(
                    error == expected
                        || matches!((&error, &expected), (NameError::Queues(_), NameError::Queues(_))),
                    "{text}: {error:?}"
                ),
                Ok(target) => panic!("{text} read as {target:?}"),
            }
        }
    }
}
