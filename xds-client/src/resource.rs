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
    /// The bytes received, where they are not those that `message` encodes to: they may have fields that `M` does not know.
    pub partly_read: Option<Vec<u8>>,
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
        return resource(None, any);
    }
    // A server that attaches a name or a time to live wraps the resource, in every variant of the protocol.
    if any.type_url == ResourceWrapper::type_url() {
        let wrapper: ResourceWrapper = decode_message(any)?;
        let name = wrapper.name;
        return match wrapper.resource {
            Some(inner) if inner.type_url == type_url => {
                resource(Some(name.clone()), &inner).map_err(|reason| format!("{name:?}: {reason}"))
            }
            Some(inner) => Err(format!("{name:?} is a {}, wanted {type_url}", inner.type_url)),
            None => Err(format!("{name:?} holds no resource, wanted {type_url}")),
        };
    }
    Err(format!("wrong type, wanted {type_url}"))
}

fn resource<M: Message + Default>(name: Option<String>, any: &Any) -> Result<Resource<M>, String> {
    let message: M = decode_message(any)?;
    // Comparing lengths would not do: other encodings of what is known may be longer or shorter than ours.
    let partly_read = (message.encode_to_vec() != any.value).then(|| any.value.clone());
    Ok(Resource { name, message, partly_read })
}

fn decode_message<M: Message + Default>(any: &Any) -> Result<M, String> {
    M::decode(any.value.as_slice()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Known {
        #[prost(uint32, repeated, tag = "1")]
        numbers: Vec<u32>,
        #[prost(uint32, repeated, tag = "2")]
        others: Vec<u32>,
    }

    fn partly_read(value: &[u8]) -> bool {
        let any = Any { type_url: "type.test/Known".to_owned(), value: value.to_vec() };
        let resource: Resource<Known> = resource(None, &any).unwrap();
        assert_eq!((&resource.message.numbers[..], &resource.message.others[..]), (&[7][..], &[8][..]));
        resource.partly_read.is_some_and(|bytes| bytes == value)
    }

    #[test]
    fn unknown_fields_cannot_hide_behind_another_encoding() {
        let packed = [0x0a, 1, 7, 0x12, 1, 8];
        let unpacked = [0x08, 7, 0x10, 8];
        let unknown = [0x78, 1];
        assert!(!partly_read(&packed));
        assert!(partly_read(&[&packed[..], &unknown].concat()));
        // As long as what we would write without the unknown field.
        assert!(partly_read(&[&unpacked[..], &unknown].concat()));
    }
}
