//! Reading a request head: framing, authority, connection options and the canonical path, as for every HTTP/1 request.

use std::hint::black_box;

use criterion::{Criterion, criterion_group};
use tollgate::config::{EscapedSlashes, Normalize, Underscores};
use tollgate::http::canonical_path_of;

const AS_CILIUM_SETS_IT: Normalize = Normalize {
    path: true,
    merge_slashes: true,
    escaped_slashes: EscapedSlashes::UnescapeAndRedirect,
    field_underscores: Underscores::Keep,
};

fn heads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("http/request_head");
    let curl =
        "GET /api/v1/svc00042/items/12345 HTTP/1.1\r\nHost: orders:8080\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n";
    let browser = format!(
        "GET /api/v1/svc00042/../svc00043/items?q=1 HTTP/1.1\r\nHost: orders\r\nConnection: keep-alive\r\n{}\r\n",
        (0..20).map(|i| format!("X-Field-{i}: value of field {i}\r\n")).collect::<String>()
    );
    for (name, head, path) in
        [("curl", curl, "/api/v1/svc00042/items/12345"), ("browser_and_dots", &*browser, "/api/v1/svc00043/items?q=1")]
    {
        assert_eq!(canonical_path_of(head.as_bytes(), &AS_CILIUM_SETS_IT), Ok(path.as_bytes().to_vec()), "{name}");
        group.bench_function(name, |bencher| {
            bencher.iter(|| canonical_path_of(black_box(head.as_bytes()), black_box(&AS_CILIUM_SETS_IT)));
        });
    }
    group.finish();
}

criterion_group!(benches, heads);
