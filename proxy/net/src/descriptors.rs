//! The limit of open files, which is the limit of connections.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// `RLIMIT_NOFILE` of this process; `None` means without limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// How many descriptors may be open now.
    pub soft: Option<u64>,
    /// How far the process may raise `soft` on its own.
    pub hard: Option<u64>,
}

impl DescriptorLimit {
    /// Reads the limit.
    pub fn current() -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        Self { soft: current, hard: maximum }
    }
}

/// Raises the soft limit of open files to the hard limit and returns what is in force now.
///
/// Each proxied connection holds two descriptors, and the usual soft limit of 1,024 is there only for programs that use
/// `select(2)`, which this one does not.
pub fn raise_nofile() -> io::Result<DescriptorLimit> {
    let DescriptorLimit { soft, hard } = DescriptorLimit::current();
    if soft != hard {
        setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    }
    Ok(DescriptorLimit::current())
}

/// How many descriptors this process has open.
pub fn open_descriptors() -> io::Result<usize> {
    // One of the entries is the directory that is being read.
    Ok(std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::{open_descriptors, raise_nofile};

    #[test]
    fn raises_to_the_hard_limit() {
        let limit = raise_nofile().unwrap();
        assert_eq!(limit.soft, limit.hard);
        assert_eq!(raise_nofile().unwrap(), limit);
    }

    #[test]
    fn counts_descriptors() {
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(open_descriptors().unwrap() >= files.len());
    }
}
