//! Closed loops over HTTP/1: as much as the proxy gives.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::spawn_local;
use tokio::time::{sleep, sleep_until};

use crate::Group;
use crate::http1::{Connection, Shape, connect, word};

/// Before a connection that failed is opened anew.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// IP:PORT=CONNECTIONS[@SOURCE]; may be repeated.
    #[arg(long = "group", required = true)]
    groups: Vec<Group>,
    #[arg(long, value_parser = crate::seconds)]
    seconds: Duration,
    /// A new connection for each request.
    #[arg(long)]
    churn: bool,
    /// Requests that are sent before the first of them is answered.
    #[arg(long, default_value_t = 1)]
    pipeline: usize,
    #[command(flatten)]
    shape: Shape,
}

/// What came back, by status or by what went wrong.
#[derive(Default)]
pub(crate) struct Counts {
    came: RefCell<BTreeMap<String, u64>>,
    /// Requests that were sent.
    asked: Cell<u64>,
}

impl Counts {
    pub(crate) fn add(&self, what: impl ToString) {
        *self.came.borrow_mut().entry(what.to_string()).or_default() += 1;
    }

    pub(crate) fn asked(&self, count: usize) {
        self.asked.set(self.asked.get() + count as u64);
    }

    pub(crate) fn take(&self) -> Value {
        json!(self.came.take())
    }
}

/// Prints `{"seconds": …, "groups": [{"target": …, "connections": …, "asked": …, "counts": {"200": …}}, …]}`.
pub(crate) async fn run(options: Options) -> anyhow::Result<Value> {
    let options = Rc::new(options);
    let (begun, end) = (Instant::now(), Instant::now() + options.seconds);
    let counts: Vec<Rc<Counts>> = options.groups.iter().map(|_| Rc::default()).collect();
    for (group, counts) in options.groups.iter().zip(&counts) {
        for index in 0..group.connections {
            let (options, counts, group) = (Rc::clone(&options), Rc::clone(counts), *group);
            spawn_local(async move {
                while Instant::now() < end {
                    if let Err(error) = exchanges(&options, group, &counts, index as u64).await {
                        counts.add(word(&error));
                        sleep(PAUSE).await;
                    }
                }
            });
        }
    }
    sleep_until(end.into()).await;
    Ok(report(begun, &options.groups, &counts))
}

pub(crate) fn report(begun: Instant, groups: &[Group], counts: &[Rc<Counts>]) -> Value {
    let groups: Vec<Value> = groups
        .iter()
        .zip(counts)
        .map(|(group, counts)| {
            json!({
                "target": group.target,
                "connections": group.connections,
                "asked": counts.asked.get(),
                "counts": counts.take(),
            })
        })
        .collect();
    json!({ "seconds": begun.elapsed().as_secs_f64(), "groups": groups })
}

/// Exchanges on one connection until it ends; the process ends them all.
async fn exchanges(options: &Options, group: Group, counts: &Counts, seed: u64) -> std::io::Result<()> {
    let mut connection = Connection::new(connect(group.source, group.target).await?);
    let mut request = options.shape.request(group.target, !options.churn, seed);
    let mut pipelined = Vec::new();
    loop {
        if options.pipeline == 1 {
            connection.send(request.next()).await?;
        } else {
            pipelined.clear();
            (0..options.pipeline).for_each(|_| pipelined.extend_from_slice(request.next()));
            connection.send(&pipelined).await?;
        }
        counts.asked(options.pipeline);
        for _ in 0..options.pipeline {
            let answer = connection.answer().await?;
            counts.add(answer.status);
            if options.churn || !answer.keep {
                return Ok(());
            }
        }
    }
}
