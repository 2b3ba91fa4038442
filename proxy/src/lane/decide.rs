//! Which tenants belong into the lane: decided from samples of what each has used, with a memory so that nobody goes to and
//! fro. Pure: no clock, no IO.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tollgate_schedule::{Part, TenantId};

use crate::tenant::Isolation;

/// So many slow polls ([`tollgate_schedule::SLOW_POLL`]) within that time.
const SLOW_POLLS: u64 = 3;
const SLOW_WITHIN: Duration = Duration::from_secs(1);
/// A hog uses more than so many times what the others get on average, by weight, and at least this part of a processor
const HOG_FACTOR: u128 = 2;
const HOG_LEAST_PERCENT: u128 = 25;
/// and so much of what it is guaranteed, if anything is; …
const BEYOND_PERCENT: u128 = 125;
/// … for so long, …
const HOGS_FOR: Duration = Duration::from_millis(500);
/// … while the others wait for longer than this before each poll, on average.
const OTHERS_WAIT: Duration = Duration::from_millis(1);
/// Who does nothing of the kind for so long comes back.
const CLEAN_FOR: Duration = Duration::from_secs(5);

/// Why a tenant moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its polls take long.
    SlowPolls,
    /// It takes more than twice its share while others wait.
    OverShare,
    /// Its settings say so.
    Configured,
    /// It is kept apart because its connections panicked.
    Panics,
    /// It has kept others waiting no more.
    Clean,
}

impl Cause {
    pub(crate) const ALL: [Self; 5] = [Self::SlowPolls, Self::OverShare, Self::Configured, Self::Panics, Self::Clean];

    /// As metrics and logs say it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::SlowPolls => "slow_polls",
            Self::OverShare => "over_share",
            Self::Configured => "configured",
            Self::Panics => "panics",
            Self::Clean => "clean",
        }
    }
}

/// A tenant that changes sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) tenant: TenantId,
    /// Else back to the worker.
    pub(crate) to_lane: bool,
    pub(crate) cause: Cause,
}

/// What one tenant has used of one thread since the last sample; times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) cpu: u64,
    pub(crate) polls: u64,
    pub(crate) slow: u64,
    pub(crate) waited: u64,
}

/// One tenant since the last decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) tenant: TenantId,
    pub(crate) weight: u32,
    /// What it is guaranteed of the worker.
    pub(crate) at_least: Part,
    pub(crate) isolation: Isolation,
    /// Its connections panicked again and again.
    pub(crate) kept_apart: bool,
    pub(crate) on_worker: Used,
    pub(crate) in_lane: Used,
}

impl Sample {
    fn cpu(&self) -> u64 {
        self.on_worker.cpu + self.in_lane.cpu
    }
}

/// Decides, and remembers.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    histories: HashMap<TenantId, History>,
    last: Option<Duration>,
}

#[derive(Debug, Default)]
struct History {
    /// Why it is in the lane, if it is.
    lane: Option<Cause>,
    /// Slow polls of the last [`SLOW_WITHIN`]: when, and how many.
    slow: VecDeque<(Duration, u64)>,
    hogs_since: Option<Duration>,
    last_offence: Duration,
}

/// Sums over all samples.
#[derive(Clone, Copy, Debug, Default)]
struct All {
    cpu: u64,
    /// Of those who used anything.
    weight: u64,
    polls: u64,
    waited: u64,
    /// Time that the samples are of.
    elapsed: u128,
}

impl Judge {
    /// Tenants that are in the lane: each of them has to be among the samples.
    pub(crate) fn in_lane(&self) -> impl Iterator<Item = TenantId> + '_ {
        self.histories.iter().filter(|(_, history)| history.lane.is_some()).map(|(tenant, _)| *tenant)
    }

    /// Who moves. `now` only ever grows.
    pub(crate) fn judge(&mut self, now: Duration, samples: &[Sample]) -> Vec<Move> {
        let elapsed = self.last.replace(now).map_or(0, |last| now.saturating_sub(last).as_nanos());
        let mut all = All { elapsed, ..All::default() };
        for sample in samples {
            all.cpu += sample.cpu();
            all.weight += if sample.cpu() > 0 { u64::from(sample.weight) } else { 0 };
            all.polls += sample.on_worker.polls;
            all.waited += sample.on_worker.waited;
        }
        let present: HashMap<_, _> = samples.iter().map(|sample| (sample.tenant, ())).collect();
        self.histories.retain(|tenant, history| {
            if present.contains_key(tenant) {
                return true;
            }
            history.hogs_since = None;
            // Who comes again within that time has not become another.
            history.lane.is_some() || history.slow.back().is_some_and(|(at, _)| now.saturating_sub(*at) < SLOW_WITHIN)
        });
        let moved = samples.iter().filter_map(|sample| {
            let (to_lane, cause) = self.histories.entry(sample.tenant).or_default().judge(now, sample, all)?;
            Some(Move { tenant: sample.tenant, to_lane, cause })
        });
        moved.collect()
    }
}

impl History {
    fn judge(&mut self, now: Duration, sample: &Sample, all: All) -> Option<(bool, Cause)> {
        let slow = sample.on_worker.slow + sample.in_lane.slow;
        if slow > 0 {
            self.slow.push_back((now, slow));
        }
        while self.slow.front().is_some_and(|(at, _)| now.saturating_sub(*at) >= SLOW_WITHIN) {
            self.slow.pop_front();
        }
        let is_hog = sample.is_hog(all);
        if slow > 0 || is_hog || sample.kept_apart {
            self.last_offence = now;
        }
        if !(is_hog && sample.keeps_waiting(all)) {
            self.hogs_since = None;
        } else if self.hogs_since.is_none() {
            // It did so for all of the time that this sample is of.
            self.hogs_since = Some(now.saturating_sub(Duration::from_nanos(u64::try_from(all.elapsed).unwrap_or(0))));
        }
        match (self.lane, sample.isolation) {
            (None, Isolation::Lane) => self.enter(now, Cause::Configured),
            (None, Isolation::Auto) if sample.kept_apart => self.enter(now, Cause::Panics),
            (None, Isolation::Auto) if self.slow.iter().map(|(_, count)| count).sum::<u64>() >= SLOW_POLLS => {
                self.enter(now, Cause::SlowPolls)
            }
            (None, Isolation::Auto) if self.hogs_since.is_some_and(|since| now.saturating_sub(since) >= HOGS_FOR) => {
                self.enter(now, Cause::OverShare)
            }
            (None, _) => None,
            (Some(_), Isolation::Lane) => {
                self.lane = Some(Cause::Configured);
                None
            }
            (Some(_), Isolation::Shared) | (Some(Cause::Configured), Isolation::Auto) => self.leave(Cause::Configured),
            (Some(_), Isolation::Auto) if now.saturating_sub(self.last_offence) >= CLEAN_FOR => {
                self.leave(Cause::Clean)
            }
            (Some(_), Isolation::Auto) => None,
        }
    }

    fn enter(&mut self, now: Duration, cause: Cause) -> Option<(bool, Cause)> {
        (self.lane, self.last_offence) = (Some(cause), now);
        Some((true, cause))
    }

    fn leave(&mut self, cause: Cause) -> Option<(bool, Cause)> {
        *self = Self::default();
        Some((false, cause))
    }
}

impl Sample {
    /// Whether it uses more than its part, and enough to matter.
    fn is_hog(&self, all: All) -> bool {
        let (own, others) = (self.cpu(), all.cpu - self.cpu());
        let weight = u128::from(self.weight);
        let weight_of_others = u128::from(all.weight).saturating_sub(if own > 0 { weight } else { 0 });
        weight_of_others > 0
            && u128::from(own) * 100 >= all.elapsed * HOG_LEAST_PERCENT
            && u128::from(own) * 1_000_000 * 100 > all.elapsed * u128::from(self.at_least.millionths()) * BEYOND_PERCENT
            && u128::from(own) * weight_of_others > HOG_FACTOR * u128::from(others) * weight
    }

    /// Whether the others wait.
    fn keeps_waiting(&self, all: All) -> bool {
        let polls = u128::from(all.polls - self.on_worker.polls);
        polls > 0 && u128::from(all.waited - self.on_worker.waited) > polls * OTHERS_WAIT.as_nanos()
    }
}
