//! Listeners and the sockets of their access logs. There can be more paths than places for them: then a listener is served all the
//! same, says that it is not logged, and gets its socket once others are given back.

use std::sync::Arc;

use tollgate_xds::Backoff;

use super::{Listeners, Open, Origin};
use crate::config;
use crate::flow::ListenerLog;

impl Listeners {
    /// Where a listener logs from now on.
    pub(super) fn access_log(&self, listener: &config::Listener) -> ListenerLog {
        let log = self.access_logs.of_listener(listener.access_log.as_deref());
        if let Some(reason) = log.unlogged() {
            tracing::error!(listener = listener.name, reason, "a listener is served without its access log");
        }
        log
    }

    /// Counts the listeners that are not logged, and has them tried again.
    pub(super) fn count_unlogged(&self, list: &[Open]) {
        let count = list.iter().filter(|open| open.unlogged.is_some()).count();
        self.access_logs.set_unlogged(count);
        if count > 0 {
            self.unlogged.notify_one();
        }
    }

    /// Gives listeners of the control plane that are not logged their sockets when there are places, looking ever less often. Never
    /// returns.
    pub(in crate::app) async fn retry_logs(self: Arc<Self>) {
        let backoff = Backoff::default();
        let mut attempt: u32 = 0;
        loop {
            let unlogged = |open: &Open| open.unlogged.is_some() && open.origin == Origin::ControlPlane;
            if !self.lock().iter().any(unlogged) {
                attempt = 0;
                self.unlogged.notified().await;
            }
            tokio::time::sleep(backoff.delay(attempt, fastrand::f64())).await;
            attempt = attempt.saturating_add(1);
            let _turn = self.changing.lock().await;
            for Open { config, .. } in self.in_service().into_iter().filter(unlogged) {
                let has_place = config.access_log.as_deref().is_some_and(|path| self.access_logs.has_place(path));
                // It keeps its sockets, so nothing can fail that did not fail before.
                if has_place && let Err(error) = self.put_dynamic(&config).await {
                    tracing::error!(listener = config.name, %error, "a listener cannot be given its access log");
                }
            }
        }
    }
}
