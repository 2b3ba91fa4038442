//! Sets of small numbers in words that the caller owns, so that an evaluation can keep them on its stack.

/// Words that hold the numbers below `count`.
pub(super) const fn words(count: usize) -> usize {
    count.div_ceil(64)
}

pub(super) fn insert(set: &mut [u64], number: u32) {
    set[number as usize / 64] |= 1 << (number % 64);
}

pub(super) fn remove(set: &mut [u64], number: u32) {
    set[number as usize / 64] &= !(1 << (number % 64));
}

pub(super) fn contains(set: &[u64], number: u32) -> bool {
    set[number as usize / 64] & (1 << (number % 64)) != 0
}

/// The smallest member that is not below `from`.
pub(super) fn first_from(set: &[u64], from: u32) -> Option<u32> {
    let mut word = from as usize / 64;
    let mut left = *set.get(word)? & (u64::MAX << (from % 64));
    loop {
        if left != 0 {
            return Some(word as u32 * 64 + left.trailing_zeros());
        }
        word += 1;
        left = *set.get(word)?;
    }
}

/// Calls `each` with every member, in ascending order.
pub(super) fn for_each(set: &[u64], mut each: impl FnMut(u32)) {
    for (i, word) in set.iter().enumerate() {
        let mut left = *word;
        while left != 0 {
            each(i as u32 * 64 + left.trailing_zeros());
            left &= left - 1;
        }
    }
}

/// Every member, in ascending order.
pub(super) fn members(set: &[u64]) -> impl Iterator<Item = u32> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let next = first_from(set, from)?;
        from = next + 1;
        Some(next)
    })
}
