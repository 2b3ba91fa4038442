use std::num::NonZeroU64;

use super::*;
use crate::tenant::{Ceilings, Guarantee};

const MIB: u64 = 1 << 20;

fn tenant(place: usize) -> TenantId {
    crate::tenant::id::first_holder(place)
}

#[test]
fn alone_half_and_always_room_for_who_comes() {
    let room = Room::default();
    room.limit.store(90 * MIB, Ordering::Relaxed);
    let fill = |place: usize| {
        while room.step(tenant(place)) < MemoryStep::Refuse {
            room.take(place, UNIT);
        }
        room.places[place].used.load(Ordering::Relaxed) / MIB
    };
    assert_eq!(fill(100), 45);
    assert_eq!(room.step(tenant(101)), MemoryStep::Free);
    assert_eq!(fill(101), 22, "half of what was left");
    assert_eq!(room.refusal(tenant(100)), Some(OutOfMemory::Left), "who has more gives way");
    assert_eq!(room.step(tenant(102)), MemoryStep::Free);
    room.give_back(100, 30 * MIB);
    assert_eq!(room.step(tenant(101)), MemoryStep::Free);
}

#[test]
fn a_guarantee_holds_when_nothing_is_left() {
    let room = Room::default();
    room.limit.store(10 * MIB, Ordering::Relaxed);
    let guarantee = Guarantee { memory_bytes: NonZeroU64::new(4 * MIB), ..Guarantee::default() };
    room.agree(tenant(100), &Settings { guarantee, ..Settings::default() });
    room.take(101, 20 * MIB);
    room.take(100, 2 * MIB);
    room.take(102, 2 * MIB);
    assert_eq!(room.refusal(tenant(100)), None);
    assert_eq!(room.refusal(tenant(102)), Some(OutOfMemory::Left));
    assert_eq!(room.refusal(tenant(103)), None, "a little is everybody's");
}

#[test]
fn what_any_is_guaranteed_is_a_floor_while_there_is_memory() {
    let room = Room::default();
    let guarantee = Guarantee { memory_bytes: NonZeroU64::new(1 << 40), ..Guarantee::default() };
    let settings = Settings { guarantee, ..Settings::default() };
    room.agree_as_any(tenant(100), &settings);
    room.agree_as_any(tenant(101), &settings);
    assert!(room.holdings().iter().all(|holding| holding.guarantee == 0), "nothing is kept");
    room.take(100, 60 * MIB);
    let measures = Measures { limit: 80 * MIB, parts_until: 100 * MIB, ..Measures::default() };
    room.act(&measures, false, |_| 1);
    let most = |place| room.part(tenant(place)).unwrap().most / MIB;
    assert_eq!((most(100), most(101)), (40, 40), "half of all");
    room.take(102, 40 * MIB);
    assert_eq!((most(100), most(101)), (1, 1), "the process has no memory for it");
}

#[test]
fn a_guarantee_counts_as_far_as_the_process_has_memory_for_it() {
    let room = Room::default();
    let guarantee = Guarantee { memory_bytes: NonZeroU64::new(70 * MIB), ..Guarantee::default() };
    room.agree(tenant(100), &Settings { guarantee: guarantee.clone(), ..Settings::default() });
    room.limit.store(0, Ordering::Relaxed);
    let most = || room.part(tenant(100)).unwrap().most / MIB;
    assert_eq!(most(), 70);
    let mut holdings = room.holdings();
    crate::tenant::ladder::fit_guarantees(Some(100 * MIB), &mut holdings);
    room.keep(&holdings);
    assert_eq!(most(), 35);
    // The same settings again, with the next update.
    room.agree(tenant(100), &Settings { guarantee, ..Settings::default() });
    assert_eq!((most(), room.holdings()[100].guarantee), (35, 70 * MIB));
}

#[test]
fn a_ceiling_counts_without_an_end_and_shadow_only_counts() {
    let room = Room::default();
    let ceilings = Ceilings { memory_bytes: NonZeroU64::new(8 * MIB), ..Ceilings::default() };
    let settings = Settings { ceilings, ..Settings::default() };
    room.agree(tenant(100), &settings);
    let mut steps = Vec::new();
    for _ in 0..8 {
        room.take(100, MIB);
        steps.push(room.step(tenant(100)));
    }
    use MemoryStep::{Free, HoldBack, Refuse, Shrink};
    assert_eq!(steps, [Free, Free, Free, Free, Free, HoldBack, Shrink, Refuse]);
    assert_eq!(room.refusal(tenant(100)), Some(OutOfMemory::Ceiling));
    room.agree(tenant(100), &Settings { shadow: true, ..settings });
    assert_eq!(room.step(tenant(100)), Free);
    assert_eq!(room.refusal(tenant(100)), Some(OutOfMemory::Ceiling), "to be counted");
    assert_eq!(room.step(tenant(101)), Free);
}

#[test]
fn what_is_left_is_for_everybody_by_weight() {
    let room = Room::default();
    room.take(100, 20 * MIB);
    room.take(101, 10 * MIB);
    let measures = Measures { limit: 90 * MIB, parts_until: 0, ..Measures::default() };
    room.act(&measures, false, |place| if place == 100 { 2 } else { 1 });
    let most = |place| room.part(tenant(place)).unwrap().most as f64 / MIB as f64;
    assert!((most(100) - 80.0).abs() < 0.1 && (most(101) - 40.0).abs() < 0.1, "{} {}", most(100), most(101));
    room.take(100, 20 * MIB);
    room.take(101, 10 * MIB);
    assert!((most(100) - 40.0).abs() < 0.1 && (most(101) - 20.0).abs() < 0.1, "then they are what they have");
}

#[test]
fn whoever_has_an_equal_part_is_not_refused_for_what_others_have() {
    let room = Room::default();
    room.take(100, 100 * MIB);
    room.take(101, 20 * MIB);
    // It had been more when the first took all of it.
    let measures = Measures { limit: 90 * MIB, parts_until: 140 * MIB, ..Measures::default() };
    room.act(&measures, false, |_| 1);
    let refused = || [100, 101, 102].map(|place| room.refusal(tenant(place)).is_some());
    assert_eq!(refused(), [true, false, false]);
    room.take(101, 10 * MIB);
    assert_eq!(refused(), [true, true, false], "a third of 90");
    room.take(102, 9 * MIB);
    assert_eq!(refused(), [true, true, false]);
    room.take(102, MIB);
    assert_eq!(refused(), [true, true, true], "the process has no memory for it");
}

#[test]
fn who_is_told_to_go_makes_room_for_who_comes() {
    let room = Room::default();
    room.limit.store(16 * MIB, Ordering::Relaxed);
    room.take(100, 8 * MIB);
    assert_eq!(room.refusal(tenant(100)), Some(OutOfMemory::Left));
    room.leave(tenant(100), 10);
    assert_eq!((room.refusal(tenant(100)), room.step(tenant(100))), (None, MemoryStep::Shrink));
    assert_eq!(room.part(tenant(100)), Some(Part { used: 8 * MIB - 10, most: 8 * MIB }));
    room.leave(tenant(100), 4 * MIB);
    assert_eq!(room.part(tenant(100)), Some(Part { used: 4 * MIB - 10, most: 8 * MIB }));
    room.take(100, 2 * MIB - UNIT);
    assert_eq!(room.part(tenant(100)).unwrap().most, 6 * MIB + UNIT);
    assert_eq!(room.refusal(tenant(100)), Some(OutOfMemory::Left), "that is more than a quarter of what it may have");
    room.give_back(100, 2 * MIB - UNIT);
    assert_eq!(room.parts(|place| if place == 100 { 5 } else { 0 }).collect::<Vec<_>>().len(), 1);
    room.left_or_stays(tenant(100), 10 + 4 * MIB);
    assert_eq!(room.refusal(tenant(100)), Some(OutOfMemory::Left), "they have stayed");
    room.shadow.store(true, Ordering::Relaxed);
    assert_eq!(room.part(tenant(100)), None);
}

#[test]
fn workers_send_away_by_what_they_have() {
    let room = Room::default();
    room.take(100, 30);
    let measures = Measures { over_ceiling: vec![(100, 9)], ..Measures::default() };
    room.act(&measures, false, |_| 1);
    assert_eq!(room.excess(|_| 10), [(100, 3)]);
    assert_eq!([99, 100].map(|place| room.has_to_give_back(tenant(place))), [false, true]);
    assert_eq!(room.excess(|_| 0), []);
    room.act(&Measures::default(), false, |_| 1);
    assert_eq!(room.excess(|_| 10), []);
}
