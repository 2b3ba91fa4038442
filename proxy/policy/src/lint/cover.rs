//! Whether one condition holds wherever another does. Says so only when it can be shown.

use super::finding::{Element, Finding, Lint};
use super::probe::Probes;
use crate::compile::server_name::{self, Pattern};
use crate::model::{HeaderMatcher, HttpRule, ValueMatch};

/// Whether every server name that one of `others` accepts is accepted by one of `patterns`. No patterns: any name, also none.
pub(super) fn covers_names(patterns: &[String], others: &[String], probes: &mut Probes) -> bool {
    let mut covered = |other: &String| patterns.iter().any(|pattern| covers_name(pattern, other, probes));
    patterns.is_empty() || (!others.is_empty() && others.iter().all(&mut covered))
}

fn covers_name(pattern: &str, other: &str, probes: &mut Probes) -> bool {
    match (server_name::parse(pattern), server_name::parse(other)) {
        (Ok(pattern), Ok(other)) if pattern == other => true,
        (Ok(Pattern::Expression(expression)), Ok(Pattern::Exact(name))) => {
            probes.of(&ValueMatch::Regex(expression)).is_some_and(|probe| probe.accepts(name.as_bytes()))
        }
        _ => false,
    }
}

/// Whether the field is as `mine` asks wherever it is as `theirs` does.
pub(super) fn covers_matcher(mine: &HeaderMatcher, theirs: &HeaderMatcher, probes: &mut Probes) -> bool {
    if mine == theirs {
        return true;
    }
    if mine.name != theirs.name || mine.invert || mine.treat_missing_as_empty || theirs.treat_missing_as_empty {
        return false;
    }
    if theirs.invert {
        // Inverted or not, a field that is absent matches only where presence is asked.
        let asks_presence = matches!(theirs.value, ValueMatch::Present(_));
        return matches!(mine.value, ValueMatch::Present(true)) && !asks_presence;
    }
    match (probes.of(&mine.value), probes.of(&theirs.value)) {
        (Some(mine), Some(theirs)) => mine.covers(&theirs),
        _ => false,
    }
}

/// Two conditions on one field that no value meets.
pub(super) fn check_unmatchable(element: &Element, http: &HttpRule, probes: &mut Probes, findings: &mut Vec<Finding>) {
    for (index, first) in http.headers.iter().enumerate() {
        if let ValueMatch::Range { start, end } = first.value
            && start >= end
            && !first.invert
        {
            let what = format!("no number is in the range from {start} to below {end}");
            let instead = "begin the range below its end".to_owned();
            findings.push(Finding::new(Lint::UnmatchableRule, element.header(index), what, instead));
        }
        for (later, second) in http.headers.iter().enumerate().skip(index + 1) {
            if first.name == second.name && exclude_each_other(first, second, probes) {
                let what = format!("`{}` cannot be {} and {} at once", first.name, first.value, second.value);
                let instead = "write one HTTP rule for each, or one matcher that allows both".to_owned();
                let finding = Finding::new(Lint::UnmatchableRule, element.header(later), what, instead);
                findings.push(Finding { because_of: Some(element.header(index)), ..finding });
                return;
            }
        }
    }
}

fn exclude_each_other(a: &HeaderMatcher, b: &HeaderMatcher, probes: &mut Probes) -> bool {
    if a.invert || b.invert || a.treat_missing_as_empty || b.treat_missing_as_empty {
        return false;
    }
    let (Some(first), Some(second)) = (probes.of(&a.value), probes.of(&b.value)) else {
        return false;
    };
    match (first.listed(), second.listed()) {
        (Some(values), _) => !values.iter().any(|value| second.accepts(value)),
        (None, Some(values)) => !values.iter().any(|value| first.accepts(value)),
        (None, None) => {
            let present = |m: &HeaderMatcher| !matches!(m.value, ValueMatch::Present(false));
            let absent = |m: &HeaderMatcher| matches!(m.value, ValueMatch::Present(false));
            (absent(a) && present(b)) || (present(a) && absent(b))
        }
    }
}
