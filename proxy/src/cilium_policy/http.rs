//! HTTP rules as header matchers.

use tollgate_policy::model::{HeaderMatch, HeaderMatcher, HttpRule, MismatchAction, TextPart, Unsupported, ValueMatch};

use super::object::Object;

/// Namespace in which an agent keeps copies of the secrets that policies name, by default.
const SECRETS_NAMESPACE: &str = "cilium-secrets";

/// Reads `rules.http`. For each matcher its path goes to `parts`.
pub(super) fn read(rules: &Object<'_>, parts: &mut Vec<(String, String)>) -> Vec<HttpRule> {
    rules.objects("http").enumerate().map(|(index, object)| http_rule(index, &object, parts)).collect()
}

fn http_rule(index: usize, object: &Object<'_>, parts: &mut Vec<(String, String)>) -> HttpRule {
    object.known(&["path", "method", "host", "headers", "headerMatches"]);
    let element = format!(".rules[0].http_rules.http_rules[{index}]");
    parts.push((element.clone(), object.path().to_owned()));
    let mut rule = HttpRule::default();
    let mut add = |rule: &mut HttpRule, path: String, matcher: HeaderMatcher| {
        parts.push((format!("{element}.headers[{}]", rule.headers.len()), path));
        rule.headers.push(matcher);
    };
    for (key, name) in [("path", ":path"), ("method", ":method"), ("host", ":authority")] {
        if let Some(pattern) = object.text(key).filter(|pattern| !pattern.is_empty()) {
            add(&mut rule, object.at(key), HeaderMatcher::new(name, ValueMatch::Regex(pattern.into())));
        }
    }
    for (path, header) in object.texts("headers") {
        // As the agent splits it: the name ends at the first blank, and a colon belongs to neither.
        let (name, value) = header.split_once(' ').map_or((header, None), |(name, value)| (name, Some(value)));
        let value = value.map_or(ValueMatch::Present(true), exact);
        add(&mut rule, path, HeaderMatcher::new(name.trim_end_matches(':'), value));
    }
    let mut edits = Vec::new();
    for object in object.objects("headerMatches") {
        match header_match(&object) {
            Matched::Condition(matcher) => add(&mut rule, object.path().to_owned(), matcher),
            Matched::Edit(edit) => edits.push((object.path().to_owned(), edit)),
            Matched::Unsupported(what) => rule.unsupported.push(what),
        }
    }
    for (path, edit) in edits {
        parts.push((format!("{element}.header_matches[{}]", rule.header_matches.len()), path));
        rule.header_matches.push(edit);
    }
    rule
}

fn exact(text: &str) -> ValueMatch {
    ValueMatch::Text { part: TextPart::Whole, text: text.into(), ignore_case: false }
}

enum Matched {
    /// Nothing but a condition.
    Condition(HeaderMatcher),
    Edit(HeaderMatch),
    Unsupported(Unsupported),
}

fn header_match(object: &Object<'_>) -> Matched {
    object.known(&["name", "value", "secret", "mismatch"]);
    let name = object.text("name").unwrap_or_default();
    let value = object.text("value").unwrap_or_default();
    let secret = object.object("secret").map(|secret| {
        secret.known(&["namespace", "name"]);
        let (namespace, name) =
            (secret.text("namespace").unwrap_or("default"), secret.text("name").unwrap_or_default());
        format!("{SECRETS_NAMESPACE}/{namespace}-{name}").into()
    });
    let on_mismatch = match object.text("mismatch").unwrap_or_default() {
        "" if secret.is_none() && value.is_empty() => {
            return Matched::Condition(HeaderMatcher::new(name, ValueMatch::Present(true)));
        }
        "" if secret.is_none() => return Matched::Condition(HeaderMatcher::new(name, exact(value))),
        "" => MismatchAction::Fail,
        "LOG" => MismatchAction::Continue,
        "ADD" => MismatchAction::Add,
        "DELETE" => MismatchAction::Delete,
        "REPLACE" => MismatchAction::Replace,
        other => {
            object.invalid("mismatch", format!("{other:?} is no action"), "LOG, ADD, DELETE or REPLACE");
            let reason = format!("{other:?} is no action").into();
            return Matched::Unsupported(Unsupported { element: "mismatch".into(), reason });
        }
    };
    Matched::Edit(HeaderMatch { secret, on_mismatch, ..HeaderMatch::new(name, value) })
}
