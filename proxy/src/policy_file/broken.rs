//! What a file claims that cannot be used: policies in its place that allow nothing, for as long as nothing else is known of it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::mem::take;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::nearest::nearest;

use super::place::folded;
use super::{FilePlace, FileResource, Item, PolicyResource};

/// Bytes of a file that is too large to be read in which its claims are looked for.
pub(crate) const SEARCHED: u64 = 256 << 20;
/// Bytes of such a file that are in memory at once, and of a word that is looked at.
const AT_ONCE: u64 = 1 << 20;
const LONGEST_WORD: usize = 4096;
/// Ids, addresses and names of lists of them after which no more are looked for in such a file: some megabytes.
const ENOUGH: usize = 65_536;

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

/// The claims of a file that is too large to be read, as far as they can be told of its first [`SEARCHED`] bytes, and whether something
/// among these could not be looked at.
///
/// # Errors
/// It cannot be read.
pub(crate) fn claims_of_large(mut file: &File, path: &Path) -> io::Result<(Vec<FileResource>, bool)> {
    file.rewind()?;
    let mut rest = file.take(SEARCHED);
    let (mut search, mut bytes, mut is_untold) = (Search::default(), Vec::new(), false);
    loop {
        let is_end = (&mut rest).take(AT_ONCE).read_to_end(&mut bytes)? == 0;
        let parts = |byte: &u8| byte.is_ascii() && parts_words(char::from(*byte));
        let last_between_words = || bytes.iter().rposition(parts).unwrap_or_default();
        let whole = if is_end { bytes.len() } else { last_between_words() };
        search.read(&String::from_utf8_lossy(&bytes[..whole]));
        if is_end {
            break;
        }
        if search.found >= ENOUGH {
            is_untold = true;
            break;
        }
        bytes.drain(..whole);
        if bytes.len() > LONGEST_WORD {
            bytes.clear();
            is_untold = true;
        }
    }
    let place = FilePlace { file: path.into(), line: None };
    let claims = search.end().into_iter().map(|(id, addresses)| claim(place.clone(), id, addresses));
    Ok((claims.collect(), is_untold))
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
#[derive(Default)]
enum About {
    Addresses,
    Id,
    #[default]
    Else,
}

/// Endpoint ids and addresses, where they stand behind the names of their fields.
fn search(text: &str) -> Vec<(u64, Vec<String>)> {
    let mut search = Search::default();
    search.read(text);
    search.end()
}

/// A text that is searched as it comes.
#[derive(Default)]
struct Search {
    ids: Vec<u64>,
    claims: Vec<Vec<String>>,
    addresses: Vec<String>,
    about: About,
    is_first: bool,
    /// How much is kept of what was read.
    found: usize,
}

fn parts_words(c: char) -> bool {
    c.is_whitespace() || "\"'[]{},".contains(c)
}

impl Search {
    /// Goes on with a part of the text that ends between two words.
    fn read(&mut self, text: &str) {
        text.split(parts_words).filter(|word| !word.is_empty()).for_each(|word| self.read_word(word));
    }

    fn read_word(&mut self, word: &str) {
        match &*folded(word.trim_end_matches(':')) {
            "endpointips" => {
                self.found += 1;
                self.claims.push(take(&mut self.addresses));
                (self.about, self.is_first) = (About::Addresses, true);
                return;
            }
            "endpointid" => {
                self.about = About::Id;
                return;
            }
            _ => {}
        }
        match self.about {
            About::Addresses if is_address(word) => {
                self.found += 1;
                self.addresses.push(word.to_owned());
            }
            // Another field begins, but for the colon behind this one's name.
            About::Addresses if word.ends_with(':') && !(self.is_first && word == ":") => self.about = About::Else,
            About::Id if word != ":" => {
                self.found += 1;
                self.ids.extend(word.parse::<u64>().ok().filter(|id| *id > 0));
                self.about = About::Else;
            }
            _ => {}
        }
        self.is_first = false;
    }

    fn end(mut self) -> Vec<(u64, Vec<String>)> {
        self.claims.push(self.addresses);
        self.claims.retain(|addresses| !addresses.is_empty());
        let are_pairs = self.ids.len() == self.claims.len();
        let ids = self.ids.into_iter().filter(|_| are_pairs).chain(std::iter::repeat(UNTOLD));
        ids.zip(self.claims).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// How many addresses are found in a file of this text, and whether there may be more.
    fn found_in(text: &str) -> (usize, bool) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let (claims, is_untold) = claims_of_large(&file, Path::new("a.yaml")).unwrap();
        let addresses = claims.iter().map(|claim| match &claim.resource {
            PolicyResource::Policy(policy) => policy.endpoint_ips.len(),
            other => panic!("{other:?}"),
        });
        (addresses.sum(), is_untold)
    }

    /// 60,000 addresses, in more than is in memory at once.
    fn addresses(between: &str) -> String {
        let addresses = (0..60_000).map(|n| format!("fd00::abcd:ef01:2345:{n:x}{between}"));
        format!("endpointIps: [{between}{}]", addresses.collect::<String>())
    }

    #[test]
    fn lists_are_cut_at_whatever_parts_their_words() {
        for between in [",", "','", "]\t[", "}{", "\r\x0b\x0c", ", "] {
            let text = addresses(between);
            assert!(text.len() > AT_ONCE as usize, "of several parts");
            assert_eq!(found_in(&text), (60_000, false), "{between:?}");
        }
    }

    #[test]
    fn what_is_dropped_is_not_told() {
        let text = format!("endpointIps: [10.0.0.1, {}, 10.0.0.2]", "x".repeat(3 << 20));
        assert_eq!(found_in(&text), (2, true));
        // It parts words all the same, but is no byte.
        let (found, is_untold) = found_in(&addresses("\u{2003}"));
        assert!(found < 60_000 && is_untold, "{found}");
    }

    /// Else a file would take many times its length of memory.
    #[test]
    fn no_more_is_looked_for_than_there_can_be() {
        let (found, is_untold) = found_in(&addresses(", ").repeat(6));
        assert!((ENOUGH..2 * ENOUGH).contains(&found) && is_untold, "{found}");
        for kept in ["endpointIps ", "endpointId 1 "] {
            let text = format!("{}endpointIps: [10.0.0.1]", kept.repeat(200_000));
            assert_eq!(found_in(&text), (0, true), "{kept}");
        }
    }
}
