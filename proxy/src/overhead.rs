//! Processor time that is no tenant's, beside the workers.
//!
//! What workers and lanes use is on accounts, on that of `_overhead` if it is nobody's. What other threads use is counted here by what
//! they are for, from the clock of each, and not as what is left of the process's time: so that all of it together is the process's
//! time can be looked after. Work for a tenant on such a thread, compiling its policies, is on the tenant's account instead.

use std::cell::OnceCell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use tollgate_net::ThreadClock;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Policies, identities and secrets as they come, the endpoints for operators, and watching over the rest.
    Control,
    /// Flow records and their sinks.
    Log,
    /// Access logs.
    AccessLog,
    /// Compiling policies: reading what is to be compiled, putting it in force, and freeing what that replaces.
    Compile,
}

/// How many kinds there are.
pub(crate) const KINDS: usize = 4;

impl Kind {
    /// Each, with its name in metrics, in order.
    pub(crate) const ALL: [(Self, &'static str); KINDS] =
        [(Self::Control, "control"), (Self::Log, "log"), (Self::AccessLog, "access_log"), (Self::Compile, "compile")];
}

/// Of this process. Threads belong to it, so this is no part of anything else.
static OVERHEAD: Overhead = Overhead::new();

thread_local! {
    static THIS: OnceCell<Option<Counted>> = const { OnceCell::new() };
}

/// Counts all that the calling thread has used and will use, but for what is [for a tenant](ForTenant). The first call on a thread
/// counts.
pub(crate) fn count_this_thread(kind: Kind) {
    OVERHEAD.count_this_thread(kind);
}

/// What threads of each kind have used so far, in nanoseconds, in the order of [`Kind::ALL`]. None of it ever goes back.
pub(crate) fn by_kind() -> [u64; KINDS] {
    OVERHEAD.by_kind()
}

/// Nobody pays for so many nanoseconds after all, which were [for a tenant](ForTenant).
pub(crate) fn add(kind: Kind, nanoseconds: u64) {
    OVERHEAD.lock().ended[kind as usize] += nanoseconds;
}

/// Work for a tenant on the calling thread, from here on. If it is dropped before its [end](Self::end), nobody pays.
#[derive(Debug)]
#[must_use]
pub(crate) struct ForTenant {
    /// Processor time of the thread, in nanoseconds.
    began: u64,
    /// Of this thread.
    _local: PhantomData<*const ()>,
}

impl ForTenant {
    /// Until it ends, what the thread uses is nobody's yet. Not to be begun within another.
    pub(crate) fn begin() -> Self {
        let began = processor_time();
        with_this(|thread| {
            let own = began.saturating_sub(thread.for_tenants.load(Ordering::Relaxed));
            thread.stands_at.store(own, Ordering::Release);
        });
        Self { began, _local: PhantomData }
    }

    /// What it took.
    pub(crate) fn end(self) -> Unpaid {
        let took = processor_time().saturating_sub(self.began);
        with_this(|thread| _ = thread.for_tenants.fetch_add(took, Ordering::Relaxed));
        Unpaid(took)
    }
}

impl Drop for ForTenant {
    fn drop(&mut self) {
        with_this(|thread| thread.stands_at.store(MOVES, Ordering::Release));
    }
}

/// What work for a tenant took. Dropped before the tenant is charged for it, it is overhead of compiling, which is all such work.
#[derive(Debug)]
#[must_use]
pub(crate) struct Unpaid(u64);

impl Unpaid {
    pub(crate) const fn nothing() -> Self {
        Self(0)
    }

    pub(crate) const fn nanoseconds(&self) -> u64 {
        self.0
    }

    /// The nanoseconds that somebody pays for now.
    pub(crate) fn charge(mut self) -> u64 {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Unpaid {
    fn drop(&mut self) {
        if self.0 > 0 {
            add(Kind::Compile, self.0);
        }
    }
}

/// A thread that is counted.
#[derive(Debug)]
struct Thread {
    kind: Kind,
    clock: ThreadClock,
    /// Nanoseconds of it that tenants pay for.
    for_tenants: AtomicU64,
    /// What was its own when the work for a tenant began that it does now; else [`MOVES`].
    stands_at: AtomicU64,
}

const MOVES: u64 = u64::MAX;

/// Ends the counting with its thread.
#[derive(Debug)]
struct Counted {
    thread: Arc<Thread>,
    overhead: &'static Overhead,
}

#[derive(Debug)]
struct Overhead(Mutex<Threads>);

#[derive(Debug)]
struct Threads {
    /// With what was shown of each, in nanoseconds.
    alive: Vec<(Arc<Thread>, u64)>,
    /// Of all others, by kind.
    ended: [u64; KINDS],
}

impl Overhead {
    const fn new() -> Self {
        Self(Mutex::new(Threads { alive: Vec::new(), ended: [0; KINDS] }))
    }

    fn count_this_thread(&'static self, kind: Kind) {
        let begin = || {
            let counted = self.begin(kind);
            counted.inspect_err(|error| tracing::debug!(%error, "the time of a thread is not counted")).ok()
        };
        THIS.with(|this| _ = this.get_or_init(begin));
    }

    fn begin(&'static self, kind: Kind) -> std::io::Result<Counted> {
        let (for_tenants, stands_at) = (AtomicU64::new(0), AtomicU64::new(MOVES));
        let thread = Arc::new(Thread { kind, clock: ThreadClock::of_this_thread()?, for_tenants, stands_at });
        self.lock().alive.push((Arc::clone(&thread), 0));
        Ok(Counted { thread, overhead: self })
    }

    fn by_kind(&self) -> [u64; KINDS] {
        let mut threads = self.lock();
        let mut sums = threads.ended;
        for (thread, shown) in &mut threads.alive {
            *shown = thread.own().max(*shown);
            sums[thread.kind as usize] += *shown;
        }
        sums
    }

    fn lock(&self) -> MutexGuard<'_, Threads> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Thread {
    /// Nanoseconds that no tenant pays for. May seem to go back when work for a tenant begins and ends meanwhile.
    fn own(&self) -> u64 {
        match self.stands_at.load(Ordering::Acquire) {
            MOVES => {
                let all = self.clock.read().map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
                all.saturating_sub(self.for_tenants.load(Ordering::Relaxed))
            }
            own => own,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut threads = self.overhead.lock();
        let place = threads.alive.iter().position(|(thread, _)| Arc::ptr_eq(thread, &self.thread));
        if let Some((thread, shown)) = place.map(|place| threads.alive.swap_remove(place)) {
            threads.ended[thread.kind as usize] += thread.own().max(shown);
        }
    }
}

fn with_this(done: impl FnOnce(&Thread)) {
    THIS.with(|this| {
        if let Some(Some(counted)) = this.get() {
            done(&counted.thread);
        }
    });
}

/// Of the calling thread, in nanoseconds.
fn processor_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests;
