use super::*;
use crate::flow::{FlowConsumer, FlowSender, channel};
use crate::metrics::Metrics;
use crate::tenant::Settings;

const LIMITS: IdleLimits = IdleLimits {
    above_percent: 50,
    before_request: Duration::ZERO,
    while_not_reading: Duration::ZERO,
    between_requests: Duration::ZERO,
};

fn told(idle: &Idle) -> bool {
    idle.all.0.borrow().nodes[idle.key].told.is_some()
}

#[test]
fn the_longest_idle_goes_first_and_who_never_asked_before_who_did() {
    let all = Rc::new(IdleConnections::default());
    let idle: Vec<Idle> = (0..6).map(|_| Idle::new(&all, TenantId::UNKNOWN)).collect();
    idle.iter().take(5).for_each(Idle::wait);
    // 0 and 1 have asked, 1 before 0; 2 is asking; 3 and 4 never did; 5 is not judged yet.
    drop(idle[1].work());
    drop(idle[0].work());
    let asking = idle[2].work();
    let make_room =
        |excess, shadow| all.make_room(&LIMITS, Crowding { excess, share: 1.0 }, &Whose::Anybody, shadow).len();
    assert_eq!(make_room(1, false), 1);
    assert!(told(&idle[3]) && !told(&idle[4]));
    assert_eq!(make_room(1, false), 0, "one is leaving");
    assert_eq!(make_room(3, false), 2);
    assert!(told(&idle[4]) && told(&idle[1]) && !told(&idle[0]));
    assert_eq!(make_room(10, true), 1);
    assert_eq!(make_room(10, true), 0, "counted once");
    assert!(!told(&idle[0]) && !told(&idle[2]) && !told(&idle[5]));
    drop(asking);
    drop(idle);
    assert_eq!((all.0.borrow().leaving, all.0.borrow().nodes.len()), (0, 0));
}

#[test]
fn who_does_not_read_goes_before_who_rests() {
    let all = Rc::new(IdleConnections::default());
    let (rests, reads, blocked) =
        (Idle::new(&all, TenantId::UNKNOWN), Idle::new(&all, TenantId::UNKNOWN), Idle::new(&all, TenantId::UNKNOWN));
    drop(rests.work());
    rests.wait();
    for idle in [&reads, &blocked] {
        assert!(idle.wrote(Poll::<()>::Pending).is_pending());
    }
    assert!(reads.wrote(Poll::Ready(())).is_ready());
    let crowding = Crowding { excess: 10, share: 1.0 };
    assert_eq!(all.make_room(&LIMITS, crowding, &Whose::Anybody, false), [Reason::SlowReader, Reason::IdleReaped]);
    assert!(told(&blocked) && told(&rests) && !told(&reads));
}

#[test]
fn those_of_one_tenant_make_room_for_it() {
    let all = Rc::new(IdleConnections::default());
    let (one, two) = (TenantId::from_raw(100), TenantId::from_raw(101));
    let idle = [one, two, one, two].map(|tenant| Idle::new(&all, tenant));
    idle.iter().for_each(Idle::wait);
    idle[2].follow(two);
    let crowding = Crowding { excess: 10, share: 1.0 };
    let make_room = |tenant| all.make_room(&LIMITS, crowding, &Whose::Hoarders { tenant, above: 3 }, false).len();
    assert_eq!(make_room(two), 2);
    assert_eq!(idle.each_ref().map(told), [false, true, true, false]);
    assert_eq!(make_room(one), 1);
    assert_eq!(make_room(one), 0);
}

#[test]
fn patience_ends_as_places_do() {
    let all = Rc::new(IdleConnections::default());
    let idle = Idle::new(&all, TenantId::UNKNOWN);
    idle.wait();
    all.0.borrow_mut().nodes[idle.key].since -= 6_000;
    let limits = IdleLimits { before_request: Duration::from_secs(10), ..LIMITS };
    let goes =
        |share| all.make_room(&limits, Crowding { excess: 1, share }, &Whose::Anybody, true) == [Reason::IdleReaped];
    assert!(!goes(0.0) && !goes(0.4));
    assert!(goes(0.5));
}

/// Connections of one tenant that hold so many bytes each, beside what any holds.
fn holders<const N: usize>(all: &Rc<IdleConnections>, bytes: [usize; N]) -> (FlowConsumer, [Idle; N]) {
    let (_, workers) = Metrics::new(1);
    let (mut senders, consumer) = channel(workers, 8);
    let flows: Rc<FlowSender> = Rc::new(senders.remove(0));
    let holders = bytes.map(|bytes| {
        let payer = Payer::accept(&flows, &Rc::default(), TenantId::UNKNOWN, &Settings::default());
        payer.hold(bytes);
        Idle::of(all, &payer)
    });
    (consumer, holders)
}

/// Who is told for its idleness while it is at work goes when its work is done, which may be never.
#[test]
fn memory_of_who_is_at_work_is_not_on_its_way() {
    const MIB: usize = 1 << 20;
    let all = Rc::new(IdleConnections::default());
    let (_consumer, holders) = holders(&all, [4 * MIB, 2 * MIB, MIB]);
    let place = TenantId::UNKNOWN.place();
    let reason = |idle: &Idle| all.0.borrow().nodes[idle.key].told.map(|(_, reason)| reason);
    let tell = |idle: &Idle, reason| drop(all.0.borrow_mut().tell(idle.key, Duration::ZERO, reason));
    holders[0].wait();
    tell(&holders[0], Reason::IdleReaped);
    all.send_away(place, MIB as u64);
    assert_eq!(holders.each_ref().map(reason), [Some(Reason::IdleReaped), None, None], "it goes at once");

    // It has been told, and asks for something before it is gone.
    all.0.borrow_mut().nodes[holders[0].key].told = None;
    let work = holders[0].work();
    all.send_away(place, MIB as u64);
    assert_eq!(holders.each_ref().map(reason), [Some(Reason::TenantMemory), None, None]);
    all.0.borrow_mut().nodes[holders[0].key].told = None;
    all.send_away(place, MIB as u64);
    assert_eq!(holders.each_ref().map(reason), [None; 3], "that ends what is under way, too");
    drop(work);
}

#[test]
fn places_of_who_is_at_work_are_not_on_their_way() {
    let all = Rc::new(IdleConnections::default());
    let (_consumer, holders) = holders(&all, [1, 1]);
    let make_room = || all.make_room(&LIMITS, Crowding { excess: 1, share: 1.0 }, &Whose::Anybody, false).len();
    let leaving = || (all.0.borrow().leaving, holders.each_ref().map(|idle| all.0.borrow().nodes[idle.key].leaving));
    holders.iter().for_each(Idle::wait);
    assert_eq!((make_room(), make_room(), leaving()), (1, 0, (1, [true, false])));
    // It asks for something before it has heard of it, and what it asks for may not end.
    let work = holders[0].work();
    assert_eq!(leaving(), (0, [false, false]));
    assert_eq!((make_room(), leaving()), (1, (1, [false, true])), "another one makes room");
    drop(work);
    assert_eq!(leaving(), (2, [true, true]), "now both do");
    drop(holders);
    assert_eq!(all.0.borrow().leaving, 0);
}
