//! Names and texts that were written as if they were something else: a pattern in a text that is none, a pseudo-header
//! without its colon.

use super::finding::{Element, Finding, Lint};
use super::path::escape;
use crate::model::{HeaderMatcher, TextPart, ValueMatch};

/// `path` is a field that a client may send or not; the path of a request is `:path`. `host` is `:authority`, as in Envoy.
pub(super) fn check_name(element: &Element, matcher: &HeaderMatcher, findings: &mut Vec<Finding>) {
    let meant = match &*matcher.name {
        "path" => ":path",
        "method" => ":method",
        "authority" => ":authority",
        "scheme" => ":scheme",
        _ => return,
    };
    findings.push(Finding::new(
        Lint::ColonMissing,
        element.clone(),
        format!("`{}` is an ordinary field, not what the request asks for", matcher.name),
        format!("did you mean `{meant}`?"),
    ));
}

/// A `*` where no pattern is read. Fields have values such as `*/*`, so of those only `.*` counts.
pub(super) fn check(element: &Element, matcher: &HeaderMatcher, findings: &mut Vec<Finding>) -> bool {
    let ValueMatch::Text { part, text, .. } = &matcher.value else {
        return false;
    };
    let of_request = matches!(&*matcher.name, ":path" | ":method" | ":authority" | ":scheme" | "host");
    // The path of `OPTIONS *` (RFC 9112 section 3.2.4).
    let asterisk_form = &*matcher.name == ":path" && &**text == "*";
    if asterisk_form || !(text.contains(".*") || of_request && text.contains('*')) {
        return false;
    }
    let middle = match text.contains(".*") {
        true => text.to_string(),
        // Any text in the middle of a path would include a query.
        false if &*matcher.name == ":path" => {
            let (begin, end) = text.strip_suffix('*').map_or((&**text, ""), |begin| (begin, ".*"));
            begin.split('*').map(escape).collect::<Vec<_>>().join("[^/?]*") + end
        }
        false => text.split('*').map(escape).collect::<Vec<_>>().join(".*"),
    };
    let open = |here: bool, there: bool| if here && !there { ".*" } else { "" };
    let before = open(matches!(part, TextPart::Suffix | TextPart::Anywhere), middle.starts_with(".*"));
    let after = open(matches!(part, TextPart::Prefix | TextPart::Anywhere), middle.ends_with(".*"));
    findings.push(Finding::new(
        Lint::PatternInText,
        element.clone(),
        format!("{} has to have the `*` in it", matcher.value),
        format!("did you mean `safe_regex` with the regex {:?}?", format!("{before}{middle}{after}")),
    ));
    true
}
