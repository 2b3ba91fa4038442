//! Whose limits a connection meets beside policy.

use serde_json::{Value, json};

use crate::tenant::Settings;

/// The tenant that pays for what is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PaidBy {
    pub(crate) tenant: String,
    /// Its ceilings, in words.
    ceilings: Vec<String>,
    /// They only count and mark.
    shadow: bool,
}

impl PaidBy {
    pub(crate) fn new(tenant: &str, settings: &Settings) -> Self {
        Self { tenant: tenant.to_owned(), ceilings: settings.ceilings_in_words(), shadow: settings.shadow }
    }

    /// One line for people.
    pub(super) fn text(&self) -> String {
        let ceilings = match (self.ceilings.as_slice(), self.shadow) {
            ([], _) => "has no ceilings".to_owned(),
            (ceilings, false) => format!("limits come before policy: {}", ceilings.join("; ")),
            (ceilings, true) => format!("limits in shadow, which refuse nothing: {}", ceilings.join("; ")),
        };
        format!("{}, {ceilings}", self.tenant)
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({ "name": self.tenant, "ceilings": self.ceilings, "shadow": self.shadow })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::tenant::Ceilings;

    #[test]
    fn limits_are_named_and_so_is_their_shadow() {
        let mut settings = Settings::default();
        assert_eq!(PaidBy::new("endpoint-69", &settings).text(), "endpoint-69, has no ceilings");
        settings.ceilings = Ceilings { in_flight: NonZeroU32::new(5), ..Ceilings::default() };
        assert_eq!(PaidBy::new("a", &settings).text(), "a, limits come before policy: ceilings.in_flight: 5");
        settings.shadow = true;
        let paid_by = PaidBy::new("a", &settings);
        assert_eq!(paid_by.text(), "a, limits in shadow, which refuse nothing: ceilings.in_flight: 5");
        assert_eq!(paid_by.json(), json!({ "name": "a", "ceilings": ["ceilings.in_flight: 5"], "shadow": true }));
    }
}
