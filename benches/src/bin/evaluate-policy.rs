//! Judges one request many times and ends: what `benches/instructions` counts the instructions of.
//!
//! Usage: `evaluate-policy RULES hit|miss TIMES`

use std::hint::black_box;

use anyhow::{Context as _, bail};
use tollgate_benches::policy::{ENDPOINT, MISS, flow, get, last_path, policy, snapshot};
use tollgate_policy::{Secrets, Verdict};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rules, kind, times] = arguments.as_slice() else { bail!("usage: evaluate-policy RULES hit|miss TIMES") };
    let rules: usize = rules.parse().context("RULES")?;
    let times: usize = times.parse().context("TIMES")?;
    let (path, allowed) = match kind.as_str() {
        "hit" => (last_path(rules), true),
        "miss" => (MISS.to_owned(), false),
        other => bail!("{other}: hit or miss is expected"),
    };
    let (snapshot, secrets) = (snapshot([policy(ENDPOINT, 1, rules)]), Secrets::default());
    // The first evaluation builds the automaton's states, which are there for all that follow.
    for _ in 0..=times {
        let verdict = snapshot.evaluate_request(black_box(&flow()), black_box(&get(&path)), &secrets);
        if matches!(verdict, Verdict::Allow { .. }) != allowed {
            bail!("{rules} rules, {kind}: {verdict:?}");
        }
    }
    Ok(())
}
