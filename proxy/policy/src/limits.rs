//! What one policy may be, and what compiling it may take. Both are said in terms of the policy alone, so that what is enforced
//! never depends on how busy a machine is.

/// What a policy may be. Whatever goes beyond takes its most restrictive reading, as everything that cannot be honoured does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rules in one direction: those of ports, and the HTTP rules in them. Beyond, the direction denies.
    pub rules: usize,
    /// Bytes of one regular expression as it is written; looked at before it is read.
    pub expression_bytes: usize,
    /// Bytes of automaton that one regular expression may need.
    pub program_bytes: usize,
}

impl Default for Limits {
    /// Ten times the largest policies that are known from the field. RE2 with the limits that Envoy gives it refuses what is
    /// longer than about a hundred characters.
    fn default() -> Self {
        Self { rules: 50_000, expression_bytes: 4 << 10, program_bytes: 256 << 10 }
    }
}

/// What compiling may still take: nanoseconds of the processor that the costs below were measured on (AMD EPYC, 2.6 GHz), and
/// bytes of memory. They are reckoned from what is compiled, not measured: the same policy costs the same, whatever else runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    left: u64,
    exhausted: bool,
    /// Bytes.
    room: usize,
    /// Bytes without which it could not go on; 0 while there is room.
    lacking: usize,
}

impl Effort {
    /// As much as it takes.
    pub const UNBOUNDED: Self = Self { left: u64::MAX, exhausted: false, room: usize::MAX, lacking: 0 };

    /// A rule, or a condition of one.
    pub(crate) const RULE: u64 = 700;
    /// An identity in a rule.
    pub(crate) const IDENTITY: u64 = 70;
    /// Reading an expression, and each byte of it.
    pub(crate) const EXPRESSION: u64 = 2_000;
    pub(crate) const EXPRESSION_BYTE: u64 = 400;
    /// A byte of automaton.
    pub(crate) const AUTOMATON_BYTE: u64 = 7;

    /// So many nanoseconds, and whatever room it takes.
    #[must_use]
    pub const fn new(nanoseconds: u64) -> Self {
        Self { left: nanoseconds, ..Self::UNBOUNDED }
    }

    /// The same with room for so many bytes.
    #[must_use]
    pub const fn within(self, bytes: usize) -> Self {
        Self { room: bytes, ..self }
    }

    /// Bytes of room that are left.
    #[must_use]
    pub const fn room(self) -> usize {
        self.room
    }

    /// Takes `bytes` of the room. `false` when there are not so many: then it is over, as when the time does not suffice.
    pub(crate) fn reserve(&mut self, bytes: usize) -> bool {
        match self.room.checked_sub(bytes) {
            Some(left) => self.room = left,
            None => self.lack(bytes - self.room),
        }
        self.lacking == 0
    }

    /// It cannot go on without so many bytes more.
    fn lack(&mut self, bytes: usize) {
        self.lacking = bytes.max(1);
        self.exhausted = true;
    }

    /// Bytes without which it could not go on, if that is what was missing.
    pub(crate) fn lacking(self) -> Option<usize> {
        Some(self.lacking).filter(|bytes| *bytes > 0)
    }

    /// What is left; nothing once it did not suffice.
    #[must_use]
    pub const fn left(self) -> u64 {
        if self.exhausted { 0 } else { self.left }
    }

    /// Whether it did not suffice.
    #[must_use]
    pub const fn is_exhausted(self) -> bool {
        self.exhausted
    }

    /// Takes `nanoseconds`. `false` when there are not so many, from then on always.
    pub(crate) fn spend(&mut self, nanoseconds: u64) -> bool {
        match self.left().checked_sub(nanoseconds) {
            Some(left) => self.left = left,
            None => self.exhausted = true,
        }
        !self.exhausted
    }

    /// Takes over what a part of the work has left of the time. `false` when time or room did not suffice.
    pub(crate) fn follow(&mut self, part: Self) -> bool {
        if part.lacking > 0 {
            self.left = part.left;
            return false;
        }
        self.left = part.left();
        self.exhausted |= part.exhausted;
        !part.exhausted
    }

    /// What reading an expression of so many bytes takes.
    pub(crate) const fn to_read(bytes: usize) -> u64 {
        Self::EXPRESSION + bytes as u64 * Self::EXPRESSION_BYTE
    }

    /// For reading an expression of so many bytes.
    ///
    /// # Errors
    /// There is not enough left.
    pub(crate) fn read(&mut self, bytes: usize) -> Result<(), String> {
        let spent = self.spend(Self::to_read(bytes));
        spent.then_some(()).ok_or_else(|| UNFINISHED.to_owned())
    }

    /// For building an automaton of so many bytes.
    ///
    /// # Errors
    /// There is not enough left.
    pub(crate) fn build(&mut self, bytes: usize) -> Result<(), String> {
        let spent = self.spend((bytes as u64).saturating_mul(Self::AUTOMATON_BYTE));
        spent.then_some(()).ok_or_else(|| UNFINISHED.to_owned())
    }

    /// Bytes of automaton that it suffices for.
    pub(crate) fn automaton_bytes(self) -> usize {
        usize::try_from(self.left() / Self::AUTOMATON_BYTE).unwrap_or(usize::MAX).min(self.room)
    }

    /// An automaton needs more than `bytes`, which was as much as could be built. Notes if that was for want of room.
    pub(crate) fn note_too_large(&mut self, bytes: usize) {
        if bytes == self.room {
            self.lack(1);
        }
    }
}

/// Why a direction denies where the effort did not suffice.
pub(crate) const UNFINISHED: &str = "compiling it takes more than its tenant may use at once (`policy.compile_per_second`), or than \
     an update waits for, so it is compiled in the background; until then nothing is allowed. Fewer or simpler expressions \
     take less";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_suffice_once_never_does_again() {
        let mut effort = Effort::new(10);
        assert!(effort.spend(4) && effort.spend(6));
        assert_eq!((effort.left(), effort.is_exhausted()), (0, false));
        assert!(!effort.spend(1) && !effort.spend(0) && effort.is_exhausted());
        let mut effort = Effort::new(10);
        assert!(!effort.spend(11) && !effort.spend(1), "what is left belongs to nobody");
        assert_eq!(effort.left(), 0);
        let mut part = Effort::new(10).within(100);
        assert!(part.spend(3) && part.reserve(60) && !part.reserve(50) && part.is_exhausted());
        assert_eq!((part.room(), part.lacking()), (40, Some(10)));
        let mut whole = Effort::new(10).within(100);
        assert!(!whole.follow(part) && !whole.is_exhausted());
        assert_eq!((whole.left(), whole.room()), (7, 100), "time is used, and room is free again");
        let mut unbounded = Effort::UNBOUNDED;
        assert!(unbounded.spend(1 << 60) && unbounded.left() > 1 << 60);
    }
}
