//! `tollgate tenants`: who uses the proxy, and how much of it.

mod endpoints;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::Value;

use super::{AdminAddress, Exit, Failure, Output, admin_client, asynchronously, print, print_json};
use crate::visible::misleads;

/// Clears a terminal and goes to its first line (ECMA-48: ED, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show who uses a running proxy, and how much of it
///
/// One line per tenant: weight, share of what the table is sorted by, requests, what of requests and connections policy denied, limits
/// refused and limits in shadow would have refused, connections, bytes, memory, and what its ceiling of bytes holds back now. On a terminal it goes on until interrupted, with rates since the line before; otherwise, or
/// with --once, it shows what was counted since each tenant came.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  tollgate tenants --sort bytes --admin unix:run/admin.sock

Exit codes: 0 shown; 2 bad input; 3 no proxy answers, or it went away meanwhile.")]
pub(super) struct Args {
    #[command(flatten)]
    admin: AdminAddress,
    /// What counts: lines are sorted by it, and the share is of it
    #[arg(long, value_enum, value_name = "BY", default_value_t)]
    sort: Sort,
    /// Show it once, with what was counted so far instead of rates
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Also endpoints that have done nothing; groups are shown in any case
    #[arg(short, long)]
    all: bool,
    /// Which endpoint is whose: endpoints that have policies, with their addresses and tenants
    #[arg(long, conflicts_with_all = ["sort", "all"])]
    endpoints: bool,
    /// How to print it: a table, or what the proxy says, once
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,
}

/// What a table is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Processor time, where the proxy measures it
    Cpu,
    /// Finished requests
    #[default]
    Requests,
    /// Bytes both ways
    Bytes,
    /// Open connections
    Connections,
    /// Memory held now
    Memory,
    /// Requests and connections that policy denied or a limit refused
    Refusals,
    /// Those that policy denied, or that were no proper requests
    Denied,
    /// Those that a limit refused
    Limited,
    /// Those that a limit in shadow would have refused
    Shadow,
    /// Name
    Name,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    asynchronously(show(args))?
}

async fn show(args: &Args) -> Result<Exit, Failure> {
    let first = look(args).await?;
    if args.endpoints && args.output == Output::Text {
        return print(&endpoints::table(&first)).map(|_| Exit::Fine);
    }
    if args.output == Output::Json {
        return print_json(&first).map(|_| Exit::Fine);
    }
    if args.once || !io::stdout().is_terminal() {
        return print(&format!("{}{}", table(&rows(&first), None, args), process(&first))).map(|_| Exit::Fine);
    }
    let (mut before, mut at) = (rows(&first), Instant::now());
    print(&format!("{CLEAR}{}{}", table(&before, None, args), process(&first)))?;
    loop {
        tokio::time::sleep(Duration::from_secs(args.interval)).await;
        let shown = look(args).await?;
        let now = rows(&shown);
        let since = at.elapsed().as_secs_f64();
        at = Instant::now();
        let rates = Some((before.as_slice(), since));
        if !print(&format!("{CLEAR}{}{}", table(&now, rates, args), process(&shown)))? {
            return Ok(Exit::Fine);
        }
        before = now;
    }
}

async fn look(args: &Args) -> Result<Value, Failure> {
    let address = &args.admin.admin;
    let path = if args.endpoints { "/tenants?endpoints=1" } else { "/tenants" };
    let answer = admin_client::get(address, path).await.map_err(Failure::cannot_tell)?;
    let shown: Option<Value> = serde_json::from_slice(&answer).ok();
    shown.filter(|shown| shown["tenants"].is_array()).ok_or_else(|| {
        let reason =
            format!("admin {address}: /tenants says nothing about tenants; is this the admin endpoint of a Tollgate?");
        Failure::cannot_tell(reason)
    })
}

/// What a line is made of. Counts are of the tenant's whole life, or a second of it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    name: String,
    weight: u64,
    open: f64,
    in_flight: f64,
    /// Seconds; `None` where they are not measured.
    cpu: Option<f64>,
    requests: f64,
    denied: f64,
    limited: f64,
    /// What limits in shadow would have refused.
    shadow: f64,
    up: f64,
    down: f64,
    connections: f64,
    /// It is in a lane of some worker.
    lane: bool,
    /// Somebody configured it.
    configured: bool,
    /// Bytes; 0 where they are not counted.
    memory: f64,
    /// What its rate of bytes holds back now.
    paced: f64,
}

fn rows(shown: &Value) -> Vec<Row> {
    let tenants = shown["tenants"].as_array().map_or(&[][..], Vec::as_slice);
    let sum = |counts: &Value| -> f64 {
        // The sum of no floats is -0.
        counts.as_object().map_or(0.0, |counts| counts.values().filter_map(Value::as_f64).fold(0.0, |sum, n| sum + n))
    };
    let row = |tenant: &Value| Row {
        name: printable(tenant["name"].as_str().unwrap_or("?")),
        weight: tenant["weight"].as_u64().unwrap_or(1),
        open: tenant["connections_open"].as_f64().unwrap_or(0.0),
        in_flight: tenant["requests_in_flight"].as_f64().unwrap_or(0.0),
        cpu: tenant["cpu_seconds"].as_f64(),
        requests: sum(&tenant["requests"]),
        denied: tenant["denied"].as_f64().unwrap_or(0.0),
        limited: tenant["limited"].as_f64().unwrap_or(0.0),
        shadow: tenant["would_limit"].as_f64().unwrap_or(0.0),
        up: tenant["bytes"]["up"].as_f64().unwrap_or(0.0),
        down: tenant["bytes"]["down"].as_f64().unwrap_or(0.0),
        connections: tenant["connections"].as_f64().unwrap_or(0.0),
        lane: tenant["lane"].is_object(),
        configured: tenant["kind"] == "group" && tenant["gone"] != true,
        memory: tenant["memory_bytes"].as_f64().unwrap_or(0.0),
        paced: tenant["paced_now"].as_f64().unwrap_or(0.0),
    };
    tenants.iter().map(row).collect()
}

/// Names of a control plane: none of them steers a terminal.
fn printable(name: &str) -> String {
    name.chars().filter(|c| !misleads(*c)).collect()
}

impl Row {
    /// What has happened since `before`, by the second. What is open is not a rate.
    fn rate(&self, before: &Self, seconds: f64) -> Self {
        let rate = |now: f64, before: f64| ((now - before) / seconds.max(1e-3)).max(0.0);
        Self {
            cpu: self.cpu.map(|cpu| rate(cpu, before.cpu.unwrap_or(0.0))),
            requests: rate(self.requests, before.requests),
            denied: rate(self.denied, before.denied),
            limited: rate(self.limited, before.limited),
            shadow: rate(self.shadow, before.shadow),
            up: rate(self.up, before.up),
            down: rate(self.down, before.down),
            connections: rate(self.connections, before.connections),
            ..self.clone()
        }
    }

    fn measure(&self, sort: Sort) -> f64 {
        match sort {
            Sort::Cpu => self.cpu.unwrap_or(0.0),
            Sort::Requests | Sort::Name => self.requests,
            Sort::Bytes => self.up + self.down,
            Sort::Connections => self.open,
            Sort::Memory => self.memory,
            Sort::Refusals => self.denied + self.limited,
            Sort::Denied => self.denied,
            Sort::Limited => self.limited,
            Sort::Shadow => self.shadow,
        }
    }

    fn is_idle(&self) -> bool {
        let cpu = self.cpu.unwrap_or(0.0);
        let (refusals, bytes) = (self.denied + self.limited + self.shadow, self.up + self.down);
        let counts = [self.open, cpu, self.requests, refusals, bytes, self.connections];
        counts.iter().all(|count| *count == 0.0)
    }
}

/// The table, with rates where there is a look before, `seconds` ago.
fn table(now: &[Row], before: Option<(&[Row], f64)>, args: &Args) -> String {
    let mut rows: Vec<Row> = now.iter().filter(|row| args.all || row.configured || !row.is_idle()).cloned().collect();
    if let Some((before, seconds)) = before {
        for row in &mut rows {
            let earlier = before.iter().find(|earlier| earlier.name == row.name).cloned().unwrap_or_default();
            *row = row.rate(&earlier, seconds);
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    if args.sort != Sort::Name {
        rows.sort_by_key(|row| Reverse((row.measure(args.sort) * 1e3) as u64));
    }
    let whole: f64 = rows.iter().map(|row| row.measure(args.sort)).sum();
    let width = rows.iter().map(|row| row.name.len()).chain(["TENANT".len()]).max().unwrap_or(0);
    let by_second = if before.is_some() { "/S" } else { "" };
    let mut out = format!(
        "{:width$} {:>6} {:>6} {:>8} {:>10} {:>9} {:>8} {:>9} {:>8} {:>6} {:>9} {:>9} {:>9} {:>9} {:>6} {:>5}\n",
        "TENANT",
        "WEIGHT",
        "SHARE",
        "CPU",
        format!("REQUESTS{by_second}"),
        "IN FLIGHT",
        format!("DENIED{by_second}"),
        format!("LIMITED{by_second}"),
        format!("SHADOW{by_second}"),
        "OPEN",
        format!("CONNS{by_second}"),
        format!("UP{by_second}"),
        format!("DOWN{by_second}"),
        "MEMORY",
        "PACED",
        "LANE",
    );
    for row in &rows {
        let share = if whole > 0.0 { row.measure(args.sort) / whole * 100.0 } else { 0.0 };
        let cpu = match row.cpu {
            None => "-".to_owned(),
            Some(cpu) if before.is_some() => format!("{:.1}%", cpu * 100.0),
            Some(cpu) => format!("{cpu:.2}s"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:width$} {:>6} {:>6} {:>8} {:>10} {:>9} {:>8} {:>9} {:>8} {:>6} {:>9} {:>9} {:>9} {:>9} {:>6} {:>5}",
            row.name,
            row.weight,
            format!("{share:.1}%"),
            cpu,
            number(row.requests),
            number(row.in_flight),
            number(row.denied),
            number(row.limited),
            number(row.shadow),
            number(row.open),
            number(row.connections),
            bytes(row.up),
            bytes(row.down),
            bytes(row.memory),
            number(row.paced),
            if row.lane { "yes" } else { "-" },
        );
    }
    if rows.is_empty() {
        out += "nothing was done for anybody yet; --all shows every tenant\n";
    }
    out + &built_in(&rows)
}

/// What those lines are whose names nobody gave.
fn built_in(rows: &[Row]) -> String {
    let known = [
        ("_accept", "accepting connections"),
        ("_overhead", "event loops and what else belongs to nobody"),
        ("_system", "chores of the workers"),
        ("_unknown", "addresses that no policy and no group knows"),
    ];
    let is_shown = |name: &str| rows.iter().any(|row| row.name == name);
    let mut said: Vec<_> =
        known.iter().filter(|(name, _)| is_shown(name)).map(|(name, what)| format!("{name}: {what}")).collect();
    if rows.iter().any(|row| row.name.starts_with("_shared-")) {
        said.push("_shared-…: endpoints for which there was no other room".to_owned());
    }
    if said.is_empty() { String::new() } else { format!("\n{}\n", said.join("; ")) }
}

/// What the process used and nobody is charged for, and what came from outside.
fn process(shown: &Value) -> String {
    let of = |name: &str| shown["process"][name].as_f64();
    let Some(cpu) = of("cpu_seconds") else { return String::new() };
    let part = match of("unattributed_ratio") {
        Some(ratio) => format!("of which {:.1}% is no tenant's{}", ratio * 100.0, overhead(shown, cpu)),
        None => "measured for no tenant (fairness: off)".to_owned(),
    };
    let delay = of("run_delay_seconds").map_or_else(String::new, |delay| {
        format!("; threads of the process waited {delay:.2}s for what else the machine runs")
    });
    let (kinds, quota) = (kinds(shown), quota(&shown["process"]["cpu_quota"]));
    format!("\n{cpu:.2}s of processor time, {part}{delay}\n{quota}{kinds}")
}

/// What that went to: the parts that are measured, of `cpu` seconds; nothing where an older proxy does not say.
fn overhead(shown: &Value, cpu: f64) -> String {
    let Some(by_kind) = shown["process"]["overhead_seconds"].as_object() else { return String::new() };
    let tenants = shown["tenants"].as_array().into_iter().flatten();
    let of_workers = tenants.filter(|tenant| tenant["name"] == "_overhead").map(|tenant| &tenant["cpu_seconds"]);
    let all =
        of_workers.map(|seconds| ("workers", seconds)).chain(by_kind.iter().map(|(kind, seconds)| (&**kind, seconds)));
    let all = all.map(|(kind, seconds)| (kind, seconds.as_f64().unwrap_or(0.0) / cpu * 100.0));
    // Less would be shown as nothing.
    let parts: Vec<_> = largest_first(all.filter(|(_, percent)| *percent >= 0.05)).collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

/// What the control group gives, if that has an end, and who waits for it.
fn quota(shown: &Value) -> String {
    let of = |name: &str| shown[name].as_f64();
    let (Some(processors), Some(stopped)) = (of("processors"), of("throttled_periods")) else { return String::new() };
    let waited = match of("aimed_at") {
        Some(aim) => format!(
            "workers keep to {:.1}% of that, for which tasks waited {:.2}s",
            aim * 100.0,
            of("waited_seconds").unwrap_or(0.0)
        ),
        None => "workers do not keep below that".to_owned(),
    };
    let (processors, period) = (hundredths(processors), of("period_seconds").unwrap_or(0.0) * 1e3);
    format!(
        "the control group gives {processors} processors in periods of {period:.0}ms; {waited}; the kernel stopped the process in \
         {stopped:.0} periods\n"
    )
}

fn largest_first<'a>(percents: impl Iterator<Item = (&'a str, f64)>) -> impl Iterator<Item = String> {
    let mut percents: Vec<_> = percents.collect();
    percents.sort_by(|a, b| b.1.total_cmp(&a.1));
    percents.into_iter().map(|(kind, percent)| format!("{kind} {percent:.1}%"))
}

/// What the time of all tenants went to, the largest part first.
fn kinds(shown: &Value) -> String {
    let mut spent: BTreeMap<&str, f64> = BTreeMap::new();
    let tenants = shown["tenants"].as_array().into_iter().flatten();
    for (kind, seconds) in tenants.filter_map(|tenant| tenant["cpu_seconds_by_kind"].as_object()).flatten() {
        *spent.entry(kind).or_default() += seconds.as_f64().unwrap_or(0.0);
    }
    let whole: f64 = spent.values().sum();
    let parts = spent.into_iter().filter(|(_, seconds)| *seconds > 0.0);
    let parts: Vec<_> = largest_first(parts.map(|(kind, part)| (kind, part / whole * 100.0))).collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!("the time of all lines above went to: {}\n", parts.join(", "))
    }
}

fn hundredths(value: f64) -> String {
    format!("{}", (value * 100.0).round() / 100.0)
}

fn number(value: f64) -> String {
    if value > 0.0 && value < 10.0 && value.fract() != 0.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn bytes(value: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = value;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0}B") } else { format!("{value:.1}{}", units[unit]) }
}

#[cfg(test)]
mod tests;
