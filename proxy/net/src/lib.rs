//! Linux sockets: TPROXY listeners, original destination, marks, transparent upstreams.
