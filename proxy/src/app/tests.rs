use std::path::Path;

use super::*;
use crate::config;

/// Far longer than anything takes.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running process without a control plane.
fn process(directory: &Path) -> Process {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!(
        "policies: {{ directory: {path} }}\nadmin: {{ address: \"unix:{path}/admin.sock\" }}\nworkers: 1\n\
         listeners: [{{ name: l, address: \"{port}\", transparent: false, upstream: \"127.0.0.1:9\" }}]\n",
        path = directory.display(),
    );
    let config = config::parse(&text, Path::new("tollgate.yaml")).unwrap();
    Process::start(config, Box::new(|_| Ok(())), Instant::now()).unwrap()
}

#[tokio::test]
async fn a_control_task_that_panics_ends_the_process_with_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut process = process(directory.path());
    process.control_tasks.spawn(async { panic!("as the test wants it") });
    let ended = tokio::time::timeout(DEADLINE, process.until_ended()).await.expect("the process ends");
    let error = format!("{:#}", ended.unwrap_err());
    assert!(error.contains("as the test wants it"), "{error}");
}

#[tokio::test]
async fn a_control_task_that_only_ends_does_not_end_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let mut process = process(directory.path());
    let requests = process._requests_open.clone();
    process.control_tasks.spawn(async move {
        // Asked for by another task when this one has ended.
        tokio::spawn(async move { requests.send(Request::Quit).await });
    });
    tokio::time::timeout(DEADLINE, process.until_ended()).await.expect("the process ends").unwrap();
}
