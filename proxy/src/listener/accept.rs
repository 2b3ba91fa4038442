//! The accept loop of one listening socket on one worker.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tollgate_net::{AcceptError, Accepted, NetError};

use super::connection::{Connection, ListenerContext};
use super::handover::pass_on;
use super::serve::{refuse_limited, serve};
use super::serving::Served;
use crate::metrics::AcceptErrorKind;
use crate::worker::{PanicCount, Worker};

/// Pause after an accept error that the next accept would meet again, such as running out of descriptors. The connection
/// stays in the queue meanwhile.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections accepted from one socket before others get their turn: the queues of other sources, and open connections.
const BATCH: u32 = 32;

/// Accepts until the listener drains; each connection becomes a task of its own.
pub(crate) async fn run(worker: Rc<Worker>, listener: Rc<Served>, socket: Rc<TcpListener>) {
    let subscription = listener.signals().subscribe();
    let mut batch = 0;
    loop {
        if listener.signals().state().draining {
            return;
        }
        tollgate_schedule::rest().await;
        if batch == BATCH {
            batch = 0;
            tokio::task::yield_now().await;
        }
        batch += 1;
        let accepted = tokio::select! {
            biased;
            _ = subscription.changed() => continue,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, downstream)) => match prepared(&worker, stream, downstream) {
                Ok(accepted) => {
                    let context = listener.context();
                    if let Some(accepted) = pass_on(&worker, &context, accepted) {
                        start(&worker, &listener, &context, accepted);
                    }
                }
                Err(error) => {
                    worker.flows.metrics().accept_error(AcceptErrorKind::Aborted);
                    tracing::debug!(listener = %listener.context().name, %error, "accepted connection is unusable");
                }
            },
            Err(error) => {
                worker.flows.metrics().accept_error(kind_of(&error));
                match AcceptError::classify(&error) {
                    AcceptError::PerConnection => {}
                    AcceptError::Exhausted => {
                        if listener.begins_pause(PAUSE) {
                            tracing::warn!(listener = %listener.context().name, %error, "accept failed; pausing");
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                    AcceptError::Fatal => {
                        tracing::error!(listener = %listener.context().name, %error, "the listening socket is unusable; it accepts no more");
                        return;
                    }
                }
            }
        }
    }
}

/// Starts the task of one connection. Whatever happens in it, a panic included, ends that connection only.
pub(super) fn start(worker: &Rc<Worker>, served: &Rc<Served>, listener: &Rc<ListenerContext>, accepted: Accepted) {
    let metrics = worker.flows.metrics();
    let opened = metrics.connection_opened(listener.series.index());
    let slot = worker.slots.take();
    worker.make_room();
    let Some(slot) = slot else {
        super::serve::refuse_over_limit(worker, listener, accepted);
        return;
    };
    let connection = Connection::new(worker, listener, accepted.downstream, accepted.original_dst);
    if let Err(limited) = connection.admit() {
        // Here and not in a task of its own: those of whoever hoards would wait for their turn, and have places meanwhile.
        return refuse_limited(&connection, accepted.stream, limited);
    }
    let entered = worker.enter();
    let panics = PanicCount::new(metrics, &connection.payer);
    let connection = Rc::new(connection);
    let group = connection.group().clone();
    served.spawn(&group, async move {
        let _guards = (opened, slot, panics, entered);
        serve(connection, accepted.stream).await;
    });
}

/// What was accepted, ready for use.
fn prepared(worker: &Worker, stream: TcpStream, downstream: SocketAddr) -> Result<Accepted, NetError> {
    Accepted::new(stream, downstream)?.limit_unsent(worker.limits.unsent)
}

fn kind_of(error: &std::io::Error) -> AcceptErrorKind {
    match AcceptError::classify(error) {
        AcceptError::PerConnection => AcceptErrorKind::Aborted,
        AcceptError::Exhausted if error.kind() == std::io::ErrorKind::OutOfMemory => AcceptErrorKind::Memory,
        AcceptError::Exhausted => AcceptErrorKind::Descriptors,
        AcceptError::Fatal => AcceptErrorKind::Other,
    }
}
