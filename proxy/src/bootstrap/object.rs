//! Objects of a bootstrap file. Protobuf's JSON form lets each member be spelt in two ways (`connectTimeout`,
//! `connect_timeout`); what nobody asks for is kept by name, since a setting without effect has to be told.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::config::ListenAddress;
use crate::config::document::{Entry, Node, Place, Value};
use crate::config::read::Mistakes;

/// Longest duration anyone means; more is a slip of units, or would be past the end of time.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What was noted while reading.
#[derive(Debug)]
pub(super) struct Notes<'a> {
    pub(super) mistakes: &'a Mistakes,
    /// Members without effect, by path.
    pub(super) ignored: RefCell<Vec<String>>,
}

/// A value with the path that names it.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
    pub(super) notes: &'a Notes<'a>,
}

impl<'a> Field<'a> {
    /// Notes a mistake about this value.
    pub(super) fn refuse(&self, message: impl Into<String>) {
        self.notes.mistakes.note(self.node.place, self.path.clone(), message);
    }

    /// Notes that this value has no effect.
    pub(super) fn ignore(&self) {
        self.notes.ignored.borrow_mut().push(self.path.clone());
    }

    pub(super) fn object(&self) -> Option<Object<'a>> {
        match &self.node.value {
            Value::Map(entries) => {
                let (path, place, notes) = (self.path.clone(), self.node.place, self.notes);
                Some(Object { path, place, entries, asked: Vec::new(), notes })
            }
            other => {
                self.refuse(format!("{} where an object belongs", other.kind()));
                None
            }
        }
    }

    /// The elements of a list. Each is named by its `name` where it has one.
    pub(super) fn list(&self) -> Vec<Self> {
        let Value::List(items) = &self.node.value else {
            self.refuse(format!("{} where a list belongs", self.node.value.kind()));
            return Vec::new();
        };
        let element = |(index, node): (usize, &'a Node)| {
            let name = member(node, "name").and_then(text_of).map_or_else(|| index.to_string(), str::to_owned);
            Self { node, path: format!("{}[{name}]", self.path), notes: self.notes }
        };
        items.iter().enumerate().map(element).collect()
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        let text = text_of(self.node);
        if text.is_none() {
            self.refuse(format!("{} where text belongs", self.node.value.kind()));
        }
        text
    }

    /// A whole number; 64-bit ones are text in protobuf's JSON form.
    pub(super) fn number(&self) -> Option<u64> {
        let number = match &self.node.value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        if number.is_none() {
            self.refuse("not a whole number from 0");
        }
        number
    }

    /// Protobuf's JSON form of a duration, `2s` or `2.500s`; at most a year.
    pub(super) fn duration(&self) -> Option<Duration> {
        let text = text_of(self.node).unwrap_or_default();
        let seconds = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
        let Some(seconds) = seconds.filter(|seconds| seconds.is_finite() && !seconds.is_sign_negative()) else {
            self.refuse("not a duration; write seconds such as \"2s\" or \"2.500s\"");
            return None;
        };
        let duration = Duration::try_from_secs_f64(seconds).ok().filter(|duration| *duration <= LONGEST);
        if duration.is_none() {
            self.refuse(format!("\"{text}\" is longer than a year; write what was meant, in seconds"));
        }
        duration
    }

    /// `{pipe: {path}}` or `{socketAddress: {address, portValue}}`.
    pub(super) fn address(&self) -> Option<ListenAddress> {
        let mut object = self.object()?;
        if let Some(pipe) = object.get("pipe") {
            let mut pipe = pipe.object()?;
            let path = pipe.require("path", "the path of the socket")?;
            let parsed = format!("unix:{}", path.text()?).parse();
            return parsed.map_err(|error| path.refuse(format!("{error}"))).ok();
        }
        let mut socket = object.require("socketAddress", "or pipe, to say where it is")?.object()?;
        let ip = socket.require("address", "an IP address")?;
        let address = ip.text()?.parse::<IpAddr>();
        let Ok(address) = address else {
            ip.refuse(format!("\"{}\" is not an IP address; names are not resolved", ip.text()?));
            return None;
        };
        let port = socket.require("portValue", "a port")?;
        match port.number().map(u16::try_from) {
            Some(Ok(number)) if number > 0 => Some(ListenAddress::Tcp(SocketAddr::new(address, number))),
            _ => {
                port.refuse("not a port from 1 to 65535");
                None
            }
        }
    }

    /// Whether a member of that name with that text is anywhere below.
    pub(super) fn mentions(&self, name: &str, text: &str) -> bool {
        mentions(self.node, name, text)
    }
}

fn mentions(node: &Node, name: &str, text: &str) -> bool {
    match &node.value {
        Value::List(items) => items.iter().any(|item| mentions(item, name, text)),
        Value::Map(entries) => entries.iter().any(|entry| {
            is_spelling(&entry.key, name) && text_of(&entry.node) == Some(text) || mentions(&entry.node, name, text)
        }),
        _ => false,
    }
}

fn text_of(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn member<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|entry| is_spelling(&entry.key, name)).map(|entry| &entry.node),
        _ => None,
    }
}

/// Whether `key` is `name` in camel case or in snake case.
fn is_spelling(key: &str, name: &str) -> bool {
    let letters = |c: char| {
        let separator = c.is_ascii_uppercase().then_some('_');
        separator.into_iter().chain([c.to_ascii_lowercase()])
    };
    key == name || key.contains('_') && key.chars().eq(name.chars().flat_map(letters))
}

/// An object that is being read.
#[derive(Debug)]
pub(super) struct Object<'a> {
    path: String,
    place: Place,
    entries: &'a [Entry],
    asked: Vec<usize>,
    notes: &'a Notes<'a>,
}

impl<'a> Object<'a> {
    /// The whole document.
    pub(super) fn root(node: &'a Node, notes: &'a Notes<'a>) -> Option<Self> {
        Field { node, path: String::new(), notes }.object()
    }

    /// The member `name`, which is in camel case; `None` when it is absent or null.
    pub(super) fn get(&mut self, name: &str) -> Option<Field<'a>> {
        let index = self.entries.iter().position(|entry| is_spelling(&entry.key, name))?;
        self.asked.push(index);
        let node = &self.entries[index].node;
        let path = self.path_of(name);
        let field = Field { node, path, notes: self.notes };
        (!matches!(node.value, Value::Null)).then_some(field)
    }

    /// The member `name`; its absence is a mistake, and `what` says what belongs there.
    pub(super) fn require(&mut self, name: &str, what: &str) -> Option<Field<'a>> {
        let found = self.get(name);
        if found.is_none() {
            self.notes.mistakes.note(self.place, self.path_of(name), format!("is missing: {what}"));
        }
        found
    }

    /// Notes a mistake about the object as a whole.
    pub(super) fn refuse(&self, message: impl Into<String>) {
        self.notes.mistakes.note(self.place, self.path.clone(), message);
    }

    /// Notes every member that nobody asked for as one without effect.
    pub(super) fn finish(self) {
        for (index, entry) in self.entries.iter().enumerate() {
            if !self.asked.contains(&index) && entry.key != "@type" {
                self.notes.ignored.borrow_mut().push(self.path_of(&entry.key));
            }
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}
