//! What the process's processor time went to beside tenants and workers, how much of it stands on nobody's account, and how long the kernel let its threads wait: noise that no
//! tenant of the proxy makes.

use std::collections::HashMap;
use std::fmt::Error;
use std::fs;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;

use super::collector::Encoder;
use super::{Families, process};
use crate::overhead::{self, KINDS, Kind};
use crate::tenant::TenantId;

/// What a look at the process finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attribution {
    /// User and system time of all threads, in seconds.
    pub cpu_seconds: f64,
    /// The part of it that threads beside the workers used for nobody, by what they are for.
    pub overhead_seconds: [(&'static str, f64); KINDS],
    /// The part of it that is no tenant's: the event loops, control, logs, and what is too short to be measured. From 0 to 1. `None`
    /// where nobody measures what tenants use.
    pub unattributed_ratio: Option<f64>,
    /// Time for which threads could run and the kernel ran others, in seconds. `None` where the kernel does not count it.
    pub run_delay_seconds: Option<f64>,
}

impl Families {
    pub(super) fn attribution(&self) -> Attribution {
        // Before the time of the process, which holds it.
        let (tallies, retired) = self.tenants.tallies_and_retired();
        let of_tenants = tallies.iter().filter(|tally| tally.id != TenantId::OVERHEAD).map(|tally| &tally.totals);
        let attributed = of_tenants.chain([&retired]).map(|totals| totals.cpu_ns + totals.compile_ns).sum::<u64>();
        let attributed = attributed as f64 / 1e9;
        let overhead_seconds = overhead_seconds();
        let cpu_seconds = process::cpu_seconds();
        let rest = (cpu_seconds - attributed).max(0.0);
        let ratio = if cpu_seconds > 0.0 { rest / cpu_seconds } else { 0.0 };
        Attribution {
            cpu_seconds,
            overhead_seconds,
            unattributed_ratio: self.tenants.pools().fairness.then_some(ratio),
            run_delay_seconds: self.run_delay.look().map(|nanoseconds| nanoseconds as f64 / 1e9),
        }
    }

    pub(super) fn attribution_families(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let found = self.attribution();
        let help = "Processor time of threads beside the workers that is no tenant's, by what they are for";
        let mut overhead = families.family("tollgate_overhead_cpu_seconds", help, MetricType::Counter)?;
        for (kind, seconds) in found.overhead_seconds {
            overhead.encode_family(&[("kind", kind)])?.encode_counter::<NoLabelSet, _, u64>(&seconds, None)?;
        }
        if let Some(ratio) = found.unattributed_ratio {
            let help = "Part of the process's processor time that stands on no tenant's account";
            families.single("tollgate_cpu_unattributed_ratio", help, ratio)?;
        }
        if let Some(seconds) = found.run_delay_seconds {
            let help = "Time for which threads of the process could run and the kernel ran others";
            families
                .counter("tollgate_os_run_delay_seconds", help)?
                .encode_counter::<NoLabelSet, _, u64>(&seconds, None)?;
        }
        self.quota_families(families)
    }

    /// The quota of the control group, and what it led to.
    fn quota_families(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let Some(quota) = self.cpu_quota.get() else { return Ok(()) };
        if let Some(processors) = quota.processors() {
            families.single(
                "tollgate_cpu_quota_processors",
                "Processor time that the control group gives",
                processors,
            )?;
        }
        let help = "Periods in which the kernel stopped the control group, since it had used up its processor time";
        families
            .counter("tollgate_cpu_quota_throttled_periods", help)?
            .encode_counter::<NoLabelSet, _, u64>(&quota.throttled(), None)?;
        let help = "Time for which tasks of a worker could run and waited, to keep to the quota of processor time";
        families
            .counter("tollgate_cpu_quota_wait_seconds", help)?
            .encode_counter::<NoLabelSet, _, u64>(&quota.waited(), None)?;
        Ok(())
    }
}

fn overhead_seconds() -> [(&'static str, f64); KINDS] {
    let nanoseconds = overhead::by_kind();
    Kind::ALL.map(|(kind, name)| (name, nanoseconds[kind as usize] as f64 / 1e9))
}

/// The sum over all threads that ever were there in a look, which never goes back.
#[derive(Debug, Default)]
pub(super) struct RunDelay(Mutex<Sum>);

#[derive(Debug, Default)]
struct Sum {
    /// By thread, in nanoseconds.
    last: HashMap<u32, u64>,
    total: u64,
}

impl RunDelay {
    /// Nanoseconds, as of now.
    fn look(&self) -> Option<u64> {
        let threads = run_delays()?;
        Some(self.0.lock().unwrap_or_else(PoisonError::into_inner).follow(threads))
    }
}

impl Sum {
    fn follow(&mut self, threads: HashMap<u32, u64>) -> u64 {
        for (thread, delay) in &threads {
            // A number that has gone back belongs to another thread.
            let before = self.last.get(thread).filter(|before| *before <= delay).copied().unwrap_or(0);
            self.total += delay - before;
        }
        self.last = threads;
        self.total
    }
}

/// Of each thread that there is, by `/proc/self/task/*/schedstat`: time on a processor, time waiting for one, turns (the kernel's
/// `Documentation/scheduler/sched-stats.rst`).
fn run_delays() -> Option<HashMap<u32, u64>> {
    let threads = fs::read_dir("/proc/self/task").ok()?.flatten().filter_map(|thread| {
        let number = thread.file_name().to_str()?.parse().ok()?;
        Some((number, waited(&fs::read_to_string(thread.path().join("schedstat")).ok()?)?))
    });
    let threads: HashMap<u32, u64> = threads.collect();
    (!threads.is_empty()).then_some(threads)
}

fn waited(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_never_goes_back() {
        let mut sum = Sum::default();
        let threads = |delays: &[(u32, u64)]| delays.iter().copied().collect();
        assert_eq!(sum.follow(threads(&[(1, 10), (2, 20)])), 30, "also from before the first look");
        assert_eq!(sum.follow(threads(&[(1, 15), (2, 20)])), 35);
        assert_eq!(sum.follow(threads(&[(1, 15)])), 35, "one has ended");
        assert_eq!(sum.follow(threads(&[(1, 4), (2, 1)])), 40, "others have their numbers");
        assert_eq!(waited("123 456 7\n"), Some(456));
        assert_eq!(waited("0"), None);
    }

    #[test]
    fn waiting_for_a_processor_is_seen_where_the_kernel_counts_it() {
        if run_delays().is_none() {
            assert!(std::env::var_os("CI").is_none(), "this kernel does not count how long threads wait (schedstat)");
            eprintln!("SKIPPED: this kernel does not count how long threads wait (schedstat)");
            return;
        }
        let delay = RunDelay::default();
        let before = delay.look().unwrap();
        // More threads than processors: somebody has to wait.
        let work = || {
            let until = std::time::Instant::now() + std::time::Duration::from_millis(50);
            while std::time::Instant::now() < until {
                std::hint::spin_loop();
            }
            delay.look().unwrap()
        };
        let threads = 2 * std::thread::available_parallelism().unwrap().get();
        let after = std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
        });
        assert!(after > before);
    }
}
