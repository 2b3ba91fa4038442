//! `/stats`: what is counted, in Envoy's words and form.

use std::fmt::Write as _;

use regex_automata::meta::Regex;
use serde_json::{Value, json};

use super::respond::Query;
use crate::explanation::percent_decode;
use crate::metrics::Stat;

/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Json,
    Prometheus,
}

/// What is asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) form: Form,
    /// Only what ever moved.
    used_only: bool,
    /// Only names in which this is found.
    filter: Option<Regex>,
}

impl Asked {
    /// `?usedonly&filter=REGEX&format=text|json|prometheus`.
    pub(super) fn read(query: &Query<'_>) -> Result<Self, String> {
        query.only(&["usedonly", "filter", "format"])?;
        let form = match query.value("format") {
            None | Some("text") => Form::Text,
            Some("json") => Form::Json,
            Some("prometheus") => Form::Prometheus,
            Some(_) => return Err("format is text, json or prometheus".to_owned()),
        };
        let filter = query.value("filter").map(|text| {
            let text = percent_decode(text).ok_or("filter is not percent-encoded UTF-8")?;
            Regex::new(&text).map_err(|_| format!("filter {text:?} is no regular expression"))
        });
        Ok(Self { form, used_only: query.flag("usedonly")?, filter: filter.transpose()? })
    }

    fn wants(&self, stat: &Stat) -> bool {
        (stat.used || !self.used_only) && self.filter.as_ref().is_none_or(|filter| filter.is_match(&stat.name))
    }

    /// A line for each, by name.
    pub(super) fn text(&self, mut stats: Vec<Stat>) -> String {
        self.choose(&mut stats);
        let mut out = String::new();
        for Stat { name, value, .. } in stats {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name}: {value}");
        }
        out
    }

    pub(super) fn json(&self, mut stats: Vec<Stat>) -> Value {
        self.choose(&mut stats);
        let stats = stats.into_iter().map(|stat| json!({ "name": stat.name, "value": stat.value }));
        json!({ "stats": stats.collect::<Value>() })
    }

    fn choose(&self, stats: &mut Vec<Stat>) {
        stats.retain(|stat| self.wants(stat));
        stats.sort_by(|one, other| one.name.cmp(&other.name));
    }
}
