use std::collections::BTreeSet;
use std::path::PathBuf;

use super::*;
use crate::flow::{FlowSettings, FlowThread};

/// With a flow thread, which has access logs.
fn logging() -> (Arc<Listeners>, FlowThread, watch::Sender<Phase>) {
    let World { listeners, _phase, _records, .. } = world(LONG);
    (Arc::new(listeners), _records.spawn(&FlowSettings::default()).unwrap(), _phase)
}

fn logging_to(name: &str, number: usize) -> config::Listener {
    let access_log = Some(PathBuf::from(format!("/nonexistent/{number}.sock")));
    config::Listener { reuse_port: false, access_log, ..listener(name, upstream(b"a")) }
}

fn paths(flows: &FlowThread) -> BTreeSet<String> {
    let counters = flows.access_logs().counters();
    counters.iter().map(|socket| socket.path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn the_socket_of_an_access_log_goes_with_the_last_connection_of_the_last_listener() {
    let (listeners, flows, _phase) = logging();
    let (first, other) = (logging_to("l", 0), logging_to("other", 0));
    assert_eq!(listeners.serve(&[first.clone(), other.clone()]).await, []);
    let mut open = connect(first.address);
    assert_eq!((read(&mut open), paths(&flows)), (b'a', ["0".to_owned()].into()), "they share it");
    // More paths than there are places, one after the other.
    for number in 1..70 {
        let next = config::Listener { access_log: logging_to("l", number).access_log, ..first.clone() };
        assert_eq!(listeners.serve(&[next]).await, []);
        assert_eq!(listeners.in_service()[0].unlogged, None);
        let left: BTreeSet<_> = ["0".to_owned(), number.to_string()].into();
        until("the path before is given back", || paths(&flows) == left).await;
    }
    assert!(echoes(&mut open));
    assert_eq!(listeners.serve(&[]).await, []);
    until("that of the open connection is left", || paths(&flows) == ["0".to_owned()].into()).await;
    drop(open);
    until("all are given back", || paths(&flows).is_empty()).await;
}

#[tokio::test]
async fn a_listener_without_a_place_for_its_access_log_says_so_and_gets_the_next() {
    let (listeners, flows, _phase) = logging();
    let logs = flows.access_logs();
    let taken: Vec<_> = (0..64).map(|number| logs.of_listener(logging_to("", number).access_log.as_deref())).collect();
    let one = logging_to("l", 64);
    assert_eq!(listeners.serve(std::slice::from_ref(&one)).await, [], "it is served");
    assert_eq!(read(&mut connect(one.address)), b'a');
    let reason = listeners.in_service()[0].unlogged.clone().unwrap();
    assert!(reason.contains("there are 64 sockets of access logs already"), "{reason}");
    assert_eq!(logs.unlogged(), 1);
    let (trying, sockets) = (tokio::spawn(Arc::clone(&listeners).retry_logs()), inodes(one.address));
    drop(taken);
    until("it gets its place", || paths(&flows).contains("64")).await;
    until("it is no longer listed", || listeners.in_service()[0].unlogged.is_none()).await;
    assert_eq!((logs.unlogged(), inodes(one.address)), (0, sockets));
    trying.abort();
}
