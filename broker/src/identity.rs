//! Who asks, as the kernel attests it.

/// The credentials that the policy decides by.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// The supplementary groups; may contain `gid`.
    pub groups: Vec<u32>,
}
