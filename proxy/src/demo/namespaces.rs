//! Network, mount and process namespaces of our own, so that nothing outside is touched and nothing is left behind.
//!
//! The binary starts itself again under `unshare(1)`. The inner process is process 1 of its process namespace: when it
//! ends, or when the outer one ends in any way (Ctrl-C, `kill -9`), the kernel ends every process inside and takes the
//! interfaces, rules and mounts with them.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    path::Path,
    process::{Command, ExitStatus},
};

/// Names the network namespace that the outer process came from. A process is inside if the variable is there and
/// its own namespace is another one; a variable set by accident changes nothing.
const OUTSIDE: &str = "TOLLGATE_OUTER_NETWORK";

/// The tools and the one line that installs them.
const TOOLS: [&str; 8] = ["unshare", "setpriv", "nsenter", "mount", "sysctl", "ip", "nft", "sh"];
const INSTALL: &str = "apt-get install iproute2 nftables util-linux mount procps";

/// Names the number of the inner process outside, which only the `/proc` of outside tells.
const OUTER_PROCESS: &str = "TOLLGATE_OUTER_PROCESS";

/// Names what `nsenter` needs to be told besides the namespaces that there always are.
const ENTER_USER: &str = "TOLLGATE_ENTER_USER";

/// Prepares the inside, then becomes the program. A fresh `/run` lets `ip netns` work without rights on the outer one;
/// a fresh `/proc` shows the inner process numbers, but some containers forbid it and nothing here depends on it.
const PREPARE: &str = "read -r TOLLGATE_OUTER_PROCESS rest </proc/self/stat || true
export TOLLGATE_OUTER_PROCESS
mount -t tmpfs -o mode=0755 tollgate /run
mkdir /run/netns /run/tollgate
mount -t proc proc /proc 2>/dev/null || true
ip link set lo up
exec \"$@\"";

/// Why there are no private namespaces.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// A tool is not installed.
    #[error("private network namespaces need the command `{tool}`, which is not installed: {INSTALL}")]
    MissingTool {
        /// The command's name.
        tool: &'static str,
    },
    /// The kernel or the container forbids namespaces.
    #[error("this process may not create private namespaces: {stderr}; {remedy}")]
    Forbidden {
        /// What `unshare` said.
        stderr: String,
        /// What to change.
        remedy: &'static str,
    },
    /// A process could not be started.
    #[error("cannot run {program}: {error}")]
    Run {
        /// The program.
        program: String,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// Where the caller of [`enter_private_namespaces`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// In the inner process: build the world and go on.
    Inside,
    /// In the outer process, and the inner one has ended with this status: exit with [`exit_code`] of it.
    Ended(ExitStatus),
}

/// Runs this program again, with the same arguments, in private namespaces; returns at once in the inner process.
///
/// Root gets network, mount and process namespaces; anyone else, and root of a container that forbids that, gets them
/// inside a user namespace. Call it from the thread that lives as long as the process: the inner process dies with it.
pub fn enter_private_namespaces() -> Result<Entered, NamespaceError> {
    if is_inside() {
        return Ok(Entered::Inside);
    }
    let program = env::current_exe().map_err(|error| NamespaceError::Run { program: "this program".into(), error })?;
    let mut command = private_command(program)?;
    let status = command
        .args(env::args_os().skip(1))
        .status()
        .map_err(|error| NamespaceError::Run { program: format!("{command:?}"), error })?;
    Ok(Entered::Ended(status))
}

/// The status of an inner process as an exit code; 128 + signal if it was killed, as shells do.
pub fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// A command that runs `program` inside new private namespaces, where [`is_inside`] holds. For tests that run one
/// of their own functions inside; programs use [`enter_private_namespaces`].
///
/// Finds out first, with a trial, which kind of namespaces this process may create.
pub fn private_command(program: impl AsRef<OsStr>) -> Result<Command, NamespaceError> {
    if let Some(tool) = TOOLS.into_iter().find(|tool| !is_installed(tool)) {
        return Err(NamespaceError::MissingTool { tool });
    }
    let mut stderr = String::new();
    for user_namespace in [false, true] {
        if !user_namespace && !rustix::process::geteuid().is_root() {
            continue;
        }
        let mut trial = unshare(user_namespace);
        let output =
            trial.arg("true").output().map_err(|error| NamespaceError::Run { program: "setpriv".into(), error })?;
        if output.status.success() {
            let mut command = unshare(user_namespace);
            command.arg(program);
            return Ok(command);
        }
        stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    }
    Err(NamespaceError::Forbidden { stderr, remedy: remedy(|path| fs::read_to_string(path).ok()) })
}

/// Whether this process runs in namespaces made by [`private_command`].
pub fn is_inside() -> bool {
    env::var_os(OUTSIDE).is_some_and(|outside| own_network().is_some_and(|own| own != outside))
}

/// The command in front of another that runs it in these namespaces, for a terminal outside; `None` outside.
pub(super) fn enter_command() -> Option<String> {
    let process: u32 = env::var(OUTER_PROCESS).ok()?.parse().ok()?;
    let user = env::var(ENTER_USER).unwrap_or_default();
    Some(format!("nsenter --target {process} {user}--net --mount --pid"))
}

/// Takes the sign of being inside away from a command, so that a Tollgate that it runs makes its own namespaces.
pub(super) fn forget_inside(command: &mut Command) {
    command.env_remove(OUTSIDE);
}

fn unshare(user_namespace: bool) -> Command {
    // The signal at the parent's death is kept over exec, so it holds for unshare, which passes it on (--kill-child).
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]);
    if user_namespace {
        command.args(["--user", "--map-root-user"]);
    }
    command.env(ENTER_USER, if user_namespace { "--user --preserve-credentials " } else { "" });
    command
        .args(["sh", "-ec", PREPARE, "sh"])
        .env("PATH", search_path())
        .env(OUTSIDE, own_network().unwrap_or_default());
    command
}

/// The link text of the network namespace, such as `net:[4026531840]`.
fn own_network() -> Option<OsString> {
    fs::read_link("/proc/self/ns/net").ok().map(Into::into)
}

/// `PATH` with the administrator's directories, which not every account has in it.
fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    path.push(":/usr/sbin:/sbin");
    path
}

fn is_installed(tool: &str) -> bool {
    env::split_paths(&search_path()).any(|directory| directory.join(tool).is_file())
}

/// Which setting forbids namespaces, asked from `read`, a function from a path to the file's content.
fn remedy(read: impl Fn(&Path) -> Option<String>) -> &'static str {
    let is = |path: &str, value: &str| read(Path::new(path)).is_some_and(|content| content.trim() == value);
    if is("/proc/sys/user/max_user_namespaces", "0") {
        "user namespaces are switched off: run as root, or `sysctl -w user.max_user_namespaces=1024`"
    } else if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "user namespaces are for root only: run as root, or `sysctl -w kernel.unprivileged_userns_clone=1`"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "AppArmor restricts user namespaces: run as root, or \
         `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
    } else {
        "run as root; in a container it needs CAP_SYS_ADMIN and CAP_NET_ADMIN (for example `docker run --privileged`)"
    }
}

#[cfg(test)]
mod tests {
    use super::{OUTER_PROCESS, is_inside, private_command, remedy};
    use std::path::Path;

    #[test]
    fn names_the_setting_that_forbids_namespaces() {
        let table = [
            ("/proc/sys/user/max_user_namespaces", "0\n", "user.max_user_namespaces"),
            ("/proc/sys/kernel/unprivileged_userns_clone", "0\n", "kernel.unprivileged_userns_clone"),
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n", "AppArmor"),
            ("/proc/sys/user/max_user_namespaces", "1024\n", "CAP_SYS_ADMIN"),
        ];
        for (path, content, expected) in table {
            let text = remedy(|asked| (asked == Path::new(path)).then(|| content.to_owned()));
            assert!(text.contains(expected), "{path}: {text}");
        }
    }

    #[test]
    fn the_program_runs_in_another_network_as_process_one() {
        assert!(!is_inside());
        let output = private_command("sh")
            .unwrap()
            .args(["-c", "echo $$; readlink /proc/self/ns/net; ip netns add a && ip netns list; env"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<_> = text.lines().collect();
        let outside = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!((lines[0], lines[2].trim()), ("1", "a"), "{output:?}");
        assert_ne!(Path::new(lines[1]), outside);
        let outer =
            lines.iter().find_map(|line| line.strip_prefix(OUTER_PROCESS)?.strip_prefix('=')?.parse::<u32>().ok());
        assert!(outer.is_some_and(|outer| outer > 1), "{output:?}");
    }
}
