//! Listeners whose sockets have to be opened with other options than before.
//!
//! Where the kernel lets both be open, the new ones are opened before the old ones are closed, and nothing is lost when they cannot
//! be. Where it does not, the listener is put back as it was; and where that fails, too, it is tried again for as long as nobody
//! asks for something else. An agent is told of the failure (NACK), and may never ask again.

use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tollgate_xds::Backoff;

use super::{ListenerError, Listeners, Lost, Open, Origin};
use crate::config;
use crate::control::listeners::Report;

impl Listeners {
    /// Puts `listener` in the place of `old`, whose sockets do not do for it.
    pub(super) async fn replace(&self, old: &Open, listener: &config::Listener) -> Result<(), ListenerError> {
        if old.config.reuse_port && listener.reuse_port {
            let (done, failed) = mpsc::channel(1);
            // Connections that come to the new sockets wait in their queues.
            let prepared = self.prepare(listener, Origin::ControlPlane, Vec::new(), &done)?;
            self.remove(&listener.name).await;
            drop(done);
            return match self.put(prepared, failed).await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.put_back(&old.config, error).await),
            };
        }
        self.remove(&listener.name).await;
        match self.open_anew(listener).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.put_back(&old.config, error).await),
        }
    }

    /// Opens a listener that has no sockets.
    async fn open_anew(&self, listener: &config::Listener) -> Result<(), ListenerError> {
        let (done, failed) = mpsc::channel(1);
        let prepared = self.prepare(listener, Origin::ControlPlane, Vec::new(), &done)?;
        drop(done);
        self.put(prepared, failed).await
    }

    /// Serves what was served before `error`.
    async fn put_back(&self, old: &config::Listener, error: ListenerError) -> ListenerError {
        match self.open_anew(old).await {
            Ok(()) => error,
            Err(again) => {
                self.lose(Lost { config: old.clone(), refused: error.to_string() });
                ListenerError::Lost { error: Box::new(error), again: Box::new(again) }
            }
        }
    }

    pub(super) fn lose(&self, lost: Lost) {
        self.lost().push(lost);
        self.loss.notify_one();
    }

    /// Tries to serve the listeners that are lost, ever more slowly, and tells `report` of those that are served again. Never
    /// returns.
    pub(in crate::app) async fn retry_lost(self: Arc<Self>, report: Report) {
        let backoff = Backoff::default();
        let mut attempt: u32 = 0;
        loop {
            if self.lost().is_empty() {
                attempt = 0;
                self.loss.notified().await;
            }
            tokio::time::sleep(backoff.delay(attempt, fastrand::f64())).await;
            attempt = attempt.saturating_add(1);
            let _turn = self.changing.lock().await;
            let lost = std::mem::take(&mut *self.lost());
            for lost in lost {
                match self.open_anew(&lost.config).await {
                    Ok(()) => {
                        tracing::info!(listener = lost.config.name, "listener is served again as it was");
                        report.served_again(&lost.config.name, lost.refused);
                    }
                    Err(_) => self.lost().push(lost),
                }
            }
        }
    }

    /// Listeners that were served, and should be.
    pub(super) fn lost(&self) -> MutexGuard<'_, Vec<Lost>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
