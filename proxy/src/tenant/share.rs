//! How many places of a pool one tenant may have: a dynamic threshold (Choudhury and Hahne, "Dynamic queue length thresholds for
//! shared-memory packet switches", 1998). Whoever has fewer places than are free gets another. So one tenant alone may have
//! half of the pool, two a third each, and there is always room for who comes next; nobody has to know how many there are.

/// What is given away by places, such as connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    /// Places there are.
    pub(super) total: u32,
    /// Of them taken, by everybody.
    pub(super) used: u32,
    /// Kept free for guarantees of others that these do not use yet.
    pub(super) reserved: u32,
}

/// Who wants a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanting {
    pub(super) used: u32,
    pub(super) guarantee: u32,
    pub(super) weight: u32,
}

/// Tenants that have places, with the one that wants another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crowd {
    pub(super) tenants: u32,
    /// Of all of them together.
    pub(super) weight: u64,
}

/// The places that a tenant may have while the others keep theirs. With weights, its threshold is as many times what is free
/// as its weight is of the mean weight of those who are there.
pub(super) fn places(pool: Pool, wanting: Wanting, crowd: Crowd) -> u32 {
    let of_others = pool.used.saturating_sub(wanting.used).saturating_add(pool.reserved);
    let room = u128::from(pool.total.saturating_sub(of_others));
    let weight = u128::from(wanting.weight) * u128::from(crowd.tenants.max(1));
    let all = u128::from(crowd.weight.max(1));
    // `used < weight / all * (room - used)`, solved for `used`.
    let share = (room * weight).div_ceil(all + weight);
    u32::try_from(share).unwrap_or(u32::MAX).max(wanting.guarantee)
}

/// The same where nobody has a weight or a guarantee: the places that the holder of `own` may have out of `total`, of which `used`
/// are taken by everybody, if it may have `times` as many as are free.
pub(crate) fn equal_share(total: u32, used: u32, own: u32, times: u32) -> u32 {
    let pool = Pool { total, used, reserved: 0 };
    places(pool, Wanting { used: own, guarantee: 0, weight: times }, Crowd { tenants: 1, weight: 1 })
}

/// How often what is free of its tenant's places one remote identity may have. Most tenants have one that most comes from, which should
/// lose little; an eighth is enough for others to begin, and what ends meanwhile goes to those who have less.
const OF_REMOTE: u32 = 7;

/// The places that the remote identity which has `own` may have, out of `most` that its tenant may, of which `used` are taken.
pub(super) fn of_remote(most: u32, used: u32, own: u32) -> u32 {
    equal_share(most, used, own, OF_REMOTE)
}

/// How many places a tenant may have beyond its share, for remote identities that have none, while so many are free.
pub(super) fn beyond(free: u32) -> u32 {
    free / 8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everybody takes what they may until nobody may have more, in any order.
    fn fill(total: u32, weights: &[u32], guarantees: &[u32], order: impl Iterator<Item = usize>) -> Vec<u32> {
        let mut held = vec![0_u32; weights.len()];
        let mut refused = 0;
        for index in order {
            if take(total, weights, guarantees, &mut held, index) {
                refused = 0;
            } else {
                refused += 1;
            }
            if refused > 50 * weights.len() {
                break;
            }
        }
        held
    }

    fn take(total: u32, weights: &[u32], guarantees: &[u32], held: &mut [u32], index: usize) -> bool {
        let others = |at: &usize| *at != index;
        let reserved = (0..held.len()).filter(others).map(|at| guarantees[at].saturating_sub(held[at])).sum();
        let there: Vec<usize> = (0..held.len()).filter(|at| held[*at] > 0 || *at == index).collect();
        let present = Crowd {
            tenants: u32::try_from(there.len()).unwrap(),
            weight: there.iter().map(|at| u64::from(weights[*at])).sum(),
        };
        let pool = Pool { total, used: held.iter().sum(), reserved };
        let wanting = Wanting { used: held[index], guarantee: guarantees[index], weight: weights[index] };
        let may = held[index] < places(pool, wanting, present);
        held[index] += u32::from(may);
        may
    }

    #[test]
    fn one_has_half_and_equals_have_equal_parts() {
        let in_turn = |tenants: usize| (0..1_000_000).map(move |step| step % tenants);
        assert_eq!(fill(50_000, &[1], &[0], in_turn(1)), [25_000]);
        assert_eq!(fill(50_000, &[7], &[0], in_turn(1)), [25_000], "a weight is nothing to whoever is alone");
        for (held, expected) in fill(900, &[1, 1], &[0, 0], in_turn(2)).into_iter().zip([300, 300]) {
            assert!(u32::abs_diff(held, expected) <= 1, "{held}");
        }
        // Nobody is sent away, so shares by weight come as connections end and others begin.
        let (weights, guarantees) = ([2, 1], [0, 0]);
        let mut weighted = fill(9000, &weights, &guarantees, in_turn(2));
        for index in in_turn(2).take(50_000) {
            weighted[index] -= 1;
            let _ = take(9000, &weights, &guarantees, &mut weighted, index);
            let _ = take(9000, &weights, &guarantees, &mut weighted, index);
        }
        assert!(weighted[0].abs_diff(4000) <= 3 && weighted[1].abs_diff(2000) <= 3, "{weighted:?}");
        assert_eq!(fill(1, &[1], &[0], in_turn(1)), [1]);
        assert_eq!(fill(0, &[1], &[0], in_turn(1)), [0]);
    }

    proptest! {
        /// However greedy all others are: who comes finds a place, whoever has a guarantee gets that, and nobody gives away
        /// more than there is.
        #[test]
        fn there_is_always_room(
            tenants in prop::collection::vec((1_u32..=4, 0_u32..20), 1..8),
            order in prop::collection::vec(any::<prop::sample::Index>(), 4000),
        ) {
            let total = 1000;
            let (weights, guarantees): (Vec<u32>, Vec<u32>) = tenants.into_iter().unzip();
            // The last comes when the others have taken what they may.
            let others = weights.len() - 1;
            let order = order.iter().map(|index| if others == 0 { 0 } else { index.index(others) });
            let mut held = fill(total, &weights, &guarantees, order);
            let newcomer = others;
            if others > 0 {
                prop_assert_eq!(held[newcomer], 0);
                prop_assert!(take(total, &weights, &guarantees, &mut held, newcomer));
            }
            for index in 0..held.len() {
                while held[index] < guarantees[index] {
                    prop_assert!(take(total, &weights, &guarantees, &mut held, index));
                }
            }
            prop_assert!(held.iter().sum::<u32>() <= total, "{:?}", held);
        }
    }
}
