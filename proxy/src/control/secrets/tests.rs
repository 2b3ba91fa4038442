use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

struct Place(TempDir);

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self) -> SecretFiles {
        SecretFiles::open(&[SecretFile { name: "token".to_owned(), file: self.path("token") }]).unwrap()
    }
}

fn place() -> Place {
    Place(tempfile::tempdir().unwrap())
}

/// The table with this value of `token`.
fn token(value: &[u8]) -> Secrets {
    let mut secrets = Secrets::default();
    secrets.insert("token", value);
    secrets
}

#[tokio::test]
async fn a_secret_comes_rotates_and_goes() {
    let place = place();
    let mut files = place.open();
    assert_eq!(*files.current(), Secrets::default());
    fs::write(place.path("token"), "one\n").unwrap();
    assert_eq!(*files.changed().await, token(b"one"));
    fs::write(place.path(".new"), "two\r\n").unwrap();
    fs::rename(place.path(".new"), place.path("token")).unwrap();
    assert_eq!(*files.changed().await, token(b"two"));
    fs::remove_file(place.path("token")).unwrap();
    assert_eq!(*files.changed().await, Secrets::default());
}

/// As a mounted Kubernetes secret is swapped.
#[tokio::test]
async fn a_swapped_directory_is_a_change() {
    let place = place();
    for (version, value) in [("..1", "one"), ("..2", "two")] {
        fs::create_dir(place.path(version)).unwrap();
        fs::write(place.path(version).join("token"), value).unwrap();
    }
    symlink("..1", place.path("..data")).unwrap();
    symlink("..data/token", place.path("token")).unwrap();
    let mut files = place.open();
    assert_eq!(*files.current(), token(b"one"));
    symlink("..2", place.path("..next")).unwrap();
    fs::rename(place.path("..next"), place.path("..data")).unwrap();
    assert_eq!(*files.changed().await, token(b"two"));
}

/// The first half of a secret is another secret, and an emptied file would be none.
#[tokio::test]
async fn a_file_that_is_being_written_keeps_its_value() {
    let place = place();
    fs::write(place.path("token"), "one").unwrap();
    let mut files = place.open();
    let mut writer = fs::File::create(place.path("token")).unwrap();
    writer.write_all(b"tw").unwrap();
    // Wakes the reader while the other file is open.
    fs::write(place.path("unrelated"), "").unwrap();
    assert!(timeout(QUIET * 6, files.changed()).await.is_err());
    writer.write_all(b"o").unwrap();
    drop(writer);
    assert_eq!(*files.changed().await, token(b"two"));
}

#[tokio::test]
async fn what_holds_no_value_is_unusable() {
    let place = place();
    for (content, problem) in [
        (&b""[..], "is empty"),
        (b"\n", "is empty"),
        (b"a\n\n", "holds a line end or another control character"),
        (&[b'a'; MAX_SECRET + 1], "is over 16 KiB"),
    ] {
        fs::write(place.path("token"), content).unwrap();
        assert_eq!(place.open().current().problem("token"), Some(problem));
    }
    fs::remove_file(place.path("token")).unwrap();
    fs::create_dir(place.path("token")).unwrap();
    assert_eq!(place.open().current().problem("token"), Some("cannot be read"));
    let gone = SecretFile { name: "token".to_owned(), file: place.path("nowhere/token") };
    let error = SecretFiles::open(&[gone]).unwrap_err().to_string();
    assert!(error.contains("nowhere") && error.contains("create it"), "{error}");
}
