//! Which resources of a type a subscription wants.

use std::collections::BTreeSet;

use tokio::sync::watch;

use crate::accepted::Wanted;

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

/// The form in which `names` are compared with.
pub(crate) const fn wanted(names: &Option<BTreeSet<String>>) -> Wanted<'_> {
    names.as_ref()
}
