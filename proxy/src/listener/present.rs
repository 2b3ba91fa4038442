//! A connection in one world: what all of one decision rests on. A request loads the world and looks up its ends once, and
//! whatever is decided about it is decided by the same.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::Guard;
use tollgate_policy::SecurityId;
use tollgate_schedule::{Work, mark};

use super::connection::Connection;
use super::identities::{Barred, Identities};
use crate::control::World;
use crate::flow::{FlowRecord, OpenFlow, Protocol};
use crate::reason::Reason;
use crate::tenant::{Head, Limited};

/// The present of a connection. Not to be held across an await: decide, then let go.
#[derive(Debug)]
pub(crate) struct Present<'c> {
    pub(super) connection: &'c Connection,
    pub(super) world: Guard<Arc<World>>,
    /// Who is at both ends; an error where that cannot be told, or ends the connection.
    pub(super) identities: Result<Identities, Barred>,
}

impl<'c> Present<'c> {
    pub(super) fn new(connection: &'c Connection) -> Self {
        let _work = mark(Work::Policy);
        let world = connection.worker.world.load();
        let identities = connection.identities(&world);
        Self { connection, world, identities }
    }

    /// A record that begins at `started`, with what is known about every flow of this connection.
    pub(crate) fn open_flow(&self, protocol: Protocol, started: Instant) -> OpenFlow {
        let connection = self.connection;
        // For what is refused without being judged; a decision notes those that it was taken by.
        let identities = self.identities.ok();
        let record = FlowRecord {
            source: identities.map_or(SecurityId(0), |identities| identities.source),
            destination: identities.map_or(SecurityId(0), |identities| identities.destination),
            ..FlowRecord::new(
                connection.worker.flows.wall_clock(started),
                Arc::clone(&connection.listener.name),
                connection.listener.config.direction,
                connection.downstream,
                connection.original_dst,
                protocol,
            )
        };
        connection.begin(record, started)
    }

    /// Takes what a request has to have whose head is there, until its flow ends. Where memory is what it lacks, idle connections of
    /// its tenant make room for it.
    ///
    /// # Errors
    /// The limit of its tenant that it would exceed.
    pub(crate) fn admit_request(&self, flow: &mut OpenFlow, head: &Head<'_>) -> Result<(), Limited> {
        let admitted = flow.admit(&self.world.tenants, head);
        if !admitted.is_err_and(|limited| limited.reason == Reason::TenantMemory) {
            return admitted;
        }
        self.connection.worker.make_room_in_memory_of(self.connection.payer.tenant());
        flow.admit(&self.world.tenants, head)
    }
}
