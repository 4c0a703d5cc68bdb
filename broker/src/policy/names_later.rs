//! What names mean once the daemon has given root up.
//!
//! NSS is not asked any more then: its modules are code of others, which opens what it likes, and a directory service that
//! is down must not change what is allowed. `passwd` and `group` are files like the policy, and are read anew. Of names that
//! they did not have at the start, what NSS said then still holds; of those that nobody asked for then, nothing is known.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use xsk_client::wire::InterfaceName;

use super::names::{Here, Machine, has_bpf_lsm_here, interfaces_here, most_queues_here};

/// More than any file of accounts has.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What NSS said at the start of names that are not in the files.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    users: HashMap<String, Option<u32>>,
    groups: HashMap<String, Option<u32>>,
}

impl Remembered {
    /// What is to be remembered of a reading of the policy.
    pub(super) fn of(read: Here) -> Self {
        let (mut users, mut groups) = read.into_answers();
        // Those are asked anew each time: a user that was deleted since must not be one of the policy's.
        let files = Files::read();
        users.retain(|name, _| !files.users.contains_key(name));
        groups.retain(|name, _| !files.groups.contains_key(name));
        Self { users, groups }
    }
}

/// The accounts of the files, each name with the id that stands first.
#[derive(Debug, Default)]
struct Files {
    users: HashMap<String, u32>,
    groups: HashMap<String, u32>,
}

impl Files {
    fn read() -> Self {
        let read = |path: &str| match read_bounded(Path::new(path)) {
            Ok(text) => parse(&text),
            Err(error) => {
                tracing::warn!(%error, path, "cannot be read: no name is found in it");
                HashMap::new()
            }
        };
        Self {
            users: read("/etc/passwd"),
            groups: read("/etc/group"),
        }
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// passwd(5) and group(5) alike: the name, a password, the id. Lines of NIS (`+`, `-`) and comments are no accounts.
fn parse(text: &str) -> HashMap<String, u32> {
    let mut ids = HashMap::new();
    for line in text.lines().filter(|line| !line.starts_with(['+', '-', '#'])) {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(id))) = (fields.next(), fields.nth(1).map(str::parse)) {
            ids.entry(name.to_owned()).or_insert(id);
        }
    }
    ids
}

/// This machine, for a daemon that may ask nobody any more.
#[derive(Debug)]
pub(super) struct Later<'r> {
    remembered: &'r Remembered,
    files: Files,
}

impl<'r> Later<'r> {
    pub(super) fn new(remembered: &'r Remembered) -> Self {
        Self {
            remembered,
            files: Files::read(),
        }
    }
}

impl Machine for Later<'_> {
    fn user(&mut self, name: &str) -> Option<u32> {
        let said = || self.remembered.users.get(name).copied().flatten();
        self.files.users.get(name).copied().or_else(said)
    }

    fn group(&mut self, name: &str) -> Option<u32> {
        let said = || self.remembered.groups.get(name).copied().flatten();
        self.files.groups.get(name).copied().or_else(said)
    }

    fn user_was_looked_for(&self, name: &str) -> bool {
        self.remembered.users.contains_key(name)
    }

    fn group_was_looked_for(&self, name: &str) -> bool {
        self.remembered.groups.contains_key(name)
    }

    fn interfaces(&mut self) -> Option<Vec<String>> {
        interfaces_here()
    }

    fn most_queues(&mut self, name: &InterfaceName) -> Option<u32> {
        most_queues_here(name)
    }

    fn has_bpf_lsm(&mut self) -> Option<bool> {
        has_bpf_lsm_here()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_of_the_files() {
        let ids = parse(
            "root:x:0:0:root:/root:/bin/sh\n#alice:x:1:1\n+bob:x:2:2\n-@all\nalice:x:1001:1001::/:\nalice:x:9:9::/:\n\
             short:x\nbad:x:-1:0\nlarge:x:4294967296:0\nkvm:x:109:alice,bob\n\n",
        );
        let expected = [("root", 0), ("alice", 1001), ("kvm", 109)];
        assert_eq!(ids, expected.map(|(name, id)| (name.to_owned(), id)).into());
    }

    #[test]
    fn what_is_known_after_the_start() {
        let answers =
            |of: &[(&str, Option<u32>)]| of.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect();
        let remembered = Remembered {
            users: answers(&[
                ("ldap", Some(50_000)),
                ("nobody-at-all", None),
                ("moved", Some(7)),
            ]),
            groups: answers(&[("staff-of-ldap", Some(50_001))]),
        };
        let mut later = Later {
            remembered: &remembered,
            files: Files {
                users: [("alice".to_owned(), 1001), ("moved".to_owned(), 8)].into(),
                groups: HashMap::new(),
            },
        };
        assert_eq!(later.user("alice"), Some(1001));
        assert_eq!(later.user("ldap"), Some(50_000));
        assert_eq!(later.group("staff-of-ldap"), Some(50_001));
        // The files come first: that is what most machines ask first too, and it is news.
        assert_eq!(later.user("moved"), Some(8));
        // Nobody knew it when everybody was asked; of another one nobody was asked.
        assert!(later.user("nobody-at-all").is_none() && later.user_was_looked_for("nobody-at-all"));
        assert!(later.user("newcomer").is_none() && !later.user_was_looked_for("newcomer"));
        assert!(later.group("alice").is_none() && !later.group_was_looked_for("alice"));
    }
}
