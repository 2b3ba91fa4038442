//! Listeners that a control plane asks for.

use crate::config;

/// What takes listeners in and out of service.
pub trait Serve: Send + Sync + 'static {
    /// Serves exactly these listeners from now on, beside those of the configuration. What cannot be served stays as it was,
    /// or absent, and is returned. When the future ends, every worker accepts by it.
    fn serve(&self, listeners: &[config::Listener]) -> impl Future<Output = Vec<Unserved>> + Send;
}

/// A listener that cannot be served as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// Its name.
    pub name: String,
    /// Why, and what to do about it.
    pub reason: String,
}
