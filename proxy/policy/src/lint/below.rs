//! What is advised where paths are named and what is below them is not: expressions that keep each alternative of the one that is there.

use super::path::escape;
use super::probe::Probe;
use super::regex_text::{proven, without_anchors};
use crate::model::{HeaderMatcher, TextPart, ValueMatch};

/// What stands behind a path for everything below it.
pub(super) const END: &str = "([/;?].*)?";

/// An expression for the listed paths and what is below those that are directories, and for nothing else: in the author's own words
/// where they can go on.
pub(super) fn allowed(
    matcher: &HeaderMatcher,
    listed: &[Box<[u8]>],
    directory: impl Fn(&&String) -> bool,
) -> Option<String> {
    let listed: Vec<String> = listed.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    let (directories, others): (Vec<&String>, Vec<&String>) =
        listed.iter().filter(|path| path.starts_with('/')).partition(|path| directory(path));
    let mut advised = if listed.len() > 1 { in_own_words(matcher) } else { Vec::new() };
    let others_too: String = others.iter().map(|path| format!("|{}", escape(path))).collect();
    advised.push(any_of(&directories) + &others_too);
    let does = |probe: &Probe| {
        let accepts = |path: &str| probe.accepts(path.as_bytes());
        let opened = |path: &&String| ["/x", ";x", "?x"].iter().all(|end| accepts(&format!("{path}{end}")));
        let strangers = directories.iter().map(|path| format!("{path}x")).chain(["/elsewhere".to_owned()]);
        directories.iter().all(opened)
            && directories.iter().chain(&others).all(|path| accepts(path))
            && !strangers.filter(|path| !listed.contains(path)).any(|path| accepts(&path))
    };
    advised.into_iter().find_map(|pattern| proven(&pattern, does))
}

/// An expression for whatever the matcher accepts, in its other spellings too, and what is below that. It accepts no less: what it
/// leaves out would be let in.
pub(super) fn excluded(matcher: &HeaderMatcher, probe: &Probe) -> Option<String> {
    let examples = probe.examples();
    let bare: Vec<String> = examples.iter().map(|path| path.trim_end_matches('/').to_owned()).collect();
    let advised = match (&matcher.value, bare.as_slice()) {
        (ValueMatch::Text { part: TextPart::Whole, ignore_case: false, .. }, [only]) => vec![any_of(&[only])],
        (ValueMatch::Regex(pattern), [only]) if is_only(only, pattern) => vec![any_of(&[only])],
        (ValueMatch::Regex(_), _) => {
            let spelt_out = probe.listed().map(|_| any_of(&bare.iter().collect::<Vec<_>>()));
            in_own_words(matcher).into_iter().chain(spelt_out).collect()
        }
        _ => Vec::new(),
    };
    let does = |probe: &Probe| {
        let accepts = |path: &str| probe.accepts(path.as_bytes());
        let opened = |path: &String| ["/", "/x", ";x", "?x"].iter().all(|end| accepts(&format!("{path}{end}")));
        bare.iter().all(opened) && examples.iter().all(|path| accepts(path))
    };
    advised.into_iter().find_map(|pattern| proven(&pattern, does))
}

/// Whether the pattern is this text, whatever slashes end it.
fn is_only(text: &str, pattern: &str) -> bool {
    let rest = without_anchors(pattern).2.strip_prefix(&*escape(text));
    rest.is_some_and(|rest| ["", "/", "/?", "/*", "/+"].contains(&rest))
}

fn in_own_words(matcher: &HeaderMatcher) -> Vec<String> {
    let ValueMatch::Regex(pattern) = &matcher.value else { return Vec::new() };
    let own = without_anchors(pattern).2;
    vec![format!("{own}{END}"), format!("({own}){END}")]
}

fn any_of(paths: &[&String]) -> String {
    match paths {
        [only] => format!("{}{END}", escape(only)),
        _ => format!("({}){END}", paths.iter().map(|path| escape(path)).collect::<Vec<_>>().join("|")),
    }
}
