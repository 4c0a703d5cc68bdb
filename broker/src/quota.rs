//! What is limited, and how much of it one user and all users together may have.

use std::fmt;

/// What is charged to who asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Connections to the broker socket, of clients whose end is gone and who left fds unread too.
    Connections,
    /// Requests that were read and are not answered yet.
    Requests,
    /// Leases, until the kernel has let go of their queues.
    Leases,
    /// Queues of these leases.
    Queues,
    /// Bytes of umem that the broker registers.
    UmemBytes,
    /// Fds in replies that were not read yet: for as long they are in flight, which the kernel charges to the broker's uid
    /// (`too_many_unix_fds`, net/unix/scm.c).
    UnreadFds,
    /// Sockets that were handed over, and whose leases ended a short while ago before they were bound: their rings may live
    /// on, charged to nobody (F7).
    AbandonedSockets,
}

impl Resource {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 7] = [
        Self::Connections,
        Self::Requests,
        Self::Leases,
        Self::Queues,
        Self::UmemBytes,
        Self::UnreadFds,
        Self::AbandonedSockets,
    ];

    /// The word for it in the policy and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::Leases => "leases",
            Self::Queues => "queues",
            Self::UmemBytes => "umem-bytes",
            Self::UnreadFds => "unread-fds",
            Self::AbandonedSockets => "abandoned-sockets",
        }
    }

    /// The same in a sentence that begins with a number.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "unanswered requests",
            Self::Leases => "leases",
            Self::Queues => "queues",
            Self::UmemBytes => "bytes of umem",
            Self::UnreadFds => "fds in unread replies",
            Self::AbandonedSockets => "sockets left unbound within a minute",
        }
    }

    /// What whoever has too much of it is to do.
    pub const fn way_out(self) -> &'static str {
        match self {
            Self::Connections => "close some: one serves for any number of requests",
            Self::Requests => "wait for a reply before the next request",
            Self::Leases | Self::Queues => "release some first",
            Self::UmemBytes => "release some first, or ask for fewer chunks",
            Self::UnreadFds => "read the replies that are waiting, or close their connections",
            Self::AbandonedSockets => "their rings may still take memory: ask again in a minute",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// So much of each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    connections: u64,
    requests: u64,
    leases: u64,
    queues: u64,
    umem_bytes: u64,
    unread_fds: u64,
    abandoned_sockets: u64,
}

impl Amounts {
    /// How much of one.
    pub const fn of(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Connections => self.connections,
            Resource::Requests => self.requests,
            Resource::Leases => self.leases,
            Resource::Queues => self.queues,
            Resource::UmemBytes => self.umem_bytes,
            Resource::UnreadFds => self.unread_fds,
            Resource::AbandonedSockets => self.abandoned_sockets,
        }
    }

    /// The same, to be changed.
    pub const fn of_mut(&mut self, resource: Resource) -> &mut u64 {
        match resource {
            Resource::Connections => &mut self.connections,
            Resource::Requests => &mut self.requests,
            Resource::Leases => &mut self.leases,
            Resource::Queues => &mut self.queues,
            Resource::UmemBytes => &mut self.umem_bytes,
            Resource::UnreadFds => &mut self.unread_fds,
            Resource::AbandonedSockets => &mut self.abandoned_sockets,
        }
    }
}

/// The most that may be had at a time, whatever a rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// By one uid.
    pub per_user: Amounts,
    /// By all uids together.
    pub in_all: Amounts,
}

impl Default for Limits {
    /// Enough for a manager of many machines, and for dozens of such; far from what the kernel and the memory of any machine
    /// give up at.
    fn default() -> Self {
        Self {
            per_user: Amounts {
                connections: 64,
                requests: 64,
                leases: 1024,
                queues: 1024,
                umem_bytes: 1 << 30,
                unread_fds: 128,
                abandoned_sockets: 256,
            },
            in_all: Amounts {
                connections: 4096,
                requests: 1024,
                leases: 16_384,
                queues: 16_384,
                umem_bytes: 16 << 30,
                unread_fds: 8192,
                abandoned_sockets: 4096,
            },
        }
    }
}

impl Limits {
    /// The same, cut to what a process with so many fds can serve; and where that cuts what all may have, no user may have
    /// more than a quarter of it.
    ///
    /// A connection takes two fds (the stream, its client's pidfd), a lease two for its holder's pidfd (one is watched) and one
    /// for each queue. A quarter is left for all else. As many fds as this limit may be in flight (`too_many_unix_fds`).
    #[must_use]
    pub fn within_open_files(mut self, fds: u64) -> Self {
        let most = [
            (Resource::Connections, fds / 8),
            (Resource::Leases, fds / 8),
            (Resource::Queues, fds / 4),
            (Resource::UnreadFds, fds / 2),
        ];
        for (resource, most) in most {
            let most = most.max(1);
            let (per_user, in_all) = (self.per_user.of_mut(resource), self.in_all.of_mut(resource));
            if *in_all > most {
                *in_all = most;
                *per_user = (*per_user).min((most / 4).max(1));
            }
        }
        self
    }
}

/// What a broker has open that nobody is charged for: its listeners, its epoll instances, programs, maps and links.
const OWN_FDS: u64 = 32;

/// How many placeholders may stand at a time where a process may have so many fds: nobody is charged for them, so they are
/// within the quarter that [`Limits::within_open_files`] leaves.
pub const fn placeholders_within(open_files: u64) -> u64 {
    (open_files / 4).saturating_sub(OWN_FDS)
}

/// How many fds a process must be allowed for so many placeholders, and as many more that the kernel is still letting go of.
pub const fn open_files_for(placeholders: u64) -> u64 {
    4 * (2 * placeholders + OWN_FDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_has_a_place_of_its_own() {
        let mut amounts = Amounts::default();
        for (number, resource) in (1..).zip(Resource::ALL) {
            *amounts.of_mut(resource) = number;
        }
        let read: Vec<u64> = Resource::ALL.iter().map(|each| amounts.of(*each)).collect();
        assert_eq!(read, [1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn placeholders_have_what_was_asked_for_them() {
        for placeholders in [0, 1, 7, 255, 2047] {
            assert_eq!(
                placeholders_within(open_files_for(placeholders)),
                2 * placeholders
            );
        }
        assert_eq!(placeholders_within(OWN_FDS), 0);
    }

    #[test]
    fn few_fds_are_never_all_one_users() {
        let few = Limits::default().within_open_files(512);
        let of = |resource| (few.per_user.of(resource), few.in_all.of(resource));
        assert_eq!(of(Resource::Connections), (16, 64));
        assert_eq!(of(Resource::Leases), (16, 64));
        assert_eq!(of(Resource::Queues), (32, 128));
        assert_eq!(of(Resource::UnreadFds), (64, 256));
        assert_eq!(of(Resource::UmemBytes), (1 << 30, 16 << 30));
        assert_eq!(Limits::default().within_open_files(1 << 20), Limits::default());
        // Nothing is ever made impossible.
        let none = Limits::default().within_open_files(0);
        assert_eq!((none.per_user.leases, none.in_all.leases), (1, 1));
    }
}
