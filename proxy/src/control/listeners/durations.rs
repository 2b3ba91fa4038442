//! Durations of the wire (`google.protobuf.Duration`).

use std::time::Duration;

use tollgate_proto::google::protobuf::Duration as WireDuration;

use super::Inactive;

/// Longest duration of protobuf: 10,000 years, which added to now is still a time.
const MAX_DURATION: Duration = Duration::from_secs(315_576_000_000);

/// The duration of `field`; a longer one than there can be is the longest.
///
/// # Errors
/// It is negative. Envoy refuses that, too; taking it for no limit would be the opposite of a short one.
pub(super) fn duration(field: &str, wire: &WireDuration) -> Result<Duration, Inactive> {
    match (u64::try_from(wire.seconds), u32::try_from(wire.nanos)) {
        (Ok(seconds), Ok(nanos)) => {
            let most = MAX_DURATION.as_secs();
            Ok(Duration::from_secs(seconds.min(most))
                .saturating_add(Duration::from_nanos(nanos.into()))
                .min(MAX_DURATION))
        }
        _ => Err(Inactive::new(field, "is negative")),
    }
}

/// The same of a limit, where zero is none.
pub(super) fn limit(field: &str, wire: Option<&WireDuration>) -> Result<Option<Duration>, Inactive> {
    let duration = wire.map(|wire| duration(field, wire)).transpose()?;
    Ok(duration.filter(|limit| !limit.is_zero()))
}
