//! From the bytes of one resource to a typed message.

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::Resource as ResourceWrapper;
use prost::{Message, Name};

use crate::wire::{RawAny, RawResource};

/// One decoded resource of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource<M> {
    /// Its name, unique within its type: as the control plane gave it, or else as [`crate::Handler::name`] says. Further
    /// ones of the same name in one response get ` (2)`, ` (3)` and so on.
    pub name: String,
    /// The message.
    pub message: M,
    /// The bytes received, where they are not those that `message` encodes to: they may have fields that `M` does not know.
    pub partly_read: Option<Bytes>,
}

/// A resource of a state-of-the-world response, still encoded: its name where it has one outside of the message, and
/// the message. Servers that attach a name or a time to live wrap the resource, in every variant of the protocol.
///
/// # Errors
/// It is of another type than `type_url`.
pub(crate) fn unwrap(type_url: &str, any: &RawAny) -> Result<(Option<String>, Bytes), String> {
    if *any.type_url == *type_url.as_bytes() {
        return Ok((None, any.value.clone()));
    }
    if *any.type_url == *ResourceWrapper::type_url().as_bytes() {
        let wrapper = RawResource::decode(any.value.clone()).map_err(|error| error.to_string())?;
        return match wrapper.resource {
            Some(inner) => {
                let value = of_type(type_url, &wrapper.name, inner)?;
                Ok((Some(wrapper.name), value))
            }
            None => Err(format!("{:?} holds no resource, wanted {type_url}", wrapper.name)),
        };
    }
    Err(format!("wrong type, wanted {type_url}"))
}

/// The encoded message of a named resource.
///
/// # Errors
/// It is of another type than `type_url`.
pub(crate) fn of_type(type_url: &str, name: &str, any: RawAny) -> Result<Bytes, String> {
    if *any.type_url == *type_url.as_bytes() {
        Ok(any.value)
    } else {
        Err(format!("{name:?} is a {}, wanted {type_url}", any.type_name()))
    }
}

/// Decodes a message, and says whether there was more in its bytes than it shows.
pub(crate) fn decode<M: Message + Default>(value: &Bytes) -> Result<(M, Option<Bytes>), String> {
    let message = M::decode(value.clone()).map_err(|error| error.to_string())?;
    // Comparing lengths would not do: other encodings of what is known may be longer or shorter than ours.
    let partly_read = (message.encode_to_vec() != *value).then(|| value.clone());
    Ok((message, partly_read))
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
        let (message, partly_read) = decode::<Known>(&Bytes::copy_from_slice(value)).unwrap();
        assert_eq!((&message.numbers[..], &message.others[..]), (&[7][..], &[8][..]));
        partly_read.is_some_and(|bytes| bytes == value)
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
