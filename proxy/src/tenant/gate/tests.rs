use std::num::NonZeroU64;
use std::sync::Arc;

use super::super::table::GroupTable;
use super::*;
use crate::tenant::id::Placed as _;
use crate::tenant::{Books, Guarantee, Pools};

const TENANTS: [TenantId; 3] = [TenantId::from_raw(100), TenantId::from_raw(101), TenantId::from_raw(102)];

/// Two workers that serve three tenants.
struct Process {
    ledgers: [Ledger; 2],
    table: Table,
}

impl Process {
    fn new(pools: Pools, settings: [Settings; 3]) -> Self {
        let commons: Arc<Commons> = Arc::default();
        commons.limit(pools);
        let ledgers = [Ledger::beside(Arc::clone(&commons)), Ledger::beside(commons)];
        ledgers.iter().for_each(Books::open_for_test);
        let mut groups = GroupTable::default();
        for (tenant, settings) in TENANTS.into_iter().zip(settings) {
            groups.guaranteed.push((tenant, settings.guarantee.clone()));
            groups.settings.insert(tenant, Arc::new(settings));
        }
        Self { ledgers, table: Table { groups: Arc::new(groups), ..Table::default() } }
    }

    fn gate(&self, worker: usize, tenant: usize) -> Gate<'_> {
        self.ledgers[worker].open(TENANTS[tenant].place());
        Gate::new(TENANTS[tenant], true, &self.table, &self.ledgers[worker])
    }

    /// Connections that the tenant opens until it is refused, at most `most`, and why.
    fn hoard(&self, tenant: usize, most: u32) -> (u32, Option<Reason>) {
        for opened in 0..most {
            if let Err(limited) = self.gate(opened as usize % 2, tenant).admit_connection(&|| None) {
                return (opened, Some(limited.reason));
            }
        }
        (most, None)
    }

    /// Connections of one remote identity of the tenant.
    fn hoard_of(&self, tenant: usize, identity: u32, most: u32) -> (u32, Option<Limited>) {
        let remotes = &self.ledgers[0].commons().remotes;
        for opened in 0..most {
            let own = || Some(remotes.of(TENANTS[tenant], identity, Space::Connections));
            if let Err(limited) = self.gate(opened as usize % 2, tenant).admit_connection(&own) {
                return (opened, Some(limited));
            }
            remotes.enter(TENANTS[tenant], identity, Space::Connections).unwrap();
        }
        (most, None)
    }

    fn shadowed(&self, reason: Reason) -> u64 {
        let account = |ledger: &Ledger| ledger.account(TENANTS[0]).unwrap().shadowed[reason as usize].value();
        self.ledgers.iter().map(account).sum()
    }
}

fn head(is_long: bool) -> Head<'static> {
    Head { is_long, bytes: &|| 1000 }
}

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate { per_second: NonZeroU64::new(per_second).unwrap(), burst: NonZeroU64::new(burst).unwrap() })
}

fn with(ceilings: Ceilings) -> Settings {
    Settings { ceilings, ..Settings::default() }
}

fn only(settings: Settings) -> [Settings; 3] {
    [settings, Settings::default(), Settings::default()]
}

#[test]
fn one_tenant_has_half_of_what_there_is_and_the_next_finds_room() {
    let process = Process::new(Pools { connections: 1000, ..Pools::default() }, only(Settings::default()));
    assert_eq!(process.hoard(0, 2000), (500, Some(Reason::TenantShare)));
    assert_eq!(process.hoard(1, 100), (100, None));
    assert_eq!(process.hoard(1, 2000).1, Some(Reason::TenantShare));
    assert_eq!(process.hoard(2, 10), (10, None));
    assert_eq!(process.hoard(0, 1), (0, Some(Reason::TenantShare)));
    // Whatever one gives back, it may have again once it has less than is free.
    (0..300).for_each(|_| process.ledgers[0].commons().leave(Space::Connections, Taken::Within, TENANTS[0]));
    assert_eq!(process.hoard(0, 10), (10, None));
}

#[test]
fn a_guarantee_is_kept_free() {
    let guarantee = Guarantee { connections: NonZeroU32::new(400), ..Guarantee::default() };
    let process = Process::new(
        Pools { connections: 1000, ..Pools::default() },
        [Settings::default(), Settings::default(), Settings { guarantee, ..Settings::default() }],
    );
    assert_eq!(process.hoard(0, 2000), (500, Some(Reason::TenantShare)), "less than half is not short yet");
    assert_eq!(process.hoard(1, 2000).1, Some(Reason::TenantShare));
    assert_eq!(process.hoard(2, 400), (400, None));
}

#[test]
fn ceilings_are_exact_whoever_asks() {
    let ceilings = Ceilings { connections: NonZeroU32::new(7), ..Ceilings::default() };
    let process = Process::new(Pools::default(), only(with(ceilings)));
    assert_eq!(process.hoard(0, 100), (7, Some(Reason::TenantConnections)));
    assert_eq!(process.hoard(1, 100), (100, None));
    process.ledgers[1].commons().leave(Space::Connections, Taken::Within, TENANTS[0]);
    assert_eq!(process.hoard(0, 100), (1, Some(Reason::TenantConnections)));
}

const fn of_remote(reason: Reason) -> Option<Limited> {
    Some(Limited { scope: Scope::Flow, ..Limited::by(reason) })
}

#[test]
fn one_remote_identity_leaves_room_in_its_tenants_share() {
    let process = Process::new(Pools { connections: 1000, ..Pools::default() }, only(Settings::default()));
    assert_eq!(process.hoard_of(0, 7, 2000), (438, of_remote(Reason::TenantShare)), "seven eighths of a half");
    assert_eq!(process.hoard_of(0, 8, 40), (40, None));
    assert_eq!(process.hoard_of(0, 7, 1), (0, of_remote(Reason::TenantShare)));
    assert_eq!(process.hoard_of(0, 8, 2000), (15, of_remote(Reason::TenantShare)));
    assert_eq!(process.hoard_of(0, 9, 5), (5, None));
    // Together they have no more than ever, but for one each of those who had none, up to an eighth of what is free.
    assert_eq!((10..40).map(|identity| process.hoard_of(0, identity, 10).0).sum::<u32>(), 2 + 29);
    assert_eq!(process.hoard_of(0, 10, 10), (0, Some(Limited::by(Reason::TenantShare))));
    assert_eq!((50..200).map(|identity| process.hoard_of(0, identity, 10).0).sum::<u32>(), 55 - 29);
    assert_eq!(process.hoard_of(1, 7, 100), (100, None), "the next tenant has its own");
}

#[test]
fn one_remote_identity_leaves_room_below_a_ceiling() {
    let ceilings = Ceilings { connections: NonZeroU32::new(80), ..Ceilings::default() };
    let process = Process::new(Pools::default(), only(with(ceilings)));
    assert_eq!(process.hoard_of(0, 7, 100), (70, of_remote(Reason::TenantConnections)));
    assert_eq!(process.hoard_of(0, 8, 5), (5, None));
    let standing = process.ledgers[0].commons().standing(TENANTS[0]);
    assert_eq!(standing.of(Space::Connections).load(Ordering::Relaxed), 75, "whoever is refused has none");
    assert_eq!(process.hoard_of(1, 7, 100), (100, None));
    // A small one is nobody's in part.
    let ceilings = Ceilings { connections: NonZeroU32::new(7), ..Ceilings::default() };
    let process = Process::new(Pools::default(), only(with(ceilings)));
    assert_eq!(process.hoard_of(0, 7, 100), (7, Some(Limited::by(Reason::TenantConnections))));
}

/// Another tenant comes when one identity has all that it may: the share shrinks below that, and who is new finds a place all the same.
#[test]
fn a_share_that_shrinks_shuts_out_no_remote_identity() {
    let process = Process::new(Pools { connections: 1000, ..Pools::default() }, only(Settings::default()));
    let commons = process.ledgers[0].commons();
    assert_eq!(process.hoard_of(0, 7, 2000), (438, of_remote(Reason::TenantShare)));
    assert_eq!(process.hoard(1, 2000), (281, Some(Reason::TenantShare)));
    assert_eq!(process.hoard_of(0, 7, 1), (0, Some(Limited::by(Reason::TenantShare))), "its share is 360 now");
    assert_eq!(process.hoard_of(0, 8, 5), (1, Some(Limited::by(Reason::TenantShare))), "it has one");
    // As many as an eighth of what is free, and no more: the others are for those who come next.
    let newcomers: u32 = (100..200).map(|identity| process.hoard_of(0, identity, 1).0).sum();
    assert_eq!(newcomers, 30);
    assert_eq!(process.hoard(2, 2000).0, 125, "half of the 250 that are free");
    // What ends of the others leaves the share to shrink; what ends of these goes to the next of them.
    (0..50).for_each(|_| commons.leave(Space::Connections, Taken::Within, TENANTS[0]));
    assert_eq!(process.hoard_of(0, 300, 1).0, 0);
    (0..31).for_each(|_| commons.leave(Space::Connections, Taken::Beyond, TENANTS[0]));
    assert_eq!(process.hoard_of(0, 300, 1).0, 1);
    assert_eq!(commons.standing(TENANTS[0]).beyond(Space::Connections).load(Ordering::Relaxed), 1);
}

/// A ceiling is no share: nobody is beyond it.
#[test]
fn who_is_new_finds_no_place_beyond_a_ceiling() {
    let ceilings = Ceilings { connections: NonZeroU32::new(360), ..Ceilings::default() };
    let process = Process::new(Pools { connections: 1000, ..Pools::default() }, only(with(ceilings)));
    assert_eq!(process.hoard_of(0, 7, 2000), (315, of_remote(Reason::TenantConnections)));
    assert_eq!(process.hoard(1, 2000).0, 343);
    let newcomers: u32 = (100..200).map(|identity| process.hoard_of(0, identity, 1).0).sum();
    assert_eq!(newcomers, 360 - 315, "the share is 329");
    let standing = process.ledgers[0].commons().standing(TENANTS[0]);
    assert_eq!(standing.beyond(Space::Connections).load(Ordering::Relaxed), 360 - 329);
}

/// Below that no place is kept from anybody, however little the tenant weighs.
#[test]
fn while_half_of_all_places_are_free_a_remote_identity_may_have_what_is_left_of_the_other() {
    let pools = Pools { connections: 1000, ..Pools::default() };
    let process = Process::new(pools, only(Settings::default()));
    process.ledgers[0].commons().set_weights([(TENANTS[1], 1000)].into_iter(), 1);
    assert_eq!(process.hoard_of(1, 7, 200), (200, None));
    let (opened, limited) = process.hoard_of(0, 7, 2000);
    assert_eq!((opened, limited), (263, of_remote(Reason::TenantShare)), "seven eighths of the 300 up to a half");
}

#[test]
fn shadow_counts_the_part_of_a_remote_identity_once() {
    let ceilings = Ceilings { connections: NonZeroU32::new(80), ..Ceilings::default() };
    let settings = Settings { shadow: true, ceilings, ..Settings::default() };
    let process = Process::new(Pools::default(), only(settings));
    assert_eq!(process.hoard_of(0, 7, 100), (100, None));
    assert_eq!(process.shadowed(Reason::TenantConnections), 30);
    // The shadow of shares is none of ceilings.
    let ceilings = Ceilings { connections: NonZeroU32::new(30), ..Ceilings::default() };
    let pools = Pools { connections: 20, shadow: true, ..Pools::default() };
    let process = Process::new(pools, only(with(ceilings)));
    assert_eq!(process.hoard_of(0, 7, 100).0, 30);
    assert!(process.shadowed(Reason::TenantShare) > 0);
}

#[test]
fn a_crowd_with_weights_is_counted_again_when_it_has_changed() {
    let process = Process::new(Pools { connections: 9000, ..Pools::default() }, only(Settings::default()));
    let commons = process.ledgers[0].commons();
    let crowd = || commons.crowd(Space::Connections, TENANTS[0]);
    assert_eq!((crowd().tenants, crowd().weight), (1, 1), "all weigh the same");
    commons.set_weights([(TENANTS[0], 2), (TENANTS[1], 6)].into_iter(), 2);
    assert_eq!((crowd().tenants, crowd().weight), (1, 2));
    process.hoard(1, 1);
    for _ in 0..40 {
        crowd();
    }
    let seen = crowd();
    assert_eq!((seen.tenants, seen.weight), (2, 8), "itself, though it has none");
    process.hoard(0, 1);
    commons.set_weights([(TENANTS[0], 3), (TENANTS[1], 6)].into_iter(), 2);
    assert_eq!((crowd().tenants, crowd().weight), (2, 9));
    commons.set_weights([(TENANTS[0], 2)].into_iter(), 2);
    assert_eq!((crowd().tenants, crowd().weight), (1, 2));
}

#[test]
fn whoever_is_refused_holds_nothing() {
    let ceilings = Ceilings {
        requests: rate(1, 2),
        in_flight: NonZeroU32::new(9),
        long_streams: NonZeroU32::new(1),
        new_connections: rate(1, 1),
        ..Ceilings::default()
    };
    let process = Process::new(Pools::default(), only(with(ceilings)));
    let ask = |is_long| process.gate(0, 0).admit_request(&head(is_long), &|| None).map_err(|limited| limited.reason);
    let held = ask(true).unwrap();
    assert_eq!(held, Held { in_flight: Some(Taken::Within), long_stream: true });
    // A long stream too many takes nothing of the rate.
    assert_eq!(ask(true), Err(Reason::TenantLongStreams));
    assert_eq!(ask(false), Ok(Held { in_flight: Some(Taken::Within), long_stream: false }));
    assert_eq!(ask(false), Err(Reason::TenantRate));
    let standing = process.ledgers[1].commons().standing(TENANTS[0]);
    let counts = || {
        let of = |space| standing.of(space).load(Ordering::Relaxed);
        (of(Space::InFlight), standing.long_streams.load(Ordering::Relaxed), of(Space::Connections))
    };
    assert_eq!(counts(), (2, 1, 0));
    assert_eq!(process.hoard(0, 5), (1, Some(Reason::TenantConnectionRate)));
    assert_eq!(counts(), (2, 1, 1));
    process.ledgers[0].commons().give_back(TENANTS[0], held);
    assert_eq!(counts(), (1, 0, 1));
    let all = process.ledgers[0].commons();
    assert_eq!([Space::InFlight, Space::Connections].map(|space| all.used(space).load(Ordering::Relaxed)), [1, 1]);
}

#[test]
fn a_rate_says_when_to_come_back() {
    let process = Process::new(Pools::default(), only(with(Ceilings { requests: rate(2, 1), ..Ceilings::default() })));
    let gate = process.gate(0, 0);
    gate.admit_request(&head(false), &|| None).unwrap();
    let limited = gate.admit_request(&head(false), &|| None).unwrap_err();
    assert_eq!(limited.rate, rate(2, 1));
    let wait = limited.retry_after.unwrap();
    assert!(wait > Duration::ZERO && wait <= Duration::from_millis(500), "{wait:?}");
    assert_eq!(limited.retry_after_seconds(), 1);
}

#[test]
fn shadow_counts_and_refuses_nothing() {
    let ceilings = Ceilings {
        connections: NonZeroU32::new(1),
        requests: rate(1, 1),
        in_flight: NonZeroU32::new(2),
        long_streams: NonZeroU32::new(1),
        ..Ceilings::default()
    };
    let settings = Settings { shadow: true, ceilings, ..Settings::default() };
    let process = Process::new(Pools { connections: 10, ..Pools::default() }, only(settings));
    assert_eq!(process.hoard(0, 20), (20, None));
    for (asked, first) in [None, Some(Reason::TenantLongStreams), Some(Reason::TenantInFlight)].into_iter().enumerate()
    {
        let gate = process.gate(1, 0);
        gate.admit_request(&head(true), &|| None).unwrap();
        assert_eq!(gate.would_limit().map(|limited| limited.reason), first, "{asked}");
    }
    process.gate(1, 0).admit_request(&head(true), &|| None).unwrap();
    let reasons = [Reason::TenantConnections, Reason::TenantRate, Reason::TenantInFlight, Reason::TenantLongStreams];
    assert_eq!(reasons.map(|reason| process.shadowed(reason)), [19, 3, 2, 3]);
    assert_eq!(process.ledgers[0].commons().standing(TENANTS[0]).of(Space::Connections).load(Ordering::Relaxed), 20);
}

#[test]
fn shares_have_a_shadow_of_their_own() {
    let pools = Pools { connections: 10, in_flight: 10, shadow: true, ..Pools::default() };
    let process = Process::new(pools, only(Settings::default()));
    assert_eq!(process.hoard(0, 8), (8, None));
    assert_eq!(process.shadowed(Reason::TenantShare), 3);
}

#[test]
fn nobody_is_told_to_come_back_at_once() {
    let seconds = |retry_after| Limited { retry_after, ..Limited::by(Reason::TenantRate) }.retry_after_seconds();
    assert_eq!(seconds(None), 1);
    assert_eq!(seconds(Some(Duration::ZERO)), 1);
    assert_eq!(seconds(Some(Duration::from_millis(2001))), 3);
    assert_eq!(seconds(Some(Duration::from_secs(2))), 2);
}

#[test]
fn heads_and_upstreams_have_ceilings() {
    let ceilings = |bytes| Ceilings {
        header_bytes: NonZeroU32::new(bytes),
        upstream_connections: NonZeroU32::new(1),
        ..Ceilings::default()
    };
    let destination = SocketAddr::from(([192, 0, 2, 1], 80));
    let process = Process::new(Pools::default(), only(with(ceilings(999))));
    let refused = process.gate(0, 0).admit_request(&head(false), &|| None).unwrap_err();
    assert_eq!(refused.reason, Reason::TenantHeaders);
    assert_eq!(process.ledgers[0].commons().used(Space::InFlight).load(Ordering::Relaxed), 0);
    let place = process.gate(0, 0).admit_upstream(destination).unwrap();
    let refused = process.gate(1, 0).admit_upstream(destination).unwrap_err();
    assert_eq!(refused.reason, Reason::TenantUpstreams);
    let others = process.gate(1, 1).admit_upstream(destination).unwrap();
    drop((place, others));
    process.gate(1, 0).admit_upstream(destination).unwrap();

    let shadow = Settings { shadow: true, ..with(ceilings(1000)) };
    let process = Process::new(Pools::default(), only(shadow));
    process.gate(0, 0).admit_request(&head(false), &|| None).unwrap();
    let both = [0, 1].map(|worker| process.gate(worker, 0).admit_upstream(destination).unwrap());
    drop(both);
    assert_eq!([Reason::TenantHeaders, Reason::TenantUpstreams].map(|reason| process.shadowed(reason)), [0, 1]);
}
