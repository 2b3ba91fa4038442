//! The section `tenants`: settings of every endpoint, and endpoints that share one account.

use std::num::{NonZeroU32, NonZeroU64};

use tollgate_policy::SecurityId;

use super::document::Value;
use super::read::{Field, Section};
use super::scalar;
use crate::tenant::{
    Ceilings, Claims, Group, Guarantee, Isolation, MAX_WEIGHT, Member, PolicyBudget, Pools, Rate, Settings,
    TenantConfig, check_name,
};

const EXAMPLE: &str = "{default: {weight: 1}, groups: [{name: team-a, members: {endpoint_ids: [69]}}]}";
const GROUP: &str = "{name: team-a, members: {endpoint_ids: [69]}, weight: 2}";
const MEMBERS: &str = "{endpoint_ids: [69], addresses: [10.244.1.17, 10.244.2.0/28], identities: [32226]}";
const RATE: &str = "{per_second: 2000, burst: 4000}";

/// `tenants: {default: {weight: 1}, groups: [{name, members, weight, …}]}`.
pub(super) fn tenants(top: &mut Section<'_>, pools: Pools) -> TenantConfig {
    let mut config = TenantConfig::default();
    let Some(mut section) = top.field("tenants").and_then(|field| field.section(EXAMPLE)) else { return config };
    if let Some(mut default) = section.field("default").and_then(|field| field.section("{weight: 1}")) {
        config.default = settings(&mut default);
        if config.default.guarantee.cpu_millis.is_some() {
            default.refuse_whole(
                "guarantee.cpu: nobody knows how many endpoints there will be, so it could not be kept; guarantee it to a group",
            );
        }
        let memory = config.default.guarantee.memory_bytes.map_or(0, NonZeroU64::get);
        if let Some(most) = pools.memory_to_guarantee().filter(|most| memory > *most) {
            default.refuse_whole(format!(
                "guarantee.memory: {memory} bytes, and one endpoint can have {most} of limits.memory in any case; lower one of them"
            ));
        }
        default.finish(&[]);
    }
    let groups = section.field("groups").and_then(|field| field.list(&format!("[{GROUP}]")));
    let mut claims = Claims::within(pools);
    for item in groups.unwrap_or_default() {
        let Some(mut section) = item.section(GROUP) else { continue };
        let group = group(&mut section);
        section.finish(&[]);
        let Some(mut group) = group else { continue };
        match claims.take(&mut group) {
            Ok(left_out) => {
                left_out.iter().for_each(|error| item.refuse(error.to_string()));
                config.groups.push(group);
            }
            Err(error) => item.refuse(error.to_string()),
        }
    }
    section.finish(&[]);
    config
}

/// `None` only after a mistake has been noted.
fn group(section: &mut Section<'_>) -> Option<Group> {
    let name = match section.field("name") {
        Some(field) => {
            field.read(|value| scalar::text(value).and_then(|name| check_name(name).map(|()| name.to_owned())))
        }
        None => {
            section.refuse_whole("no name; add name: what metrics and flow records call the tenant");
            None
        }
    };
    let members = match section.field("members").map(|field| field.section(MEMBERS)) {
        Some(Some(mut listed)) => {
            let members = members(&mut listed);
            if members.as_ref().is_some_and(Vec::is_empty) {
                listed.refuse_whole(format!("there are none; write {MEMBERS}"));
            }
            listed.finish(&[]);
            members.filter(|members| !members.is_empty())
        }
        Some(None) => None,
        None => {
            section.refuse_whole(format!("no members; add members: {MEMBERS}"));
            None
        }
    };
    let settings = settings(section);
    Some(Group { name: name?.into(), members: members?, settings })
}

/// `None` only after a mistake has been noted.
fn members(section: &mut Section<'_>) -> Option<Vec<Member>> {
    let endpoint = |value: &Value| scalar::integer(value, 1, u64::MAX).map(Member::Endpoint);
    let address = |value: &Value| scalar::prefix(value).map(Member::Addresses);
    let identity = |value: &Value| {
        let number = scalar::integer(value, 1, u32::MAX.into())?;
        Ok(Member::Identity(SecurityId(u32::try_from(number).unwrap_or(u32::MAX))))
    };
    type Parse<'p> = &'p dyn Fn(&Value) -> Result<Member, String>;
    let kinds: [(&'static str, &str, Parse<'_>); 3] = [
        ("endpoint_ids", "[69]", &endpoint),
        ("addresses", "[10.244.1.17, 10.244.2.0/28]", &address),
        ("identities", "[32226]", &identity),
    ];
    let mut members = Some(Vec::new());
    for (key, example, parse) in kinds {
        let Some(field) = section.field(key) else { continue };
        match field.list(example) {
            Some(items) => {
                for item in items {
                    match (item.read(parse), &mut members) {
                        (Some(member), Some(members)) => members.push(member),
                        (Some(_), None) => {}
                        (None, _) => members = None,
                    }
                }
            }
            None => members = None,
        }
    }
    members
}

fn settings(section: &mut Section<'_>) -> Settings {
    let weight = section.read("weight", 1, |value| scalar::integer(value, 1, MAX_WEIGHT.into()));
    let isolation = [("auto", Isolation::Auto), ("shared", Isolation::Shared), ("lane", Isolation::Lane)];
    let mut settings = Settings {
        weight: u32::try_from(weight).unwrap_or(1),
        shadow: section.read("shadow", false, scalar::boolean),
        isolation: section.read("isolation", Isolation::Auto, |value| scalar::word(value, &isolation)),
        ..Settings::default()
    };
    if let Some(mut part) = section.field("guarantee").and_then(|field| field.section("{connections: 500}")) {
        settings.guarantee = Guarantee {
            connections: count(&mut part, "connections"),
            in_flight: count(&mut part, "in_flight"),
            memory_bytes: part.field("memory").and_then(|field| bytes(&field)),
            cpu_millis: cpu(&mut part),
        };
        part.finish(&[]);
    }
    if let Some(mut part) = section.field("ceilings").and_then(|field| field.section("{connections: 5000}")) {
        settings.ceilings = ceilings(&mut part);
        part.finish(&[]);
    }
    if let Some(mut part) = section.field("policy").and_then(|field| field.section("{rules: 5000}")) {
        settings.policy = PolicyBudget {
            rules: count(&mut part, "rules"),
            expression_bytes: part.field("expression").and_then(|field| bytes_of_one(&field)),
            program_bytes: part.field("program").and_then(|field| bytes_of_one(&field)),
            compile_millis_per_second: part.field("compile_per_second").and_then(|field| {
                let time = field.read(scalar::positive_duration)?;
                u32::try_from(time.as_millis()).ok().and_then(NonZeroU32::new)
            }),
            memory_bytes: part.field("memory").and_then(|field| bytes(&field)),
        };
        part.finish(&[]);
    }
    settings
}

fn ceilings(part: &mut Section<'_>) -> Ceilings {
    Ceilings {
        connections: count(part, "connections"),
        new_connections: rate(part, "new_connections", |value| scalar::integer(value, 1, u32::MAX.into())),
        requests: rate(part, "requests", |value| scalar::integer(value, 1, u32::MAX.into())),
        in_flight: count(part, "in_flight"),
        long_streams: count(part, "long_streams"),
        bytes: rate(part, "bytes", scalar::bytes),
        header_bytes: part.field("header").and_then(|field| bytes_of_one(&field)),
        memory_bytes: part.field("memory").and_then(|field| bytes(&field)),
        cpu_millis: cpu(part),
        queue_delay_millis: part.field("queue_delay").and_then(|field| {
            let time = field.read(scalar::positive_duration)?;
            u32::try_from(time.as_millis()).ok().and_then(NonZeroU32::new)
        }),
        upstream_connections: count(part, "upstream_connections"),
        log_bytes: rate(part, "log_bytes", scalar::bytes),
    }
}

/// A whole number that is not 0: a ceiling of 0 would be a refusal, which is a policy's business.
fn count(section: &mut Section<'_>, key: &'static str) -> Option<NonZeroU32> {
    let number = section.field(key)?.read(|value| scalar::integer(value, 1, u32::MAX.into()))?;
    u32::try_from(number).ok().and_then(NonZeroU32::new)
}

fn bytes(field: &Field<'_>) -> Option<NonZeroU64> {
    field.read(scalar::bytes).and_then(NonZeroU64::new)
}

fn bytes_of_one(field: &Field<'_>) -> Option<NonZeroU32> {
    let most = |value: &Value| match scalar::bytes(value)? {
        bytes if bytes <= 1 << 30 => Ok(bytes),
        _ => Err("more than 1GiB".to_owned()),
    };
    u32::try_from(field.read(most)?).ok().and_then(NonZeroU32::new)
}

/// `cpu: 500m` or `cpu: 2`.
fn cpu(section: &mut Section<'_>) -> Option<NonZeroU32> {
    section.field("cpu")?.read(scalar::cpu).and_then(NonZeroU32::new)
}

/// `KEY: 2000` or `KEY: {per_second: 2000, burst: 4000}`.
fn rate(section: &mut Section<'_>, key: &'static str, amount: impl Fn(&Value) -> Result<u64, String>) -> Option<Rate> {
    let field = section.field(key)?;
    if !matches!(field.node.value, Value::Map(_)) {
        let per_second = field.read(|value| amount(value).map_err(|why| format!("{why}; or write {RATE}")))?;
        return NonZeroU64::new(per_second).map(|per_second| Rate { per_second, burst: per_second });
    }
    let mut parts = field.section(RATE)?;
    let per_second = match parts.field("per_second") {
        Some(field) => field.read(&amount).and_then(NonZeroU64::new),
        None => {
            parts.refuse_whole(format!("no per_second; write {RATE}"));
            None
        }
    };
    let burst = parts.field("burst").map(|field| field.read(&amount).and_then(NonZeroU64::new));
    parts.finish(&[]);
    let per_second = per_second?;
    Some(Rate { per_second, burst: burst.flatten().unwrap_or(per_second) })
}
