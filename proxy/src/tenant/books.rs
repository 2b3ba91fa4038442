//! Who holds which place, and what each has used: the control side's view of the ledgers of all workers.
//!
//! A place is given back when its tenant has been gone for a while and nothing of it is open. Nobody resets the cells, which
//! belong to the workers: what they stood at is taken off what the next holder's show.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, Guard};

use super::account::{Ledger, Totals};
use super::commons::{Commons, Pools};
use super::id::{BUILT_IN, FIRST, FIRST_SHARED, GROUP_PLACES, PLACES, Placed, SHARED, first_holder, shared};
use super::{Room, Settings, TenantId, ladder, limit};
use crate::reason::Reason;

/// How long what a tenant has used is still shown after it is gone, if nobody needs its place.
const KEEP: Duration = Duration::from_secs(600);
/// Tenants with series of their own in metrics; all others are one series, `overflow`.
pub const MAX_SERIES: usize = 256;

/// What kind of tenant it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is always one.
    BuiltIn,
    /// Endpoints for which there was no other room.
    Shared,
    /// Configured.
    Group,
    /// One endpoint.
    Endpoint,
}

impl Kind {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BuiltIn => "built_in",
            Self::Shared => "shared",
            Self::Group => "group",
            Self::Endpoint => "endpoint",
        }
    }
}

/// Names of tenants, for whoever has only their ids. Reading takes no lock.
#[derive(Clone, Debug)]
pub struct Names {
    all: Arc<ArcSwap<Vec<Name>>>,
    commons: Arc<Commons>,
}

/// The last holder of a place.
#[derive(Clone, Debug)]
struct Name {
    id: TenantId,
    name: Arc<str>,
    settings: Arc<Settings>,
}

/// One tenant and what it has used.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Its id.
    pub id: TenantId,
    /// Its name.
    pub name: Arc<str>,
    /// What it is.
    pub kind: Kind,
    /// It is in no table any more.
    pub gone: bool,
    /// It has series of its own in metrics.
    pub has_series: bool,
    /// What it has used, all workers together.
    pub totals: Totals,
}

/// All accounts of the process.
#[derive(Debug)]
pub struct Books {
    ledgers: Vec<Arc<Ledger>>,
    commons: Arc<Commons>,
    names: Names,
    places: Mutex<Places>,
}

#[derive(Debug)]
struct Places {
    /// By place; `None` where nobody ever was.
    holders: Vec<Option<Holder>>,
    by_name: HashMap<Arc<str>, usize>,
    free_groups: Vec<usize>,
    free_endpoints: Vec<usize>,
    with_series: usize,
    /// Of everybody for whom nothing else is agreed.
    default: Arc<Settings>,
    /// What those had used that had no series of their own and are gone for good.
    retired: Totals,
}

#[derive(Debug)]
struct Holder {
    id: TenantId,
    name: Arc<str>,
    kind: Kind,
    state: State,
    has_series: bool,
    settings: Option<Arc<Settings>>,
    /// What the cells stood at when it came.
    before: Totals,
    /// Nanoseconds for which its policies were compiled.
    compiled: u64,
    /// Bytes and rules of its compiled policies.
    policy_bytes: u64,
    policy_rules: u64,
    /// When one of them last came into force or went, in Unix milliseconds; 0 for never.
    policy_changed: u64,
}

/// How many bytes and rules more the compiled policies of a tenant have, or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoliciesChange {
    pub(crate) tenant: TenantId,
    pub(crate) bytes: i64,
    pub(crate) rules: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Present,
    GoneSince(Instant),
    /// The place is free.
    Left,
}

impl Default for Books {
    fn default() -> Self {
        Self::new(Vec::new(), Arc::default())
    }
}

impl Books {
    /// The books of these workers, and of what limits count beside them.
    pub(crate) fn new(ledgers: Vec<Arc<Ledger>>, commons: Arc<Commons>) -> Self {
        let built_in = BUILT_IN.iter().map(|&(id, name)| Holder::new(id, name.into(), Kind::BuiltIn, true));
        let crowds = (0..SHARED).map(|index| {
            let id = first_holder(FIRST_SHARED + index);
            Holder::new(id, format!("_shared-{index:02}").into(), Kind::Shared, false)
        });
        let mut holders: Vec<Option<Holder>> = Vec::new();
        holders.resize_with(PLACES, || None);
        for holder in built_in.chain(crowds) {
            let place = holder.id.place();
            holders[place] = Some(holder);
        }
        let places = Places {
            holders,
            by_name: HashMap::new(),
            free_groups: (FIRST..FIRST + GROUP_PLACES).rev().collect(),
            free_endpoints: (FIRST + GROUP_PLACES..PLACES).rev().collect(),
            with_series: BUILT_IN.len(),
            default: Arc::default(),
            retired: Totals::default(),
        };
        let names = Names { all: Arc::new(ArcSwap::from_pointee(places.names())), commons: Arc::clone(&commons) };
        for ledger in &ledgers {
            (0..FIRST).for_each(|place| ledger.open(place));
        }
        Self { ledgers, commons, names, places: Mutex::new(places) }
    }

    /// Says what tenants share; the first call counts. Before, there is no end to it.
    pub fn limit(&self, pools: Pools) {
        self.commons.limit(pools);
    }

    /// The process may have so much memory from now on: what can be guaranteed of it to whoever asks for a guarantee next.
    pub fn limit_memory(&self, bytes: Option<u64>) {
        self.commons.limit_memory(bytes);
    }

    /// See [`Books::limit`].
    pub fn pools(&self) -> Pools {
        self.commons.pools()
    }

    pub(super) fn commons(&self) -> &Commons {
        &self.commons
    }

    /// Makes the accounts that there always are, in a ledger that no books are kept of.
    #[cfg(test)]
    pub(crate) fn open_for_test(ledger: &Ledger) {
        (0..FIRST).for_each(|place| ledger.open(place));
    }

    /// Names of everybody who is or was here.
    pub fn names(&self) -> Names {
        self.names.clone()
    }

    /// The id of the group or endpoint `name`: the one that it has, or a new one. Without room a shared one, whose name is not
    /// its.
    pub(super) fn admit(&self, name: &str, kind: Kind, now: Instant) -> TenantId {
        let mut places = self.lock();
        if let Some(holder) = places.holder_of(name) {
            holder.state = State::Present;
            return holder.id;
        }
        let Some(place) = places.free(kind).or_else(|| self.reclaim(&mut places, kind, now)) else {
            return shared(name);
        };
        let id = places.holders[place].as_ref().map_or_else(|| first_holder(place), |last| last.id.successor());
        let has_series = places.with_series < MAX_SERIES;
        places.with_series += usize::from(has_series);
        let name: Arc<str> = name.into();
        places.by_name.insert(Arc::clone(&name), place);
        let before = self.totals(place, now);
        places.holders[place] = Some(Holder { before, ..Holder::new(id, name, kind, has_series) });
        self.commons.welcome(id);
        // Before anybody can be told the id.
        self.ledgers.iter().for_each(|ledger| ledger.open(place));
        id
    }

    /// Notes what a tenant may use; for whoever explains limits from the next time on that names are settled.
    pub(super) fn agree(&self, id: TenantId, settings: &Arc<Settings>) {
        if let Some(holder) = self.lock().holders[id.place()].as_mut().filter(|holder| holder.id == id) {
            match holder.kind {
                Kind::Group => self.room().agree(id, settings),
                Kind::BuiltIn | Kind::Shared | Kind::Endpoint => self.room().agree_as_any(id, settings),
            }
            holder.settings = Some(Arc::clone(settings));
        }
    }

    /// The same for all for whom nothing else is.
    pub(super) fn agree_for_all(&self, settings: &Arc<Settings>) {
        self.room().agree_for_all(settings);
        self.lock().default = Arc::clone(settings);
    }

    /// The tenant is in no table any more.
    pub(super) fn dismiss(&self, id: TenantId, now: Instant) {
        let mut places = self.lock();
        if let Some(holder) = places.holders[id.place()].as_mut().filter(|holder| holder.id == id)
            && matches!(holder.kind, Kind::Group | Kind::Endpoint)
            && holder.state == State::Present
        {
            holder.state = State::GoneSince(now);
        }
    }

    /// Compiling the policies of this tenant took so many nanoseconds. `false` if the tenant is gone, so that nobody pays.
    #[must_use]
    pub(crate) fn charge_compiling(&self, id: TenantId, nanoseconds: u64) -> bool {
        let mut places = self.lock();
        let holder = places.holders[id.place()].as_mut().filter(|holder| holder.id == id);
        holder.map(|holder| holder.compiled += nanoseconds).is_some()
    }

    /// Compiled policies of tenants take so much more, or less. `now`, unless they only belong to others.
    pub(crate) fn hold_policies(&self, changes: &[PoliciesChange], now: Option<SystemTime>) {
        let now = now.and_then(|now| u64::try_from(now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis()).ok());
        let mut places = self.lock();
        for change in changes {
            let holder = places.holders[change.tenant.place()].as_mut().filter(|holder| holder.id == change.tenant);
            if let Some(holder) = holder {
                holder.policy_bytes = holder.policy_bytes.saturating_add_signed(change.bytes);
                holder.policy_rules = holder.policy_rules.saturating_add_signed(change.rules);
                holder.policy_changed = now.unwrap_or(holder.policy_changed);
            }
        }
    }

    /// Gives back the places of those who have been gone for long, and shows the names of those who have come.
    pub(super) fn settle(&self, now: Instant) {
        let mut places = self.lock();
        self.give_back(&mut places, now);
        self.names.all.store(Arc::new(places.names()));
    }

    /// The memory that tenants share.
    pub fn room(&self) -> &Room {
        self.commons.room()
    }

    /// Looks at what everybody holds, `since` the last look, and takes measures: the process may have `most` bytes and has
    /// `resident`. With `shadow`, what is left for all is only counted with. Returns whether another look is due soon.
    pub fn look_at_memory(&self, most: Option<u64>, resident: u64, shadow: bool, since: Duration) -> bool {
        let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        for place in 0..PLACES {
            let held: u64 = self.ledgers.iter().map(|ledger| ledger.held(place)).sum();
            if held > 0 {
                self.room().pass_time(place, held, milliseconds);
            }
        }
        let mut holdings = self.room().holdings();
        ladder::fit_guarantees(most, &mut holdings);
        self.room().keep(&holdings);
        let measures = ladder::decide(most, resident, &holdings);
        self.room().act(&measures, shadow, |place| self.commons.weight(first_holder(place)));
        self.room().is_pressed()
    }

    /// Everybody, and what each has used. Those that nobody ever belonged to are left out, built-in ones are not.
    pub fn tallies(&self) -> Vec<Tally> {
        self.tallies_and_retired().0
    }

    /// The same, and what those have used together who had no series of their own and are gone for good.
    pub(crate) fn tallies_and_retired(&self) -> (Vec<Tally>, Totals) {
        let now = Instant::now();
        let mut places = self.lock();
        self.give_back(&mut places, now);
        let holders = places.holders.iter().flatten().filter(|holder| holder.state != State::Left);
        let tally = |holder: &Holder| {
            let totals = holder.totals(&self.totals(holder.id.place(), now));
            Tally {
                id: holder.id,
                name: Arc::clone(&holder.name),
                kind: holder.kind,
                gone: holder.state != State::Present,
                has_series: holder.has_series,
                totals,
            }
        };
        let shown = |tally: &Tally| tally.kind != Kind::Shared || !tally.totals.is_empty();
        (holders.map(tally).filter(shown).collect(), places.retired.clone())
    }

    fn totals(&self, place: usize, now: Instant) -> Totals {
        let mut totals = Totals::default();
        for ledger in &self.ledgers {
            totals.add(&ledger.totals(place, now));
        }
        totals.memory_byte_ms = self.room().byte_ms(place);
        totals.apart = self.commons.kept_apart_for(place, now);
        totals.paced_now = self.commons.waiting(place);
        totals
    }

    fn give_back(&self, places: &mut Places, now: Instant) {
        let due = |holder: &&Holder| match holder.state {
            State::GoneSince(since) => now.saturating_duration_since(since) >= KEEP,
            State::Present | State::Left => false,
        };
        let due: Vec<usize> = places.holders.iter().flatten().filter(due).map(|holder| holder.id.place()).collect();
        for place in due {
            self.vacate(places, place, now);
        }
    }

    /// The place of whoever is gone the longest and has nothing open.
    fn reclaim(&self, places: &mut Places, kind: Kind, now: Instant) -> Option<usize> {
        let mut gone: Vec<(Instant, usize)> = places
            .holders
            .iter()
            .flatten()
            .filter(|holder| holder.kind == kind)
            .filter_map(|holder| match holder.state {
                State::GoneSince(since) => Some((since, holder.id.place())),
                State::Present | State::Left => None,
            })
            .collect();
        gone.sort_unstable();
        gone.into_iter().find(|(_, place)| self.vacate(places, *place, now))?;
        places.free(kind)
    }

    /// Frees a place, unless something of its holder is still open.
    fn vacate(&self, places: &mut Places, place: usize, now: Instant) -> bool {
        let totals = self.totals(place, now);
        let Some(holder) = places.holders[place].as_mut() else { return false };
        if totals.is_in_use() {
            return false;
        }
        holder.state = State::Left;
        let (kind, name, used) = (holder.kind, Arc::clone(&holder.name), holder.totals(&totals));
        match holder.has_series {
            true => places.with_series -= 1,
            false => places.retired.add(&used),
        }
        places.by_name.remove(&name);
        match kind {
            Kind::Group => places.free_groups.push(place),
            _ => places.free_endpoints.push(place),
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder {
    fn new(id: TenantId, name: Arc<str>, kind: Kind, has_series: bool) -> Self {
        Self {
            id,
            name,
            kind,
            state: State::Present,
            has_series,
            settings: None,
            before: Totals::default(),
            compiled: 0,
            policy_bytes: 0,
            policy_rules: 0,
            policy_changed: 0,
        }
    }

    /// What it has used, by what its cells stand at.
    fn totals(&self, cells: &Totals) -> Totals {
        let mut totals = cells.clone().since(&self.before);
        totals.compile_ns = self.compiled;
        (totals.policy_bytes, totals.policy_rules) = (self.policy_bytes, self.policy_rules);
        totals.policy_changed_ms = self.policy_changed;
        totals
    }
}

impl Places {
    fn holder_of(&mut self, name: &str) -> Option<&mut Holder> {
        let place = *self.by_name.get(name)?;
        self.holders[place].as_mut()
    }

    fn free(&mut self, kind: Kind) -> Option<usize> {
        match kind {
            Kind::Group => self.free_groups.pop(),
            Kind::Endpoint => self.free_endpoints.pop(),
            Kind::BuiltIn | Kind::Shared => None,
        }
    }

    /// By place, up to the last that was ever taken; a gap has the id of nobody.
    fn names(&self) -> Vec<Name> {
        let settings = |agreed: Option<&Arc<Settings>>| Arc::clone(agreed.unwrap_or(&self.default));
        let nobody = || Name { id: TenantId::UNKNOWN, name: "_unknown".into(), settings: settings(None) };
        let name = |holder: &Holder| {
            let (name, settings) = (Arc::clone(&holder.name), settings(holder.settings.as_ref()));
            Name { id: holder.id, name, settings }
        };
        self.holders.iter().map(|holder| holder.as_ref().map_or_else(nobody, name)).collect()
    }
}

impl Default for Names {
    fn default() -> Self {
        Books::default().names()
    }
}

/// The names of one moment.
#[derive(Debug)]
pub struct NamesNow {
    all: Guard<Arc<Vec<Name>>>,
    pools: Pools,
}

impl Names {
    /// The names of this moment.
    pub fn load(&self) -> NamesNow {
        NamesNow { all: self.all.load(), pools: self.commons.pools() }
    }
}

impl NamesNow {
    /// What `id` is called; `None` once its place has another holder.
    pub fn of(&self, id: TenantId) -> Option<&str> {
        self.holder(id).map(|name| &*name.name)
    }

    /// The setting that is behind a limit which a request, or else a connection, of `id` has met, with its value.
    pub(crate) fn limit(&self, id: TenantId, reason: Reason, is_request: bool) -> Option<String> {
        limit::of(reason, is_request, &self.holder(id)?.settings, self.pools)
    }

    fn holder(&self, id: TenantId) -> Option<&Name> {
        self.all.get(id.place()).filter(|name| name.id == id)
    }
}
