//! A rule as a union of narrower ones, so that several rules together can be shown to decide everything that it matches:
//! one peer, one server name and one value of each listed matcher at a time.

use super::probe::Probes;
use crate::model::{HttpRule, PortRule, TextPart, ValueMatch};

/// Most cells that a rule is split into; what would make more stays unsplit.
const MAX_CELLS: usize = 64;

/// A part of a rule. The cells of a rule match together exactly what the rule does.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    /// The rule's peers, server names and listener; its HTTP rules are not looked at.
    pub(super) rule: PortRule,
    pub(super) http: Option<HttpRule>,
}

/// The cells of a rule, or of one of its HTTP alternatives; a single one when nothing in it is a list.
pub(super) fn of(rule: &PortRule, http: Option<&HttpRule>, probes: &mut Probes) -> Vec<Cell> {
    let mut cells = vec![Cell { rule: PortRule { http: None, ..rule.clone() }, http: http.cloned() }];
    split(&mut cells, &rule.remotes, |cell, remote| cell.rule.remotes = vec![*remote]);
    split(&mut cells, &rule.server_names, |cell, name| cell.rule.server_names = vec![name.clone()]);
    for (index, matcher) in http.iter().flat_map(|http| http.headers.iter().enumerate()) {
        if matcher.invert || matcher.treat_missing_as_empty {
            continue;
        }
        let Some(probe) = probes.of(&matcher.value) else { continue };
        let texts = probe.listed().unwrap_or_default().iter().map(|value| std::str::from_utf8(value));
        let Ok(texts) = texts.collect::<Result<Vec<&str>, _>>() else { continue };
        split(&mut cells, &texts, |cell, text| {
            if let Some(narrowed) = cell.http.as_mut().and_then(|http| http.headers.get_mut(index)) {
                narrowed.value = ValueMatch::Text { part: TextPart::Whole, text: (*text).into(), ignore_case: false };
            }
        });
    }
    cells
}

/// Makes of each cell one for each value. An empty list means anything, and one of a single value narrows nothing.
fn split<T>(cells: &mut Vec<Cell>, values: &[T], narrow: impl Fn(&mut Cell, &T)) {
    if values.len() < 2 || cells.len().saturating_mul(values.len()) > MAX_CELLS {
        return;
    }
    let narrowed = cells.iter().flat_map(|cell| {
        values.iter().map(|value| {
            let mut cell = cell.clone();
            narrow(&mut cell, value);
            cell
        })
    });
    *cells = narrowed.collect();
}
