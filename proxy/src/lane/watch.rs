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
        let mut seen = HashMap::with_capacity(here.len());
        let mut samples = Vec::with_capacity(here.len());
        for (tenant, on_worker) in here {
            let now = [on_worker, usage(&self.lane, tenant).unwrap_or_default()];
            // Of who has just come nothing is known yet.
            let before = self.before.get(&tenant).unwrap_or(&now);
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
