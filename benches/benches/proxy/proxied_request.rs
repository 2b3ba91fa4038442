//! The whole way of a request, in process: client, proxy (one worker, policy from a file, flow records to a file) and
//! upstream are threads of this bench, joined by loopback TCP. What is timed is one request after the other on one
//! keep-alive connection, so it is latency, with the kernel's share in it; benches/side-by-side measures the CPU.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, bail};
use criterion::{BenchmarkId, Criterion, criterion_group};
use tollgate::{app, config};

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 64\r\n\r\n\
    xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

/// One keep-alive connection of a client.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream, buffer: vec![0; 16 * 1024] })
    }

    /// Sends one request and reads the whole response; returns its status.
    fn exchange(&mut self, request: &[u8]) -> io::Result<u16> {
        self.stream.write_all(request)?;
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += read;
            if let Some(status) = complete(&self.buffer[..filled]) {
                return Ok(status);
            }
        }
    }
}

/// The status of a response that is there to its end; `None` while some of it is missing.
fn complete(bytes: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    (body.len() >= length).then(|| head.get(9..12)?.parse().ok())?
}

/// Answers every request on every connection with [`RESPONSE`].
fn start_upstream() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        // One request at a time and far smaller than the buffer: what ends like a head is one.
        if buffer[..read].ends_with(b"\r\n\r\n") {
            stream.write_all(RESPONSE)?;
        }
    }
}

/// Runs a proxy with `rules` HTTP rules in a thread of this process, for as long as the process lives.
fn start_proxy(folder: &Path, rules: usize, upstream: SocketAddr) -> anyhow::Result<SocketAddr> {
    // Found free a moment ago; nobody else binds fixed ports here.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let policies = folder.join("policies");
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(&policies)?;
    fs::write(policies.join("bench.json"), policy(address.port(), rules))?;
    let folder = folder.display();
    let text = format!(
        "workers: 1\n\
         admin: {{ address: 'unix:{folder}/admin.sock' }}\n\
         policies: {{ directory: '{folder}/policies' }}\n\
         identities: [{{ identity: 32226, addresses: [127.0.0.1] }}]\n\
         listeners: [{{ name: ingress, address: '{address}', direction: ingress, transparent: false,\n  \
             upstream: '{upstream}', endpoint: 127.0.0.1 }}]\n\
         access_log: [{{ json: '{folder}/access.log' }}]\n"
    );
    let config = config::parse(&text, Path::new("bench.yaml"))?;
    thread::spawn(move || {
        if let Err(error) = app::run(config, Box::new(|_| Ok(()))) {
            eprintln!("proxy: {error:#}");
        }
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            bail!("the proxy does not listen on {address}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(address)
}

fn policy(port: u16, rules: usize) -> String {
    let rules: Vec<_> = (0..rules)
        .map(|rule| {
            format!(
                r#"{{"headers":[{{"name":":method","string_match":{{"safe_regex":{{"regex":"GET"}}}}}},
                {{"name":":path","string_match":{{"safe_regex":{{"regex":"/api/v1/svc{rule:05}/items/[0-9]+"}}}}}}]}}"#
            )
        })
        .collect();
    format!(
        r#"{{"@type":"type.googleapis.com/cilium.NetworkPolicy","endpoint_ips":["127.0.0.1"],
        "endpoint_id":"1","ingress_per_port_policies":[{{"port":{port},"rules":[{{"http_rules":{{"http_rules":
        [{}]}}}}]}}]}}"#,
        rules.join(",")
    )
}

fn bench(criterion: &mut Criterion) -> anyhow::Result<()> {
    let upstream = start_upstream()?;
    let mut group = criterion.benchmark_group("proxied_request");

    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes();
    let mut measure = |name: &str, parameter: usize, address, path: &str, expected: u16| -> anyhow::Result<()> {
        let mut client = Client::connect(address)?;
        let request = request(path);
        let status = client.exchange(&request).with_context(|| format!("{name}/{parameter}"))?;
        if status != expected {
            bail!("{name}/{parameter}: {status} came instead of {expected}");
        }
        group.bench_function(BenchmarkId::new(name, parameter), |bencher| {
            bencher.iter(|| assert_eq!(client.exchange(&request).ok(), Some(expected)));
        });
        Ok(())
    };
    measure("no_proxy", 0, upstream, "/", 200)?;
    for rules in [1, 1_000] {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("proxied_request-{rules}"));
        let proxy = start_proxy(&folder, rules, upstream)?;
        measure("allowed", rules, proxy, &format!("/api/v1/svc{:05}/items/12345", rules - 1), 200)?;
        measure("denied", rules, proxy, "/nothing/here", 403)?;
    }
    group.finish();
    Ok(())
}

fn proxied_request(criterion: &mut Criterion) {
    if let Err(error) = bench(criterion) {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}

criterion_group!(benches, proxied_request);
