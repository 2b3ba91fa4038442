//! Benches of what the proxy's own crate does on the way of a request. One binary for all, because linking the whole
//! tree with optimisation takes longer than running them.

mod canonical_path;
mod flow_record;
mod proxied_request;
mod request_head;

criterion::criterion_main!(
    canonical_path::benches,
    request_head::benches,
    flow_record::benches,
    proxied_request::benches
);
