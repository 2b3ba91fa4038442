//! Whether `tests/conformance/README.md` is complete and true.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A case of the suite: its file, and its name there.
type Case = (String, String);

/// A test that a row of the page names.
#[derive(Debug)]
struct Reference {
    file: String,
    test: String,
    row: Option<String>,
}

/// What is wrong with the page. `read` gives the text of a file by its path from the top of the repository.
fn findings(page: &str, cases: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut findings = Vec::new();
    let names = cases.lines().map(|line| line.split_once(' ').map(|(file, name)| (file.to_owned(), name.to_owned())));
    let names: BTreeSet<Case> = names.map(|case| case.expect("`file case`")).collect();
    let rows = rows(page);
    let listed: BTreeSet<&Case> = rows.iter().map(|(case, _)| case).collect();
    if listed.len() < rows.len() {
        findings.push("a case is listed more than once".to_owned());
    }
    findings.extend(names.iter().filter(|case| !listed.contains(case)).map(|case| format!("{case:?}: is not listed")));
    findings.extend(listed.iter().filter(|case| !names.contains(**case)).map(|case| format!("{case:?}: no such case")));

    let mut sources: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut named: BTreeSet<(String, String)> = BTreeSet::new();
    for (case, how) in &rows {
        let references = references(how);
        let mut problem = |what: &str| findings.push(format!("{case:?}: {what}"));
        match how.split_once("overed") {
            Some(("c", _)) if references.is_empty() => problem("covered by what?"),
            Some(("c", _)) => {}
            Some(("not c", why)) if why.trim_start_matches(": ").len() > 10 => {}
            _ => problem("neither `covered by` a test nor `not covered: ` with a reason"),
        }
        for reference in references {
            let source = sources.entry(reference.file.clone()).or_insert_with(|| read(&reference.file));
            if let Some(what) = source.as_ref().map_or(Some("no such file"), |source| reference.problem(source)) {
                problem(&format!("{what}: {reference:?}"));
            }
            named.insert((reference.file, case.1.clone()));
        }
    }
    for (file, source) in sources {
        for (_, name) in &names {
            let has = source.as_ref().is_some_and(|source| source.contains(&format!("\"{name}\"")));
            if has && !named.contains(&(file.clone(), name.clone())) {
                findings.push(format!("{file} has a case {name} that is not listed with it"));
            }
        }
    }
    let covered = rows.iter().filter(|(_, how)| how.starts_with("covered by ")).count();
    let count = format!("of {} cases\n{covered} are covered", names.len());
    if !page.contains(&count) {
        findings.push(format!("the introduction does not say: {count}"));
    }
    findings
}

/// The rows of all tables: case, and how it is covered.
fn rows(page: &str) -> Vec<(Case, &str)> {
    let mut file = "";
    let mut rows = Vec::new();
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            file = heading;
        } else if let Some((name, how)) = line.strip_prefix("| `").and_then(|row| row.split_once("` | ")) {
            rows.push(((file.to_owned(), name.to_owned()), how.trim_end_matches(" |")));
        }
    }
    rows
}

/// Each `` `file::test` ``, with the `` (row `name`) `` that follows it.
fn references(how: &str) -> Vec<Reference> {
    let spans: Vec<&str> = how.split('`').collect();
    let mut references = Vec::new();
    for at in (1..spans.len()).step_by(2) {
        if let Some((file, test)) = spans[at].split_once("::") {
            let row = spans.get(at + 1).filter(|between| **between == " (row ").map(|_| spans[at + 2].to_owned());
            references.push(Reference { file: file.to_owned(), test: test.to_owned(), row });
        }
    }
    references
}

impl Reference {
    fn problem(&self, source: &str) -> Option<&'static str> {
        let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
        let function = format!("fn {}()", self.test);
        let starts = |line: &str| line.trim_start_matches("async ").starts_with(&function);
        let is_test = |at: usize| {
            let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
            attributes.into_iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
        };
        if !(0..lines.len()).any(|at| starts(lines[at]) && is_test(at)) {
            return Some("no such test");
        }
        let row = self.row.as_ref().is_none_or(|row| source.contains(&format!("\"{row}\"")));
        (!row).then_some("no such row")
    }
}

fn at_top(path: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)).ok()
}

fn page() -> String {
    at_top("tests/conformance/README.md").unwrap()
}

fn cases() -> String {
    at_top("tests/conformance/cases.txt").unwrap()
}

#[test]
fn the_page_is_complete_and_true() {
    assert_eq!(cases().lines().count(), 186);
    assert_eq!(findings(&page(), &cases(), at_top), Vec::<String>::new());
}

/// Each change that makes the page untrue is found.
#[test]
fn what_is_not_true_is_found() {
    let (page, cases) = (page(), cases());
    let row =
        |name: &str| page.lines().find(|line| line.starts_with(&format!("| `{name}`"))).unwrap().to_owned() + "\n";
    let denied = row("CiliumIntegrationTest.DeniedPath");
    let tls = row("CiliumNetworkPolicyTest.TlsContextsAreDeduplicatedWithinStream");
    let changes = [
        ("a row is gone", page.replacen(&denied, "", 1), "DeniedPath\"): is not listed"),
        ("a row is there twice", page.replacen(&denied, &denied.repeat(2), 1), "more than once"),
        ("a case is misspelt", page.replacen("`HostMapTest.HostMapValid`", "`HostMapTest.HostMap`", 1), "no such case"),
        ("no reason", page.replacen(&tls, &format!("{}: |\n", tls.split_once(':').unwrap().0), 1), "neither"),
        ("no test", page.replacen(&denied, "| `CiliumIntegrationTest.DeniedPath` | covered by hand |\n", 1), "what?"),
        ("a test that is none", page.replacen("http.rs::ingress`", "http.rs::world`", 1), "no such test"),
        ("another row", page.replacen("(row `CiliumIntegrationTest.DeniedPath`", "(row `X.Y`", 1), "no such row"),
        ("a wrong count", page.replacen(" are covered", "0 are covered", 1), "does not say"),
    ];
    for (what, changed, expected) in changes {
        assert_ne!(changed, page, "{what}");
        let found = findings(&changed, &cases, at_top);
        assert!(found.iter().any(|finding| finding.contains(expected)), "{what}: {found:?}");
    }
    // And each change of the sources.
    let file = "proxy/policy/tests/policy/conformance/http.rs";
    let sources = [
        ("gone", None, "no such file"),
        ("a test is renamed", at_top(file).map(|text| text.replace("fn ingress()", "fn inbound()")), "no such test"),
        (
            "a test no longer runs",
            at_top(file).map(|text| text.replace("#[test]\nfn ingress()", "fn ingress()")),
            "no such test",
        ),
        ("a row is gone", at_top(file).map(|text| text.replace("IntegrationTest.DeniedPath\"", "\"")), "no such row"),
        (
            "a case that nobody listed",
            at_top(file).map(|text| text + "\"HostMapTest.HostMapValid\""),
            "HostMapValid that is not listed",
        ),
    ];
    for (what, source, expected) in sources {
        let read = |path: &str| if path == file { source.clone() } else { at_top(path) };
        let found = findings(&page, &cases, read);
        assert!(found.iter().any(|finding| finding.contains(expected)), "{what}: {found:?}");
    }
}
