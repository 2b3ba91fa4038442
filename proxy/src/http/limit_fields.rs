//! Fields of an answer that tell a client which limit of a tenant it has met: codes, and what was agreed with that tenant. Nothing of
//! other tenants, and no name.

use crate::reason::Reason;
use crate::tenant::{Rate, Scope};

/// Largest integer of a structured field (RFC 9651 section 3.3.1).
const LARGEST: u64 = 999_999_999_999_999;
/// What the quota is called.
const NAME: &str = "\"requests\"";

/// `x-tollgate-limit`: which, and whose; a structured item.
pub(super) fn limit(reason: Reason, scope: Scope) -> String {
    format!("{};scope={}", reason.code(), scope.code())
}

/// `ratelimit-policy`: so many requests a second (draft-ietf-httpapi-ratelimit-headers-09 section 3). There is no place for the burst in it.
pub(super) fn policy(rate: Rate) -> String {
    format!("{NAME};q={};w=1", rate.per_second.get().min(LARGEST))
}

/// `ratelimit`: nothing is left of it for so many seconds (the same, section 4).
pub(super) fn used_up(seconds: u64) -> String {
    format!("{NAME};r=0;t={}", seconds.min(LARGEST))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn values() {
        let rate = |per_second| Rate { per_second: NonZeroU64::new(per_second).unwrap(), burst: NonZeroU64::MIN };
        assert_eq!(policy(rate(2000)), "\"requests\";q=2000;w=1");
        assert_eq!(policy(rate(u64::MAX)), "\"requests\";q=999999999999999;w=1");
        assert_eq!(used_up(3), "\"requests\";r=0;t=3");
        assert_eq!(used_up(u64::MAX), "\"requests\";r=0;t=999999999999999");
        assert_eq!(limit(Reason::TenantShare, Scope::Flow), "tenant_share;scope=flow");
        assert_eq!(limit(Reason::TenantMemory, Scope::Shared), "tenant_memory;scope=shared");
        assert_eq!(limit(Reason::TenantRate, Scope::Tenant), "tenant_rate;scope=tenant");
    }
}
