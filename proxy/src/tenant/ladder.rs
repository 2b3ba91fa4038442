//! What is to be done about memory, from what everybody holds and what the process has. Pure.

use super::MemoryStep;

/// What one tenant holds and may hold, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) used: u64,
    pub(super) guarantee: u64,
    /// `u64::MAX` for none.
    pub(super) ceiling: u64,
}

/// Measures in force until the next look. The default is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Measures {
    /// Bytes for all tenants together.
    pub(super) limit: u64,
    /// Bytes that all may have taken while everybody may have an equal part.
    pub(super) parts_until: u64,
    /// The tenant that has the most beyond its share, when memory runs out.
    pub(super) worst: Option<Worst>,
    /// Places that are beyond their ceilings by much, and bytes that are to go.
    pub(super) over_ceiling: Vec<(usize, u64)>,
}

/// What is done about the one that has the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Worst {
    pub(super) place: usize,
    pub(super) step: MemoryStep,
    /// Bytes that are to go.
    pub(super) excess: u64,
}

impl Default for Measures {
    fn default() -> Self {
        Self { limit: u64::MAX, parts_until: u64::MAX, worst: None, over_ceiling: Vec::new() }
    }
}

/// How many of the `most` bytes of the process may be guaranteed: half of what tenants may have of them, so that the other half is for
/// those who are guaranteed nothing.
pub(super) fn most_guaranteed(most: u64) -> u64 {
    tenths(most, 7) / 2
}

/// Brings guarantees down to what the process has for them, all in proportion: what fitted when it was promised may not any more.
pub(super) fn fit_guarantees(most: Option<u64>, holdings: &mut [Holding]) {
    let promised: u128 = holdings.iter().map(|holding| u128::from(holding.guarantee)).sum();
    let Some(total) = most.map(|most| u128::from(most_guaranteed(most))).filter(|total| promised > *total) else {
        return;
    };
    for holding in holdings {
        holding.guarantee =
            u64::try_from(u128::from(holding.guarantee) * total / promised).unwrap_or(holding.guarantee);
    }
}

/// Decides, when the process may have `most` bytes and has `resident`, of which tenants have taken what `holdings` say.
///
/// Tenants may have seven tenths of `most` together, without what the process takes for itself; from there on the one that has
/// the most beyond its guarantee answers for what is missing, and nobody else.
pub(super) fn decide(most: Option<u64>, resident: u64, holdings: &[Holding]) -> Measures {
    let over_ceiling = holdings.iter().enumerate().filter_map(|(place, holding)| {
        let excess = much_over(holding.used, holding.ceiling)?;
        Some((place, excess))
    });
    let over_ceiling = over_ceiling.collect();
    let Some(most) = most else { return Measures { over_ceiling, ..Measures::default() } };
    let used: u64 = holdings.iter().map(|holding| holding.used).sum();
    let own = resident.saturating_sub(used);
    let all = tenths(most, 7).saturating_sub(own).max(most / 4);
    // Guarantees that are not used are nobody else's, up to half of what there is: it may be less than when they were made.
    let unused = holdings.iter().map(|holding| holding.guarantee.saturating_sub(holding.used));
    let limit = all - unused.fold(0, u64::saturating_add).min(all / 2);
    // What the process has not taken yet of what is enough for it.
    let parts_until = used + tenths(most, 8).saturating_sub(resident);
    Measures { limit, parts_until, worst: worst(most, resident, limit, used, holdings), over_ceiling }
}

fn worst(most: u64, resident: u64, limit: u64, used: u64, holdings: &[Holding]) -> Option<Worst> {
    let beyond = |holding: &Holding| holding.used.saturating_sub(holding.guarantee);
    let (place, holding) = holdings.iter().enumerate().max_by_key(|(_, holding)| beyond(holding))?;
    // Whoever has no large part of it has not taken what is missing, even if everybody else has less: it may be policies, or
    // what the allocator keeps.
    if beyond(holding) < most / 4 {
        return None;
    }
    let step = match resident {
        resident if resident >= tenths(most, 9) => MemoryStep::Refuse,
        resident if resident >= tenths(most, 8) => MemoryStep::Shrink,
        resident if resident >= tenths(most, 7) => MemoryStep::HoldBack,
        _ => MemoryStep::Free,
    };
    let by_process = resident.saturating_sub(tenths(most, 9));
    let by_tenants = much_over(used, limit).unwrap_or(0);
    let excess = by_process.max(by_tenants).min(beyond(holding));
    (step > MemoryStep::Free || excess > 0).then_some(Worst { place, step, excess })
}

/// Bytes above `most`, once it is exceeded by more than an eighth: what is under way when a tenant gets nothing more has room
/// to end.
fn much_over(used: u64, most: u64) -> Option<u64> {
    (used > most.saturating_add(most / 8)).then(|| used - most)
}

fn tenths(bytes: u64, count: u64) -> u64 {
    bytes / 10 * count
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn holding(used: u64) -> Holding {
        Holding { used: used * MIB, guarantee: 0, ceiling: u64::MAX }
    }

    #[test]
    fn without_an_end_only_ceilings_count() {
        let mut holdings = vec![holding(1000), holding(9)];
        assert_eq!(decide(None, 2000 * MIB, &holdings), Measures::default());
        holdings[1].ceiling = 8 * MIB;
        assert_eq!(decide(None, 2000 * MIB, &holdings), Measures::default(), "what is under way may end");
        holdings[1].used = 10 * MIB;
        assert_eq!(decide(None, 2000 * MIB, &holdings).over_ceiling, [(1, 2 * MIB)]);
    }

    #[test]
    fn what_the_process_takes_for_itself_is_nobody_s() {
        let holdings = [holding(20), holding(0)];
        assert_eq!(decide(Some(1000 * MIB), 120 * MIB, &holdings).limit / MIB, 600);
        let short = decide(Some(1000 * MIB), 1200 * MIB, &holdings);
        assert_eq!(short.limit / MIB, 250, "a quarter is always theirs");
        assert_eq!(short.parts_until / MIB, 20, "but there is nothing to have");
        assert_eq!(decide(Some(1000 * MIB), 700 * MIB, &holdings).parts_until / MIB, 120);
    }

    fn guaranteed(mib: u64) -> Holding {
        Holding { guarantee: mib.saturating_mul(MIB), ..holding(0) }
    }

    #[test]
    fn guarantees_never_take_more_than_half_from_the_others() {
        let most = Some(1000 * MIB);
        assert_eq!(decide(most, 0, &[guaranteed(200), guaranteed(100)]).limit / MIB, 400);
        // The process has taken much for itself since.
        assert_eq!(decide(most, 500 * MIB, &[guaranteed(350)]).limit / MIB, 125);
        let absurd = [guaranteed(u64::MAX), guaranteed(u64::MAX), holding(1)];
        assert_eq!(decide(most, 0, &absurd).limit / MIB, 350);
    }

    #[test]
    fn guarantees_that_do_not_fit_any_more_are_less_for_all_in_proportion() {
        let fitted = |most: Option<u64>, guarantees: [u64; 3]| {
            let mut holdings = guarantees.map(guaranteed);
            fit_guarantees(most, &mut holdings);
            holdings.map(|holding| holding.guarantee / MIB)
        };
        assert_eq!(fitted(Some(1000 * MIB), [200, 100, 50]), [200, 100, 50], "they fit exactly");
        assert_eq!(fitted(Some(500 * MIB), [200, 100, 50]), [100, 50, 25]);
        assert_eq!(fitted(None, [200, u64::MAX, 0]), [200, u64::MAX / MIB, 0]);
        let [a, b, c] = fitted(Some(1000 * MIB), [u64::MAX, u64::MAX, 1]);
        assert!(a == b && a + b <= 350 && a >= 174 && c == 0, "{a} {b} {c}");
    }

    #[test]
    fn the_one_that_has_the_most_beyond_its_guarantee_answers() {
        let most = Some(1000 * MIB);
        let holdings = [holding(300), Holding { guarantee: 150 * MIB, ..holding(400) }, holding(299)];
        let step = |resident| decide(most, resident * MIB, &holdings).worst.map(|worst| (worst.place, worst.step));
        assert_eq!(step(801), Some((0, MemoryStep::Shrink)));
        assert_eq!(step(901), Some((0, MemoryStep::Refuse)));
        // The process has too much, though tenants have no more than they may.
        let worst = decide(most, 940 * MIB, &[holding(250)]).worst.unwrap();
        assert_eq!((worst.place, worst.excess / MIB), (0, 40));
        let worst = decide(most, 1300 * MIB, &[holding(260)]).worst.unwrap();
        assert_eq!((worst.place, worst.excess), (0, 260 * MIB), "no more than it has");
        let step = |resident| decide(most, resident * MIB, &[holding(260)]).worst.map(|worst| worst.step);
        assert_eq!((step(699), step(701)), (None, Some(MemoryStep::HoldBack)));
        // When the process is full and nobody has a large part of that, it is nobody's doing.
        assert_eq!(decide(most, 999 * MIB, &[holding(240), holding(60)]).worst, None);
    }

    #[test]
    fn who_has_the_most_gives_back_when_tenants_have_more_than_there_is() {
        let most = Some(1000 * MIB);
        let alone = decide(most, 690 * MIB, &[holding(690)]);
        assert_eq!((alone.limit / MIB, alone.worst), (700, None));
        // Before the process shows it: what is taken is not touched yet.
        let worst = decide(most, 600 * MIB, &[holding(500), holding(300)]).worst.unwrap();
        assert_eq!((worst.place, worst.step, worst.excess / MIB), (0, MemoryStep::Free, 100));
    }
}
