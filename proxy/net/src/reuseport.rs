//! Accept queues by source: which socket of a `SO_REUSEPORT` group takes a connection.
//!
//! Without it the kernel spreads connections over a group by a hash of addresses and ports, so that whoever opens many
//! fills every queue, and everybody else's connections wait behind them or are dropped. A classic BPF program (no
//! capability is needed for it) picks the queue by the source address alone: a flood fills its own.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

/// How the sockets of a group are laid out. They are numbered in the order in which they began to listen: the first ones
/// are the first shard, one for each worker, then comes the second shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    /// Queues that sources are spread over, at least 1.
    pub shards: u16,
    /// Sockets of each, at least 1. Among these the kernel picks at random.
    pub workers: u16,
}

impl Shards {
    /// Sockets of the whole group.
    pub fn sockets(self) -> usize {
        usize::from(self.shards) * usize::from(self.workers)
    }
}

/// Has the group of `listener`, which is bound to `address`, take each connection to the queue of its source.
///
/// Holds for sockets that join the group later, too. While a socket is missing, the kernel's own hash stands in.
///
/// # Errors
/// The kernel refuses the program: it has no classic BPF for `SO_REUSEPORT` (before 4.5), or a sandbox forbids it. The group
/// works as without it then.
pub fn shard_by_source(listener: &impl AsRawFd, address: SocketAddr, shape: Shards) -> io::Result<()> {
    attach(listener, &program(address.is_ipv6(), shape))
}

/// Offset of the IP header for loads of a classic program, wherever the packet's own bytes begin.
const IP_HEADER: u32 = libc::SKF_NET_OFF as u32;
/// Where the source address is in an IPv4 header (RFC 791, section 3.1).
const SOURCE_V4: u32 = IP_HEADER + 12;
/// The same for IPv6 (RFC 8200, section 3), in words of four bytes.
const SOURCE_V6: [u32; 4] = [IP_HEADER + 8, IP_HEADER + 12, IP_HEADER + 16, IP_HEADER + 20];
/// A load from here gives a random number.
const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;

/// `(source % shards) * workers + random % workers`, the source's words and halves folded into each other.
fn program(ipv6: bool, Shards { shards, workers }: Shards) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const ALU_X: u32 = libc::BPF_ALU | libc::BPF_X;
    const ALU_K: u32 = libc::BPF_ALU | libc::BPF_K;
    const TO_X: u32 = libc::BPF_MISC | libc::BPF_TAX;
    let mut program = vec![step(libc::BPF_LD | libc::BPF_IMM, 0)];
    let mut push = |code, k| program.push(step(code, k));
    let words: &[u32] = if ipv6 { &SOURCE_V6 } else { &[SOURCE_V4] };
    for word in words {
        push(TO_X, 0);
        push(LOAD, *word);
        push(ALU_X | libc::BPF_XOR, 0);
    }
    push(TO_X, 0);
    push(ALU_K | libc::BPF_RSH, 16);
    push(ALU_X | libc::BPF_XOR, 0);
    push(ALU_K | libc::BPF_MOD, shards.max(1).into());
    if workers > 1 {
        push(ALU_K | libc::BPF_MUL, workers.into());
        // Loading a random number takes the accumulator; X is free for the shard.
        push(TO_X, 0);
        push(LOAD, RANDOM);
        push(ALU_K | libc::BPF_MOD, workers.into());
        push(ALU_X | libc::BPF_ADD, 0);
    }
    push(libc::BPF_RET | libc::BPF_A, 0);
    program
}

fn step(code: u32, k: u32) -> libc::sock_filter {
    // Codes of classic BPF have 16 bits; the constants of `libc` are only wider.
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

#[expect(unsafe_code, reason = "none of the socket crates in the tree knows this option")]
fn attach(listener: &impl AsRawFd, program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the descriptor is open for as long as `listener` is borrowed; the kernel reads one `sock_fprog`, which lives
    // until the call returns, and `len` instructions behind it, which the caller's slice holds; it writes to neither and keeps
    // no pointer to them.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
