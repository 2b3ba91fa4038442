//! What a file claims that cannot be used: policies in its place that allow nothing, for as long as nothing else is known of it.

use std::mem::take;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::nearest::nearest;

use super::place::folded;
use super::{FilePlace, FileResource, Item, PolicyResource};

/// The endpoint id of a policy that does not say which.
pub(crate) const UNTOLD: u64 = u64::MAX;

/// The claims of these resources, without what they allow.
pub(crate) fn denying(resources: Vec<FileResource>) -> Vec<FileResource> {
    let claim = |FileResource { place, resource }| match resource {
        PolicyResource::Policy(policy) => {
            let NetworkPolicy { endpoint_id, endpoint_ips, .. } = &*policy;
            Some(claim(place, *endpoint_id, endpoint_ips.clone()))
        }
        PolicyResource::Hosts(_) | PolicyResource::Tenant(_) => None,
    };
    resources.into_iter().filter_map(claim).collect()
}

/// The claims of a text that is no policy file, as far as they can be told: one that is neither JSON nor YAML is searched for
/// what its author most likely meant.
pub(crate) fn claims(text: &str, path: &Path) -> Vec<FileResource> {
    let file: Arc<Path> = path.into();
    let place = |line| FilePlace { file: Arc::clone(&file), line };
    match super::items(text, path) {
        Ok(items) => items.iter().filter_map(|item| claim_of(item, place(item.line))).collect(),
        Err(_) => search(text).into_iter().map(|(id, addresses)| claim(place(None), id, addresses)).collect(),
    }
}

fn claim(place: FilePlace, endpoint_id: u64, endpoint_ips: Vec<String>) -> FileResource {
    let policy = NetworkPolicy { endpoint_id, endpoint_ips, ..NetworkPolicy::default() };
    FileResource { place, resource: PolicyResource::Policy(Arc::new(policy)) }
}

/// The claim of one resource. Its fields may be misspelt, or in the spelling of older agents, in which many things have a name.
fn claim_of(item: &Item, place: FilePlace) -> Option<FileResource> {
    let (mut id, mut addresses) = (UNTOLD, Vec::new());
    for (key, value) in item.value.as_object()? {
        let exact = folded(key);
        match nearest(key, &["endpointIps", "endpointId"]) {
            Some("endpointIps") => {
                addresses.extend(texts(value).filter(|text| exact == "endpointips" || is_address(text)))
            }
            Some(_) => id = number(value).unwrap_or(id),
            None if exact == "name" => addresses.extend(texts(value).filter(|text| is_address(text))),
            None if exact == "policy" => id = number(value).unwrap_or(id),
            None => {}
        }
    }
    let addresses: Vec<String> = addresses.into_iter().filter(|text| !text.is_empty()).map(ToOwned::to_owned).collect();
    (!addresses.is_empty()).then(|| claim(place, id, addresses))
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let all = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    all.iter().filter_map(Value::as_str)
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).filter(|id| *id > 0)
}

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// What the words before were about.
enum About {
    Addresses,
    Id,
    Else,
}

/// Endpoint ids and addresses, where they stand behind the names of their fields.
fn search(text: &str) -> Vec<(u64, Vec<String>)> {
    let (mut ids, mut claims) = (Vec::new(), Vec::new());
    let mut addresses: Vec<String> = Vec::new();
    let mut about = About::Else;
    let mut is_first = false;
    for word in text.split(|c: char| c.is_whitespace() || "\"'[]{},".contains(c)).filter(|word| !word.is_empty()) {
        match &*folded(word.trim_end_matches(':')) {
            "endpointips" => {
                claims.push(take(&mut addresses));
                (about, is_first) = (About::Addresses, true);
                continue;
            }
            "endpointid" => {
                about = About::Id;
                continue;
            }
            _ => {}
        }
        match about {
            About::Addresses if is_address(word) => addresses.push(word.to_owned()),
            // Another field begins, but for the colon behind this one's name.
            About::Addresses if word.ends_with(':') && !(is_first && word == ":") => about = About::Else,
            About::Id if word != ":" => {
                ids.extend(word.parse::<u64>().ok().filter(|id| *id > 0));
                about = About::Else;
            }
            _ => {}
        }
        is_first = false;
    }
    claims.push(addresses);
    claims.retain(|addresses| !addresses.is_empty());
    let are_pairs = ids.len() == claims.len();
    let ids = ids.into_iter().filter(|_| are_pairs).chain(std::iter::repeat(UNTOLD));
    ids.zip(claims).collect()
}
