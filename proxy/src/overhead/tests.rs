use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::*;

const WORK: u64 = 50_000_000;
/// What a thread of a test takes beside that: it is started, and waits.
const BESIDE: u64 = 30_000_000;

fn work() {
    let began = processor_time();
    while processor_time() - began < WORK {
        std::hint::spin_loop();
    }
}

fn is_about(nanoseconds: u64, expected: u64) -> bool {
    (expected..expected + BESIDE).contains(&nanoseconds)
}

/// A thread that does each step when it is told to, and says when it is done.
struct Steps(Sender<()>, Receiver<()>, thread::JoinHandle<()>);

impl Steps {
    fn of(overhead: &'static Overhead, kind: Kind, work: impl FnOnce(&dyn Fn()) + Send + 'static) -> Self {
        let ((go, gone), (tell, told)) = (channel(), channel());
        let thread = thread::spawn(move || {
            overhead.count_this_thread(kind);
            work(&|| {
                tell.send(()).unwrap();
                gone.recv().unwrap();
            });
        });
        let steps = Self(go, told, thread);
        steps.1.recv().unwrap();
        steps
    }

    fn next(&self) {
        self.0.send(()).unwrap();
        self.1.recv().unwrap();
    }

    fn end(self) {
        self.0.send(()).unwrap();
        self.2.join().unwrap();
    }
}

#[test]
fn what_a_thread_has_used_counts_while_it_lives_and_after() {
    static OVERHEAD: Overhead = Overhead::new();
    let steps = Steps::of(&OVERHEAD, Kind::Log, |wait| {
        wait();
        work();
        OVERHEAD.count_this_thread(Kind::Control);
        wait();
        work();
    });
    steps.next();
    let [control, log, access_log, compile] = OVERHEAD.by_kind();
    assert!(is_about(log, WORK), "{log}");
    assert_eq!([control, access_log, compile], [0; 3], "the first call counts");
    steps.end();
    let ended = OVERHEAD.by_kind();
    assert!(is_about(ended[1], 2 * WORK), "{ended:?}");
    assert_eq!(OVERHEAD.by_kind(), ended);
    assert!(OVERHEAD.lock().alive.is_empty());
}

#[test]
fn what_is_for_a_tenant_is_no_overhead_unless_it_comes_to_nothing() {
    static OVERHEAD: Overhead = Overhead::new();
    let compile = || OVERHEAD.by_kind()[Kind::Compile as usize];
    let steps = Steps::of(&OVERHEAD, Kind::Compile, |wait| {
        work();
        wait();
        let for_tenant = ForTenant::begin();
        work();
        wait();
        assert!(is_about(for_tenant.end().charge(), WORK));
        wait();
        let given_up = ForTenant::begin();
        work();
        drop(given_up);
        wait();
    });
    let before = compile();
    assert!(is_about(before, WORK), "{before}");
    steps.next();
    let meanwhile = compile();
    assert!(is_about(meanwhile, WORK) && meanwhile >= before, "not yet anybody's: {before}, {meanwhile}");
    assert_eq!(compile(), meanwhile, "it stands still");
    steps.next();
    assert!(is_about(compile(), WORK), "the tenant pays: {}", compile());
    steps.next();
    assert!(is_about(compile(), 2 * WORK), "nobody pays: {}", compile());
    steps.end();
    assert!(is_about(compile(), 2 * WORK), "{}", compile());
}

#[test]
fn nothing_ever_goes_back() {
    static OVERHEAD: Overhead = Overhead::new();
    let thread = thread::spawn(|| {
        OVERHEAD.count_this_thread(Kind::Compile);
        for _ in 0..2_000 {
            assert!(ForTenant::begin().end().charge() < WORK);
        }
    });
    let mut last = 0;
    while !thread.is_finished() {
        let now = OVERHEAD.by_kind()[Kind::Compile as usize];
        assert!(now >= last, "{last} {now}");
        last = now;
    }
    thread.join().unwrap();
    assert!(OVERHEAD.by_kind()[Kind::Compile as usize] >= last);
}
