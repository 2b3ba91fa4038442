//! `tollgate tenants --endpoints`: which endpoint is whose.

use std::fmt::Write as _;

use serde_json::Value;

/// One line for each endpoint that has a policy, by its number; of one whose addresses are several tenants', one for each of them.
pub(super) fn table(shown: &Value) -> String {
    let mut lines: Vec<(u64, String, String)> = Vec::new();
    for tenant in shown["tenants"].as_array().into_iter().flatten() {
        for endpoint in tenant["endpoints"].as_array().into_iter().flatten() {
            let addresses = endpoint["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let addresses = addresses.map(super::printable).collect::<Vec<_>>().join(", ");
            let number = endpoint["endpoint_id"].as_u64().unwrap_or_default();
            lines.push((number, super::printable(tenant["name"].as_str().unwrap_or("?")), addresses));
        }
    }
    if lines.is_empty() {
        return "no endpoint has a policy\n".to_owned();
    }
    lines.sort();
    let width = lines.iter().map(|(_, tenant, _)| tenant.len()).chain(["TENANT".len()]).max().unwrap_or(0);
    let mut out = format!("{:>8}  {:width$}  ADDRESSES\n", "ENDPOINT", "TENANT");
    for (number, tenant, addresses) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{number:>8}  {tenant:width$}  {addresses}");
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endpoints_are_listed_by_their_numbers() {
        let of = |name: &str, endpoints: Value| json!({ "name": name, "endpoints": endpoints });
        let endpoint = |number: u64, addresses: Value| json!({ "endpoint_id": number, "addresses": addresses });
        let shown = json!({ "tenants": [
            of("team-b", json!([endpoint(70, json!(["10.0.0.2"]))])),
            of("a", json!([endpoint(7, json!(["10.0.0.1", "fd00::1"])), endpoint(70, json!(["10.0.0.3\u{1b}"]))])),
            of("idle", json!([])),
        ] });
        let expected = "\
ENDPOINT  TENANT  ADDRESSES
       7  a       10.0.0.1, fd00::1
      70  a       10.0.0.3
      70  team-b  10.0.0.2
";
        assert_eq!(table(&shown), expected);
        assert_eq!(table(&json!({ "tenants": [] })), "no endpoint has a policy\n");
    }
}
