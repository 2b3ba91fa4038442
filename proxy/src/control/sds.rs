//! Secrets from the control plane (SDS): the generic ones that policies name as `value_sds_secret`.
//!
//! A secret that is missing, withdrawn or of another kind fails the rules that need it, as one without a file does.

use std::collections::BTreeMap;
use std::sync::Arc;

use tollgate_policy::Secrets;
use tollgate_proto::envoy::config::core::v3::data_source::Specifier;
use tollgate_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use tollgate_xds::{Handler, Rejection, State, Update};

use super::Control;
use super::secrets::MAX_SECRET;

/// Compares with and injects each state of secrets. It rejects nothing: one unusable secret must not hold up the others.
pub(super) struct SecretHandler {
    control: Arc<Control>,
    secrets: State<Secret>,
}

impl SecretHandler {
    pub(super) fn new(control: Arc<Control>) -> Self {
        Self { control, secrets: State::default() }
    }
}

impl Handler for SecretHandler {
    type Resource = Secret;

    fn name(secret: &Secret) -> String {
        secret.name.clone()
    }

    async fn apply(&mut self, update: Update<Secret>) -> Result<(), Rejection> {
        let next = self.secrets.after(update);
        let mut table = Secrets::default();
        // Of several of one name none can be the right one.
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, secret) in next.iter() {
            *counts.entry(&secret.name).or_default() += 1;
        }
        for (name, secret) in next.iter() {
            match value(secret) {
                _ if counts[&*secret.name] > 1 => table.insert_unusable(&secret.name, "is delivered more than once"),
                // Only a resource that was asked for by this name may have it.
                _ if *name != secret.name => table.insert_unusable(name, "has another name inside"),
                Ok(value) => table.insert(name, value),
                Err(why) => table.insert_unusable(name, why),
            }
        }
        self.control.replace_served_secrets(table);
        self.secrets = next;
        Ok(())
    }
}

/// The value of a generic secret, or why there is none; the text completes "secret … ".
fn value(secret: &Secret) -> Result<&[u8], &'static str> {
    let Some(secret::Type::GenericSecret(generic)) = &secret.r#type else { return Err("is not a generic secret") };
    let value = match generic.secret.as_ref().and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => bytes.as_slice(),
        Some(Specifier::InlineString(text)) => text.as_bytes(),
        // A control plane that names files of this node could read any of them through a header.
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            return Err("is not inline; only inline values are taken from a control plane");
        }
        None => return Err("has no value"),
    };
    if value.len() > MAX_SECRET { Err("is over 16 KiB") } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Wake};

    use tollgate_proto::envoy::config::core::v3::DataSource;
    use tollgate_proto::envoy::extensions::transport_sockets::tls::v3::{GenericSecret, TlsCertificate};
    use tollgate_xds::Resource;

    use super::*;
    use crate::control::WorldStore;
    use crate::identity::{IdentityTable, Sources};
    use crate::readiness::Readiness;

    /// Whoever is told of the new world does not take it well.
    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a defect behind the publication");
        }
    }

    #[tokio::test]
    async fn what_is_in_force_is_never_refused() {
        let store = Arc::new(WorldStore::new(Sources::of_table(IdentityTable::default())));
        let pending = Readiness::default().pending("first policy");
        let mut handler = SecretHandler::new(Arc::new(Control::new(Arc::clone(&store), Arc::default(), pending)));
        let mut worlds = store.subscribe();
        let mut told = pin!(worlds.changed());
        assert!(told.as_mut().poll(&mut Context::from_waker(&Arc::new(Panics).into())).is_pending());
        let message = generic(Some(Specifier::InlineString("t".into())));
        let changed = vec![Resource { name: "s".into(), message, partly_read: None }];
        let update = Update { version: "1".into(), changed, removed: Vec::new(), first_on_stream: true };
        assert_eq!(handler.apply(update).await, Ok(()));
        assert_eq!((store.load().secrets.problem("s"), handler.secrets.iter().len()), (None, 1));
    }

    fn generic(specifier: Option<Specifier>) -> Secret {
        let source = DataSource { specifier, ..DataSource::default() };
        let generic = GenericSecret { secret: Some(source), ..GenericSecret::default() };
        Secret { name: "s".into(), r#type: Some(secret::Type::GenericSecret(generic)) }
    }

    #[test]
    fn only_an_inline_generic_secret_has_a_value() {
        assert_eq!(value(&generic(Some(Specifier::InlineBytes(b"t".into())))), Ok(&b"t"[..]));
        assert_eq!(value(&generic(Some(Specifier::InlineString("t".into())))), Ok(&b"t"[..]));
        let certificate = secret::Type::TlsCertificate(TlsCertificate::default());
        for (secret, why) in [
            (generic(None), "has no value"),
            (generic(Some(Specifier::Filename("/etc/shadow".into()))), "is not inline"),
            (generic(Some(Specifier::EnvironmentVariable("HOME".into()))), "is not inline"),
            (generic(Some(Specifier::InlineBytes(vec![b'x'; MAX_SECRET + 1]))), "is over 16 KiB"),
            (Secret { name: "s".into(), r#type: Some(certificate) }, "is not a generic secret"),
            (Secret { name: "s".into(), r#type: None }, "is not a generic secret"),
        ] {
            assert!(value(&secret).unwrap_err().starts_with(why), "{why}");
        }
    }
}
