//! A limit that was reached, and what is told then: whose it is, what is in use, and whether it helps to ask again.

use xsk_client::wire::BrokerError;

use crate::lease::amounts;
use crate::policy::Terms;
use crate::quota::{Amounts, Limits, Resource};

/// Why so much can never be had at once, whatever is given back, if that is so. Denied, since to ask again is in vain. (What
/// a rule limits was decided by the policy.)
pub fn never(limits: Limits, terms: &Terms, uid: u32) -> Option<BrokerError> {
    let exceeded = |resource: Resource, wanted: u64| {
        let of = |whose, amounts: Amounts| LimitReached {
            uid,
            resource,
            whose,
            limit: amounts.of(resource),
            in_use: 0,
            wanted,
        };
        [of(Whose::User, limits.per_user), of(Whose::All, limits.in_all)]
            .into_iter()
            .find(LimitReached::is_for_good)
    };
    let reached = amounts(terms).find_map(|(resource, wanted)| exceeded(resource, wanted))?;
    Some(BrokerError::Denied {
        interface: terms.interface().clone(),
        queues: terms.queues().iter().collect(),
        message: reached.never(),
    })
}

/// Somebody has as much as may be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitReached {
    /// Who wanted more.
    pub uid: u32,
    /// Of what.
    pub resource: Resource,
    /// Whose limit it is.
    pub whose: Whose,
    /// The most that may be had.
    pub limit: u64,
    /// What is in use.
    pub in_use: u64,
    /// How much more was wanted.
    pub wanted: u64,
}

/// Whose a limit is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// One uid's, under the rule of this name.
    Rule(String),
    /// One uid's, by whatever rule.
    User,
    /// All users' together.
    All,
}

impl LimitReached {
    /// Whether it can never be had, whatever others give back.
    fn is_for_good(&self) -> bool {
        self.wanted > self.limit
    }

    /// What is told then.
    fn never(&self) -> String {
        let Self {
            uid,
            resource,
            limit,
            wanted,
            ..
        } = self;
        let words = resource.words();
        match &self.whose {
            Whose::Rule(rule) => format!(
                "rule {rule} lets uid {uid} have at most {limit} {words}, and this one request asks for {wanted}: ask for fewer"
            ),
            Whose::User => format!(
                "uid {uid} may have at most {limit} {words}, and this one request asks for {wanted}: ask for fewer, or have the \
                 operator raise `{resource}` under [limits.per-user]"
            ),
            Whose::All => format!(
                "all users together may have at most {limit} {words}, and this one request asks for {wanted}: ask for fewer, or \
                 have the operator raise `{resource}` under [limits.in-all]"
            ),
        }
    }
}

impl From<LimitReached> for BrokerError {
    fn from(reached: LimitReached) -> Self {
        let LimitReached {
            uid,
            resource,
            limit,
            in_use,
            wanted,
            ..
        } = reached;
        let (words, way_out) = (resource.words(), resource.way_out());
        let message = match &reached.whose {
            Whose::Rule(rule) => format!(
                "rule {rule} lets uid {uid} have at most {limit} {words} at a time: {in_use} in use, {wanted} more asked \
                 for; {way_out}"
            ),
            Whose::User => format!(
                "uid {uid} may have at most {limit} {words} at a time: {in_use} in use, {wanted} more asked for; {way_out}, \
                 or have the operator raise `{resource}` under [limits.per-user]"
            ),
            Whose::All => format!(
                "all users together may have at most {limit} {words} at a time: {in_use} in use, {wanted} more asked for; \
                 ask again later, or have the operator raise `{resource}` under [limits.in-all]"
            ),
        };
        Self::QuotaExceeded {
            resource: resource.to_string(),
            limit,
            in_use,
            message,
        }
    }
}
