use super::*;

const YAML: &str = "endpoint_id: 69\nendpoint_ips: [10.244.2.232]\ningress_per_port_policies: [{port: 5000}]\n";
const HOSTS: &str =
    "'@type': type.googleapis.com/cilium.NetworkPolicyHosts\npolicy: 32226\nhost_addresses: [10.244.1.17]\n";

/// As [`super::parse`], without the places.
fn parse(text: &str, file: &Path) -> Result<Vec<PolicyResource>, PolicyFileErrors> {
    Ok(super::parse(text, file)?.into_iter().map(|found| found.resource).collect())
}

fn error(text: &str, file: &str) -> String {
    parse(text, Path::new(file)).expect_err("is refused").to_string()
}

#[test]
fn yaml_and_json_give_the_same_policy() {
    let json = r#"{"endpointId": "69", "endpointIps": ["10.244.2.232"], "ingressPerPortPolicies": [{"port": 5000}]}"#;
    let from_yaml = parse(YAML, Path::new("a.yaml")).expect("reads");
    assert_eq!(from_yaml, parse(json, Path::new("a.json")).expect("reads"));
    let [PolicyResource::Policy(policy)] = &from_yaml[..] else {
        panic!("one policy, not {from_yaml:?}");
    };
    assert_eq!((policy.endpoint_id, policy.ingress_per_port_policies[0].port), (69, 5000));
}

#[test]
fn a_yaml_file_holds_several_resources_of_both_kinds() {
    let resources = parse(&format!("{YAML}---\n{HOSTS}"), Path::new("a.yml")).expect("reads");
    let [PolicyResource::Policy(_), PolicyResource::Hosts(hosts)] = &resources[..] else {
        panic!("a policy and hosts, not {resources:?}");
    };
    assert_eq!((hosts.policy, hosts.host_addresses.len()), (32226, 1));
}

#[test]
fn a_mistake_names_file_and_place() {
    assert!(error("endpoint_id: [", "a.yaml").starts_with("a.yaml:1: not valid YAML: "));
    assert!(
        error("endpoint_id: 1\nendpoint_id: 2\n", "a.yaml")
            .starts_with("a.yaml:2: not valid YAML: key \"endpoint_id\" appears twice")
    );
    assert!(error(&format!("{YAML}---\nprot: 1\n"), "a.yaml").starts_with("a.yaml:5: document 2: prot: "));
    assert!(error("{", "a.json").starts_with("a.json:1: not usable as JSON: "));
    assert!(error("{\"@type\": \"type.googleapis.com/cilium.Foo\"}", "a.json").starts_with("a.json:1: @type: "));
    let missing = read(Path::new("/nonexistent.yaml")).expect_err("is not there").to_string();
    assert!(missing.starts_with("/nonexistent.yaml: cannot read: "), "{missing}");
}

#[test]
fn a_resource_knows_its_line() {
    let lines = |text: &str, file: &str| -> Vec<Option<u64>> {
        super::parse(text, Path::new(file)).unwrap().iter().map(|found| found.place.line).collect()
    };
    assert_eq!(lines(&format!("# hosts\n{HOSTS}---\n- {{}}\n\n- {{}}\n"), "a.yaml"), [Some(2), Some(6), Some(8)]);
    assert_eq!(lines("[{},\n{}]", "a.json"), [Some(1), Some(2)]);
}

#[test]
fn a_list_of_mistakes_ends() {
    let text = "- {port: 1, prot: 2}\n".repeat(1000);
    let mistakes = parse(&text, Path::new("a.yaml")).unwrap_err().to_string();
    assert_eq!(mistakes.lines().count(), 51);
    assert_eq!(mistakes.lines().last(), Some("a.yaml: there are more mistakes than these 50; correct them first"));
}

#[test]
fn a_file_may_be_large_and_its_aliases_may_not() {
    // More than the library allows if it is not told.
    let documents = "policy: 7\n---\n".repeat(2_000);
    assert_eq!(parse(&documents, Path::new("a.yaml")).map(|found| found.len()), Ok(2_000));
    let peers = "1,".repeat(300_000);
    let text = format!("{YAML}egress_per_port_policies: [{{ port: 1, rules: [{{ remote_policies: [{peers}] }}] }}]\n");
    assert_eq!(parse(&text, Path::new("a.yaml")).map(|found| found.len()), Ok(1));

    let level = |n: usize| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(","));
    let bomb = format!("a0: &a0 [{}]\n{}", "1,".repeat(9), (1..9).map(level).collect::<String>());
    let found = error(&bomb, "a.yaml");
    assert!(found.ends_with("; write out what they stand for"), "{found}");
    let deep = error(&"- ".repeat(70), "a.yaml");
    assert!(deep.starts_with("a.yaml:1: not valid YAML: nested more than 64 levels deep; nest less"), "{deep}");
}

#[test]
fn only_visible_json_and_yaml_files_count() {
    for (name, expected) in [
        ("a.json", true),
        ("dir/a.yaml", true),
        ("a.yml", true),
        (".a.yaml", false),
        ("a.yaml~", false),
        ("a.txt", false),
        ("yaml", false),
    ] {
        assert_eq!(is_policy_file(Path::new(name)), expected, "{name}");
    }
}

#[test]
fn a_list_holds_several_resources_told_apart_by_their_fields() {
    let json = r#"[{"endpointId": 1, "endpointIps": ["10.0.0.1"]}, {"policy": 7, "hostAddresses": ["10.0.0.2"]}]"#;
    let yaml = "- { endpointId: 1, endpointIps: [10.0.0.1] }\n- { policy: 7, hostAddresses: [10.0.0.2] }\n";
    let resources = parse(json, Path::new("a.json")).expect("reads");
    assert_eq!(resources, parse(yaml, Path::new("a.yaml")).expect("reads"));
    let [PolicyResource::Policy(policy), PolicyResource::Hosts(hosts)] = &resources[..] else {
        panic!("a policy and hosts, not {resources:?}");
    };
    assert_eq!((policy.endpoint_id, hosts.policy), (1, 7));
    assert_eq!(parse("[]", Path::new("a.json")).expect("reads"), []);
}

#[test]
fn a_misspelt_tenant_is_a_tenant() {
    let found = error("name: a\nmember: { endpoint_ids: [1] }\n", "a.yaml");
    assert!(found.starts_with("a.yaml:2: member: tollgate.tenant.v1.Tenant has no such field; "), "{found}");
    assert!(found.contains("members"), "{found}");
    let found = error("name: a\nceiling: { requests: { per_second: 1 } }\n", "a.yaml");
    assert!(found.contains("tollgate.tenant.v1.Tenant") && found.contains("ceilings"), "{found}");
    let resources = parse("name: a\nweight: 2\n", Path::new("a.yaml")).expect("reads");
    assert!(matches!(&resources[..], [PolicyResource::Tenant(_)]), "what it lacks is said where it is used");
    // A policy with a stray word is a policy.
    let found = error("endpoint_id: 1\nendpoint_ips: [10.0.0.1]\nweight: 2\n", "a.yaml");
    assert!(found.contains("weight: cilium.NetworkPolicy has no such field"), "{found}");
}

#[test]
fn a_wrong_field_is_named_with_its_line() {
    let json = "[\n{\"endpointId\": 1},\n{\"endpointId\": 2, \"ingressPerPortPolicies\": [\n {\"port\": 1},\n {\"port\": 2,\n  \"prot\": 3}]}]";
    let found = error(json, "dir/a.json");
    assert!(found.starts_with("dir/a.json:6: [1]: ingressPerPortPolicies[1].prot: "), "{found}");
    let yaml = "endpointId: 1\ningressPerPortPolicies:\n- port: 1\n- port: many\n";
    let found = error(yaml, "a.yaml");
    assert!(found.starts_with("a.yaml:4: ingressPerPortPolicies[1].port: "), "{found}");
    let snake = "endpoint_id: 1\ningress_per_port_policies:\n- port: many\n";
    let found = error(snake, "a.yaml");
    assert!(found.starts_with("a.yaml:3: ingress_per_port_policies[0].port: "), "{found}");
    let found = error("42", "a.json");
    assert!(found.starts_with("a.json:1: "), "{found}");
}

#[test]
fn an_empty_file_is_a_mistake_and_an_empty_list_is_not() {
    assert!(error("# nothing yet\n", "a.yaml").starts_with("a.yaml: holds no resource"));
    assert!(error("", "a.json").starts_with("a.json:1: "));
    assert_eq!(parse("[]\n", Path::new("a.yaml")).expect("reads"), []);
}

#[test]
fn a_kubernetes_resource_is_called_what_it_is() {
    let yaml = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nspec: {}\n";
    let found = error(yaml, "a.yaml");
    assert!(
        found.starts_with("a.yaml:2: kind: a Kubernetes CiliumNetworkPolicy, which an agent translates"),
        "{found}"
    );
}
