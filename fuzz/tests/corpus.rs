//! Every checked-in input, without a fuzzer: what runs where none can be built.

use std::fs;
use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        run(&fs::read(entry.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", directory.display());
}

#[test]
fn policy() {
    replay("policy", tollgate_fuzz::policy);
}

#[test]
fn differential() {
    replay("differential", tollgate_fuzz::differential);
}

#[test]
fn budget() {
    replay("budget", tollgate_fuzz::budget);
}

#[test]
fn server_name() {
    replay("server_name", tollgate_fuzz::server_name);
}

#[test]
fn regex() {
    replay("regex", tollgate_fuzz::regex);
}
