use serde_json::json;

use super::*;

fn args(sort: Sort) -> Args {
    Args {
        admin: AdminAddress { admin: crate::config::default_admin() },
        sort,
        once: false,
        interval: 2,
        all: false,
        endpoints: false,
        output: Output::Text,
    }
}

fn shown(requests: u64, bytes: u64) -> Value {
    let tenant = |name: &str, requests: u64, bytes: u64| {
        json!({
            "name": name, "weight": 1, "connections": 1, "connections_open": 1, "requests_in_flight": 0,
            "requests": { "forwarded": requests, "denied": 1, "failed": 0 }, "denied": 1, "limited": 2, "would_limit": 40,
            "bytes": { "up": 0, "down": bytes }, "memory_bytes": 8192, "paced_now": if name == "small" { 3 } else { 0 },
            "lane": if name == "small" { json!({ "workers": 1 }) } else { Value::Null },
        })
    };
    let idle = |name, kind, gone| json!({ "name": name, "kind": kind, "gone": gone, "requests": {}, "refusals": {}, "bytes": {} });
    let (idle, past) = (idle("idle", "endpoint", false), idle("past", "group", true));
    json!({ "tenants": [idle, past, tenant("small", 9, 3 << 20), tenant("bi\u{1b}\u{202e}g", requests, bytes)] })
}

#[test]
fn lines_are_sorted_with_shares_and_the_idle_are_left_out() {
    let table_by = |sort| table(&rows(&shown(89, 1 << 20)), None, &args(sort));
    let expected = "\
TENANT WEIGHT  SHARE      CPU   REQUESTS IN FLIGHT   DENIED   LIMITED   SHADOW   OPEN     CONNS        UP      DOWN    MEMORY  PACED  LANE
big         1  90.0%        -         90         0        1         2       40      1         1        0B    1.0MiB    8.0KiB      0     -
small       1  10.0%        -         10         0        1         2       40      1         1        0B    3.0MiB    8.0KiB      3   yes
";
    assert_eq!(table_by(Sort::Requests), expected);
    assert!(table_by(Sort::Bytes).lines().nth(1).is_some_and(|line| line.starts_with("small       1  75.0%")));
    let of_two = |sort| table_by(sort).lines().nth(1).unwrap()[..20].to_owned();
    assert_eq!([Sort::Shadow, Sort::Refusals].map(of_two), ["big         1  50.0%"; 2]);
    let all = table(&rows(&shown(89, 0)), None, &Args { all: true, ..args(Sort::Name) });
    assert_eq!(all.lines().map(|line| &line[..5]).collect::<Vec<_>>(), ["TENAN", "big  ", "idle ", "past ", "small"]);
    // Whoever has configured a group wants to see that it is there.
    let mut shown = shown(0, 0);
    shown["tenants"][0]["kind"] = "group".into();
    let table = table(&rows(&shown), None, &args(Sort::Name));
    assert_eq!(table.lines().map(|line| &line[..5]).collect::<Vec<_>>(), ["TENAN", "big  ", "idle ", "small"]);
}

#[test]
fn lines_that_nobody_named_are_explained() {
    let row = |name: &str| Row { name: name.to_owned(), ..Row::default() };
    assert_eq!(built_in(&[row("a")]), "");
    let shown = [row("_system"), row("a"), row("_accept"), row("_shared-07")];
    let expected = "\n_accept: accepting connections; _system: chores of the workers; \
                    _shared-…: endpoints for which there was no other room\n";
    assert_eq!(built_in(&shown), expected);
}

#[test]
fn what_is_no_tenants_is_said() {
    assert_eq!(process(&shown(1, 1)), "", "an older proxy does not say");
    let of_ratio = |ratio: Value, delay: Value| {
        process(&json!({ "process": {
        "cpu_seconds": 2.5, "unattributed_ratio": ratio, "run_delay_seconds": delay,
    } }))
    };
    let of = |delay| of_ratio(json!(0.125), delay);
    assert_eq!(of(Value::Null), "\n2.50s of processor time, of which 12.5% is no tenant's\n");
    let unmeasured = of_ratio(Value::Null, Value::Null);
    assert_eq!(unmeasured, "\n2.50s of processor time, measured for no tenant (fairness: off)\n");
    let parted = json!({
        "process": {
            "cpu_seconds": 2.0, "unattributed_ratio": 0.3,
            "overhead_seconds": { "access_log": 0.0001, "compile": 0.0, "control": 0.1, "log": 0.3 },
        },
        "tenants": [{ "name": "a", "cpu_seconds": 1.4 }, { "name": "_overhead", "cpu_seconds": 0.2 }],
    });
    let expected =
        "\n2.00s of processor time, of which 30.0% is no tenant's (log 15.0%, workers 10.0%, control 5.0%)\n";
    assert_eq!(process(&parted), expected);
    let by_kind = |io: f64, http: f64| json!({ "cpu_seconds_by_kind": { "io": io, "http": http, "tls": 0.0 } });
    let shown = json!({ "tenants": [by_kind(0.5, 1.0), by_kind(0.5, 2.0)] });
    assert_eq!(kinds(&shown), "the time of all lines above went to: http 75.0%, io 25.0%\n");
    assert_eq!(quota(&json!({ "processors": null, "throttled_periods": 0, "waited_seconds": 0.0 })), "");
    let mut shown = json!({
        "processors": 0.25, "period_seconds": 0.1, "aimed_at": 0.935, "waited_seconds": 1.5, "throttled_periods": 3,
    });
    assert_eq!(
        quota(&shown),
        "the control group gives 0.25 processors in periods of 100ms; workers keep to 93.5% of that, for which tasks waited \
         1.50s; the kernel stopped the process in 3 periods\n"
    );
    shown["aimed_at"] = Value::Null;
    assert!(quota(&shown).contains("; workers do not keep below that; "));
    assert!(of(json!(0.5)).ends_with("; threads of the process waited 0.50s for what else the machine runs\n"));
}

#[test]
fn rates_are_of_the_time_between_two_looks() {
    let (before, now) = (rows(&shown(89, 1 << 20)), rows(&shown(109, 5 << 20)));
    let table = table(&now, Some((&before, 2.0)), &args(Sort::Requests));
    let expected = "\
TENANT WEIGHT  SHARE      CPU REQUESTS/S IN FLIGHT DENIED/S LIMITED/S SHADOW/S   OPEN   CONNS/S      UP/S    DOWN/S    MEMORY  PACED  LANE
big         1 100.0%        -         10         0        0         0        0      1         0        0B    2.0MiB    8.0KiB      0     -
small       1   0.0%        -          0         0        0         0        0      1         0        0B        0B    8.0KiB      3   yes
";
    assert_eq!(table, expected);
}
