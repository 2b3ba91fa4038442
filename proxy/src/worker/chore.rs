//! Tasks of a worker beside its connections. Each lasts as long as what it is for: without one of them all would look healthy while
//! nobody is let in, or while identities age.

use std::future::poll_fn;
use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::metrics::{Chore, Worker as Metrics};

/// Before a chore that has panicked is begun anew, so that one that always does leaves time for the rest.
const PAUSE: Duration = Duration::from_millis(100);

/// Does what `begin` begins, and again after a panic, which is counted and told. For chores that keep nothing half done: what a panic
/// unwinds is gone.
pub(crate) async fn keep_doing<F: Future>(chore: Chore, metrics: Metrics, begin: impl Fn() -> F) -> F::Output {
    loop {
        if let Some(done) = contained(begin()).await {
            return done;
        }
        metrics.chore_panicked(chore);
        tracing::error!(
            chore = chore.as_str(),
            "a chore of a worker has panicked, which is a defect of this program; it is begun anew"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// None when it panics.
async fn contained<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(polled) => polled.map(Some),
        Err(panic) => {
            // What was thrown may have a destructor of its own.
            forget(panic);
            Poll::Ready(None)
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::metrics::{Format, Metrics as All};

    #[tokio::test(start_paused = true)]
    async fn a_chore_that_panics_is_counted_and_begun_anew() {
        let (metrics, workers) = All::new(1);
        let attempts = Cell::new(0);
        let chore = || async {
            let attempt = attempts.replace(attempts.get() + 1);
            tokio::task::yield_now().await;
            assert!(attempt >= 3, "a defect");
            attempt
        };
        assert_eq!(keep_doing(Chore::Accept, workers[0].clone(), chore).await, 3);
        let text = metrics.encode(Format::Prometheus).unwrap();
        assert!(text.contains("tollgate_worker_panics_total{task=\"accept\"} 3\n"), "{text}");
    }
}
