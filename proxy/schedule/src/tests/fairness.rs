//! The run queue alone, against a model that knows what every two that share are owed.

use std::collections::{HashMap, HashSet, VecDeque};

use super::key;
use crate::fair::Fair;
use crate::level::SAVED;
use crate::reserve::AHEAD;
use crate::{GroupKey, Part, Share, TenantId, Weight};

const TENANTS: usize = 6;
const FLOWS: usize = 4;
/// What tenants are promised, in millionths. They have nothing to fear of the others' weights, and are not compared with them.
const PROMISED: [u32; TENANTS] = [300_000, 0, 150_000, 0, 0, 0];

/// The same numbers in every run (xorshift64*).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % bound
    }

    /// Mostly short turns, and some a thousand times as long.
    fn cost(&mut self) -> u64 {
        1 + match self.below(20) {
            0 => self.below(5_000_000),
            1..3 => 0,
            _ => self.below(50_000),
        } as u64
    }
}

/// What those who share one level were given, in virtual time, while both of two wanted to run.
struct Ledger<const N: usize> {
    backlog: [usize; N],
    /// Largest virtual cost of one turn so far.
    largest: [i128; N],
    /// Most that one may have saved so far.
    saved: [i128; N],
    /// For each two: how much more the first was given, and the range of that, since both began to want to run.
    ahead: [[Option<(i128, i128, i128)>; N]; N],
    checked: usize,
}

impl<const N: usize> Ledger<N> {
    fn new() -> Self {
        Self { backlog: [0; N], largest: [0; N], saved: [0; N], ahead: [[None; N]; N], checked: 0 }
    }

    /// Notes a turn of `who`, then that it has one item less to run.
    fn charge(&mut self, who: usize, cost: u64, rate: i128) {
        let cost = i128::from(cost) * rate;
        self.largest[who] = self.largest[who].max(cost);
        self.backlog[who] -= 1;
        for (a, b) in (0..N).map(|other| (who.min(other), who.max(other))) {
            if let Some((ahead, least, most)) = &mut self.ahead[a][b] {
                *ahead += if a == who { cost } else { -cost };
                (*least, *most) = ((*least).min(*ahead), (*most).max(*ahead));
                let bound = self.largest[a] + self.largest[b] + self.saved[a].max(self.saved[b]);
                assert!(*most - *least <= bound, "{a} and {b} differ by {} and not {bound}", *most - *least);
                self.checked += 1;
            }
        }
        self.note(who);
    }

    /// Notes that it has one item more to run.
    fn wake(&mut self, who: usize, rate: i128) {
        self.saved[who] = self.saved[who].max(i128::from(SAVED) * rate);
        self.backlog[who] += 1;
        self.note(who);
    }

    /// Two that want to run are compared from here on; one that does not is owed nothing.
    fn note(&mut self, who: usize) {
        for other in (0..N).filter(|other| *other != who) {
            let both = self.backlog[who] > 0 && self.backlog[other] > 0;
            let ahead = &mut self.ahead[who.min(other)][who.max(other)];
            *ahead = if both { ahead.or(Some((0, 0, 0))) } else { None };
        }
    }
}

/// Virtual time of a nanosecond.
fn rate(weight: u32) -> i128 {
    i128::from((1 << 24) / u64::from(weight))
}

/// What one was given of what it is promised, while it wanted to run.
#[derive(Default)]
struct Promised {
    part: u128,
    backlog: usize,
    /// When it began to want to run, in the worker's time.
    since: Option<u128>,
    given: u128,
    longest: u128,
    checked: usize,
}

impl Promised {
    /// Notes whether `now` it wants to run.
    fn note(&mut self, now: u128) {
        match (self.backlog > 0, self.since) {
            (true, None) => (self.since, self.given) = (Some(now), 0),
            (false, _) => self.since = None,
            (true, Some(_)) => {}
        }
    }

    /// It has what it is promised, but for what `late` (the longest turns of those who may come before it) costs.
    fn check(&mut self, now: u128, late: u128) {
        let Some(since) = self.since.filter(|_| self.part > 0) else { return };
        let owed = (now - since).saturating_sub(late + u128::from(AHEAD)) * self.part / 1_000_000;
        assert!(self.given + 2 * self.longest >= owed, "was given {} of {owed}", self.given);
        self.checked += usize::from(owed > 2 * self.longest);
    }
}

struct Model {
    /// The worker's.
    time: u128,
    promised: [Promised; TENANTS],
    fair: Fair<(GroupKey, u64)>,
    random: Random,
    slots: HashMap<GroupKey, usize>,
    queues: HashMap<GroupKey, VecDeque<u64>>,
    weights: [u32; TENANTS],
    tenants: Ledger<TENANTS>,
    flows: Vec<Ledger<FLOWS>>,
    items: u64,
    seen: HashSet<u64>,
    /// Items that ran in the turn of another.
    went_on: usize,
    /// Nobody else gets anything new.
    only: Option<GroupKey>,
    /// Nothing new comes.
    ending: bool,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            time: 0,
            promised: PROMISED.map(|part| Promised { part: part.into(), ..Promised::default() }),
            fair: Fair::default(),
            random: Random(seed),
            slots: HashMap::new(),
            queues: HashMap::new(),
            weights: [100; TENANTS],
            tenants: Ledger::new(),
            flows: (0..TENANTS).map(|_| Ledger::new()).collect(),
            items: 0,
            seen: HashSet::new(),
            went_on: 0,
            only: None,
            ending: false,
        }
    }

    fn any_key(&mut self) -> GroupKey {
        if let Some(key) = self.only {
            return key;
        }
        // Some have much more to do than others.
        let tenant = self.random.below(TENANTS).min(self.random.below(TENANTS));
        key(tenant as u32, self.random.below(FLOWS) as u32)
    }

    fn share(&self, tenant: usize) -> Share {
        let weight = Weight::new(self.weights[tenant]);
        Share { weight, at_least: Part::of_millionths(PROMISED[tenant]), has_end: false }
    }

    fn slot(&mut self, key: GroupKey) -> usize {
        if let Some(slot) = self.slots.get(&key) {
            return *slot;
        }
        let share = self.share(key.tenant.raw() as usize);
        let (slot, _) = self.fair.join(key, || share);
        // What the queue took the tenant in with, if it had not forgotten it.
        self.fair.set_share(key.tenant, share);
        self.slots.insert(key, slot);
        slot
    }

    fn push(&mut self) {
        let key = self.any_key();
        let slot = self.slot(key);
        self.items += 1;
        self.fair.push(slot, (key, self.items));
        self.queues.entry(key).or_default().push_back(self.items);
        let tenant = key.tenant.raw() as usize;
        match PROMISED[tenant] {
            0 => {
                self.tenants.wake(tenant, rate(self.weights[tenant]));
            }
            _ => {
                self.promised[tenant].backlog += 1;
                self.promised[tenant].note(self.time);
            }
        }
        self.flows[tenant].wake(key.flow as usize, rate(100));
    }

    fn leave(&mut self) {
        let key = self.any_key();
        if self.queues.get(&key).is_none_or(VecDeque::is_empty)
            && let Some(slot) = self.slots.remove(&key)
        {
            self.fair.leave(slot);
        }
    }

    fn reweigh(&mut self) {
        let tenant = self.random.below(TENANTS);
        self.weights[tenant] = [1, 50, 100, 200, 400, 10_000][self.random.below(6)];
        self.fair.set_share(TenantId::from_raw(tenant as u32), self.share(tenant));
    }

    /// Runs one item, and returns its cost.
    fn item(&mut self, (key, item): (GroupKey, u64)) -> u64 {
        assert!(self.seen.insert(item), "item {item} ran twice");
        assert_eq!(self.queues.get_mut(&key).and_then(VecDeque::pop_front), Some(item), "out of order in its group");
        // What runs may wake others, and itself.
        for _ in 0..self.random.below(3) * usize::from(!self.ending) {
            self.push();
        }
        self.random.cost()
    }

    /// One turn; false when nothing was queued.
    fn run(&mut self) -> bool {
        let Some(turn) = self.fair.next() else {
            assert_eq!(self.items as usize, self.seen.len(), "idle while something waits");
            return false;
        };
        let key = turn.item.0;
        assert_eq!(self.fair.tenant(turn.tenant), key.tenant);
        let tenant = key.tenant.raw() as usize;
        let mut cost = self.item(turn.item);
        // The turn may go on, and counts as one.
        while self.random.below(4) > 0
            && let Some(more) = self.fair.more()
        {
            assert_eq!(more.0, key);
            match PROMISED[tenant] {
                0 => self.tenants.backlog[tenant] -= 1,
                _ => self.promised[tenant].backlog -= 1,
            }
            self.flows[tenant].backlog[key.flow as usize] -= 1;
            cost += self.item(more);
            self.went_on += 1;
        }
        self.fair.charge(cost);
        self.time += u128::from(cost);
        let promised = &mut self.promised[tenant];
        promised.given += u128::from(cost);
        promised.longest = promised.longest.max(cost.into());
        match PROMISED[tenant] {
            0 => self.tenants.charge(tenant, cost, rate(self.weights[tenant])),
            _ => {
                promised.backlog -= 1;
                promised.note(self.time);
            }
        }
        let longest = |promised: &Promised| promised.longest;
        let late = self.promised.iter().filter(|promised| promised.part > 0).map(longest).sum::<u128>()
            + self.promised.iter().map(longest).max().unwrap();
        self.promised.iter_mut().for_each(|promised| promised.check(self.time, late));
        self.flows[tenant].charge(key.flow as usize, cost, rate(100));
        true
    }
}

#[test]
fn no_two_that_want_to_run_differ_by_more_than_their_longest_turns() {
    let mut model = Model::new(0x5eed);
    // Phases of overload, of rest, and of one alone.
    let mut pressure = 5;
    for step in 0..1_000_000 {
        if step % 5_000 == 0 {
            pressure = [1, 4, 6, 8][model.random.below(4)];
            model.only = None;
            model.only = (model.random.below(8) == 0).then(|| model.any_key());
        }
        match model.random.below(20) {
            0 => model.leave(),
            1 if step % 50 == 1 => model.reweigh(),
            n if n < 2 + pressure => model.push(),
            _ => drop(model.run()),
        }
    }
    model.ending = true;
    while model.run() {}
    assert_eq!(model.seen.len(), model.items as usize, "nothing is lost");
    let of_flows: usize = model.flows.iter().map(|flows| flows.checked).sum();
    let promises: Vec<_> = model.promised.iter().map(|promised| promised.checked).collect();
    assert!(model.tenants.checked > 100_000 && of_flows > 100_000, "{} {of_flows}", model.tenants.checked);
    assert!(promises[0] > 100_000 && promises[2] > 100_000, "{promises:?}");
    assert!(model.went_on > 1_000, "{}", model.went_on);
}

/// Runs `turns` turns of groups that can always run; returns what each was given.
fn saturate(fair: &mut Fair<usize>, slots: &[usize], turns: usize, cost: impl Fn(usize, usize) -> u64) -> Vec<u64> {
    let mut given = vec![0; slots.len()];
    for turn in 0..turns {
        let who = fair.next().expect("everybody can run").item;
        let cost = cost(who, turn);
        given[who] += cost;
        fair.push(slots[who], who);
        fair.charge(cost);
    }
    given
}

fn joined(fair: &mut Fair<usize>, groups: &[(u32, u32, u32)]) -> Vec<usize> {
    let slots: Vec<_> = groups
        .iter()
        .map(|&(tenant, flow, weight)| fair.join(key(tenant, flow), || Share::of(Weight::new(weight))).0)
        .collect();
    slots.iter().enumerate().for_each(|(who, slot)| fair.push(*slot, who));
    slots
}

#[test]
fn time_is_shared_by_weight_whatever_a_turn_costs() {
    let mut fair = Fair::default();
    let slots = joined(&mut fair, &[(1, 0, 100), (2, 0, 200), (3, 0, 400)]);
    let given = saturate(&mut fair, &slots, 100_000, |who, turn| [90_000, 10_000, 1_000][who] + turn as u64 % 7);
    let total: u64 = given.iter().sum();
    for (given, weight) in given.iter().zip([1, 2, 4]) {
        let share = *given as f64 / total as f64 * 7.0 / f64::from(weight);
        assert!((0.99..1.01).contains(&share), "{share}");
    }
    fair.set_share(TenantId::from_raw(1), Share::of(Weight::new(400)));
    let given = saturate(&mut fair, &slots, 100_000, |_, _| 10_000);
    let share = given[0] as f64 / given[2] as f64;
    assert!((0.99..1.01).contains(&share), "a new weight counts at once: {share}");
}

#[test]
fn flows_of_a_tenant_share_what_the_tenant_has() {
    let mut fair = Fair::default();
    let slots = joined(&mut fair, &[(1, 1, 100), (1, 2, 100), (1, 3, 100), (2, 1, 100)]);
    let given = saturate(&mut fair, &slots, 100_000, |who, _| [50_000, 5_000, 500, 5_000][who]);
    let total: u64 = given.iter().sum();
    for (given, share) in given.iter().zip([6.0, 6.0, 6.0, 2.0]) {
        let share = *given as f64 / total as f64 * share;
        assert!((0.99..1.01).contains(&share), "{share}");
    }
}

#[test]
fn to_leave_and_come_again_earns_nothing() {
    let mut fair = Fair::default();
    let slots = joined(&mut fair, &[(1, 0, 100)]);
    saturate(&mut fair, &slots, 10_000, |_, _| 10_000);
    // Who was never there is taken for one that has rested.
    for (pause, more) in [(0, SAVED), (0, 0), (100_000, 100_000), (0, 0)] {
        saturate(&mut fair, &slots, pause / 10_000, |_, _| 10_000);
        let (late, _) = fair.join(key(2, 0), || Share::of(Weight::DEFAULT));
        fair.push(late, 1);
        let given = saturate(&mut fair, &[slots[0], late], 1_000, |_, _| 10_000);
        assert!((given[0] + more).abs_diff(given[1]) <= 30_000, "after {pause}: {given:?}");
        while fair.next().unwrap().item != 1 {
            fair.push(slots[0], 0);
            fair.charge(10_000);
        }
        fair.charge(10_000);
        fair.leave(late);
    }
}

#[test]
fn a_rest_is_worth_what_it_left_to_others_and_no_more_than_may_be_saved() {
    for (rested, worth) in [(200_000, 200_000), (100_000_000, SAVED)] {
        let mut fair = Fair::default();
        let slots = joined(&mut fair, &[(1, 0, 100), (2, 0, 100)]);
        let mut given = [0, 0];
        while given[0] < rested {
            let who = fair.next().unwrap().item;
            if who == 0 {
                fair.push(slots[0], 0);
            }
            given[who] += 10_000;
            fair.charge(10_000);
        }
        fair.push(slots[1], 1);
        let given = saturate(&mut fair, &slots, 1_000, |_, _| 10_000);
        let more = given[1] - given[0];
        assert!(more.abs_diff(worth) <= 20_000, "after {rested} it gets {more} and not {worth}");
    }
}

/// A worker is shared by a hundred who could always use it. Whoever asks for a third of what it might, now and then much at once, is
/// not kept waiting for a turn of each of them.
#[test]
fn who_asks_for_little_does_not_wait_for_a_turn_of_everybody() {
    let mut fair = Fair::default();
    let busy: Vec<_> = (1..=100).map(|tenant| (tenant, 0, 100)).collect();
    let slots = joined(&mut fair, &busy);
    let (light, _) = fair.join(key(101, 0), || Share::of(Weight::DEFAULT));
    let (mut time, mut due, mut waits, mut longest, mut since) = (0_u64, 100_000_000, 0, 0, None);
    while time < 10_000_000_000 {
        // Two requests of four turns each, every 50 ms.
        if time >= due && waits == 0 {
            (waits, since, due) = (8, Some(time), due + 50_000_000);
            fair.push(light, 1000);
        }
        let who = fair.next().unwrap().item;
        time += 20_000;
        if who == 1000 {
            waits -= 1;
            match waits {
                0 => longest = longest.max(time - since.take().unwrap()),
                _ => fair.push(light, 1000),
            }
        } else {
            fair.push(slots[who], who);
        }
        fair.charge(20_000);
    }
    assert!(longest <= 10 * 20_000, "{longest}");
}

#[test]
fn what_was_used_is_not_forgotten_by_leaving() {
    let mut fair = Fair::default();
    let slots = joined(&mut fair, &[(1, 0, 100), (2, 0, 100)]);
    // The second has one long turn, and leaves.
    let mut at = 0;
    while fair.next().unwrap().item == 0 {
        fair.push(slots[0], 0);
        fair.charge(1_000);
        at += 1;
        assert!(at < 10);
    }
    fair.leave(slots[1]);
    fair.charge(1_000_000);
    let (back, _) = fair.join(key(2, 0), || Share::of(Weight::DEFAULT));
    fair.push(back, 1);
    let given = saturate(&mut fair, &[slots[0], back], 500, |_, _| 1_000);
    assert_eq!(given[1], 0, "the other is owed a thousand turns");
}

#[test]
fn who_leaves_takes_nothing_of_what_newcomers_have_saved() {
    let mut fair = Fair::default();
    let slots = joined(&mut fair, &[(1, 0, 100), (2, 0, 100)]);
    saturate(&mut fair, &slots, 10_000, |_, _| 10_000);
    while fair.next().unwrap().item != 1 {
        fair.push(slots[0], 0);
        fair.charge(10_000);
    }
    fair.charge(10_000);
    fair.leave(slots[1]);
    saturate(&mut fair, &slots[..1], 4, |_, _| 10_000);
    let (new, _) = fair.join(key(3, 0), || Share::of(Weight::DEFAULT));
    fair.push(new, 1);
    let given = saturate(&mut fair, &[slots[0], new], 1_000, |_, _| 10_000);
    assert!((given[0] + SAVED).abs_diff(given[1]) <= 30_000, "{given:?}");
}

#[test]
fn groups_that_nobody_uses_are_forgotten() {
    let mut fair = Fair::default();
    for tenant in 0..10_000 {
        let (slot, _) = fair.join(key(tenant, tenant), || Share::of(Weight::DEFAULT));
        fair.push(slot, 0);
        fair.next().unwrap();
        fair.charge(10_000);
        fair.leave(slot);
    }
    let (tenants, flows) = fair.known();
    // Those that have not saved all they may.
    let last = SAVED as usize / 10_000 + 4;
    assert!(tenants <= last && flows <= last, "{tenants} {flows}");
}

/// Of a tenant of weight 1 that is promised a third, and nine of weight 100.
fn with_a_promise() -> (Fair<usize>, Vec<usize>) {
    let mut fair = Fair::default();
    let promised = Share { weight: Weight::new(1), at_least: Part::of_millionths(333_333), has_end: false };
    let mut slots = vec![fair.join(key(1, 0), || promised).0];
    slots.extend((2..11).map(|tenant| fair.join(key(tenant, 0), || Share::of(Weight::DEFAULT)).0));
    slots.iter().enumerate().for_each(|(who, slot)| fair.push(*slot, who));
    (fair, slots)
}

#[test]
fn a_promise_is_kept_whatever_others_weigh_and_they_share_the_rest() {
    let (mut fair, slots) = with_a_promise();
    let given = saturate(&mut fair, &slots, 100_000, |who, turn| 10_000 + who as u64 * 9_000 + turn as u64 % 7);
    let total: u64 = given.iter().sum();
    let share = given[0] as f64 / total as f64;
    assert!((0.330..0.336).contains(&share), "{share}");
    for other in &given[1..] {
        let share = *other as f64 / total as f64 * 9.0 / (2.0 / 3.0);
        assert!((0.99..1.01).contains(&share), "{share}");
    }
}

#[test]
fn a_promise_is_the_least_and_no_extra() {
    let mut fair = Fair::default();
    let promised = Share { weight: Weight::DEFAULT, at_least: Part::of_millionths(200_000), has_end: false };
    let slots = [fair.join(key(1, 0), || promised).0, fair.join(key(2, 0), || Share::of(Weight::DEFAULT)).0];
    slots.iter().enumerate().for_each(|(who, slot)| fair.push(*slot, who));
    let given = saturate(&mut fair, &slots, 100_000, |_, _| 10_000);
    let share = given[0] as f64 / (given[0] + given[1]) as f64;
    assert!((0.495..0.505).contains(&share), "half is more than a fifth: {share}");
}

#[test]
fn neither_what_it_had_alone_nor_what_it_was_promised_is_held_against_a_tenant() {
    let (mut fair, slots) = with_a_promise();
    // Alone for a second, then with the others: from the beginning it has its third.
    let mut alone = Fair::default();
    let promised = Share { weight: Weight::new(1), at_least: Part::of_millionths(333_333), has_end: false };
    let first = alone.join(key(1, 0), || promised).0;
    alone.push(first, 0);
    saturate(&mut alone, &[first], 10_000, |_, _| 100_000);
    let others: Vec<_> = (2..11).map(|tenant| alone.join(key(tenant, 0), || Share::of(Weight::DEFAULT)).0).collect();
    others.iter().enumerate().for_each(|(who, slot)| alone.push(*slot, who + 1));
    let all: Vec<_> = std::iter::once(first).chain(others).collect();
    let given = saturate(&mut alone, &all, 3_000, |_, _| 100_000);
    assert!(given[0] > 93_000_000, "of 300 ms, ten of which it may wait: {given:?}");
    // A promise that ends leaves it with its weight, not with a debt: the next turn is its own.
    saturate(&mut fair, &slots, 100_000, |_, _| 10_000);
    fair.set_share(TenantId::from_raw(1), Share::of(Weight::DEFAULT));
    let given = saturate(&mut fair, &slots, 10_000, |_, _| 100_000);
    assert!(given[0] > 89_000_000, "of a second, a tenth: {given:?}");
}

#[test]
fn a_promise_counts_time_of_the_event_loop() {
    let (mut fair, slots) = with_a_promise();
    let (mut given, mut passed) = (0, 0);
    for _ in 0..10_000 {
        let who = fair.next().unwrap().item;
        fair.push(slots[who], who);
        fair.charge(10_000);
        // A third of all time is nobody's.
        fair.pass(5_000);
        passed += 15_000;
        given += if who == 0 { 10_000 } else { 0 };
    }
    let share = f64::from(given) / f64::from(passed);
    assert!((0.330..0.336).contains(&share), "{share}");
}

#[test]
fn newcomers_from_however_many_addresses_have_the_part_of_one_flow() {
    const TURNS: usize = 20_000;
    // One connects before each turn: always the same, of a hundred, or each time another one.
    for addresses in [1, 100, u32::MAX / 4] {
        let mut fair = Fair::default();
        let known = fair.join(key(1, 7), || Share::of(Weight::DEFAULT)).0;
        fair.push(known, 0);
        let (mut given, mut next) = (0, 0);
        for _ in 0..TURNS {
            next = (next + 1) % addresses;
            let newcomer = fair.join(key(1, GroupKey::NEWCOMER | next), || Share::of(Weight::DEFAULT)).0;
            fair.push(newcomer, 1);
            // Its first turn is its last one: it is refused.
            fair.leave(newcomer);
            if fair.next().expect("there are two at least").item == 0 {
                given += 1;
                fair.push(known, 0);
            }
            fair.charge(50_000);
        }
        let percent = given * 100 / TURNS;
        assert!((45..=55).contains(&percent), "{percent} % beside {addresses} addresses");
    }
}

#[test]
fn newcomers_that_are_gone_are_forgotten_while_others_come() {
    let mut fair = Fair::default();
    for next in 0..10_000 {
        let newcomer = fair.join(key(1, GroupKey::NEWCOMER | next), || Share::of(Weight::DEFAULT)).0;
        fair.push(newcomer, 0);
        if next == 0 {
            continue; // There is always another one.
        }
        fair.next().expect("there are two");
        fair.leave(newcomer);
        fair.charge(50_000);
    }
    assert!(fair.known().1 < 10, "{} flows", fair.known().1);
}
