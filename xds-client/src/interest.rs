//! Which resources of a type a subscription wants.

use std::collections::BTreeSet;

use tokio::sync::watch;

/// Everything, or the names of the moment.
#[derive(Clone, Debug)]
pub(crate) enum Interest {
    All,
    Named(watch::Receiver<BTreeSet<String>>),
}

impl Interest {
    /// The names of the moment; `None` wants all.
    pub(crate) fn names(&mut self) -> Option<BTreeSet<String>> {
        match self {
            Self::All => None,
            Self::Named(names) => Some(names.borrow_and_update().clone()),
        }
    }

    /// Whether anything is wanted at the moment.
    pub(crate) fn is_wanted(&self) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => !names.borrow().is_empty(),
        }
    }

    /// Waits until other names are wanted. Never returns where everything is, or where nobody can change them any more.
    pub(crate) async fn changed(&mut self) {
        if let Self::Named(names) = self
            && names.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}
