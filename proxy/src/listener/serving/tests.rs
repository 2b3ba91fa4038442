use tollgate_policy::Direction;

use super::*;
use crate::flow::{self, FlowConsumer, ListenerLog, Outcome};
use crate::lane::{Handover, Stage};
use crate::metrics::Metrics;
use crate::reason::Reason;
use crate::worker::{Accounts, Groups, run_tasks};

/// Longer than a test runs.
const LONG: Duration = Duration::from_secs(600);

fn serving(groups: Groups) -> (Serving, ListenerSeries) {
    let (serving, series, _) = recorded(groups);
    (serving, series)
}

/// With what takes its records.
fn recorded(groups: Groups) -> (Serving, ListenerSeries, FlowConsumer) {
    let (metrics, counters) = Metrics::new(1);
    let (senders, flows) = flow::channel(counters, 1);
    let worker = Worker::for_test(groups, senders.into_iter().next().unwrap());
    (Serving::new(Rc::new(worker)), metrics.listener("l", Direction::Ingress), flows)
}

fn serve(series: ListenerSeries, direction: Direction) -> Command {
    let config = config::Listener { name: "l".into(), ..config::Listener::new(direction, false) };
    let (done, _) = mpsc::channel(1);
    Command::Serve(Box::new(Serve {
        config: Arc::new(config),
        series,
        access_log: ListenerLog::default(),
        open: Vec::new(),
        close: Vec::new(),
        done,
    }))
}

fn remove(drain: Duration) -> Command {
    Command::Remove { name: "l".into(), drain, done: mpsc::channel(1).0 }
}

/// Runs `test` as a worker runs its tasks.
fn on_a_worker<F: Future<Output = ()> + 'static>(test: impl FnOnce(Groups) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(run_tasks(&runtime, true, Accounts::for_test(), None, test), Some(()), "it has panicked");
}

/// A connection that never ends by itself; the count tells whether its task is there.
fn connection(serving: &Serving) -> (Rc<Served>, Rc<()>) {
    let served = Rc::clone(&serving.listeners["l"].served);
    let alive = Rc::new(());
    let held = Rc::clone(&alive);
    served.spawn(&serving.worker.groups.system, async move {
        let _held = held;
        std::future::pending().await
    });
    (served, alive)
}

#[test]
fn a_removed_listener_drains_stops_and_is_cut() {
    on_a_worker(|groups| async move {
        let (mut serving, series) = serving(groups);
        serving.obey(serve(series.clone(), Direction::Ingress)).await;
        let (served, alive) = connection(&serving);
        serving.obey(remove(LONG)).await;
        assert!(served.signals().state().draining && !served.signals().state().stopping);
        assert_eq!(Rc::strong_count(&alive), 2);
        serving.obey(remove(Duration::ZERO)).await;
        let mut changes = vec![served.signals().state().stopping];
        let cut = async {
            while Rc::strong_count(&alive) > 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                changes.push(served.signals().state().stopping);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), cut).await.expect("what does not stop is dropped");
        changes.dedup();
        assert_eq!(changes, [false, true]);
        serving.follow(State::default());
        assert!(serving.listeners.is_empty());
    });
}

#[test]
fn a_listener_that_comes_back_keeps_its_connections() {
    on_a_worker(|groups| async move {
        let (mut serving, series) = serving(groups);
        serving.obey(serve(series.clone(), Direction::Ingress)).await;
        let (served, alive) = connection(&serving);
        serving.obey(remove(LONG)).await;
        serving.obey(serve(series.clone(), Direction::Ingress)).await;
        assert_eq!(served.signals().state(), State::default());
        assert!(serving.listeners["l"].ending.is_none() && Rc::ptr_eq(&serving.listeners["l"].served, &served));
        assert_eq!(Rc::strong_count(&alive), 2);
    });
}

#[test]
fn a_listener_of_the_other_direction_does_not() {
    on_a_worker(|groups| async move {
        let (mut serving, series) = serving(groups);
        serving.obey(serve(series.clone(), Direction::Ingress)).await;
        let (served, _alive) = connection(&serving);
        serving.obey(remove(LONG)).await;
        serving.obey(serve(series.clone(), Direction::Egress)).await;
        assert!(served.signals().state().draining);
        let process = State { generation: 7, ..State::default() };
        serving.follow(process);
        assert_eq!(served.signals().state().generation, 7, "what drains still follows policy");
        assert_eq!(serving.listeners["l"].served.signals().state(), process);
    });
}

#[test]
fn no_accept_loop_outlives_the_listener() {
    on_a_worker(|groups| async move {
        let (mut serving, series) = serving(groups);
        let Command::Serve(mut twice) = serve(series.clone(), Direction::Ingress) else { unreachable!() };
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        twice.open = vec![(address, vec![socket.try_clone().unwrap()]), (address, vec![socket])];
        serving.obey(Command::Serve(twice)).await;
        serving.obey(remove(LONG)).await;
        assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens any more");
    });
}

#[test]
fn a_connection_from_another_thread_finds_the_listener_that_accepted_it() {
    on_a_worker(|groups| async move {
        let (mut serving, series) = serving(groups);
        let config_of = |command: &Command| match command {
            Command::Serve(serve) => Arc::clone(&serve.config),
            Command::Remove { .. } => unreachable!(),
        };
        let (first, changed) = (serve(series.clone(), Direction::Ingress), serve(series.clone(), Direction::Ingress));
        let (config, other) = (config_of(&first), config_of(&serve(series.clone(), Direction::Egress)));
        serving.obey(first).await;
        let (served, context) = serving.listener_of(&config).unwrap();
        assert!(Arc::ptr_eq(&context.config, &config));
        assert!(serving.listener_of(&other).is_none(), "one of that name that judges the other direction is another");
        serving.obey(changed).await;
        let (same, context) = serving.listener_of(&config).unwrap();
        assert!(Rc::ptr_eq(&same, &served) && !Arc::ptr_eq(&context.config, &config));
        // One that drains takes up its own, until it is gone.
        let config = Arc::clone(&context.config);
        serving.obey(remove(LONG)).await;
        let (served, _alive) = connection(&serving);
        serving.obey(serve(series.clone(), Direction::Egress)).await;
        assert!(Rc::ptr_eq(&serving.listener_of(&config).unwrap().0, &served));
        serving.replaced.clear();
        assert!(serving.listener_of(&config).is_none());
    });
}

#[test]
fn a_connection_that_comes_from_another_thread_too_late_is_reset_and_on_record() {
    on_a_worker(|groups| async move {
        let (mut serving, series, mut flows) = recorded(groups);
        let Command::Serve(of_lane) = serve(series.clone(), Direction::Ingress) else { unreachable!() };
        let config = Arc::clone(&of_lane.config);
        serving.obey(Command::Serve(of_lane)).await;
        serving.obey(remove(Duration::ZERO)).await;
        let served = Rc::clone(&serving.listeners["l"].served);
        let stopped = async {
            while !served.is_stopping() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), stopped).await.expect("it has no time to drain");
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        let (stream, downstream) = socket.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let original_dst = "127.0.0.1:9".parse().unwrap();
        let (stage, access_log) = (Stage::Accepted, ListenerLog::default());
        serving.take_up(Handover { config, series, access_log, stream, downstream, original_dst, stage });
        assert_eq!(served.connections.borrow().len(), 0, "nobody would end it");
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(client.peek(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut records = Vec::new();
        assert_eq!(flows.drain(&mut records, 8), 1);
        let record = &records[0].record;
        assert_eq!((&*record.listener, record.downstream, record.original_dst), ("l", downstream, original_dst));
        assert_eq!((record.outcome, record.reason), (Outcome::Failed, Some(Reason::Draining)));
    });
}

#[test]
fn a_lane_knows_the_addresses_of_its_listeners() {
    on_a_worker(|groups| async move {
        let (mut serving, series) = serving(groups);
        let Command::Serve(mut of_lane) = serve(series.clone(), Direction::Ingress) else { unreachable!() };
        let address = "127.0.0.1:9".parse().unwrap();
        of_lane.open = vec![(address, Vec::new())];
        serving.obey(Command::Serve(of_lane)).await;
        assert_eq!(*serving.worker.own_addresses.borrow(), [address]);
        serving.obey(remove(LONG)).await;
        assert!(serving.worker.own_addresses.borrow().is_empty());
    });
}

#[test]
#[expect(clippy::await_holding_refcell_ref, reason = "the defect that this is about")]
fn a_panic_while_accepting_costs_one_connection() {
    on_a_worker(|groups| async move {
        let (mut serving, index) = serving(groups);
        let Command::Serve(mut command) = serve(index, Direction::Ingress) else { unreachable!() };
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        command.open = vec![(address, vec![socket])];
        serving.obey(Command::Serve(command)).await;
        let served = Rc::clone(&serving.listeners["l"].served);

        // Whoever asks for the settings meanwhile panics.
        let settings = served.context.borrow_mut();
        accepted_and_closed(address).await;
        drop(settings);
        // A loop, which is refused.
        accepted_and_closed(address).await;
    });
}

/// Connects, and waits until somebody has closed the connection.
async fn accepted_and_closed(address: SocketAddr) {
    let client = std::net::TcpStream::connect(address).expect("somebody listens");
    client.set_nonblocking(true).unwrap();
    let closed = async {
        while matches!(client.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), closed).await.expect("somebody accepts");
}
