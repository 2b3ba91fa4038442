//! Looks at what the tenants of a worker use, ten times a second while there are any, and moves those who have to.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tollgate_schedule::{TenantId, Usage};

use super::decide::{Judge, Move, Sample, Used};
use crate::tenant::{Ledger, Names};
use crate::worker::Worker;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// For the worker's side.
#[derive(Debug)]
pub(crate) struct Watch {
    judge: Judge,
    /// What the lane's thread counts.
    lane: Arc<Ledger>,
    names: Names,
    began: Instant,
    next: Instant,
    /// What the accounts of both sides said at the last look.
    before: HashMap<TenantId, [Usage; 2]>,
}

impl Watch {
    /// Over a worker whose lane counts in `lane`.
    pub(crate) fn new(lane: Arc<Ledger>, names: Names) -> Self {
        let now = Instant::now();
        Self { judge: Judge::default(), lane, names, began: now, next: now + INTERVAL, before: HashMap::new() }
    }

    /// Waits until it is time to look. A worker without connections has nothing to look at.
    pub(crate) async fn due(&self, worker: &Worker) {
        while worker.open.get() == 0 && !worker.is_anybody_in_lane() {
            worker.opened.notified().await;
        }
        tokio::time::sleep_until(self.next).await;
    }

    /// Looks, and moves tenants. Whether any has moved: their connections have to be told.
    pub(crate) fn look(&mut self, worker: &Worker) -> bool {
        let now = Instant::now();
        self.next = now + INTERVAL;
        let samples = self.samples(worker);
        let moves = self.judge.judge(now - self.began, &samples);
        for &moved in &moves {
            self.note(worker, moved);
        }
        if !moves.is_empty()
            && let Some(side) = &worker.side
        {
            side.placement.changed.notify_one();
        }
        !moves.is_empty()
    }

    fn samples(&mut self, worker: &Worker) -> Vec<Sample> {
        let world = worker.world.load();
        let mut here = HashMap::new();
        worker.groups.accounts(|tenant, account| {
            // Chores and strangers stay.
            if tenant.raw() >= TenantId::FIRST {
                here.insert(tenant, account.usage());
            }
        });
        let own = worker.flows.metrics().ledger();
        let usage = |ledger: &Ledger, tenant| ledger.account(tenant).map(|account| account.scheduled().usage());
        let kept_apart: HashSet<TenantId> = own.kept_apart().collect();
        // Also before their first connection, and after their last.
        let besides = kept_apart.iter().copied().chain(world.tenants.isolated());
        for tenant in self.judge.in_lane().chain(besides) {
            here.entry(tenant).or_insert_with(|| usage(own, tenant).unwrap_or_default());
        }
        // What a tenant used between two looks counts, also if it was there at neither. Not if its place is somebody else's by now.
        let (arrived, names) = (worker.groups.arrivals(), self.names.load());
        let came_or_went = self.before.keys().chain(arrived.keys()).copied();
        let gone: Vec<_> = came_or_went
            .filter(|tenant| tenant.raw() >= TenantId::FIRST)
            .filter(|tenant| !here.contains_key(tenant) && names.of(*tenant).is_some())
            .collect();
        for &tenant in &gone {
            here.insert(tenant, usage(own, tenant).unwrap_or_default());
        }
        let mut seen = HashMap::with_capacity(here.len());
        let mut samples = Vec::with_capacity(here.len());
        for (tenant, on_worker) in here {
            let now = [on_worker, usage(&self.lane, tenant).unwrap_or_default()];
            // Of who is only named so far nothing is known yet.
            let arrived = arrived.get(&tenant).map(|on_worker| [*on_worker, now[1]]);
            let before = self.before.get(&tenant).copied().or(arrived).unwrap_or(now);
            let settings = world.tenants.settings(tenant);
            samples.push(Sample {
                tenant,
                weight: settings.weight,
                at_least: settings.guarantee.of_a_worker(own.workers()),
                isolation: settings.isolation,
                kept_apart: kept_apart.contains(&tenant),
                on_worker: used(&before[0], &now[0]),
                in_lane: used(&before[1], &now[1]),
            });
            seen.insert(tenant, now);
        }
        // Who comes again arrives again.
        for tenant in &gone {
            seen.remove(tenant);
        }
        self.before = seen;
        samples
    }

    fn note(&self, worker: &Worker, Move { tenant, to_lane, cause }: Move) {
        if let Some(side) = &worker.side {
            side.placement.put(tenant, to_lane);
        }
        let ledger = worker.flows.metrics().ledger();
        if let Some(account) = ledger.account(tenant) {
            account.moved(to_lane, cause, ledger.moment(std::time::Instant::now()));
        }
        let names = self.names.load();
        let name = names.of(tenant).unwrap_or("(gone)");
        match to_lane {
            true => tracing::info!(tenant = name, reason = cause.as_str(), "tenant moves to a lane"),
            false => tracing::info!(tenant = name, reason = cause.as_str(), "tenant moves back from a lane"),
        }
    }
}

fn used(before: &Usage, now: &Usage) -> Used {
    Used {
        cpu: now.cpu.saturating_sub(before.cpu),
        polls: now.polls.saturating_sub(before.polls),
        slow: now.slow.saturating_sub(before.slow),
        waited: now.waited.saturating_sub(before.waited),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::rc::Rc;

    use super::*;
    use crate::flow;
    use crate::metrics::Metrics;
    use crate::worker::{Accounts, Groups, run_tasks};

    const A: TenantId = TenantId::from_raw(20);
    const OTHER: TenantId = TenantId::from_raw(21);
    const REMOTE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// A connection of `tenant` comes, holds up everybody, and goes; others come behind it.
    async fn come_and_go(groups: &Groups, tenant: TenantId) {
        let began = std::time::Instant::now();
        let slow = groups.of_connection(tenant, REMOTE).spawn(async move {
            // By far: time for which the kernel runs somebody else does not count.
            while began.elapsed() < Duration::from_millis(100) {}
        });
        slow.await;
        others_come(groups).await;
    }

    /// With them those are forgotten who have no connection any more.
    async fn others_come(groups: &Groups) {
        for _ in 0..3 {
            groups.of_connection(OTHER, REMOTE).spawn(async {}).await;
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn what_comes_and_goes_between_two_looks_is_seen() {
        let (metrics, mut workers) = Metrics::new(1);
        let accounts = Accounts { metrics: workers[0].clone(), arrivals: Some(Rc::default()), ..Accounts::for_test() };
        let flows = flow::channel(vec![workers.remove(0)], 1).0.remove(0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ended = run_tasks(&runtime, true, accounts, None, |groups| async move {
            let worker = Worker::for_test(groups, flows);
            let mut watch = Watch::new(Arc::default(), metrics.tenants().names());
            let slow = |samples: Vec<Sample>| {
                let of = samples.into_iter().find(|sample| sample.tenant == A);
                of.map(|sample| sample.on_worker.slow)
            };
            // As it is the first time, and when it was not there at the look before.
            for _ in 0..2 {
                come_and_go(&worker.groups, A).await;
                assert_eq!(slow(watch.samples(&worker)), Some(1));
                assert_eq!(slow(watch.samples(&worker)), None, "it is gone");
            }
            // What it did between the last look and its end.
            let stays = worker.groups.of_connection(A, REMOTE);
            assert_eq!(slow(watch.samples(&worker)), Some(0));
            come_and_go(&worker.groups, A).await;
            drop(stays);
            others_come(&worker.groups).await;
            assert_eq!(slow(watch.samples(&worker)), Some(1));
            assert_eq!(slow(watch.samples(&worker)), None);
        });
        assert_eq!(ended, Some(()), "it has panicked");
    }
}
