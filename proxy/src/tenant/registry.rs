//! Makes the tables of tenants: out of what is configured, what control planes and files say, and the endpoints that have
//! policies. Used by whoever publishes a World, one at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use tollgate_policy::{EndpointKey, EndpointPolicy, Snapshot};

use super::books::{Books, Kind};
use super::delivered::{Delivered, RefusedGroup, Seniority};
use super::group::{Claims, ENDPOINT, Group, GroupError, Member};
use super::id::{FIRST, Placed as _};
use super::table::{GroupTable, Table};
use super::{Settings, TenantId};

/// What the configuration says about tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantConfig {
    /// Settings of every endpoint that is in no group.
    pub default: Settings,
    /// Groups, free of contradictions.
    pub groups: Vec<Group>,
}

/// Everything that tables are made from.
#[derive(Debug)]
pub struct Registry {
    books: Arc<Books>,
    config: TenantConfig,
    delivered: Vec<Delivered>,
    seniority: Seniority,
    refused: Vec<RefusedGroup>,
    /// Groups in force.
    groups: Vec<(TenantId, Arc<Group>)>,
    table: Table,
    /// Endpoints that have policies, by number.
    endpoints: HashMap<u64, Endpoint>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Endpoint {
    /// Policies of that number.
    policies: usize,
    /// Those of them of which groups have all addresses.
    grouped: usize,
}

impl Registry {
    /// With no group and no endpoint yet, beside those of the configuration.
    pub fn new(books: Arc<Books>, config: TenantConfig) -> Self {
        let mut registry = Self {
            books,
            config,
            delivered: Vec::new(),
            seniority: Seniority::default(),
            refused: Vec::new(),
            groups: Vec::new(),
            table: Table::default(),
            endpoints: HashMap::new(),
        };
        registry.books.agree_for_all(&Arc::new(registry.config.default.clone()));
        registry.regroup(&Snapshot::empty());
        registry
    }

    /// The table in force.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The accounts.
    pub fn books(&self) -> &Arc<Books> {
        &self.books
    }

    /// Groups in force.
    pub fn groups(&self) -> impl Iterator<Item = (TenantId, &Arc<Group>)> {
        self.groups.iter().map(|(id, group)| (*id, group))
    }

    /// Groups that are set aside, and what does not count of others.
    pub fn refused(&self) -> &[RefusedGroup] {
        &self.refused
    }

    /// Endpoints that share a place because there are too many.
    pub fn crowded(&self) -> usize {
        self.table.own.values().filter(|id| id.place() < FIRST).count()
    }

    /// Whether exactly these groups were delivered last.
    pub fn delivers(&self, delivered: &[Delivered]) -> bool {
        self.delivered == delivered
    }

    /// Lets all claims to names and members count as made at once, also those that are there already. For the first state of a
    /// stream: what counts then does not depend on what earlier streams said in which order.
    pub fn forget_order(&mut self) {
        self.seniority = Seniority::default();
    }

    /// Takes these groups instead of those that were delivered before. Who has a name or a member keeps it while it claims it; of
    /// claims that are made at once see [`Seniority`].
    pub fn deliver(&mut self, delivered: Vec<Delivered>, policy: &Snapshot) {
        self.delivered = delivered;
        self.regroup(policy);
    }

    /// Takes over which endpoints have policies. Costs what differs between the two snapshots.
    pub fn follow(&mut self, before: &Snapshot, after: &Snapshot) {
        let (gone, come) = after.changes_since(before);
        let mut touched: Vec<u64> = gone.iter().chain(&come).map(|policy| policy.endpoint_id()).collect();
        for policy in gone {
            let grouped = usize::from(is_grouped(policy, &self.table.groups));
            let endpoint = self.endpoints.entry(policy.endpoint_id()).or_default();
            endpoint.policies = endpoint.policies.saturating_sub(1);
            endpoint.grouped = endpoint.grouped.saturating_sub(grouped);
        }
        for policy in come {
            self.count(policy);
        }
        touched.sort_unstable();
        touched.dedup();
        self.settle_endpoints(touched.into_iter());
    }

    /// Makes all of the table anew.
    fn regroup(&mut self, policy: &Snapshot) {
        let now = Instant::now();
        let before: Vec<(TenantId, Arc<Group>)> = std::mem::take(&mut self.groups);
        self.refused.clear();
        let mut claims = Claims::within(self.books.commons().pools());
        let mut table = GroupTable { default: Arc::new(self.config.default.clone()), ..GroupTable::default() };
        let mut in_force = Vec::with_capacity(self.config.groups.len() + self.delivered.len());
        for group in &self.config.groups {
            let (mut group, origin) = (group.clone(), group.name.to_string());
            match claims.take(&mut group) {
                Ok(left_out) => {
                    let part = |error: GroupError| RefusedGroup::part(origin.clone(), error.to_string());
                    self.refused.extend(left_out.into_iter().map(part));
                    in_force.push(group);
                }
                Err(error) => self.refused.push(RefusedGroup::whole(origin, error.to_string())),
            }
        }
        let (groups, refused) = self.seniority.settle(&self.delivered, &mut claims);
        in_force.extend(groups);
        self.refused.extend(refused);
        // First, since those who come may need their places.
        let present: HashSet<&str> = in_force.iter().map(|group| &*group.name).collect();
        let gone = before.iter().filter(|(_, group)| !present.contains(&*group.name));
        gone.for_each(|(id, _)| self.books.dismiss(*id, now));
        for group in in_force {
            let id = self.books.admit(&group.name, Kind::Group, now);
            self.books.agree(id, &Arc::new(group.settings.clone()));
            table.add(id, &group);
            self.groups.push((id, Arc::new(group)));
        }
        self.limit(&table);
        self.table.groups = Arc::new(table);
        self.endpoints.clear();
        let known: Vec<u64> = self.table.own.keys().copied().collect();
        for policy in policy.endpoints() {
            self.count(policy);
        }
        let mut all: Vec<u64> = self.endpoints.keys().copied().chain(known).collect();
        all.sort_unstable();
        all.dedup();
        self.settle_endpoints(all.into_iter());
    }

    /// Has limits count for this table what they count for the one in force.
    fn limit(&self, table: &GroupTable) {
        let commons = self.books.commons();
        let weights = table.settings.iter().map(|(id, settings)| (*id, settings.weight));
        commons.set_weights(weights, table.default.weight);
        for (id, settings) in &table.settings {
            let before = self.table.groups.settings.get(id).map(|settings| settings.ceilings.rates());
            if before != Some(settings.ceilings.rates()) {
                commons.renew(*id);
            }
        }
    }

    fn count(&mut self, policy: &EndpointPolicy) {
        let grouped = usize::from(is_grouped(policy, &self.table.groups));
        let endpoint = self.endpoints.entry(policy.endpoint_id()).or_default();
        endpoint.policies += 1;
        endpoint.grouped += grouped;
    }

    /// Gives these endpoints tenants of their own where they need them, and takes them away where they do not.
    fn settle_endpoints(&mut self, ids: impl Iterator<Item = u64>) {
        let now = Instant::now();
        for id in ids {
            let endpoint = self.endpoints.get(&id).copied().unwrap_or_default();
            let wanted = endpoint.policies > endpoint.grouped;
            if endpoint.policies == 0 {
                self.endpoints.remove(&id);
            }
            match (wanted, self.table.own.get(&id).copied()) {
                (true, None) => {
                    let tenant = self.books.admit(&format!("{ENDPOINT}{id}"), Kind::Endpoint, now);
                    self.books.agree(tenant, &self.table.groups.default);
                    Arc::make_mut(&mut self.table.own).insert(id, tenant);
                }
                (false, Some(tenant)) => {
                    Arc::make_mut(&mut self.table.own).remove(&id);
                    self.books.dismiss(tenant, now);
                }
                (true, Some(_)) | (false, None) => {}
            }
        }
        self.books.settle(now);
    }
}

/// Whether nothing of an endpoint is left for a tenant of its own.
fn is_grouped(policy: &EndpointPolicy, groups: &GroupTable) -> bool {
    groups.endpoints.contains_key(&policy.endpoint_id())
        || policy.keys().all(|key| match key {
            EndpointKey::Address(address) => groups.addresses.lookup(*address).is_some(),
            EndpointKey::Name(_) => false,
        })
}

impl GroupTable {
    fn add(&mut self, id: TenantId, group: &Group) {
        for member in &group.members {
            match member {
                Member::Endpoint(endpoint) => drop(self.endpoints.insert(*endpoint, id)),
                Member::Addresses(net) => drop(self.addresses.insert(*net, id)),
                Member::Identity(identity) => drop(self.identities.insert(*identity, id)),
            }
        }
        let guarantee = &group.settings.guarantee;
        if guarantee.connections.is_some() || guarantee.in_flight.is_some() {
            self.guaranteed.push((id, guarantee.clone()));
        }
        self.settings.insert(id, Arc::new(group.settings.clone()));
    }
}
