//! What workers decide by: one immutable value, replaced as a whole and visible to every worker at once.

use std::collections::HashSet;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;
use tollgate_policy::{EndpointKey, Secrets, Snapshot};

use super::policies::ClaimOrder;
use super::retired::Retired;
use crate::identity::{IdentityTable, Sources};
use crate::tenant::{Delivered, Registry, Table, TenantConfig};

/// Policies, identities and secrets of one moment.
#[derive(Debug)]
pub struct World {
    /// Counts publications; 0 before the first.
    pub generation: u64,
    /// When this generation was published; for status only.
    pub published: Option<SystemTime>,
    /// Whether the first policy set is in force as a whole. Until then nothing is known of an endpoint without a policy.
    pub has_policy: bool,
    /// Addresses of endpoints whose first policy is on its way.
    pub coming: Arc<HashSet<IpAddr>>,
    /// Compiled policies.
    pub policy: Arc<Snapshot>,
    /// Where the identities of peers come from.
    pub identities: Arc<Sources>,
    /// What policies name and others deliver.
    pub secrets: Arc<Secrets>,
    /// Who pays for whom.
    pub tenants: Table,
}

impl World {
    /// Whether the endpoint at `address` has a policy, or is about to have its first.
    pub fn knows(&self, address: IpAddr) -> bool {
        self.policy.endpoint(&EndpointKey::Address(address)).next().is_some() || self.coming.contains(&address)
    }

    /// Names of secrets that policies in force name and that nothing can be compared with, and why.
    pub fn missing_secrets(&self) -> Vec<(&str, &'static str)> {
        let names = self.policy.secret_names();
        names.into_iter().filter_map(|name| Some((name, self.secrets.problem(name)?))).collect()
    }

    /// Whom the address belongs to: endpoint ids of the policies in force for it. `None` when none is.
    pub fn owner(&self, endpoint: &EndpointKey) -> Option<Owner> {
        let mut ids = self.policy.endpoint(endpoint).map(|policy| policy.endpoint_id());
        let first = ids.next()?;
        Some(
            ids.fold(Owner { first, others: 0 }, |owner, id| Owner {
                others: owner.others.rotate_left(7) ^ id,
                ..owner
            }),
        )
    }
}

/// Whom an address belongs to at some time. Equal as long as it is the same endpoint, or the same endpoints where several
/// claim it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    first: u64,
    /// What is left of the other ids, of which there are hardly ever any.
    others: u64,
}

/// Does what follows a publication. A panic in it is a defect, but what was published is in force: whoever sent it must not learn
/// of a failure and take it for refused.
pub(super) fn after_publishing(follow: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(follow)).is_err() {
        tracing::error!("an update is in force, but what follows has failed: status and metrics may be out of date");
    }
}

/// Holds the current [`World`]. Reading is one atomic load; publishing is done by the control side only.
#[derive(Debug)]
pub struct WorldStore {
    current: ArcSwap<World>,
    /// Serialises publishers, and what only they need; never touched by workers.
    publishing: Mutex<Registry>,
    generation: watch::Sender<u64>,
    /// Where worlds go that were replaced, and what they were made of.
    pub(super) retired: Retired,
}

impl WorldStore {
    /// A store with no policy yet, and these sources of identities. Every endpoint is a tenant of its own, and nobody reads
    /// the accounts.
    pub fn new(identities: Sources) -> Self {
        Self::with_tenants(identities, Registry::new(Arc::default(), TenantConfig::default()))
    }

    /// A store with no policy yet, these sources of identities and these tenants.
    pub fn with_tenants(identities: Sources, tenants: Registry) -> Self {
        let world = World {
            generation: 0,
            published: None,
            has_policy: false,
            coming: Arc::default(),
            policy: Arc::new(Snapshot::empty()),
            identities: Arc::new(identities),
            secrets: Arc::default(),
            tenants: tenants.table().clone(),
        };
        Self {
            current: ArcSwap::from_pointee(world),
            publishing: Mutex::new(tenants),
            generation: watch::Sender::new(0),
            retired: Retired::begin(),
        }
    }

    /// The current world. Do not hold the guard across an await: decide, then let go.
    pub fn load(&self) -> Guard<Arc<World>> {
        self.current.load()
    }

    /// Replaces the policies. When this returns, every decision taken by any worker from now on is taken by them: the
    /// update may be acknowledged. Of the first ones some may be `coming` yet: these are their addresses.
    pub fn publish_policy(&self, policy: Snapshot, coming: Option<HashSet<IpAddr>>) -> u64 {
        self.publish(|world, tenants| {
            tenants.follow(&world.policy, &policy);
            let (policy, tenants) = (Arc::new(policy), tenants.table().clone());
            let has_policy = world.has_policy || coming.is_none();
            World { has_policy, coming: Arc::new(coming.unwrap_or_default()), policy, tenants, ..world }
        })
    }

    /// Takes these groups of tenants instead of those that were delivered before; see [`WorldStore::publish_policy`].
    pub fn publish_tenants(&self, delivered: Vec<Delivered>, order: ClaimOrder) -> u64 {
        self.publish(|world, tenants| {
            if order == ClaimOrder::BeginsAnew {
                tenants.forget_order();
            }
            tenants.deliver(delivered, &world.policy);
            World { tenants: tenants.table().clone(), ..world }
        })
    }

    /// Who is a tenant and why. Holds up publishers for as long as it is kept.
    pub fn tenants(&self) -> MutexGuard<'_, Registry> {
        self.publishing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the table of identities; see [`WorldStore::publish_policy`].
    pub fn publish_identities(&self, table: IdentityTable) -> u64 {
        self.publish(|world, _| World { identities: Arc::new(world.identities.with_table(table)), ..world })
    }

    /// Replaces the sources of identities; see [`WorldStore::publish_policy`].
    pub fn publish_sources(&self, sources: Sources) -> u64 {
        self.publish(|world, _| World { identities: Arc::new(sources), ..world })
    }

    /// Replaces the secrets; see [`WorldStore::publish_policy`]. No policy is compiled again.
    pub fn publish_secrets(&self, secrets: Secrets) -> u64 {
        self.publish(|world, _| World { secrets: Arc::new(secrets), ..world })
    }

    fn publish(&self, change: impl FnOnce(World, &mut Registry) -> World) -> u64 {
        let mut tenants = self.tenants();
        let old = self.current.load();
        let generation = old.generation + 1;
        let world = World {
            generation,
            published: Some(SystemTime::now()),
            has_policy: old.has_policy,
            coming: Arc::clone(&old.coming),
            policy: Arc::clone(&old.policy),
            identities: Arc::clone(&old.identities),
            secrets: Arc::clone(&old.secrets),
            tenants: old.tenants.clone(),
        };
        let next = change(world, &mut tenants);
        let replaced = self.current.swap(Arc::new(next));
        after_publishing(|| {
            self.generation.send_replace(generation);
        });
        drop(old);
        self.retired.take(replaced);
        generation
    }

    /// Follows the generation, to judge long-lived flows again. One subscription per worker.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
