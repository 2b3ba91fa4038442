//! Who runs next on a worker: tasks of tenants, shared fairly by the time that they were measured to use.
//!
//! A worker is one thread with one event loop. What it serves are tasks, each in a [`Group`]: the tenant that pays, and
//! inside it the flow, so that one remote peer of a tenant does not starve another. [`Executor`] runs the group whose turn
//! it is, one poll of one task at a time, and goes back to the event loop after [`QUANTUM`]. A poll that takes long holds
//! up everybody, so loops ask [`slice_spent`] and go on in a later poll. [`Executor::plain`] does without all of that: it runs
//! tasks in the order of their wakes.
//!
//! Nothing here knows what a tenant is, or uses tokio: any event loop that polls [`Executor::quantum`] will do.

mod account;
mod clock;
mod current;
mod executor;
mod fair;
mod flows;
mod level;
mod meter;
mod plain;
mod quota;
mod remote;
mod reserve;
mod slice;
mod spent;
mod task;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod work;

use std::num::NonZeroU32;

pub use account::{Account, DELAY_BOUNDS, SLOW_POLL, Usage};
pub use clock::{Clock, SystemClock};
pub use executor::{Executor, Handle, QUANTUM};
pub use meter::Ledger;
pub use quota::{Allowance, ProcessClock, Quota, SystemProcessClock};
pub use reserve::Part;
pub use slice::{SLICE, poll_slice, rest, slice_spent};
pub use spent::Spent;
pub use task::{Group, Task};
pub use work::{Mark, WORKS, Work, mark};

/// A tenant, as far as sharing goes: a number that somebody else gives a meaning to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(u32);

impl TenantId {
    /// The proxy's own chores.
    pub const SYSTEM: Self = Self(0);
    /// Accepting connections.
    pub const ACCEPT: Self = Self(1);
    /// Connections whose tenant is not known.
    pub const UNKNOWN: Self = Self(2);
    /// What belongs to nobody: the event loop, and choosing who runs next. Has an account, but no tasks.
    pub const OVERHEAD: Self = Self(3);
    /// The first number that is not one of those above.
    pub const FIRST: u32 = 16;

    /// The tenant with this number.
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// Its number.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// Who is charged for a task: the tenant, and inside it the flow, which is the remote identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// Who pays.
    pub tenant: TenantId,
    /// Any number; flows of one tenant share alike, but for those of [`GroupKey::NEWCOMER`].
    pub flow: u32,
}

impl GroupKey {
    /// Set in flows of whom nobody knows yet who it is. All of them together have what one other flow has, and share that alike.
    pub const NEWCOMER: u32 = 1 << 31;

    const fn is_newcomer(self) -> bool {
        self.flow & Self::NEWCOMER != 0
    }
}

/// A tenant's part of a worker's time, in proportion to the weights of the others that want to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight(NonZeroU32);

impl Weight {
    /// What a tenant has unless somebody says otherwise: 100.
    pub const DEFAULT: Self = Self(NonZeroU32::new(100).unwrap());
    /// The largest weight.
    pub const MAX: u32 = 10_000;

    /// A weight from 1 to [`Weight::MAX`]; what lies outside is brought to the nearer end.
    pub fn new(weight: u32) -> Self {
        Self(NonZeroU32::new(weight.min(Self::MAX)).unwrap_or(NonZeroU32::MIN))
    }

    /// Virtual time of a nanosecond. A division once, and none per poll; exact to 0.1 % at the largest weight.
    fn rate(self) -> u64 {
        (1 << 24) / u64::from(self.0.get())
    }
}

/// What a tenant has of a worker's time while it wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// In proportion to the others.
    pub weight: Weight,
    /// The least, whatever the others weigh. Those of all tenants together must not be more than all of it, else none is kept.
    pub at_least: Part,
    /// There is a most, too, which whoever keeps the accounts knows ([`Ledger::pay`]).
    pub has_end: bool,
}

impl Share {
    /// By weight alone.
    pub fn of(weight: Weight) -> Self {
        Self { weight, at_least: Part::default(), has_end: false }
    }
}
