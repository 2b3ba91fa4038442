//! What is in force of one type, and how a response differs from it.
//!
//! It outlives streams and changes of mode: a control plane that restarts sends everything again, and mostly nothing of
//! it is new.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use slab::Slab;

use crate::resource::{decode, of_type, unwrap};
use crate::wire::{RawAny, RawResource};
use crate::{Rejection, Resource};

/// Name and bytes of every resource that was accepted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accepted {
    resources: Slab<(Arc<str>, Bytes)>,
    by_name: HashMap<Arc<str>, usize>,
    /// One of those that have these bytes. Hashing every byte of a node's policy is most of the work of an update that
    /// changes one endpoint, so it is not done by the standard library's hasher.
    by_bytes: HashMap<Bytes, usize, foldhash::quality::RandomState>,
}

/// How a response differs from what was accepted.
#[derive(Debug)]
pub(crate) struct Difference<M> {
    pub(crate) changed: Vec<Resource<M>>,
    pub(crate) removed: Vec<String>,
    /// What to remember when it is accepted; `None` is a resource that is gone.
    edits: Edits,
    /// Why some of the resources are not among them.
    refused: Refused,
}

/// Resources of a response that nothing can be made of. They keep what they were, and hold up no others: an agent puts the policies
/// of a whole node into one response (as gRPC does, proposal A46).
#[derive(Clone, Debug, Default)]
pub(crate) struct Refused {
    first: Option<Rejection>,
    count: usize,
}

impl Refused {
    fn add(&mut self, reason: Rejection) {
        self.count += 1;
        self.first.get_or_insert(reason);
    }

    fn is_none(&self) -> bool {
        self.count == 0
    }

    /// What the peer is told.
    pub(crate) fn into_rejection(self) -> Option<Rejection> {
        let others = self.count.saturating_sub(1);
        self.first.map(|first| match others {
            0 => first,
            others => Rejection::new(format!("{first} (and {others} more)")),
        })
    }
}

/// What to change in [`Accepted`].
pub(crate) type Edits = Vec<(Arc<str>, Option<Bytes>)>;

/// Which resources a subscription wants; `None` wants all.
pub(crate) type Wanted<'a> = Option<&'a BTreeSet<String>>;

impl Accepted {
    pub(crate) fn len(&self) -> usize {
        self.resources.len()
    }

    /// The difference to a state that consists of exactly `resources`. `name_of` names those that bring no name.
    ///
    /// A copy of a resource, byte by byte, says nothing and is ignored. Where a resource cannot be read, none is taken for gone: it
    /// may be any of those that are missing.
    ///
    /// # Errors
    /// What is wrong, where there is nothing else that is new.
    pub(crate) fn differs_from_state<M: Message + Default>(
        &self,
        type_url: &str,
        resources: &[RawAny],
        wanted: Wanted<'_>,
        name_of: fn(&M) -> String,
    ) -> Result<Difference<M>, Rejection> {
        let mut stays = vec![false; self.resources.capacity()];
        let mut fresh = Vec::new();
        let mut difference = Difference::none();
        for (index, any) in resources.iter().enumerate() {
            let refuse = |reason| reject(index, resources.len(), any, reason);
            let (name, value) = match unwrap(type_url, any) {
                Ok(resource) => resource,
                Err(reason) => {
                    difference.refused.add(refuse(reason));
                    continue;
                }
            };
            let known = match &name {
                Some(name) => self.by_name.get(&**name).filter(|&&known| self.resources[known].1 == value),
                None => self.by_bytes.get(&value),
            };
            match known {
                Some(&known) => stays[known] = true,
                None => match decode::<M>(&value) {
                    Ok((message, partly_read)) => {
                        let name = name.unwrap_or_else(|| name_of(&message));
                        fresh.push((Resource { name, message, partly_read }, value));
                    }
                    Err(reason) => difference.refused.add(match &name {
                        Some(name) => refuse(format!("{name:?}: {reason}")),
                        None => refuse(reason),
                    }),
                },
            }
        }
        let mut new_names: HashSet<Arc<str>> = HashSet::new();
        let mut new_bytes: HashSet<Bytes> = HashSet::new();
        let mut copies: HashMap<String, usize> = HashMap::new();
        for (mut resource, value) in fresh {
            if wanted.is_some_and(|wanted| !wanted.contains(&resource.name)) || !new_bytes.insert(value.clone()) {
                continue;
            }
            let taken =
                |name: &str| new_names.contains(name) || self.by_name.get(name).is_some_and(|&known| stays[known]);
            resource.name = first_free(resource.name, &mut copies, taken);
            new_names.insert(resource.name.as_str().into());
            difference.add(resource, &value);
        }
        for (known, (name, _)) in &self.resources {
            let unwanted = wanted.is_some_and(|wanted| !wanted.contains(&**name));
            let gone = !stays[known] && difference.refused.is_none();
            if (gone || unwanted) && !new_names.contains(name) {
                difference.remove(name);
            }
        }
        difference.unless_all_is_refused()
    }

    /// The difference that an incremental response makes: `removed` go first, then `resources` come in their order. With
    /// `replaces_all` nothing stays that is not among them. A resource that cannot be read stays as it was.
    ///
    /// # Errors
    /// What is wrong, where there is nothing else that is new.
    pub(crate) fn differs_by_increment<M: Message + Default>(
        &self,
        type_url: &str,
        resources: Vec<RawResource>,
        removed: &[String],
        replaces_all: bool,
        wanted: Wanted<'_>,
    ) -> Result<Difference<M>, Rejection> {
        let count = resources.len();
        let mut difference = Difference::none();
        let mut latest: HashMap<Arc<str>, usize> = HashMap::with_capacity(count);
        let names: Vec<Arc<str>> = resources.iter().map(|resource| resource.name.as_str().into()).collect();
        for (index, name) in names.iter().enumerate() {
            latest.insert(Arc::clone(name), index);
        }
        for (index, (resource, name)) in resources.into_iter().zip(names).enumerate() {
            let refuse = |reason| Rejection::new(format!("resource {index} of {count} ({name:?}): {reason}"));
            let known = self.by_name.get(&*name).map(|&known| &self.resources[known].1);
            let value = match resource.resource {
                Some(any) => of_type(type_url, &name, any),
                // A heartbeat: it only prolongs a time to live, and ours are endless.
                None if known.is_some() && !removed.iter().any(|removed| **removed == *name) => continue,
                None => Err(format!("holds no resource, wanted {type_url}")),
            };
            if value.as_ref().is_ok_and(|value| known == Some(value)) {
                continue;
            }
            let read = value.and_then(|value| decode::<M>(&value).map(|read| (read, value)));
            let ((message, partly_read), value) = match read {
                Ok(read) => read,
                Err(reason) => {
                    difference.refused.add(refuse(reason));
                    continue;
                }
            };
            let unwanted = wanted.is_some_and(|wanted| !wanted.contains(&*name));
            if latest.get(&name) == Some(&index) && !unwanted {
                difference.add(Resource { name: name.as_ref().to_owned(), message, partly_read }, &value);
            }
        }
        if replaces_all {
            self.by_name.keys().filter(|name| !latest.contains_key(&**name)).for_each(|name| difference.remove(name));
        } else {
            let gone = removed.iter().filter(|name| !latest.contains_key(name.as_str()));
            let gone: BTreeSet<&Arc<str>> =
                gone.filter_map(|name| self.by_name.get_key_value(name.as_str()).map(|(name, _)| name)).collect();
            gone.into_iter().for_each(|name| difference.remove(name));
        }
        difference.unless_all_is_refused()
    }

    /// What goes when only `wanted` are wanted any more.
    pub(crate) fn without_unwanted<M>(&self, wanted: &BTreeSet<String>) -> Difference<M> {
        let mut difference = Difference::none();
        self.by_name.keys().filter(|name| !wanted.contains(&***name)).for_each(|name| difference.remove(name));
        difference
    }

    /// Takes over a difference that was accepted.
    pub(crate) fn apply(&mut self, edits: Edits) {
        for (name, value) in edits {
            if let Some(known) = self.by_name.remove(&name) {
                let (_, bytes) = self.resources.remove(known);
                if self.by_bytes.get(&bytes) == Some(&known) {
                    self.by_bytes.remove(&bytes);
                }
            }
            if let Some(bytes) = value {
                let known = self.resources.insert((Arc::clone(&name), bytes.clone()));
                self.by_bytes.insert(bytes, known);
                self.by_name.insert(name, known);
            }
        }
    }
}

impl<M> Difference<M> {
    pub(crate) const fn none() -> Self {
        Self { changed: Vec::new(), removed: Vec::new(), edits: Vec::new(), refused: Refused { first: None, count: 0 } }
    }

    fn unless_all_is_refused(self) -> Result<Self, Rejection> {
        if self.edits.is_empty() && !self.refused.is_none() {
            return Err(self.refused.into_rejection().unwrap_or_else(|| Rejection::new("nothing of it can be read")));
        }
        Ok(self)
    }

    pub(crate) fn is_none(&self) -> bool {
        self.edits.is_empty()
    }

    /// What the handler gets, what to remember when it accepts, and what it does not get.
    pub(crate) fn into_parts(mut self) -> (Vec<Resource<M>>, Vec<String>, Edits, Refused) {
        self.removed.sort_unstable(); // they come out of a hash table
        (self.changed, self.removed, self.edits, self.refused)
    }

    fn add(&mut self, resource: Resource<M>, value: &Bytes) {
        // A copy: a slice would keep the whole response in memory for the sake of one resource.
        self.edits.push((resource.name.as_str().into(), Some(Bytes::copy_from_slice(value))));
        self.changed.push(resource);
    }

    fn remove(&mut self, name: &Arc<str>) {
        self.removed.push(name.as_ref().to_owned());
        self.edits.push((Arc::clone(name), None));
    }
}

fn reject(index: usize, count: usize, any: &RawAny, reason: String) -> Rejection {
    Rejection::new(format!("resource {index} of {count} ({}): {reason}", any.type_name()))
}

/// `name`, or the first of `name (2)`, `name (3)` and so on that is not taken. `copies` remembers how far each name has
/// come, so that thousands of copies cost no more than as many names.
fn first_free(name: String, copies: &mut HashMap<String, usize>, taken: impl Fn(&str) -> bool) -> String {
    if !taken(&name) {
        return name;
    }
    let copy = copies.entry(name.clone()).or_insert(1);
    loop {
        *copy += 1;
        let free = format!("{name} ({copy})");
        if !taken(&free) {
            return free;
        }
    }
}

#[cfg(test)]
mod tests;
