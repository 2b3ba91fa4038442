//! Whether the process is ready to serve, and if not, what it waits for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Readiness of the process. Ready when nobody holds a [`Pending`] any more and it is not draining. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What is awaited, with how many wait for it.
    pending: BTreeMap<String, usize>,
    draining: bool,
}

impl Readiness {
    /// Makes the process not ready until the guard is dropped. `what` is shown to the operator: `first policy`,
    /// `listener ingress`.
    #[must_use = "the process waits only for as long as the guard lives"]
    pub fn pending(&self, what: impl Into<String>) -> Pending {
        let what = what.into();
        *self.lock().pending.entry(what.clone()).or_default() += 1;
        Pending { readiness: self.clone(), what }
    }

    /// From here on the process is not ready for new connections, for good.
    pub fn start_draining(&self) {
        self.lock().draining = true;
    }

    /// Whether it has begun to drain.
    pub fn is_draining(&self) -> bool {
        self.lock().draining
    }

    /// What is still awaited, by name, and `draining` if it is; empty when ready.
    pub fn waiting_for(&self) -> Vec<String> {
        let state = self.lock();
        let draining = state.draining.then(|| "draining".to_owned());
        state.pending.keys().cloned().chain(draining).collect()
    }

    /// Whether nothing is awaited.
    pub fn is_ready(&self) -> bool {
        let state = self.lock();
        state.pending.is_empty() && !state.draining
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that must happen before the process is ready; drop it when it has.
#[derive(Debug)]
pub struct Pending {
    readiness: Readiness,
    what: String,
}

impl Pending {
    /// What waits for this.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut state = self.readiness.lock();
        if let Some(count) = state.pending.get_mut(&self.what) {
            *count -= 1;
            if *count == 0 {
                state.pending.remove(&self.what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_nothing_is_pending() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        let policy = readiness.pending("first policy");
        let again = readiness.pending("first policy");
        let listener = readiness.pending("listener ingress");
        assert_eq!(readiness.waiting_for(), ["first policy", "listener ingress"]);
        drop((policy, listener));
        assert_eq!(readiness.waiting_for(), ["first policy"]);
        assert!(!readiness.is_ready());
        drop(again);
        assert!(readiness.is_ready());
        readiness.start_draining();
        assert_eq!(readiness.waiting_for(), ["draining"]);
        assert!(!readiness.is_ready());
    }
}
