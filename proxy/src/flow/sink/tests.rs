use std::sync::Mutex;
use std::sync::mpsc::RecvTimeoutError;

use serde_json::Value;

use super::*;
use crate::config::AccessLog;
use crate::flow::{FlowConsumer, FlowRecord, FlowSender, FlowSettings, Outcome, channel};
use crate::metrics::Worker;

fn one_worker() -> (FlowSender, FlowConsumer) {
    let (mut senders, consumer) = channel(vec![Worker::for_test()], 64);
    (senders.remove(0), consumer)
}

fn seqs(lines: &[u8]) -> Vec<u64> {
    let text = std::str::from_utf8(lines).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap()).collect()
}

#[test]
fn shutdown_writes_out_what_was_sent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    std::fs::write(&path, "{\"seq\":99}\n").unwrap();
    let (sender, consumer) = one_worker();
    let settings = FlowSettings { sinks: vec![AccessLog::JsonFile(path.clone())], ..FlowSettings::default() };
    let flows = consumer.spawn(&settings).unwrap();
    for _ in 0..5 {
        sender.send(Box::new(FlowRecord::for_test(Outcome::Denied)));
    }
    let sinks = flows.sinks();
    assert!(flows.shutdown(Duration::from_secs(60)));
    assert_eq!(seqs(&std::fs::read(&path).unwrap()), [99, 0, 1, 2, 3, 4], "appended");
    assert_eq!(sinks[0].written.load(Ordering::Relaxed), 5);
    assert_eq!(sinks[0].name, path.display().to_string());
}

#[test]
fn a_sink_that_cannot_be_opened_is_named() {
    let (_sender, consumer) = one_worker();
    let settings =
        FlowSettings { sinks: vec![AccessLog::JsonFile("/nonexistent/access.log".into())], ..FlowSettings::default() };
    let error = consumer.spawn(&settings).unwrap_err().to_string();
    assert!(error.contains("access_log: cannot open /nonexistent/access.log"), "{error}");
}

/// Takes three bytes at a time and fails every other write.
#[derive(Clone, Default)]
struct Flaky {
    written: Arc<Mutex<Vec<u8>>>,
    calls: u32,
}

impl Write for Flaky {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls == 2 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let taken = bytes.len().min(3);
        self.written.lock().unwrap().extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Blocks until the receiver gives way.
struct Blocked(Receiver<()>);

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.recv() {
            Ok(()) | Err(_) => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same, and keeps what it gets then.
struct Gated(Receiver<()>, Arc<Mutex<Vec<u8>>>);

impl Write for Gated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        self.1.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_failed_write_is_retried_without_tearing_lines() {
    let (sender, consumer) = one_worker();
    let (alive, ended) = sync_channel(0);
    let flaky = Flaky::default();
    let sink = Sink::start("flaky".into(), flaky.clone(), alive.clone()).unwrap();
    let flows = consumer.spawn_with(&FlowSettings::default(), vec![sink], alive, ended).unwrap();
    sender.send(Box::new(FlowRecord::for_test(Outcome::Denied)));
    sender.send(Box::new(FlowRecord::for_test(Outcome::Denied)));
    let sinks = flows.sinks();
    assert!(flows.shutdown(Duration::from_secs(60)));
    assert_eq!(seqs(&flaky.written.lock().unwrap()), [0, 1]);
    assert_eq!(sinks[0].errors.load(Ordering::Relaxed), 1);
}

/// One line of a record with this number.
fn line(seq: u64, tenant: u32, denied: bool) -> Lines {
    let bytes = format!("{{\"seq\":{seq}}}\n").into_bytes();
    let each = vec![Line { end: bytes.len(), tenant: TenantId::from_raw(tenant), denied }];
    Lines { bytes: Arc::new(bytes), each }
}

#[test]
fn a_blocked_sink_holds_up_nobody_and_its_losses_are_exact() {
    let (alive, ended) = sync_channel(0);
    let (release, gate) = sync_channel(0);
    let blocked = Sink::start("blocked".into(), Blocked(gate), alive.clone()).unwrap();
    let flaky = Flaky { calls: 2, ..Flaky::default() };
    let working = Sink::start("working".into(), flaky.clone(), alive).unwrap();
    let counters = blocked.counters();
    let count = 10_000;
    for seq in 0..count {
        blocked.offer(&line(seq, 80, false));
    }
    working.offer(&line(7, 80, false));
    drop(working);
    let lost = counters.lost.load(Ordering::Relaxed);
    assert_eq!(lost, count - QUEUE as u64 / 2);
    drop((release, blocked));
    assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected));
    assert_eq!(seqs(&flaky.written.lock().unwrap()), [7]);
    assert_eq!(counters.written.load(Ordering::Relaxed) + lost, count);
    assert_eq!((counters.queued.load(Ordering::Relaxed), counters.queued_bytes()), (0, 0));
}

/// What comes while nobody takes anything: of what one tenant floods half finds room, more of its denials, and somebody else's find some,
/// whether denials or not. Of one batch, only what has no room is lost.
#[test]
fn denials_are_lost_last_and_what_floods_first() {
    let (alive, ended) = sync_channel(0);
    let (release, gate) = sync_channel(0);
    let written = Arc::new(Mutex::new(Vec::new()));
    let sink = Sink::start("gated".into(), Gated(gate, Arc::clone(&written)), alive).unwrap();
    let counters = sink.counters();
    let fill = |tenant, denied| {
        let lost = || counters.lost.load(Ordering::Relaxed);
        let before = lost();
        (0..QUEUE as u64)
            .take_while(|_| {
                sink.offer(&line(1, tenant, denied));
                lost() == before
            })
            .count()
    };
    let fills = [(80, false), (80, true), (90, false)].map(|(tenant, denied)| fill(tenant, denied));
    assert_eq!(fills, [4096, 1024, 512]);
    let mixed = [line(2, 80, false), line(3, 90, true), line(4, 80, true), line(5, 100, false)];
    let mut all = Lines { bytes: Arc::default(), each: Vec::new() };
    for one in &mixed {
        Arc::make_mut(&mut all.bytes).extend_from_slice(&one.bytes);
        all.each.push(Line { end: all.bytes.len(), ..one.each[0] });
    }
    sink.offer(&all);
    assert_eq!(counters.lost.load(Ordering::Relaxed), 3 + 2);
    drop((release, sink));
    assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected));
    assert_eq!(seqs(&written.lock().unwrap())[4096 + 1024 + 512..], [3, 5]);
}

#[test]
fn bytes_waiting_for_a_sink_are_bounded() {
    let (alive, _ended) = sync_channel(0);
    let (_release, gate) = sync_channel(0);
    let blocked = Sink::start("blocked".into(), Blocked(gate), alive).unwrap();
    let of = |size: usize, denied| {
        let each = vec![Line { end: size, tenant: TenantId::from_raw(80), denied }];
        blocked.offer(&Lines { bytes: Arc::new(vec![b'\n'; size]), each });
        blocked.counters.lost.load(Ordering::Relaxed)
    };
    assert_eq!([of(QUEUE_BYTES / 2, false), of(QUEUE_BYTES / 2, false)], [0, 1]);
    assert_eq!([of(QUEUE_BYTES / 4, false), of(QUEUE_BYTES / 8, false), of(QUEUE_BYTES / 8, true)], [1, 2, 2]);
}
