//! Counting the bytes of a flow as they go: on the account of whoever pays at that moment, however long the flow lives.

use super::OpenFlow;

/// One direction of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meter<'a> {
    /// From downstream to upstream.
    Up(&'a OpenFlow),
    /// From upstream to downstream.
    Down(&'a OpenFlow),
    /// What goes nowhere is not counted.
    Off,
}

impl Meter<'_> {
    /// Counts bytes that went.
    pub(crate) fn add(self, bytes: usize) {
        match self {
            Self::Up(flow) => flow.add_up(bytes as u64),
            Self::Down(flow) => flow.add_down(bytes as u64),
            Self::Off => {}
        }
    }
}
