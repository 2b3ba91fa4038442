//! Polls tasks that can always run, and ends: what `benches/instructions` counts the instructions of.
//!
//! Usage: `poll-tasks off|TENANTS POLLS`; prints how often they were polled, which is a little more

use anyhow::{Context as _, bail};
use tollgate_benches::polls::{Tasks, Way};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [way, polls] = arguments.as_slice() else { bail!("usage: poll-tasks off|TENANTS POLLS") };
    let way = match way.as_str() {
        "off" => Way::Plain,
        tenants => Way::Ticking(tenants.parse::<std::num::NonZeroU32>().context("TENANTS")?.get()),
    };
    // One question each, as a connection asks before it reads.
    println!("{}", Tasks::new(way, 1).run(polls.parse().context("POLLS")?));
    Ok(())
}
