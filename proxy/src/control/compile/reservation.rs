//! Room that is taken for what is on its way into force.

use std::sync::Arc;

use tollgate_policy::{Draft, Form};

use super::Terms;
use super::budget::Owner;
use crate::control::Control;

/// Gives the room back when it is dropped, whatever has become of it: a panic must not keep any. What has come into force by then
/// is counted as that. Not to be dropped while the holdings are locked.
#[derive(Debug)]
#[must_use]
pub(in crate::control) struct Reservation {
    control: Arc<Control>,
    owner: Owner,
    forms: Vec<Form>,
}

impl Control {
    /// Takes room for what was compiled of this resource. A direction for which there is none any more denies.
    pub(super) fn admit(self: &Arc<Self>, resource: &str, terms: &Terms, draft: &mut Draft) -> Reservation {
        let admission = self.holdings().admit(resource, terms.owner, terms.memory, draft.forms());
        let (control, owner) = (Arc::clone(self), terms.owner);
        let reservation = Reservation { control, owner, forms: admission.forms };
        for (direction, room) in admission.refused {
            draft.refuse(direction, room);
        }
        reservation
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.control.holdings().give_back(self.owner, &self.forms);
    }
}
