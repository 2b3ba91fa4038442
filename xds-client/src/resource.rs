//! From the undecoded resources of a response to typed ones: all of them, or none and the reason.

use envoy_types::pb::envoy::service::discovery::v3::Resource as ResourceWrapper;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use crate::Rejection;

/// One decoded resource of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource<M> {
    /// Name that the control plane gave it; `None` where the protocol leaves it to the message, as state of the world
    /// without wrappers does.
    pub name: Option<String>,
    /// The message.
    pub message: M,
}

/// Decodes every resource as `M`, whose type is `type_url`.
///
/// # Errors
/// The first resource that is of another type or does not decode, by its index in the response.
pub(crate) fn decode_all<M: Message + Default>(
    type_url: &str,
    resources: &[Any],
) -> Result<Vec<Resource<M>>, Rejection> {
    let count = resources.len();
    resources
        .iter()
        .enumerate()
        .map(|(index, any)| {
            decode_one(type_url, any)
                .map_err(|reason| Rejection::new(format!("resource {index} of {count} ({}): {reason}", any.type_url)))
        })
        .collect()
}

fn decode_one<M: Message + Default>(type_url: &str, any: &Any) -> Result<Resource<M>, String> {
    if any.type_url == type_url {
        return Ok(Resource { name: None, message: decode_message(any)? });
    }
    // A server that attaches a name or a time to live wraps the resource, in every variant of the protocol.
    if any.type_url == ResourceWrapper::type_url() {
        let wrapper: ResourceWrapper = decode_message(any)?;
        let name = wrapper.name;
        return match wrapper.resource {
            Some(inner) if inner.type_url == type_url => {
                let message = decode_message(&inner).map_err(|reason| format!("{name:?}: {reason}"))?;
                Ok(Resource { name: Some(name), message })
            }
            Some(inner) => Err(format!("{name:?} is a {}, wanted {type_url}", inner.type_url)),
            None => Err(format!("{name:?} holds no resource, wanted {type_url}")),
        };
    }
    Err(format!("wrong type, wanted {type_url}"))
}

fn decode_message<M: Message + Default>(any: &Any) -> Result<M, String> {
    M::decode(any.value.as_slice()).map_err(|error| error.to_string())
}
