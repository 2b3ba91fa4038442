//! For how long the bodies of an exchange were held back, be it for the sake of others: all streams of a connection share its windows, so
//! whatever holds one of them back may hold up each. What has no body under way needs no window.

use std::cell::Cell;
use std::time::Duration;

use crate::tenant::Pacing;

/// The time so far, of all tries of an exchange.
#[derive(Debug, Default)]
pub(super) struct HeldBack {
    /// Bodies under way: of the request, of the response.
    under_way: Cell<u32>,
    /// For how long the connection was held back when there was one.
    since: Cell<Duration>,
    before: Cell<Duration>,
}

impl HeldBack {
    /// A body is under way, on a connection that is held back for so long.
    pub(super) fn begin(&self, connection: &Pacing) {
        self.before.set(self.time(connection));
        self.since.set(connection.held_back());
        self.under_way.set(self.under_way.get() + 1);
    }

    /// It has gone.
    pub(super) fn end(&self, connection: &Pacing) {
        self.before.set(self.time(connection));
        self.since.set(connection.held_back());
        self.under_way.set(self.under_way.get().saturating_sub(1));
    }

    /// None is any more.
    pub(super) fn end_all(&self, connection: &Pacing) {
        self.end(connection);
        self.under_way.set(0);
    }

    /// While one is held back this is more at each look, and it is never less.
    pub(super) fn time(&self, connection: &Pacing) -> Duration {
        let is_under_way = self.under_way.get() > 0;
        let since = || connection.held_back().saturating_sub(self.since.get());
        self.before.get() + if is_under_way { since() } else { Duration::ZERO }
    }
}
