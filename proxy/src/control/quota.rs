//! The processor time that the control group of the process gives it: read again and again, and told to the workers, who keep below
//! it ([`tollgate_schedule::Quota`]), so that the kernel does not stop all of them for having used it up.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tollgate_schedule::{Allowance, Quota};

use super::cgroup::{Group, Place, Version};

/// Between two looks: quotas can be changed, and the aim follows what it leads to.
const EVERY: Duration = Duration::from_secs(1);
/// Thousandths of the quota that workers aim at: the rest is for bursts, and for those who have used little.
const AIM: u32 = 965;
/// The least that they aim at, however often the kernel stops them: others in the control group may be what uses it up.
const LEAST_AIM: u32 = 700;
/// A quota of fewer thousandths of a processor is not kept to, nor of fewer for each worker: a worker that waits looks every few
/// milliseconds whether there is something left, which costs more than there is. T13 of `benches/neighbours`: with a tenth of a
/// processor some requests wait longer than for the kernel, and with a hundredth hardly any is answered.
const LEAST: u64 = 200;
const LEAST_OF_A_WORKER: u64 = 20;
/// How much lower they aim when they were stopped, and how much higher after a calm time, of so many looks.
const DOWN: u32 = 20;
const UP: u32 = 5;
const CALM: u32 = 30;

/// What a control group gives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    /// Processor time in each period, in microseconds; at least 1.
    quota: u64,
    /// In microseconds; at least 1.
    period: u64,
    /// Where the kernel counts how often the group has used it up.
    counts: PathBuf,
}

impl Given {
    fn processors(&self) -> f64 {
        self.quota as f64 / self.period as f64
    }

    /// Whether it is at least so many thousandths of a processor.
    fn is_at_least(&self, thousandths: u64) -> bool {
        u128::from(self.quota) * 1000 >= u128::from(self.period) * u128::from(thousandths)
    }
}

/// The quota of the process, as the control side sees it.
#[derive(Debug, Default)]
pub struct CpuQuota {
    workers: Arc<Quota>,
    /// Nobody keeps to it.
    ignored: bool,
    /// Nor to less than so many thousandths of a processor.
    least: u64,
    /// `None` without an end.
    given: Mutex<Option<Given>>,
    aim: AtomicU64,
    throttled: AtomicU64,
}

impl CpuQuota {
    /// One that so many workers keep to, unless it is `ignored` or too small.
    pub fn new(ignored: bool, workers: usize) -> Self {
        Self { ignored, least: LEAST.max(LEAST_OF_A_WORKER.saturating_mul(workers as u64)), ..Self::default() }
    }

    fn is_kept_to(&self, given: &Given) -> bool {
        !self.ignored && given.is_at_least(self.least)
    }

    /// One of half a processor, which nobody looks for.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        let given = Given { quota: 50_000, period: 100_000, counts: PathBuf::new() };
        Self { given: Mutex::new(Some(given)), ..Self::default() }
    }

    /// What workers keep to, if they do.
    pub fn of_workers(&self) -> Option<Arc<Quota>> {
        (!self.ignored).then(|| Arc::clone(&self.workers))
    }

    /// How many processors' time there is; `None` without an end.
    pub fn processors(&self) -> Option<f64> {
        self.given().map(|given| given.processors())
    }

    fn given(&self) -> Option<Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Periods in which the kernel stopped the process, or others in its control group, since the process has looked first.
    pub fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::Relaxed)
    }

    /// Seconds for which tasks of a worker could run and had to wait, all workers together.
    pub fn waited(&self) -> f64 {
        self.workers.waited() as f64 / 1e9
    }

    /// The part of `/status` and of `/tenants`.
    pub fn to_json(&self) -> Value {
        let given = self.given();
        let aim = given
            .as_ref()
            .filter(|given| self.is_kept_to(given))
            .map(|_| self.aim.load(Ordering::Relaxed) as f64 / 1e3);
        json!({
            "processors": given.as_ref().map(Given::processors),
            "quota_seconds": given.as_ref().map(|given| given.quota as f64 / 1e6),
            "period_seconds": given.as_ref().map(|given| given.period as f64 / 1e6),
            "aimed_at": aim,
            "throttled_periods": self.throttled(),
            "waited_seconds": self.waited(),
        })
    }

    /// What is in force is what was found: says so in the log if it is another than before.
    fn found(&self, given: Option<&Given>) {
        let before = {
            let mut known = self.given.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *known, given.cloned())
        };
        let processors = given.map(Given::processors);
        if before.as_ref().map(Given::processors) == processors {
            return;
        }
        match given {
            None => tracing::info!("the control group gives processor time without an end"),
            Some(given) if self.is_kept_to(given) => tracing::info!(
                processors,
                "the control group limits processor time: workers keep below it, a slice at a time, so that the kernel does not \
                 stop them all when it is used up"
            ),
            Some(_) if !self.ignored => tracing::warn!(
                processors,
                least = self.least as f64 / 1e3,
                "the control group gives too little processor time for workers to keep below it: when it is used up, the kernel \
                 stops them all until the next period; raise its limit, or run fewer workers"
            ),
            Some(_) => tracing::warn!(
                processors,
                "the control group limits processor time, and workers do not keep below it (`limits.cpu_quota`, `limits.mode` or \
                 `fairness`): when it is used up, the kernel stops them all until the next period"
            ),
        }
    }
}

/// Looks for as long as the process lives.
#[derive(Debug)]
pub struct Following {
    quota: Arc<CpuQuota>,
    aim: Aim,
    /// Where the last count comes from, and what it was.
    counted: Option<(PathBuf, u64)>,
}

impl Following {
    /// Looks for the first time.
    pub fn new(quota: Arc<CpuQuota>) -> Self {
        let mut following = Self { quota, aim: Aim::default(), counted: None };
        following.look();
        following
    }

    /// Goes on looking.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.look();
        }
    }

    fn look(&mut self) {
        let processors = rustix::thread::sched_getaffinity(None).map_or(0, |set| set.count());
        let given = least(&Place::of_this_process());
        // More than the processors have is no end.
        let given = given.filter(|given| given.quota < given.period.saturating_mul(processors.into()));
        self.quota.found(given.as_ref());
        let Some(given) = given else {
            self.quota.workers.set(None);
            (self.aim, self.counted) = (Aim::default(), None);
            return;
        };
        let count = throttled(&given.counts);
        let before = self.counted.replace((given.counts, count));
        if let Some((_, before)) =
            before.filter(|(counts, _)| self.counted.as_ref().is_some_and(|now| now.0 == *counts))
        {
            let more = count.saturating_sub(before);
            self.quota.throttled.fetch_add(more, Ordering::Relaxed);
            self.aim.after(more);
        }
        self.quota.aim.store(self.aim.thousandths.into(), Ordering::Relaxed);
        let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
        let (cpu, period) = (nanoseconds(given.quota), nanoseconds(given.period));
        let kept = self.quota.given().is_some_and(|given| self.quota.is_kept_to(&given));
        self.quota.workers.set(kept.then_some(Allowance { cpu, period, aim: self.aim.thousandths }));
    }
}

/// How much of the quota workers aim at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Aim {
    thousandths: u32,
    /// Looks since it was last changed.
    calm: u32,
}

impl Default for Aim {
    fn default() -> Self {
        Self { thousandths: AIM, calm: 0 }
    }
}

impl Aim {
    /// The process was stopped in so many periods since the last look.
    fn after(&mut self, throttled: u64) {
        let calm = self.calm + 1;
        *self = match (throttled, calm) {
            (1.., _) => Self { thousandths: self.thousandths.saturating_sub(DOWN).max(LEAST_AIM), calm: 0 },
            (0, CALM..) => Self { thousandths: (self.thousandths + UP).min(AIM), calm: 0 },
            (0, _) => Self { calm, ..*self },
        };
    }
}

/// The least of what the groups give that a process is in.
fn least(place: &Place) -> Option<Given> {
    let given = place.groups("cpu").into_iter().filter_map(|group| given(&group));
    // Of quotas over periods, without rounding.
    given.min_by(|a, b| {
        let ratio = |one: &Given, other: &Given| u128::from(one.quota) * u128::from(other.period);
        ratio(a, b).cmp(&ratio(b, a))
    })
}

fn given(group: &Group) -> Option<Given> {
    let (quota, period) = match group.version {
        Version::One => (group.number("cpu.cfs_quota_us")?, group.number("cpu.cfs_period_us")?),
        Version::Two => {
            let text = group.text("cpu.max")?;
            let (quota, period) = text.split_once(' ')?;
            (quota.parse().ok()?, period.parse().ok()?)
        }
    };
    (quota > 0 && period > 0).then(|| Given { quota, period, counts: group.path("cpu.stat") })
}

/// How often the group was stopped, so far.
fn throttled(counts: &Path) -> u64 {
    let text = fs::read_to_string(counts).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cgroup::tests::Machine;

    #[test]
    fn the_least_of_all_groups_counts() {
        let machine = Machine::new();
        let least = |lines: &str| {
            least(&machine.place(lines)).map(|given| {
                let counts = given.counts.strip_prefix(machine.root()).unwrap().to_string_lossy().into_owned();
                (given.quota, given.period, counts)
            })
        };
        assert_eq!(least("0::/a/b\n"), None);
        machine.write("a/b/cpu.max", "max 100000\n");
        assert_eq!(least("0::/a/b\n"), None);
        machine.write("a/b/cpu.max", "50000 100000\n");
        assert_eq!(least("0::/a/b\n"), Some((50_000, 100_000, "a/b/cpu.stat".into())));
        machine.write("a/cpu.max", "10000 50000\n");
        assert_eq!(least("0::/a/b\n"), Some((10_000, 50_000, "a/cpu.stat".into())), "less, of a group above");
        machine.write("cpu/x/cpu.cfs_quota_us", "-1\n");
        machine.write("cpu/x/cpu.cfs_period_us", "100000\n");
        assert_eq!(least("4:cpu,cpuacct:/x\n3:memory:/a\n"), None);
        machine.write("cpu/x/cpu.cfs_quota_us", "150000\n");
        assert_eq!(least("4:cpu,cpuacct:/x\n3:memory:/a\n"), Some((150_000, 100_000, "cpu/x/cpu.stat".into())));
        // In a container the path may be that of the host.
        machine.write("cpu.max", "7000 10000\n");
        assert_eq!(least("0::/kubepods/pod7\n"), Some((7000, 10_000, "cpu.stat".into())));
        machine.write("cpu.max", "nonsense\n");
        assert_eq!(least("0::/kubepods/pod7\n"), None);
    }

    #[test]
    fn a_quota_too_small_for_the_workers_is_not_kept_to() {
        let kept = |quota, workers, ignored| {
            let given = Given { quota, period: 100_000, counts: PathBuf::new() };
            let found = CpuQuota::new(ignored, workers);
            found.found(Some(&given));
            (found.is_kept_to(&given), !found.to_json()["aimed_at"].is_null())
        };
        assert_eq!(kept(20_000, 1, false), (true, true));
        assert_eq!(kept(19_999, 1, false), (false, false));
        assert_eq!(kept(50_000, 25, false), (true, true));
        assert_eq!(kept(50_000, 26, false), (false, false), "two hundredths for each worker");
        assert_eq!(kept(50_000, 1, true), (false, false));
    }

    #[test]
    fn counts_are_read_from_either_version() {
        let machine = Machine::new();
        machine.write("cpu.stat", "usage_usec 7\nnr_periods 10\nnr_throttled 3\nthrottled_usec 9\n");
        assert_eq!(throttled(&machine.root().join("cpu.stat")), 3);
        assert_eq!(throttled(&machine.root().join("none")), 0);
    }

    #[test]
    fn the_aim_is_lowered_at_once_and_raised_slowly() {
        let mut aim = Aim::default();
        aim.after(0);
        assert_eq!(aim.thousandths, AIM);
        aim.after(3);
        assert_eq!(aim.thousandths, AIM - DOWN);
        (1..CALM).for_each(|_| aim.after(0));
        assert_eq!(aim.thousandths, AIM - DOWN);
        aim.after(0);
        assert_eq!(aim.thousandths, AIM - DOWN + UP);
        (0..100).for_each(|_| aim.after(1));
        assert_eq!(aim.thousandths, LEAST_AIM);
        (0..100 * CALM).for_each(|_| aim.after(0));
        assert_eq!(aim.thousandths, AIM);
    }
}
