use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};

use tempfile::TempDir;

use super::*;
use crate::policy_file;

fn policy(id: u64) -> String {
    format!("{{\"endpointId\": \"{id}\", \"endpointIps\": [\"10.0.0.{id}\"]}}")
}

/// Writes a file the way careful programs do: under another name first.
fn replace(directory: &TempDir, name: &str, text: &str) {
    let hidden = directory.path().join(format!(".{name}.tmp"));
    fs::write(&hidden, text).unwrap();
    fs::rename(hidden, directory.path().join(name)).unwrap();
}

fn ids(reading: &Reading) -> Vec<u64> {
    reading.set.policies.iter().map(|policy| policy.endpoint_id).collect()
}

fn open(directory: &TempDir) -> Directory {
    Directory::open(directory.path()).unwrap()
}

#[tokio::test]
async fn the_first_reading_holds_every_policy_file_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    replace(
        &directory,
        "b.yaml",
        "- {endpointId: 2, endpointIps: [10.0.0.2]}\n- {policy: 9, hostAddresses: [10.0.0.9]}\n",
    );
    replace(&directory, "a.json", &policy(1));
    for name in [".hidden.json", "c.json~", "#d.json#", "notes.txt", ".e.json.swp"] {
        replace(&directory, name, &policy(99));
    }
    fs::create_dir(directory.path().join("folder.json")).unwrap();
    let reading = open(&directory).next().await;
    assert_eq!((ids(&reading), reading.changed, reading.errors), (vec![1, 2], true, vec![]));
    assert_eq!(reading.set.hosts[0].policy, 9);
}

#[tokio::test]
async fn an_empty_directory_is_a_reading_too() {
    let directory = tempfile::tempdir().unwrap();
    let reading = open(&directory).next().await;
    assert_eq!(reading, Reading { set: PolicySet::default(), changed: false, is_known: true, errors: vec![] });
}

#[tokio::test]
async fn changes_follow_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut watched = open(&directory);
    watched.next().await;
    replace(&directory, "a.json", &policy(1));
    assert_eq!(ids(&watched.next().await), [1]);
    fs::write(directory.path().join("b.json"), policy(2)).unwrap();
    assert_eq!(ids(&watched.next().await), [1, 2]);
    fs::write(directory.path().join("b.json"), policy(3)).unwrap();
    assert_eq!(ids(&watched.next().await), [1, 3]);
    fs::rename(directory.path().join("a.json"), directory.path().join("c.json")).unwrap();
    assert_eq!(ids(&watched.next().await), [3, 1]);
    fs::remove_file(directory.path().join("b.json")).unwrap();
    let reading = watched.next().await;
    assert_eq!((ids(&reading), reading.changed), (vec![1], true));
}

#[tokio::test]
async fn a_file_that_does_not_load_keeps_its_last_good_content() {
    let directory = tempfile::tempdir().unwrap();
    replace(&directory, "a.json", &policy(1));
    let mut watched = open(&directory);
    watched.next().await;

    replace(&directory, "a.json", "{\n\"endpointId\": 1,\n\"endpoint_ipz\": []}");
    replace(&directory, "b.json", &policy(2));
    let reading = watched.next().await;
    assert_eq!((ids(&reading), reading.changed), (vec![1, 2], true), "one bad file holds up no other");
    let [error] = &reading.errors[..] else { panic!("one error, not {:?}", reading.errors) };
    assert_eq!(error.place.to_string(), format!("{}:3", directory.path().join("a.json").display()));
    assert_eq!(watched.failing().collect::<Vec<_>>(), [error]);

    fs::write(directory.path().join("a.json"), "").unwrap();
    let reading = watched.next().await;
    assert_eq!(
        (ids(&reading), reading.changed, reading.errors.len()),
        (vec![1, 2], false, 1),
        "emptied is not deleted"
    );

    replace(&directory, "a.json", &policy(1));
    let reading = watched.next().await;
    assert_eq!((ids(&reading), reading.changed, reading.errors), (vec![1, 2], false, vec![]), "right again is news");
    assert_eq!(watched.failing().count(), 0);

    replace(&directory, "a.json", &policy(3));
    let reading = watched.next().await;
    assert_eq!((ids(&reading), reading.errors), (vec![3, 2], vec![]));
    assert_eq!(watched.failing().count(), 0);
}

#[tokio::test]
async fn a_file_is_read_only_when_its_writer_is_done() {
    let directory = tempfile::tempdir().unwrap();
    replace(&directory, "a.yaml", "- {endpointId: 1}\n");
    let mut watched = open(&directory);
    watched.next().await;

    // The first half is a valid file in itself.
    let mut writer = fs::File::create(directory.path().join("a.yaml")).unwrap();
    writer.write_all(b"- {endpointId: 10}\n").unwrap();
    for id in 20..25 {
        replace(&directory, "b.json", &policy(id));
        assert_eq!(ids(&watched.next().await), [1, id]);
    }
    writer.write_all(b"- {endpointId: 11}\n").unwrap();
    drop(writer);
    assert_eq!(ids(&watched.next().await), [10, 11, 24]);
}

#[tokio::test]
async fn a_mounted_configuration_changes_as_a_whole() {
    // As the kubelet does it: names link through `..data`, which is replaced.
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for (version, files) in [("..1", vec![("a.json", 1), ("b.json", 2)]), ("..2", vec![("a.json", 3)])] {
        fs::create_dir(root.join(version)).unwrap();
        for (name, id) in files {
            fs::write(root.join(version).join(name), policy(id)).unwrap();
        }
    }
    symlink("..1", root.join("..data")).unwrap();
    for name in ["a.json", "b.json"] {
        symlink(format!("..data/{name}"), root.join(name)).unwrap();
    }
    let mut watched = open(&directory);
    assert_eq!(ids(&watched.next().await), [1, 2]);
    symlink("..2", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    assert_eq!(ids(&watched.next().await), [3]);
}

#[tokio::test]
async fn a_directory_that_vanishes_keeps_its_policies_and_is_found_again() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("policies");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.json"), policy(1)).unwrap();
    let mut watched = Directory::open(&path).unwrap();
    assert_eq!(ids(&watched.next().await), [1]);

    fs::rename(&path, parent.path().join("elsewhere")).unwrap();
    let reading = watched.next().await;
    assert_eq!((ids(&reading), reading.changed), (vec![1], false));
    assert!(reading.errors[0].message.starts_with("cannot read the directory"), "{:?}", reading.errors);

    assert_eq!(watched.failing().count(), 1);

    let prepared = parent.path().join("prepared");
    fs::create_dir(&prepared).unwrap();
    fs::write(prepared.join("b.json"), policy(2)).unwrap();
    fs::rename(&prepared, &path).unwrap();
    assert_eq!(ids(&watched.next().await), [2]);
    assert_eq!(watched.failing().count(), 0);
}

#[tokio::test]
async fn what_two_files_claim_is_known_with_its_places() {
    let directory = tempfile::tempdir().unwrap();
    replace(
        &directory,
        "a.yaml",
        "- {endpointId: 1, endpointIps: [10.0.0.1, 10.0.0.2]}\n\n- {endpointId: 2, endpointIps: [b]}\n",
    );
    replace(
        &directory,
        "b.json",
        "[{\"endpointId\": 2,\n\"endpointIps\": [\"c\"]},\n{\"endpointId\": 3, \"endpointIps\": [\"10.0.0.2\"]}]",
    );
    let reading = open(&directory).next().await;
    let contested: Vec<String> = reading.set.contested().iter().map(ToString::to_string).collect();
    let root = directory.path().display();
    let expected = [
        format!("endpoint 10.0.0.2 is claimed by {root}/a.yaml:1 and {root}/b.json:3; each of these"),
        format!("endpoint_id 2 is claimed by {root}/a.yaml:3 and {root}/b.json:1; control planes name"),
    ];
    assert_eq!(contested.len(), expected.len(), "{contested:?}");
    for (found, expected) in contested.iter().zip(expected) {
        assert!(found.starts_with(&expected), "{found}");
    }
}

#[test]
fn a_directory_that_is_not_there_is_an_error_with_a_remedy() {
    let error = Directory::open(Path::new("/nonexistent/policies")).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/policies: cannot read the directory: "), "{error}");
    assert!(error.ends_with("create it or correct the path"), "{error}");
}

/// A file that was cut to nothing before the start would otherwise take its policy away in silence.
#[tokio::test]
async fn a_file_that_stays_empty_is_a_mistake() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), "").unwrap();
    let mut watched = open(&directory);
    let mut reading = watched.next().await;
    if reading.errors.is_empty() {
        reading = watched.next().await;
    }
    assert!(reading.errors[0].message.contains("holds no resource"), "{reading:?}");
    assert_eq!(watched.failing().count(), 1);
}

/// As large as it takes to be read aside, and more.
fn large(id: u64) -> String {
    format!("{{\"endpointId\": \"{id}\", \"endpointIps\": [\"10.0.0.1\"{}]}}", ", \"10.0.0.1\"".repeat(20_000))
}

/// One that is read for longer than anything stays in its place.
fn huge(id: u64) -> String {
    large(id).replace("]", &format!("{}]", ", \"10.0.0.1\"".repeat(100_000)))
}

#[tokio::test]
async fn a_large_file_holds_up_no_other() {
    let directory = tempfile::tempdir().unwrap();
    replace(&directory, "a.json", &large(1));
    replace(&directory, "b.json", &policy(2));
    let mut watched = open(&directory);
    assert_eq!(ids(&watched.next().await), [1, 2], "the first reading is whole");
    replace(&directory, "a.json", &large(3));
    replace(&directory, "b.json", &policy(4));
    replace(&directory, "c.json", &large(5).replace("10.0.0.1", "1"));
    assert_eq!(ids(&watched.next().await), [1, 4]);
    assert_eq!(ids(&watched.next().await), [1, 4, 5], "the smaller one");
    assert_eq!(ids(&watched.next().await), [3, 4, 5]);
    // What has no effect any more when it has been read has none.
    replace(&directory, "a.json", &large(6));
    replace(&directory, "b.json", &policy(7));
    assert_eq!(ids(&watched.next().await), [3, 7, 5]);
    replace(&directory, "a.json", &policy(8));
    assert_eq!(ids(&watched.next().await), [8, 7, 5]);
    replace(&directory, "a.json", &large(9));
    replace(&directory, "b.json", &policy(10));
    assert_eq!(ids(&watched.next().await), [8, 10, 5]);
    fs::remove_file(directory.path().join("a.json")).unwrap();
    assert_eq!(ids(&watched.next().await), [10, 5]);
    replace(&directory, "c.json", &large(11).replace("]", "]]"));
    replace(&directory, "b.json", &policy(12));
    assert_eq!(ids(&watched.next().await), [12, 5]);
    let reading = watched.next().await;
    assert_eq!(
        (ids(&reading), reading.changed, reading.errors.len()),
        (vec![12, 5], false, 1),
        "one that does not load"
    );
}

/// Puts others in the place of a file until it is dropped.
struct Swapping(std::sync::mpsc::Sender<()>, Option<std::thread::JoinHandle<()>>);

impl Swapping {
    fn begin(directory: &TempDir, name: &'static str, pause: Duration, text: impl Fn(u64) -> String) -> Self {
        let root = directory.path().to_owned();
        let texts = [text(21), text(22)];
        let (end, ended) = std::sync::mpsc::channel();
        let swap = move || {
            for text in texts.iter().cycle() {
                fs::write(root.join(".swapped"), text).unwrap();
                fs::rename(root.join(".swapped"), root.join(name)).unwrap();
                if ended.recv_timeout(pause) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        Self(end, Some(std::thread::spawn(swap)))
    }
}

impl Drop for Swapping {
    fn drop(&mut self) {
        let _ = self.0.send(());
        let _ = self.1.take().map(std::thread::JoinHandle::join);
    }
}

/// The next reading that holds one of these endpoints.
async fn with_any_of(watched: &mut Directory, wanted: [u64; 2]) -> Reading {
    let found = async {
        loop {
            let reading = watched.next().await;
            if ids(&reading).iter().any(|id| wanted.contains(id)) {
                return reading;
            }
        }
    };
    timeout(Duration::from_secs(60), found).await.expect("it has to be read")
}

/// Whoever keeps replacing a file must not keep in force what it held before.
#[tokio::test]
async fn a_file_that_is_replaced_all_the_time_is_read() {
    for (pause, text) in [(20, policy as fn(u64) -> String), (20, large), (70, huge)] {
        let directory = tempfile::tempdir().unwrap();
        replace(&directory, "a.json", &text(1));
        let mut watched = open(&directory);
        assert_eq!(ids(&watched.next().await), [1]);
        let swapping = Swapping::begin(&directory, "a.json", Duration::from_millis(pause), text);
        with_any_of(&mut watched, [21, 22]).await;
        drop(swapping);
        replace(&directory, "a.json", &policy(30));
        with_any_of(&mut watched, [30, 30]).await;
    }
}

/// One that waits to be read aside is not read when somebody has begun to write it meanwhile, or another in its place.
#[tokio::test]
async fn a_file_that_is_written_while_it_waits_to_be_read_is_not_read_by_halves() {
    for in_place in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("a.json", policy(1)), ("b.yaml", "- {endpointId: 2}\n".to_owned()), ("c.json", policy(3))]
        {
            replace(&directory, name, &text);
        }
        let mut watched = open(&directory);
        assert_eq!(ids(&watched.next().await), [1, 2, 3]);
        // One that is read for long, and then one that waits.
        replace(&directory, "a.json", &huge(20));
        replace(&directory, "c.json", &policy(4));
        assert_eq!(ids(&watched.next().await), [1, 2, 4]);
        replace(&directory, "b.yaml", &format!("- {}\n", large(5)));
        replace(&directory, "c.json", &policy(6));
        assert_eq!(ids(&watched.next().await), [1, 2, 6]);
        let path = directory.path().join("b.yaml");
        if !in_place {
            fs::remove_file(&path).unwrap();
        }
        let mut writer = fs::File::create(path).unwrap();
        writer.write_all(b"- {endpointId: 10}\n").unwrap();
        let before = with_any_of(&mut watched, [20, 20]).await;
        assert_eq!(ids(&before), [20, 2, 6], "in place: {in_place}");
        for id in 30..35 {
            replace(&directory, "c.json", &policy(id));
            assert_eq!(ids(&watched.next().await), [20, 2, id], "in place: {in_place}");
        }
        writer.write_all(b"- {endpointId: 11}\n").unwrap();
        drop(writer);
        assert_eq!(ids(&with_any_of(&mut watched, [11, 11]).await), [20, 10, 11, 34]);
    }
}

/// Others that claim the same address would decide alone.
#[tokio::test]
async fn the_first_reading_misses_no_file_that_is_replaced_all_the_time() {
    for (pause, text) in [(20, policy as fn(u64) -> String), (20, large), (70, large)] {
        let directory = tempfile::tempdir().unwrap();
        let swapping = Swapping::begin(&directory, "a.json", Duration::from_millis(pause), text);
        replace(&directory, "b.json", &policy(1));
        while !directory.path().join("a.json").exists() {
            std::thread::yield_now();
        }
        let mut watched = open(&directory);
        let reading = watched.next().await;
        assert!(matches!(ids(&reading)[..], [21 | 22, 1]), "{reading:?}");
        drop(swapping);
    }
}

/// What was in force before the start is not known any more, so none of it may be missing in silence.
#[tokio::test]
async fn what_cannot_be_read_at_a_start_allows_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let broken = [
        (
            "a.json",
            r#"[{"endpointId": "1", "endpointIps": ["10.0.0.1", "b"], "ingress": []}, {"endpointId": 2, "endpoint_ips": ["10.0.0.2"]}]"#,
        ),
        (
            "b.json",
            r#"[{"endpointId": "3", "endpointIps": ["10.0.0.3", "fd00::3"], "x": 1}, {"endpointId": 4 "endpointIps": ["10.0.0.4"]}"#,
        ),
        ("c.yaml", "endpoint_id: 5\nendpoint_ipz: [10.0.0.5]\n"),
        (
            "d.yaml",
            "- endpoint_id: 6\n  endpoint_ips:\n  - 10.0.0.6\n  - fe80::\n  ingress_per_port_policies: [{ port: 80 \n",
        ),
        ("e.yaml", "name: 10.0.0.7\npolicy: 7\nrules: 1\n"),
        ("f.yaml", "endpoint_ips: [10.0.0.8]\nrules: 1\n"),
        ("g.yaml", "name: team\nmembers: { addresses: [10.0.0.9], more: 1 }\n"),
        ("h.yaml", "{ endpoint_ips: [10.0.0.10, "),
    ];
    for (name, text) in broken {
        replace(&directory, name, text);
    }
    replace(&directory, "z.json", &policy(30));
    let mut watched = open(&directory);
    let reading = watched.next().await;
    let claimed = |reading: &Reading| -> Vec<(u64, String)> {
        let policies = reading.set.policies.iter();
        policies.map(|policy| (policy.endpoint_id, policy.endpoint_ips.join(" "))).collect()
    };
    let expected = [
        (1, "10.0.0.1 b"),
        (2, "10.0.0.2"),
        (3, "10.0.0.3 fd00::3"),
        (4, "10.0.0.4"),
        (5, "10.0.0.5"),
        (6, "10.0.0.6 fe80::"),
        (7, "10.0.0.7"),
        (u64::MAX, "10.0.0.8"),
        (u64::MAX, "10.0.0.10"),
        (30, "10.0.0.30"),
    ]
    .map(|(id, ips)| (id, ips.to_owned()));
    assert_eq!(claimed(&reading), expected);
    let failing: std::collections::HashSet<_> = watched.failing().map(|error| &error.place.file).collect();
    assert_eq!(failing.len(), broken.len());
    let mut denying = reading.set.policies.iter().filter(|policy| policy.endpoint_id != 30);
    assert!(
        denying.all(|policy| policy.ingress_per_port_policies.is_empty() && policy.egress_per_port_policies.is_empty())
    );

    // It follows the file until that loads, and what was read once stays whatever comes.
    replace(&directory, "f.yaml", "endpoint_ips: [10.0.0.8, 10.0.0.11]\nrules: 1\n");
    for name in ["a.json", "b.json", "c.yaml", "e.yaml"] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    let expected =
        [(6, "10.0.0.6 fe80::"), (u64::MAX, "10.0.0.8 10.0.0.11"), (u64::MAX, "10.0.0.10"), (30, "10.0.0.30")];
    let reading = watched.next().await;
    assert_eq!(claimed(&reading), expected.map(|(id, ips)| (id, ips.to_owned())));
    for (name, id) in [("d.yaml", 6), ("f.yaml", 8)] {
        replace(&directory, name, &policy(id));
    }
    fs::remove_file(directory.path().join("h.yaml")).unwrap();
    let reading = watched.next().await;
    assert_eq!(ids(&reading), [6, 8, 30]);
    // Of a file that comes later, nothing was in force before.
    for (name, text) in [("f.yaml", "endpoint_ips: [10.0.0.12]\nrules: 1\n"), ("i.yaml", broken[5].1)] {
        replace(&directory, name, text);
    }
    let reading = watched.next().await;
    assert_eq!((ids(&reading), reading.changed, reading.errors.len()), (vec![6, 8, 30], false, 2));
}

/// Whoever writes at a start is waited for, but not for ever.
#[tokio::test]
async fn a_file_that_is_being_written_at_a_start_allows_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut watched = open(&directory);
    let mut writer = fs::File::create(directory.path().join("a.yaml")).unwrap();
    writer.write_all(b"- { endpoint_id: 1, endpoint_ips: [10.0.0.1] }\n").unwrap();
    replace(&directory, "b.json", &policy(2));
    let reading = timeout(Duration::from_secs(60), watched.next()).await.expect("it waits for nobody for ever");
    assert_eq!(ids(&reading), [1, 2]);
    assert!(reading.errors[0].message.contains("its endpoints deny"), "{reading:?}");
    assert!(watched.failing().count() == 1);
    writer.write_all(b"- { endpoint_id: 3, endpoint_ips: [10.0.0.3] }\n").unwrap();
    drop(writer);
    assert_eq!(ids(&with_any_of(&mut watched, [3, 3]).await), [1, 3, 2]);
    assert_eq!(watched.failing().count(), 0);
}

/// What is in it counts as at any start: nothing of it was in force before.
#[tokio::test]
async fn a_directory_that_cannot_be_listed_at_a_start_is_waited_for() {
    let parent = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (parent.path().join("policies"), parent.path().join("elsewhere"));
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), "endpoint_ips: [10.0.0.8]\nrules: 1\n").unwrap();
    fs::write(path.join("b.json"), policy(2)).unwrap();
    let mut watched = Directory::open(&path).unwrap();
    fs::rename(&path, &elsewhere).unwrap();
    let reading = watched.next().await;
    assert_eq!((ids(&reading), reading.is_known, reading.errors.len()), (vec![], false, 1));
    fs::rename(&elsewhere, &path).unwrap();
    let reading = timeout(Duration::from_secs(60), watched.next()).await.expect("it is there again");
    assert_eq!((ids(&reading), reading.is_known, reading.changed), (vec![u64::MAX, 2], true, true));
}

#[tokio::test]
async fn what_a_file_claims_is_looked_for_in_more_of_it_than_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let large = fs::File::create(directory.path().join("a.json")).unwrap();
    let spread = |at: u64, text: &str| large.write_all_at(text.as_bytes(), at).unwrap();
    spread(0, "[{\"endpointId\": 1, \"endpointIps\": [\"10.0.0.1\", ");
    spread((1 << 20) - 5, " \"10.0.0.2\"]}, ");
    spread(65 << 20, " {\"endpointId\": \"3\", \"endpointIps\": [\"10.0.0.3\"]}]");
    let mut large = Some(large);
    // Nothing is known of one that cannot even be opened.
    symlink("b.json", directory.path().join("b.json")).unwrap();
    replace(&directory, "c.json", &policy(4));
    for is_open in [true, false] {
        // Nor in less of one that somebody is still writing.
        large = large.filter(|_| is_open);
        let mut watched = open(&directory);
        let reading = watched.next().await;
        let policies = reading.set.policies.iter();
        let claims: Vec<(u64, String)> =
            policies.map(|policy| (policy.endpoint_id, policy.endpoint_ips.join(" "))).collect();
        let expected = [(1, "10.0.0.1 10.0.0.2"), (3, "10.0.0.3"), (4, "10.0.0.4")];
        assert_eq!(claims, expected.map(|(id, addresses)| (id, addresses.to_owned())));
        let untold: Vec<bool> = reading.errors.iter().map(|error| error.message.ends_with(UNTOLD)).collect();
        assert_eq!(untold, [true, true], "a gap without an end of a word, too: {:?}", reading.errors);
    }
}

/// The first half of a list of policies can be a valid one, and what is missing may be what it denies.
#[tokio::test]
async fn a_file_that_is_finished_while_its_first_half_is_read_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("a.json", policy(1)), ("b.yaml", "- {endpointId: 2}\n".to_owned()), ("c.json", policy(3))] {
        replace(&directory, name, &text);
    }
    let mut watched = open(&directory);
    assert_eq!(ids(&watched.next().await), [1, 2, 3]);
    // One that is read for long, and then one that waits.
    replace(&directory, "a.json", &huge(20));
    replace(&directory, "c.json", &policy(4));
    assert_eq!(ids(&watched.next().await), [1, 2, 4]);
    replace(&directory, "b.yaml", &format!("- {}\n", large(5)));
    replace(&directory, "c.json", &policy(6));
    assert_eq!(ids(&watched.next().await), [1, 2, 6]);
    let path = directory.path().join("b.yaml");
    fs::remove_file(&path).unwrap();
    let mut writer = fs::File::create(path).unwrap();
    writer.write_all(b"- {endpointId: 10}\n").unwrap();
    assert_eq!(ids(&with_any_of(&mut watched, [20, 20]).await), [20, 2, 6]);
    watched.aside.wait().await;
    // The kernel's word comes before anybody asks what was read.
    let before = watched.watch.as_ref().unwrap().events.len();
    writer.write_all(b"- {endpointId: 11}\n").unwrap();
    drop(writer);
    fs::write(directory.path().join("notes.txt"), "").unwrap();
    while watched.watch.as_ref().unwrap().events.len() < before + 5 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let reading = with_any_of(&mut watched, [10, 11]).await;
    assert_eq!(ids(&reading), [20, 10, 11, 6]);
}

/// What others do to a file says nothing about who writes it.
#[tokio::test]
async fn who_only_touches_a_file_is_not_who_writes_it() {
    let acts: [fn(&Path); 4] = [
        |path| fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap(),
        |path| {
            let file = fs::File::options().append(true).open(path).unwrap();
            let now = std::time::SystemTime::now();
            file.set_times(fs::FileTimes::new().set_accessed(now).set_modified(now)).unwrap();
        },
        |path| _ = fs::read(path).unwrap(),
        |path| fs::rename(path, path.with_file_name("a.yaml")).unwrap(),
    ];
    let mut halves = Vec::new();
    for (which, act) in acts.into_iter().enumerate() {
        let directory = tempfile::tempdir().unwrap();
        replace(&directory, "a.yaml", "- {endpointId: 1}\n");
        let mut watched = open(&directory);
        watched.next().await;
        let path = directory.path().join(if which == 3 { ".a.yaml.tmp" } else { "a.yaml" });
        let mut writer = fs::File::create(&path).unwrap();
        writer.write_all(b"- {endpointId: 10}\n").unwrap();
        act(&path);
        for id in 20..25 {
            replace(&directory, "b.json", &policy(id));
            if with_any_of(&mut watched, [id, id]).await.set.policies[0].endpoint_id != 1 {
                halves.push(which);
                break;
            }
        }
        writer.write_all(b"- {endpointId: 11}\n").unwrap();
        drop(writer);
        assert_eq!(ids(&with_any_of(&mut watched, [11, 11]).await)[..2], [10, 11], "act {which}");
    }
    assert_eq!(halves, [0; 0]);
}

/// Nor does the kernel's word have to be there already: it has the file itself.
#[tokio::test]
async fn a_file_that_was_written_since_it_was_read_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    fs::write(&path, "- {endpointId: 10}\n").unwrap();
    std::thread::sleep(2 * QUIET);
    for is_finished in [true, false] {
        let mut watched = open(&directory);
        let found = find(&path, None, false, true).await;
        assert!(matches!(found, Found::Read(_, Ok(_), _)));
        if !is_finished {
            watched.watch = None;
            fs::write(&path, "- {endpointId: 10}\n- {endpointId: 11}\n").unwrap();
        }
        let found = watched.confirmed(&path, found).await;
        assert_eq!(matches!(found, Found::Read(..)), is_finished);
    }
}

fn overflow(watched: &mut Directory) {
    let overflow = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
    watched.note(Ok(overflow));
}

/// Whoever has lost some of the kernel's words does not know less of what was said before.
#[tokio::test]
async fn who_writes_a_file_is_known_when_events_were_lost() {
    let directory = tempfile::tempdir().unwrap();
    replace(&directory, "a.yaml", "- {endpointId: 1}\n");
    let mut watched = open(&directory);
    watched.next().await;
    let mut writer = fs::File::create(directory.path().join("a.yaml")).unwrap();
    writer.write_all(b"- {endpointId: 10}\n").unwrap();
    replace(&directory, "b.json", &policy(20));
    assert_eq!(ids(&watched.next().await), [1, 20]);
    overflow(&mut watched);
    for id in 21..25 {
        replace(&directory, "b.json", &policy(id));
        assert_eq!(ids(&watched.next().await), [1, id]);
    }
    // Its closing may be what was lost.
    writer.write_all(b"- {endpointId: 11}\n").unwrap();
    replace(&directory, "b.json", &policy(25));
    assert_eq!(ids(&watched.next().await), [1, 25]);
    drop(writer);
    while watched.watch.as_mut().unwrap().events.recv().await.unwrap().unwrap().kind
        != EventKind::Access(AccessKind::Close(AccessMode::Write))
    {}
    overflow(&mut watched);
    tokio::time::pause();
    let reading = timeout(Duration::from_secs(60), watched.next()).await.expect("it waits for nobody for ever");
    assert_eq!((ids(&reading), reading.errors), (vec![10, 11, 25], vec![]));
}

/// Who began before the process did is nobody of whom there was an event.
#[tokio::test]
async fn a_file_that_somebody_began_to_write_before_the_start_allows_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let rules = ", ingress_per_port_policies: [{port: 80}] }";
    let mut writer = fs::File::create(directory.path().join("a.yaml")).unwrap();
    writer.write_all(format!("- {{ endpoint_id: 1, endpoint_ips: [10.0.0.1]{rules}\n").as_bytes()).unwrap();
    replace(&directory, "b.json", &policy(2));
    std::thread::sleep(2 * QUIET);
    let mut watched = open(&directory);
    let reading = timeout(Duration::from_secs(60), watched.next()).await.expect("it waits for nobody for ever");
    assert_eq!(ids(&reading), [1, 2]);
    assert!(reading.set.policies[0].ingress_per_port_policies.is_empty(), "the first half: {reading:?}");
    assert!(reading.errors[0].message.contains("its endpoints deny"), "{reading:?}");
    replace(&directory, "b.json", &policy(4));
    assert_eq!(ids(&watched.next().await), [1, 4]);
    writer.write_all(b"- { endpoint_id: 3, endpoint_ips: [10.0.0.3] }\n").unwrap();
    drop(writer);
    let reading = with_any_of(&mut watched, [3, 3]).await;
    assert_eq!((ids(&reading), watched.failing().count()), (vec![1, 3, 4], 0));
    assert!(!reading.set.policies[0].ingress_per_port_policies.is_empty());
}

/// Else what others claim would be in force alone.
#[tokio::test(start_paused = true)]
async fn the_first_reading_is_whole_when_it_is_time_to_ask_again_who_writes() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = fs::File::create(directory.path().join("a.yaml")).unwrap();
    writer.write_all(b"- { endpoint_id: 1, endpoint_ips: [10.0.0.1] }\n").unwrap();
    replace(&directory, "b.json", &policy(2));
    std::thread::sleep(2 * QUIET);
    let mut watched = open(&directory);
    assert!(watched.look(false).await);
    tokio::time::advance(PATIENCE).await;
    watched.pending_since = Some(Instant::now());
    assert_eq!(ids(&watched.next().await), [1, 2]);
}

/// What happens to the target of a link is no event in the directory of the link, its closing included.
#[tokio::test]
async fn a_file_that_is_written_through_a_link_is_not_read_by_halves() {
    for rest in [0, 20_000] {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = elsewhere.path().join("a.yaml");
        fs::write(&target, "- {endpointId: 1}\n").unwrap();
        symlink(&target, directory.path().join("a.yaml")).unwrap();
        let mut watched = open(&directory);
        assert_eq!(ids(&watched.next().await), [1]);
        // Small ones are read here, and large ones aside.
        let mut writer = fs::File::create(&target).unwrap();
        writer.write_all(b"- {endpointId: 10}\n").unwrap();
        writer.write_all("# \n".repeat(rest).as_bytes()).unwrap();
        for id in 20..25 {
            replace(&directory, "b.json", &policy(id));
            assert_eq!(ids(&watched.next().await), [1, id], "{rest}");
        }
        writer.write_all(b"- {endpointId: 11}\n").unwrap();
        drop(writer);
        assert_eq!(ids(&with_any_of(&mut watched, [11, 11]).await), [10, 11, 24], "{rest}");
    }
}

/// Nor is it known then who writes a file of which nothing was said before.
#[tokio::test]
async fn who_has_begun_to_write_while_events_were_lost_is_known() {
    for is_overflow in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        replace(&directory, "a.yaml", "- {endpointId: 1}\n");
        let mut watched = open(&directory);
        watched.next().await;
        if !is_overflow {
            watched.watch = None;
        }
        let mut writer = fs::File::create(directory.path().join("a.yaml")).unwrap();
        writer.write_all(b"- {endpointId: 10}\n").unwrap();
        if is_overflow {
            while !matches!(
                watched.watch.as_mut().unwrap().events.recv().await.unwrap().unwrap().kind,
                EventKind::Modify(ModifyKind::Data(_))
            ) {}
            while watched.watch.as_mut().unwrap().events.try_recv().is_ok() {}
            overflow(&mut watched);
        }
        for id in 21..25 {
            replace(&directory, "b.json", &policy(id));
            assert_eq!(ids(&watched.next().await), [1, id], "overflow: {is_overflow}");
        }
        writer.write_all(b"- {endpointId: 11}\n").unwrap();
        drop(writer);
        let reading = with_any_of(&mut watched, [11, 11]).await;
        assert_eq!((ids(&reading), watched.failing().count()), (vec![10, 11, 24], 0), "overflow: {is_overflow}");
    }
}

/// Whoever never closes what no event tells of is asked about for ever, but named once, and nobody waits for them.
#[tokio::test]
async fn a_target_of_a_link_that_is_never_closed_is_named_once_and_holds_up_nothing() {
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (target, path) = (elsewhere.path().join("a.yaml"), directory.path().join("a.yaml"));
    fs::write(&target, "- {endpointId: 1}\n").unwrap();
    symlink(&target, &path).unwrap();
    let mut watched = open(&directory);
    assert_eq!(ids(&watched.next().await), [1]);
    let mut writer = fs::File::create(&target).unwrap();
    writer.write_all(b"- {endpointId: 10}\n").unwrap();
    assert!(!watched.look(false).await, "it is known that it is being written");
    std::thread::sleep(2 * QUIET);
    replace(&directory, "b.json", &policy(2));
    assert_eq!(ids(&watched.next().await), [1, 2]);
    tokio::time::pause();
    let reading = timeout(Duration::from_secs(60), watched.next()).await.expect("it is named");
    let [error] = &reading.errors[..] else { panic!("one error, not {:?}", reading.errors) };
    assert_eq!((ids(&reading), reading.changed, &*error.place.file), (vec![1, 2], false, &*path));
    assert!(error.message.contains("has not closed it"), "{error}");
    assert_eq!(watched.failing().collect::<Vec<_>>(), [error]);
    assert!(timeout(Duration::from_secs(60), watched.next()).await.is_err(), "once");
    tokio::time::resume();
    replace(&directory, "b.json", &policy(3));
    assert_eq!(ids(&watched.next().await), [1, 3]);
    drop(writer);
    let reading = with_any_of(&mut watched, [10, 10]).await;
    assert_eq!((ids(&reading), watched.failing().count()), (vec![10, 3], 0));
}

/// Else what is in force would be out of date for ever without a word.
#[tokio::test]
async fn a_file_that_is_not_closed_for_long_is_named_once() {
    let directory = tempfile::tempdir().unwrap();
    replace(&directory, "a.yaml", "- {endpointId: 1}\n");
    let mut watched = open(&directory);
    watched.next().await;
    let path = directory.path().join("a.yaml");
    let mut writer = fs::File::create(&path).unwrap();
    let mut other = fs::File::create(directory.path().join("notes.txt")).unwrap();
    writer.write_all(b"- {endpointId: 10}\n").unwrap();
    other.write_all(b"nobody reads it").unwrap();
    replace(&directory, "b.json", &policy(2));
    assert_eq!(ids(&watched.next().await), [1, 2]);
    tokio::time::pause();
    let reading = timeout(Duration::from_secs(60), watched.next()).await.expect("it is named");
    assert_eq!((ids(&reading), reading.changed), (vec![1, 2], false));
    let [error] = &reading.errors[..] else { panic!("one error, not {:?}", reading.errors) };
    assert_eq!(error.place.file.as_ref(), path);
    assert!(error.message.contains("rename a finished one to its name"), "{error}");
    assert_eq!(watched.failing().collect::<Vec<_>>(), [error]);
    assert!(timeout(Duration::from_secs(60), watched.next()).await.is_err(), "once");
    tokio::time::resume();
    drop(writer);
    let reading = with_any_of(&mut watched, [10, 10]).await;
    assert_eq!((ids(&reading), watched.failing().count()), (vec![10, 2], 0));
}

/// Writes a file in place until it is dropped, never leaving it alone for as long as it takes to be read.
fn rewrite(directory: &TempDir, name: &'static str, text: String) -> Swapping {
    rewrite_every(Duration::from_millis(5), directory, name, text)
}

fn rewrite_every(pause: Duration, directory: &TempDir, name: &'static str, text: String) -> Swapping {
    let path = directory.path().join(name);
    let (end, ended) = std::sync::mpsc::channel();
    let rewrite = move || {
        while ended.recv_timeout(pause) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            fs::write(&path, &text).unwrap();
        }
    };
    Swapping(end, Some(std::thread::spawn(rewrite)))
}

/// Whoever keeps writing a file must not keep in force what it held before.
#[tokio::test]
async fn a_file_that_is_written_again_and_again_denies_after_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let open_to_all = |id| policy(id).replace('}', ", \"ingressPerPortPolicies\": [{\"port\": 80}]}");
    replace(
        &directory,
        "a.yaml",
        &format!("- {}\n- {{name: team, members: {{addresses: [10.0.0.1]}}}}\n", open_to_all(1)),
    );
    replace(&directory, "b.json", &open_to_all(2));
    let mut watched = open(&directory);
    let denying = |reading: &Reading| -> Vec<u64> {
        let policies = reading.set.policies.iter();
        policies.filter(|policy| policy.ingress_per_port_policies.is_empty()).map(|policy| policy.endpoint_id).collect()
    };
    let reading = watched.next().await;
    assert_eq!((ids(&reading), denying(&reading)), (vec![1, 2], vec![]));
    // Nothing that would come into force, should a writer rest.
    let rewriting = ["a.yaml", "c.json"].map(|name| rewrite(&directory, name, "{".to_owned()));
    while !directory.path().join("c.json").exists() {
        std::thread::yield_now();
    }
    // By name, with the reading that says so.
    let mut named: BTreeMap<PathBuf, (String, Reading)> = BTreeMap::new();
    let all_named = async {
        while named.len() < 2 {
            let Ok(reading) = timeout(PATIENCE, watched.next()).await else {
                watched.rewritten.backdate(writers::LONG);
                continue;
            };
            for error in reading.errors.iter().filter(|error| error.message.contains("all the time")) {
                named.insert(error.place.file.to_path_buf(), (error.message.clone(), reading.clone()));
            }
        }
    };
    timeout(Duration::from_secs(60), all_named).await.expect("they are named");
    let (message, reading) = &named[&directory.path().join("a.yaml")];
    assert!(message.contains("its endpoints deny until it can be read: end whoever does"), "{message}");
    assert_eq!((ids(reading), denying(reading), reading.set.tenants.len()), (vec![1, 2], vec![1], 1));
    let (message, reading) = &named[&directory.path().join("c.json")];
    assert!(message.contains("it cannot be read: end whoever does"), "{message}");
    assert!(!denying(reading).contains(&2));
    drop(rewriting);
    let ended = async {
        loop {
            let reading = watched.next().await;
            if !watched.failing().any(|error| error.message.contains("all the time")) {
                break reading;
            }
        }
    };
    let reading = timeout(Duration::from_secs(60), ended).await.expect("it can be read");
    assert_eq!((ids(&reading), denying(&reading)), (vec![1, 2], vec![1]), "it does not load");
    replace(&directory, "a.yaml", &open_to_all(3));
    replace(&directory, "c.json", &open_to_all(4));
    let reading = with_any_of(&mut watched, [3, 3]).await;
    assert_eq!((ids(&reading), denying(&reading), watched.failing().count()), (vec![3, 2, 4], vec![], 0));
}

/// It rests for long enough each time to be read, and not for as long as that takes.
#[tokio::test]
async fn a_large_file_that_is_written_again_while_it_is_read_denies_after_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let open_to_all = policy(1).replace('}', ", \"ingressPerPortPolicies\": [{\"port\": 80}]}");
    replace(&directory, "a.yaml", &format!("- {open_to_all}\n"));
    let mut watched = open(&directory);
    let before = watched.next().await;
    assert!(!before.set.policies[0].ingress_per_port_policies.is_empty());
    let large = format!("- {}\n{}", policy(3), "# nothing\n".repeat(400_000));
    let rewriting = rewrite_every(2 * QUIET, &directory, "a.yaml", large);
    let named = async {
        loop {
            let Ok(reading) = timeout(PATIENCE, watched.next()).await else {
                watched.rewritten.backdate(writers::LONG);
                continue;
            };
            if reading.errors.iter().any(|error| error.message.contains("all the time")) {
                break reading;
            }
        }
    };
    let reading = timeout(Duration::from_secs(60), named).await.expect("it is named");
    assert_eq!(ids(&reading), [1]);
    assert!(reading.set.policies[0].ingress_per_port_policies.is_empty(), "it denies");
    drop(rewriting);
    assert_eq!(ids(&with_any_of(&mut watched, [3, 3]).await), [3]);
}

/// Its writer is there whenever it is read, and gone in between.
#[tokio::test]
async fn a_large_file_that_is_open_to_write_whenever_it_is_read_denies_after_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    let rest = "# nothing\n".repeat(10_000);
    let open_to_all = policy(1).replace('}', ", \"ingressPerPortPolicies\": [{\"port\": 80}]}");
    replace(&directory, "a.yaml", &format!("- {open_to_all}\n{rest}"));
    let mut watched = open(&directory);
    assert_eq!(ids(&watched.next().await), [1]);
    for id in 2..4 {
        assert_eq!(watched.failing().count(), 0);
        fs::write(&path, format!("- {}\n{rest}", policy(id))).unwrap();
        std::thread::sleep(2 * QUIET);
        let Found::Aside { stamp, is_settled, wants_claims } = find(&path, watched.files.get(&path), true, true).await
        else {
            panic!("it rests");
        };
        let writer = fs::File::options().write(true).open(&path).unwrap();
        watched.aside.add(path.clone(), stamp, is_settled, wants_claims);
        watched.aside.begin();
        watched.aside.wait().await;
        watched.take_from_aside();
        drop(writer);
        watched.writers.forget(&path);
        watched.rewritten.backdate(writers::LONG);
    }
    assert!(watched.failing().any(|error| error.message.contains("all the time")));
    assert!(watched.changed, "it denies");
}

/// A large one would be searched each time that it changes.
#[tokio::test]
async fn claims_are_looked_for_only_where_they_count() {
    let directory = tempfile::tempdir().unwrap();
    let broken = |name: &str, length: u64| {
        let path = directory.path().join(name);
        fs::write(&path, "endpointIps: [10.0.0.1] : 1\n").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        path
    };
    let files =
        [broken("a.yaml", 100), broken("b.yaml", aside::LARGE + 1), broken("c.yaml", policy_file::MAX_BYTES + 1)];
    std::thread::sleep(2 * QUIET);
    let before = |only_claims| Some(File { only_claims, ..File::default() });
    for (known, may_wait, count) in [
        (None, false, 1),
        (None, true, 0),
        (before(true), false, 1),
        (before(true), true, 1),
        (before(false), false, 0),
        (before(false), true, 0),
    ] {
        for path in &files {
            let content = match find(path, known.as_ref(), may_wait, true).await {
                Found::Read(_, content, _) => content,
                Found::Aside { stamp, is_settled, wants_claims } => {
                    let mut aside = Aside::default();
                    aside.add(path.clone(), stamp, is_settled, wants_claims);
                    aside.begin();
                    aside.wait().await;
                    let Some(Attempt::Whole(_, content, _)) = aside.finished().map(|read| read.attempt) else {
                        panic!("nobody writes it");
                    };
                    content
                }
                Found::Same | Found::Unsettled | Found::BeingWritten => panic!("it is there"),
            };
            let Broken { claims, is_untold, .. } = content.expect_err("it is broken");
            assert_eq!(claims.len(), count, "{} {known:?} {may_wait}", path.display());
            assert!(count > 0 || is_untold);
        }
    }
}
