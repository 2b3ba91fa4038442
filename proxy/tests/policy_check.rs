//! `tollgate policy check` as users run it: the binary, real files, and every example of the documentation.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use tollgate_policy::lint::Lint;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Rules that need more than an example file.
const WITHOUT_EXAMPLE: [&str; 4] = ["not-compared", "refused-by-proxy", "selects-nobody", "unreadable-file"];

fn check(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(["policy", "check"]).args(arguments).current_dir(ROOT).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(arguments: &[&str]) -> (Option<i32>, Value) {
    let output = check(&[&["-o", "json"], arguments].concat());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

fn rules(report: &Value) -> BTreeSet<String> {
    report["findings"].as_array().unwrap().iter().map(|f| f["rule"].as_str().unwrap().to_owned()).collect()
}

fn write(directory: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A rule of the documentation.
struct Documented {
    id: String,
    severity: String,
    bad: String,
    good: String,
}

fn documented() -> Vec<Documented> {
    let page = std::fs::read_to_string(format!("{ROOT}/docs/policy-check.md")).unwrap();
    let sections = page.split("\n### ").skip(1);
    let example = |section: &str, heading: &str| {
        let from = section.split_once(&format!("```yaml\n# {heading}\n")).expect("has the example").1;
        whole(from.split_once("```").expect("the example ends").0)
    };
    sections
        .map(|section| {
            let (id, rest) = section.split_once('\n').unwrap();
            let severity = rest.trim_start().split_once(". ").unwrap().0;
            let (bad, good) = (example(section, "finding"), example(section, "none"));
            Documented { id: id.to_owned(), severity: severity.to_owned(), bad, good }
        })
        .collect()
}

/// The file that an example stands for.
fn whole(example: &str) -> String {
    const POLICY: &str = "endpoint_id: 1\nendpoint_ips: [10.0.0.1]\ningress_per_port_policies:\n  - port: 80\n";
    let indented = |prefix: &str| example.lines().map(|line| format!("{prefix}{line}\n")).collect::<String>();
    if example.starts_with("headers:") {
        format!(
            "{POLICY}    rules:\n      - http_rules:\n          http_rules:\n            -\n{}",
            indented("              ")
        )
    } else if example.starts_with("rules:") {
        format!("{POLICY}{}", indented("    "))
    } else {
        example.to_owned()
    }
}

#[test]
fn each_rule_is_documented_with_an_example_that_gives_it_and_one_that_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let documented = documented();
    for rule in &documented {
        let bad = write(&directory, &format!("{}-bad.yaml", rule.id), &rule.bad);
        let (_, report) = json(&[text(&bad)]);
        let found = report["findings"].as_array().unwrap().iter().find(|finding| finding["rule"] == *rule.id);
        let found = found.unwrap_or_else(|| panic!("{}: {report:#}", rule.id));
        assert_eq!(found["severity"], *rule.severity, "{}", rule.id);
        assert!(found["line"].as_u64().is_some_and(|line| line <= rule.bad.lines().count() as u64), "{found:#}");
        for member in ["what", "why", "instead"] {
            assert!(found[member].as_str().is_some_and(|text| !text.is_empty()), "{found:#}");
        }
        let good = write(&directory, &format!("{}-good.yaml", rule.id), &rule.good);
        let (_, report) = json(&[text(&good)]);
        assert!(!rules(&report).contains(&rule.id), "{}: {report:#}", rule.id);
        // The better example has nothing worse wrong with it.
        assert_eq!(
            (&report["summary"]["errors"], &report["summary"]["warnings"]),
            (&0.into(), &0.into()),
            "{report:#}"
        );
    }
    let known: BTreeSet<&str> = Lint::ALL.iter().map(|lint| lint.id()).collect();
    let pages: BTreeSet<&str> = documented.iter().map(|rule| &*rule.id).chain(WITHOUT_EXAMPLE).collect();
    assert_eq!(known.difference(&pages).collect::<Vec<_>>(), Vec::<&&str>::new());
}

#[test]
fn tenants_of_several_files_are_judged_together() {
    let directory = tempfile::tempdir().unwrap();
    let one = write(&directory, "one.yaml", "name: team-a\nmembers:\n  endpoint_ids: [1, 2]\n");
    let two = write(&directory, "two.yaml", "name: team-b\nmembers: { endpointIds: [2] }\n");
    let three = write(&directory, "three.yaml", "weight: 2\nname: team-a\nmembers: { addresses: [10.0.0.1] }\n");
    let (code, report) = json(&[text(&one)]);
    assert_eq!((code, &report["summary"]["tenants"]), (Some(0), &1.into()), "a tenant is something to look at");
    let (code, report) = json(&[text(&one), text(&two), text(&three)]);
    assert_eq!(code, Some(1), "{report:#}");
    let findings = report["findings"].as_array().unwrap();
    let place = |at: &Value| (Path::new(at["file"].as_str().unwrap()).to_owned(), at["line"].as_u64().unwrap());
    let found: Vec<_> =
        findings.iter().map(|f| (f["what"].as_str().unwrap(), place(f), place(&f["because_of"]))).collect();
    assert_eq!(
        found,
        [
            ("another tenant is called \"team-a\", too", (three, 2), (one.clone(), 1)),
            ("endpoint 2 is a member of tenant \"team-a\", too", (two.clone(), 2), (one.clone(), 2)),
        ]
    );
    assert!(findings.iter().all(|finding| finding["rule"] == "contested-tenant"));
    assert_eq!(json(&["--apart", text(&one), text(&two)]).0, Some(0), "each on its own");
    assert_eq!(findings[1]["instead"], "name it in one of them");
    let misspelt = write(&directory, "misspelt.yaml", "name: team-c\nmember: { endpoint_ids: [3] }\n");
    let (code, report) = json(&[text(&misspelt)]);
    assert_eq!(code, Some(2));
    let said = report["findings"][0].to_string();
    assert!(said.contains("members") && !said.contains("NetworkPolicy"), "{said}");
}

#[test]
fn what_is_wrong_with_a_part_of_a_tenant_is_said_to_be_that() {
    let directory = tempfile::tempdir().unwrap();
    let part = write(&directory, "part.yaml", "name: team-a\nmembers: { endpoint_ids: [1] }\nweight: 1001\n");
    let (code, report) = json(&[text(&part)]);
    assert_eq!((code, &report["summary"]["tenants"]), (Some(1), &1.into()), "{report:#}");
    let finding = &report["findings"][0];
    assert_eq!((&finding["rule"], &finding["line"]), (&"tenant-in-part".into(), &3.into()), "{finding:#}");
    assert_eq!(finding["why"], "this has no effect; all else of the tenant is in force");
    assert_eq!(finding["instead"], "write a value in its range");
    let whole = write(&directory, "whole.yaml", "name: _x\nmembers: { endpoint_ids: [1] }\n");
    let (code, report) = json(&[text(&whole)]);
    assert_eq!((code, &report["findings"][0]["rule"]), (Some(2), &"unusable-tenant".into()), "{report:#}");
}

#[test]
fn tenants_are_judged_beside_those_of_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let config = "\
limits: { memory: 1000MiB }
max_connections: 100
fairness: off
tenants:
  groups:
  - { name: of-config, members: { endpoint_ids: [1] }, guarantee: { connections: 60, memory: 100MiB } }
";
    let config = write(&directory, "tollgate.conf", config);
    let tenants = "\
name: of-config
members: { endpoint_ids: [5] }
---
name: team
members: { endpoint_ids: [1, 2] }
guarantee: { connections: 41, memory_bytes: 300000000, in_flight: 7 }
ceilings: { cpu_millis: 100 }
";
    let tenants = write(&directory, "tenants.yaml", tenants);
    assert_eq!(json(&[text(&tenants)]).0, Some(0), "nobody says what there is");
    let (code, report) = json(&["--config", text(&config), text(&tenants)]);
    assert_eq!(code, Some(1), "{report:#}");
    let findings = report["findings"].as_array().unwrap();
    let mut found: Vec<_> = findings
        .iter()
        .map(|f| (f["line"].as_u64().unwrap(), f["rule"].as_str().unwrap(), f["what"].as_str().unwrap()))
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            (1, "unusable-tenant", "the configuration has a tenant \"of-config\", which keeps its name"),
            (4, "tenant-in-part", "ceilings.cpu: with fairness: off no processor time is measured"),
            (
                5,
                "contested-tenant",
                "endpoint 1 is a member of tenant \"of-config\" in the configuration, which keeps it"
            ),
            (6, "tenant-in-part", "101 with what other tenants are guaranteed, and max_connections is 100"),
            (
                6,
                "tenant-in-part",
                "404857600 bytes with what other tenants are guaranteed, and of the 1048576000 bytes that the process may have \
                 (limits.memory) 367001600 can be guaranteed, half of what tenants get of them"
            ),
        ]
    );
    // What there is does not depend on where the check runs.
    let config = write(&directory, "unlimited.conf", "node: { id: 7 }\n");
    assert_eq!(json(&["--config", text(&config), text(&tenants)]).0, Some(0));
}

#[test]
fn the_shipped_policies_have_no_errors_and_no_warnings() {
    let files = ["helloworld.json", "orders.yaml"].map(|name| format!("deploy/examples/policies/{name}"));
    for file in files.iter().map(String::as_str).chain(["deploy/examples/quickstart/policies/readme-only.yaml"]) {
        let (code, report) = json(&[file]);
        assert_eq!(code, Some(0), "{report:#}");
        assert_eq!(
            (&report["summary"]["errors"], &report["summary"]["warnings"]),
            (&0.into(), &0.into()),
            "{report:#}"
        );
        assert_eq!(json(&["--fail-on", "note", file]).0, Some(1), "{file}");
    }
}

#[test]
fn a_finding_names_file_line_and_element_in_json_and_yaml() {
    let directory = tempfile::tempdir().unwrap();
    let yaml = write(
        &directory,
        "a.yaml",
        "# one\nendpoint_id: 1\nendpoint_ips: [10.0.0.1]\n---\nendpoint_id: 2\nendpoint_ips: [10.0.0.2]\n\
         ingress_per_port_policies:\n- port: 80\n  rules:\n  - name: all\n  - remote_policies: [7]\n",
    );
    let json_file = write(
        &directory,
        "b.json",
        "[{\"endpointId\": \"3\",\n\"name\": \"10.0.0.3\",\n\"ingressPerPortPolicies\": [{\"port\": 80,\n\"rules\": [\n\
         {\"name\": \"all\"},\n{\"remotePolicies\": [7]}]}]}]",
    );
    let (code, report) = json(&[text(&json_file), text(&yaml), "--fail-on", "note"]);
    assert_eq!(code, Some(1));
    let places: Vec<_> =
        report["findings"].as_array().unwrap().iter().map(|f| (&f["file"], &f["line"], &f["rule"])).collect();
    let (yaml_name, json_name) = (text(&yaml).into(), text(&json_file).into());
    assert_eq!(
        places,
        [(&yaml_name, &11.into(), &"redundant-rule".into()), (&json_name, &6.into(), &"redundant-rule".into())]
    );
    let first = &report["findings"][0];
    assert_eq!(first["element"], "ingress_per_port_policies[0].rules[1]");
    assert_eq!((&first["because_of"]["line"], &first["because_of"]["file"]), (&10.into(), &yaml_name));
    let output = stdout(&check(&[text(&yaml)]));
    assert!(output.starts_with(&format!("{}:11: note[redundant-rule]: ", text(&yaml))), "{output}");
    assert!(output.ends_with("1 file with 2 policies: 0 errors, 0 warnings, 1 note\n"), "{output}");
}

#[test]
fn one_bad_file_or_resource_hides_nothing_in_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let broken = write(&directory, "broken.json", "{");
    let typo = write(
        &directory,
        "typo.yaml",
        "endpoint_id: 1\nendpoint_ip: [10.0.0.1]\n---\nendpoint_id: 2\nendpoint_ips: [a, a]\n",
    );
    let (code, report) = json(&["/nonexistent.yaml", text(&broken), text(&typo)]);
    assert_eq!(code, Some(2));
    let expected = ["duplicate-endpoint", "invalid-syntax", "unknown-field", "unreadable-file"].map(str::to_owned);
    assert_eq!(rules(&report), BTreeSet::from(expected), "{report:#}");
}

#[test]
fn files_are_judged_together_unless_told_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let policy = "endpoint_id: 1\nendpoint_ips: [10.0.0.1]\n";
    let (a, b) = (write(&directory, "a.yaml", policy), write(&directory, "b.yaml", policy));
    let (code, report) = json(&[text(&a), text(&b)]);
    assert_eq!((code, rules(&report).len()), (Some(1), 2), "{report:#}");
    assert_eq!(report["findings"][0]["because_of"]["file"], text(&a));
    let junit = stdout(&check(&["-o", "junit", text(&a), text(&b)]));
    assert!(junit.contains(&format!("&#10;because of: {}:1", text(&a))), "{junit}");
    let (code, report) = json(&["--apart", text(&a), text(&b)]);
    assert_eq!((code, rules(&report).len()), (Some(0), 0), "{report:#}");
}

#[test]
fn protobuf_is_read_alone_and_in_a_response() {
    use prost::Message as _;
    use tollgate_proto::envoy::service::discovery::v3::DiscoveryResponse;
    use tollgate_proto::google::protobuf::Any;
    let json_text = std::fs::read_to_string(format!("{ROOT}/deploy/examples/policies/helloworld.json")).unwrap();
    let bytes = tollgate_proto::json::network_policy_from_json(&json_text).unwrap().encode_to_vec();
    let any = Any { type_url: tollgate_proto::type_url::NETWORK_POLICY.to_owned(), value: bytes.clone() };
    let response =
        DiscoveryResponse { resources: vec![any], version_info: "1".to_owned(), ..DiscoveryResponse::default() };
    let directory = tempfile::tempdir().unwrap();
    let alone = write(&directory, "policy.pb", &bytes);
    let whole = write(&directory, "response.pb", response.encode_to_vec());
    for file in [&alone, &whole] {
        let (code, report) = json(&[text(file)]);
        assert_eq!((code, &report["summary"]["policies"]), (Some(0), &1.into()), "{report:#}");
        assert!(rules(&report).contains("path-without-query"), "{report:#}");
        assert_eq!(report["findings"][0]["line"], Value::Null);
    }
    // Field 99 of a rule could be a condition.
    let rule = [0x1a, 3, 0x98, 0x06, 0x01];
    let policy = [&[0x0a, 1, b'a', 0x10, 1, 0x1a, 5][..], &rule].concat();
    let (code, report) = json(&[text(&write(&directory, "future.pb", policy))]);
    assert_eq!((code, rules(&report)), (Some(1), BTreeSet::from(["not-enforced".to_owned()])), "{report:#}");
    let (code, report) = json(&[text(&write(&directory, "noise.pb", [0xff, 0, 1]))]);
    assert_eq!((code, rules(&report)), (Some(2), BTreeSet::from(["invalid-syntax".to_owned()])), "{report:#}");
}

const CILIUM_POLICY: &str = r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: { name: api, namespace: shop }
spec:
  endpointSelector: { matchLabels: { app: api } }
  ingress:
    - fromEndpoints:
        - matchLabels: { app: web }
      toPorts:
        - ports: [{ port: "80" }]
          rules:
            http:
              - method: "GET|HEAD"
                path: "/api/*"
              - path: "/public/.*"
"#;

#[test]
fn a_cilium_network_policy_is_looked_at_too() {
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory, "a.yaml", format!("kind: Service\napiVersion: v1\n---\n{CILIUM_POLICY}"));
    let (code, report) = json(&[text(&file)]);
    assert_eq!((code, &report["summary"]["policies"]), (Some(1), &1.into()), "{report:#}");
    let [service, glob] = &report["findings"].as_array().unwrap()[..] else { panic!("{report:#}") };
    assert_eq!((&service["rule"], &service["line"]), (&"not-a-policy".into(), &1.into()));
    assert_eq!((&glob["rule"], &glob["line"]), (&"glob-in-regex".into(), &17.into()));
    assert_eq!(glob["element"], "spec.ingress[0].toPorts[0].rules.http[0].path");

    // As kubectl prints several.
    let items = CILIUM_POLICY.replace('\n', "\n    ");
    let list = write(&directory, "list.yaml", format!("apiVersion: v1\nkind: List\nitems:\n  - {}", items.trim_end()));
    let (_, report) = json(&[text(&list)]);
    assert_eq!(report["findings"][0]["element"], "items[0].spec.ingress[0].toPorts[0].rules.http[0].path");
    assert_eq!(report["findings"][0]["line"], 17);
}

#[test]
fn policies_for_one_endpoint_are_looked_at_together_when_labels_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let open_text = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: { name: open, namespace: shop }\nspec:\n  \
                endpointSelector: {}\n  ingress: [{ fromEntities: [all] }]\n";
    let http = write(&directory, "http.yaml", CILIUM_POLICY.replace("/api/*", "/api/.*"));
    let open = write(&directory, "open.yaml", open_text);
    let who = write(
        &directory,
        "who.yaml",
        "identities: [{ identity: 7, labels: { app: web, io.kubernetes.pod.namespace: shop } }]\nendpoints: [{ \
         endpoint_id: 1, addresses: [10.0.0.1], labels: { app: api, io.kubernetes.pod.namespace: shop } }]\n",
    );
    assert_eq!(json(&[text(&http), text(&open)]).0, Some(0));
    let with_labels = ["--identities", text(&who), text(&http), text(&open)];
    // It is so today, for these.
    let (code, report) = json(&with_labels);
    assert_eq!(code, Some(0), "{report:#}");
    let [finding] = &report["findings"].as_array().unwrap()[..] else { panic!("{report:#}") };
    assert_eq!((&finding["rule"], &finding["line"]), (&"covered-as-given".into(), &10.into()));
    assert!(finding["what"].as_str().unwrap().starts_with("with the identities and endpoints given, "), "{report:#}");
    assert_eq!((&finding["because_of"]["file"], &finding["because_of"]["line"]), (&text(&open).into(), &6.into()));
    // And not for another endpoint, where the open one is not in force.
    let elsewhere = open_text.replace("endpointSelector: {}", "endpointSelector: { matchLabels: { tier: front } }");
    std::fs::write(&open, elsewhere).unwrap();
    let labels = "io.kubernetes.pod.namespace: shop";
    std::fs::write(
        &who,
        format!(
            "identities: [{{ identity: 7, labels: {{ app: web, {labels} }} }}]\nendpoints:\n- {{ endpoint_id: 1, addresses: \
             [10.0.0.1], labels: {{ app: api, tier: front, {labels} }} }}\n- {{ endpoint_id: 2, addresses: [10.0.0.2], labels: {{ \
             app: api, {labels} }} }}\n"
        ),
    )
    .unwrap();
    assert_eq!(rules(&json(&with_labels).1), BTreeSet::new());

    std::fs::write(&who, "identities: []\nendpoints: []\n").unwrap();
    assert_eq!(rules(&json(&with_labels).1), BTreeSet::from(["selects-nobody".to_owned()]));
    std::fs::write(&who, "identity: []\n").unwrap();
    let output = check(&with_labels);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with(&format!("tollgate: error: {}:1: ", text(&who))));
}

/// A selector that selects no more than another one with the pods of today may select more tomorrow.
#[test]
fn a_selector_covers_another_by_chance() {
    let directory = tempfile::tempdir().unwrap();
    let rule = |verdict: &str, app: &str| {
        format!(
            "  {verdict}: [{{ fromEndpoints: [{{ matchLabels: {{ app: {app} }} }}], toPorts: [{{ ports: [{{ port: \"80\" }}] }}] }}]\n"
        )
    };
    let text_of = |rules: String| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{ name: a }}\nspec:\n  endpointSelector: {{}}\n{rules}"
        )
    };
    let by_chance = write(&directory, "a.yaml", text_of(rule("ingressDeny", "blue") + &rule("ingress", "web")));
    let always = write(&directory, "b.yaml", text_of(rule("ingressDeny", "web") + &rule("ingress", "web")));
    let who = write(
        &directory,
        "who.yaml",
        "identities: [{ identity: 7, labels: [app=web] }]\nendpoints: [{ endpoint_id: 1, addresses: [10.0.0.1], labels: {} }]\n",
    );
    // Somebody is both.
    let both = write(
        &directory,
        "both.yaml",
        std::fs::read_to_string(&who).unwrap().replace("[app=web]", "[app=web, color=x]"),
    );
    let blue = std::fs::read_to_string(&by_chance).unwrap().replace("app: blue", "color: x");
    std::fs::write(&by_chance, blue).unwrap();
    let run = |who: Option<&Path>, file: &Path| {
        let who: Vec<&str> = who.iter().flat_map(|who| ["--identities", text(who)]).collect();
        let (code, report) = json(&[&who[..], &[text(file)]].concat());
        (code, rules(&report).into_iter().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(run(None, &by_chance), (Some(0), String::new()));
    assert_eq!(run(Some(&both), &by_chance), (Some(0), "covered-as-given".to_owned()));
    for who in [None, Some(&*who), Some(&*both)] {
        assert_eq!(run(who, &always), (Some(1), "shadowed-rule".to_owned()), "{who:?}");
    }
}

/// A deny for every protocol does more than one for TCP, which is all that the proxy carries.
#[test]
fn a_deny_for_all_protocols_does_not_go_for_one_for_tcp() {
    let directory = tempfile::tempdir().unwrap();
    let deny = |protocol: &str| {
        let ports = format!("[{{ port: \"53\"{protocol} }}]");
        format!("  - {{ fromEndpoints: [{{ matchLabels: {{ app: web }} }}], toPorts: [{{ ports: {ports} }}] }}\n")
    };
    let text_of = |rules: String| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{ name: a }}\nspec:\n  endpointSelector: {{}}\n  ingressDeny:\n{rules}"
        )
    };
    let (tcp, any) = (deny(", protocol: TCP"), deny(""));
    let at = |rules: String| {
        let report = json(&[text(&write(&directory, "a.yaml", text_of(rules)))]).1;
        report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["element"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let element = |rule: usize| format!("spec.ingressDeny[{rule}].toPorts[0]");
    assert_eq!(at(format!("{tcp}{any}")), [element(0)]);
    assert_eq!(at(format!("{any}{tcp}")), [element(1)]);
    assert_eq!(at(format!("{any}{any}")), [element(1)]);
    let udp_too = tcp.replace("TCP }]", "TCP }, { port: \"53\", protocol: UDP }]");
    assert_eq!(at(format!("{tcp}{udp_too}")).len(), 1, "the note about UDP alone");
}

/// A finding about a rule for several ports is one about all of them.
#[test]
fn what_goes_on_one_port_is_needed_on_another() {
    let directory = tempfile::tempdir().unwrap();
    let text_of = |ports: &str| {
        CILIUM_POLICY.replace("\"/api/*\"", "/api/.*")
            + &format!(
                "  ingressDeny: [{{ fromEndpoints: [{{ matchLabels: {{ app: web }} }}], toPorts: [{{ ports: {ports} }}] }}]\n"
            )
    };
    let two = |policy: String| policy.replacen("[{ port: \"80\" }]", "[{ port: \"80\" }, { port: \"81\" }]", 1);
    let one = write(&directory, "a.yaml", two(text_of("[{ port: \"80\" }]")));
    assert_eq!(rules(&json(&[text(&one)]).1), BTreeSet::new());
    let both = write(&directory, "b.yaml", two(text_of("[{ port: \"80\", endPort: 81 }]")));
    let (_, report) = json(&[text(&both)]);
    assert_eq!(rules(&report), BTreeSet::from(["shadowed-rule".to_owned()]), "{report:#}");
    // On a port without HTTP rules any bytes pass, from others.
    assert!(report["findings"][0]["instead"].as_str().unwrap().starts_with("keep it"), "{report:#}");
}

#[test]
fn secrets_that_will_be_there_are_not_missing() {
    let directory = tempfile::tempdir().unwrap();
    let rule = documented().into_iter().find(|rule| rule.id == "missing-secret").unwrap();
    let file = write(&directory, "a.yaml", rule.bad);
    assert!(!rules(&json(&["--secret", "shop/token", text(&file)]).1).contains("missing-secret"));
    assert!(rules(&json(&["--secret", "other", text(&file)]).1).contains("missing-secret"));
    let config =
        write(&directory, "tollgate.yml", "secrets: [{ name: shop/token, file: /nonexistent/on/this/machine }]\n");
    assert!(!rules(&json(&["--config", text(&config), text(&file)]).1).contains("missing-secret"));
    let other = write(&directory, "other.yml", "secrets: [{ name: other, file: run/other }]\n");
    assert!(rules(&json(&["--config", text(&other), text(&file)]).1).contains("missing-secret"));
    let wrong = write(&directory, "wrong.yml", "secrets: [{ file: run/other }]\n");
    let output = check(&["--config", text(&wrong), text(&file)]);
    assert_eq!(output.status.code(), Some(2));
    let expected = format!("tollgate: error: {}:1:11: secrets[0]: no name; ", text(&wrong));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with(&expected), "{output:?}");
}

#[test]
fn a_directory_stands_for_its_policy_files() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let typo = write(&directory, "typo.txt", "endpoint_id: 1\nendpoint_ip: []\n");
    let (code, report) = json(&[text(&empty), text(&typo)]);
    assert_eq!(code, Some(2));
    // The one does not hide the other.
    let expected = ["unreadable-file", "unknown-field", "unusable-policy"].map(str::to_owned);
    assert!(rules(&report).is_subset(&BTreeSet::from(expected)) && rules(&report).len() > 1, "{report:#}");
    assert_eq!(report["findings"][0]["file"], text(&empty));
    assert!(report["findings"][0]["what"].as_str().unwrap().contains("holds no policy file"), "{report:#}");
    let junit = stdout(&check(&["-o", "junit", text(&empty), text(&typo)]));
    assert!(junit.contains("holds no policy file") && junit.contains("unknown-field"), "{junit}");
    write(&directory, "a.yaml", "endpoint_id: 1\nendpoint_ips: [10.0.0.1]\n");
    write(&directory, "b.yaml", "endpoint_id: 2\nendpoint_ips: [10.0.0.1]\n");
    write(&directory, "c.txt", "nothing");
    let (code, report) = json(&[text(directory.path())]);
    assert_eq!((code, &report["summary"]["files"]), (Some(1), &2.into()), "{report}");
    assert_eq!(report["findings"][0]["rule"], "duplicate-endpoint");
    assert_eq!(report["findings"][0]["because_of"]["file"], format!("{}/a.yaml", directory.path().display()));
}

#[test]
fn every_mistake_in_a_resource_is_a_finding() {
    let directory = tempfile::tempdir().unwrap();
    let file = write(
        &directory,
        "a.yaml",
        "endpoint_id: many\nendpoint_ip: [10.0.0.1]\ningress_per_port_policies:\n- port: 80\n  prot: 1\n- port: http\n",
    );
    let (code, report) = json(&[text(&file)]);
    assert_eq!(code, Some(2));
    let found = |f: &Value| (f["line"].as_u64().unwrap(), f["rule"].as_str().unwrap().to_owned());
    let found: Vec<_> = report["findings"].as_array().unwrap().iter().map(found).collect();
    let expected = [(1, "invalid-value"), (2, "unknown-field"), (5, "unknown-field"), (6, "invalid-value")];
    assert_eq!(found, expected.map(|(line, rule)| (line, rule.to_owned())), "{report}");
    let instead: Vec<_> =
        report["findings"].as_array().unwrap().iter().map(|f| f["instead"].as_str().unwrap()).collect();
    assert_eq!(instead[1], "did you mean `endpoint_ips`?");
    let big = directory.path().join("big.json");
    std::fs::File::create(&big).unwrap().set_len(3 << 30).unwrap();
    let (code, report) = json(&[text(&big)]);
    assert_eq!((code, &report["findings"][0]["rule"]), (Some(2), &"unreadable-file".into()));
    assert!(report["findings"][0]["what"].as_str().unwrap().starts_with("is larger than 64 MiB"), "{report}");
}

#[test]
fn without_a_policy_nothing_can_be_told() {
    let directory = tempfile::tempdir().unwrap();
    let empty = write(&directory, "empty.yaml", "[]\n");
    assert_eq!(json(&[text(&empty)]).0, Some(3));
    let other = write(&directory, "map.yaml", "apiVersion: v1\nkind: ConfigMap\n");
    let (code, report) = json(&[text(&other)]);
    assert_eq!((code, rules(&report)), (Some(3), BTreeSet::from(["not-a-policy".to_owned()])));
}

#[test]
fn a_mistake_hides_nothing_else_in_the_same_resource() {
    let directory = tempfile::tempdir().unwrap();
    let text_of = |matcher: &str| {
        format!(
            "endpoint_id: 1\nendpoint_ips: [10.0.0.1]\ningress_per_port_policies:\n- port: 80\n  rules:\n  - \
             http_rules:\n      http_rules:\n      - headers:\n        - {{ name: ':path', string_match: {matcher} }}\n        \
             - {{ name: ':authority', string_match: {{ safe_regex: {{ regex: '*.shop' }} }} }}\n"
        )
    };
    let file = write(&directory, "a.yaml", text_of("{ prefx: /a }"));
    let (code, report) = json(&[text(&file)]);
    let found: Vec<_> =
        report["findings"].as_array().unwrap().iter().map(|f| (f["line"].as_u64(), f["rule"].as_str())).collect();
    // And nothing about the matcher that is empty without the misspelt field.
    assert_eq!((code, found), (Some(2), vec![(Some(9), Some("unknown-field")), (Some(10), Some("invalid-regex"))]));
    let file = write(&directory, "b.yaml", text_of("{ prefix: /a }").replace("[10.0.0.1]", "[]"));
    let found = rules(&json(&[text(&file)]).1);
    assert_eq!(found, BTreeSet::from(["invalid-regex", "unusable-policy"].map(str::to_owned)));
}

#[test]
fn findings_of_a_cilium_network_policy_are_in_its_words() {
    let directory = tempfile::tempdir().unwrap();
    let policy = CILIUM_POLICY
        .replace("cilium.io/v2", "cilium.io/v1")
        .replace("port: \"80\"", "port: \"99999\", protocol: TPC")
        .replace("path: \"/api/*\"", "headers: [\"X-V: v1.*\"]");
    let denied = "  ingressDeny:\n    - fromEndpoints:\n        - matchLabels: { app: web }\n        - matchExpressions: [{ key: \
                  app, operator: Inn }]\n";
    let file = write(&directory, "a.yaml", format!("{policy}{denied}"));
    let (code, report) = json(&[text(&file)]);
    assert_eq!(code, Some(2), "{report:#}");
    let expected = ["invalid-value", "invalid-port", "pattern-in-text"].map(str::to_owned);
    assert_eq!(rules(&report), BTreeSet::from(expected), "{report:#}");
    let file = write(
        &directory,
        "b.yaml",
        format!("{}{}", CILIUM_POLICY.replace("/api/*", "/api/.*"), denied.replace("Inn", "Exists")),
    );
    let (_, report) = json(&[text(&file)]);
    assert!(rules(&report).contains("shadowed-rule"), "{report:#}");
    for word in ["per_port_policies", "precedence", "safe_regex", "end_port", "present_match", "http_rules"] {
        for file in ["a.yaml", "b.yaml"] {
            let report = json(&[text(&directory.path().join(file))]).1;
            assert!(!report.to_string().contains(word), "{word}: {report:#}");
        }
    }
}

#[test]
fn what_the_proxy_refuses_in_its_directory_is_refused_here() {
    let directory = tempfile::tempdir().unwrap();
    let policies = directory.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    let config = write(&directory, "tollgate.yml", format!("policies: {{ directory: {:?} }}\n", text(&policies)));
    let here = write(&directory, "a.yaml", CILIUM_POLICY);
    std::fs::write(policies.join("a.yaml"), CILIUM_POLICY).unwrap();
    std::fs::write(policies.join("b.yaml"), "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n").unwrap();
    let refused = |arguments: &[&str]| {
        let (code, report) = json(arguments);
        let findings = report["findings"].as_array().unwrap();
        (code, findings.iter().filter(|finding| finding["rule"] == "refused-by-proxy").count())
    };
    assert_eq!(refused(&["--config", text(&config), text(&policies)]), (Some(2), 2));
    // Before an agent has it, it is looked at as what it is.
    assert_eq!(refused(&[text(&policies)]), (Some(1), 0));
    assert_eq!(refused(&["--config", text(&config), text(&here)]), (Some(1), 0));
    // A short policy is UTF-8 by chance, this one with another byte is not.
    for (name, bytes) in [("c.yaml", [&[0x0a, 1, b'a', 0x10, 1][..], &[]].concat()), ("d.json", vec![0x0a, 1, 0xff])] {
        let file = write(&directory, name, bytes);
        let (code, report) = json(&[text(&file)]);
        let what = report["findings"][0]["what"].as_str().unwrap();
        let extension = name.split_once('.').unwrap().1;
        assert!(code == Some(2) && what.contains(&format!(".{extension}")), "{report:#}");
    }
}

#[test]
fn files_are_read_once_and_only_files() {
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory, "a.yaml", "endpoint_id: 1\nendpoint_ips: [10.0.0.1]\n");
    let root = text(directory.path());
    let (code, report) = json(&[text(&file), root, &format!("{root}/./a.yaml")]);
    assert_eq!((code, &report["summary"]["policies"]), (Some(0), &1.into()), "{report:#}");
    let pipe = directory.path().join("pipe.yaml");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (path, name) in [(text(&pipe), "pipe.yaml"), ("/dev/zero", "/dev/zero")] {
        let (code, report) = json(&[path]);
        assert_eq!((code, rules(&report)), (Some(2), BTreeSet::from(["unreadable-file".to_owned()])));
        assert!(report["findings"][0]["file"].as_str().unwrap().ends_with(name), "{report:#}");
        assert!(report["findings"][0]["what"].as_str().unwrap().starts_with("is no regular file"), "{report:#}");
    }
}

#[test]
fn paths_are_spelt_as_the_author_did_and_long_values_are_cut() {
    let directory = tempfile::tempdir().unwrap();
    let long = "a".repeat(1 << 20);
    let policy = format!(
        "endpointId: 1\nendpoint_ips: [10.0.0.1]\ningressPerPortPolicies:\n- port: http\n- rules:\n  - httpRules:\n      \
         http_rules: [{{ headers: [{{ name: ':path', stringMatch: {{ safeRegex: {{ regex: '({long}' }} }} }}] }}]\n"
    );
    let (_, report) = json(&[text(&write(&directory, "a.yaml", policy))]);
    let elements: Vec<_> =
        report["findings"].as_array().unwrap().iter().map(|f| f["element"].as_str().unwrap()).collect();
    let expected =
        ["ingressPerPortPolicies[0].port", "ingressPerPortPolicies[1].rules[0].httpRules.http_rules[0].headers[0]"];
    assert_eq!(elements, expected);
    assert!(report.to_string().len() < 5_000);
}
