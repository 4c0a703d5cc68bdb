//! Users as people name them on the command line: by name or by uid.

use anyhow::bail;

/// A user with its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its uid.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// All its groups, the primary one first.
    pub groups: Vec<u32>,
}

impl User {
    /// Looks a user up (NSS). A number needs no entry in passwd: it is then in the group of the same number alone.
    ///
    /// # Errors
    ///
    /// A name that does not exist.
    pub fn look_up(name: &str) -> anyhow::Result<Self> {
        let number = name.parse::<u32>().ok();
        // To setresuid(2) it means "leave it as it is".
        if number == Some(u32::MAX) {
            bail!("{name} is no uid");
        }
        let entry = match number {
            Some(uid) => uzers::get_user_by_uid(uid),
            None => uzers::get_user_by_name(name),
        };
        match (entry, number) {
            (Some(entry), _) => {
                let gid = entry.primary_group_id();
                let member_of = uzers::get_user_groups(entry.name(), gid).unwrap_or_default();
                let others = member_of
                    .iter()
                    .map(uzers::Group::gid)
                    .filter(|group| *group != gid);
                Ok(Self {
                    uid: entry.uid(),
                    gid,
                    groups: std::iter::once(gid).chain(others).collect(),
                })
            }
            (None, Some(uid)) => Ok(Self {
                uid,
                gid: uid,
                groups: vec![uid],
            }),
            (None, None) => bail!("there is no user {name} on this machine"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_the_same_user() {
        let root = User::look_up("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(User::look_up("0").unwrap(), root);
        assert_eq!(
            User::look_up("64321").unwrap(),
            User {
                uid: 64321,
                gid: 64321,
                groups: vec![64321]
            }
        );
        assert!(User::look_up("no-such-user").is_err());
    }
}
