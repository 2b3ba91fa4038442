//! Canonicalisation of request paths: nearly all are canonical already, and those must cost next to nothing.

use std::hint::black_box;

use criterion::{Criterion, criterion_group};
use tollgate::config::{EscapedSlashes, Normalize, Underscores};
use tollgate::http::canonical::{CanonicalPath, canonicalise};

const AS_CILIUM_SETS_IT: Normalize = Normalize {
    path: true,
    merge_slashes: true,
    escaped_slashes: EscapedSlashes::UnescapeAndRedirect,
    field_underscores: Underscores::Keep,
};

fn paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("http/canonicalise");
    for (name, target, unchanged) in [
        ("plain", "/api/v1/svc00042/items/12345?verbose=1", true),
        ("unreserved_escape", "/api/v1/svc00042/%69tems/12345", false),
        ("dots_and_slashes", "/api//v1/./svc00042/../svc00043/items/12345", false),
    ] {
        let first = canonicalise(target.as_bytes(), &AS_CILIUM_SETS_IT);
        assert!(first.is_ok(), "{target}: {first:?}");
        assert_eq!(first == Ok(CanonicalPath::Unchanged), unchanged, "{target}: {first:?}");
        group.bench_function(name, |bencher| {
            bencher.iter(|| canonicalise(black_box(target.as_bytes()), black_box(&AS_CILIUM_SETS_IT)));
        });
    }
    group.finish();
}

criterion_group!(benches, paths);
