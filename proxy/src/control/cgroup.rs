//! The control groups that the process is in: where the kernel says what they may have.

use std::fs;
use std::io;
use std::path::PathBuf;

/// Where control groups are mounted.
const MOUNTED: &str = "/sys/fs/cgroup";

/// Where a process stands in the trees of control groups.
#[derive(Debug)]
pub(super) struct Place {
    /// As the kernel lists it, in `/proc/self/cgroup`.
    lines: String,
    mounted: PathBuf,
}

/// One group that has a say about a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) version: Version,
    folder: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// A tree for each resource.
    One,
    /// One for all.
    Two,
}

impl Place {
    /// Of this process, now.
    pub(super) fn of_this_process() -> Self {
        Self::read().unwrap_or_else(|_| Self { lines: String::new(), mounted: MOUNTED.into() })
    }

    /// The same, where no groups and no answer are not the same.
    ///
    /// # Errors
    /// The kernel's list cannot be read now.
    pub(super) fn read() -> io::Result<Self> {
        Ok(Self { lines: fs::read_to_string("/proc/self/cgroup")?, mounted: MOUNTED.into() })
    }

    /// The groups that have a say about the resource of this controller, and those that they are in.
    /// Below a namespace the paths that the kernel lists may lead nowhere: then what is mounted is the group.
    pub(super) fn groups(&self, controller: &str) -> Vec<Group> {
        let mut found = Vec::new();
        for line in self.lines.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let (version, root) = match controllers {
                "" => (Version::Two, self.mounted.clone()),
                _ if controllers.split(',').any(|name| name == controller) => {
                    (Version::One, self.mounted.join(controller))
                }
                _ => continue,
            };
            let group = root.join(path.trim_start_matches('/'));
            let group = if group.is_dir() { group } else { root.clone() };
            let tree = group.ancestors().take_while(|above| above.starts_with(&root));
            found.extend(tree.map(|above| Group { version, folder: above.to_path_buf() }));
        }
        found
    }
}

impl Group {
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// What one of its files says, in one line.
    pub(super) fn text(&self, file: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(file)).ok()?.trim().to_owned())
    }

    /// The number in one of its files; `None` if that is not there, or says that there is no end.
    ///
    /// # Errors
    /// It cannot be read now, which says nothing.
    pub(super) fn read_number(&self, file: &str) -> io::Result<Option<u64>> {
        match fs::read_to_string(self.path(file)) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What one of them says as a number. `None` also where the kernel says that there is no end (`max`, or -1).
    pub(super) fn number(&self, file: &str) -> Option<u64> {
        self.text(file)?.parse().ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;

    /// A machine's groups as a test writes them.
    #[derive(Debug)]
    pub(in crate::control) struct Machine(tempfile::TempDir);

    impl Machine {
        pub(in crate::control) fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        pub(in crate::control) fn root(&self) -> &Path {
            self.0.path()
        }

        pub(in crate::control) fn write(&self, file: &str, text: &str) {
            let path = self.root().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// Where a process is of which the kernel lists these lines.
        pub(in crate::control) fn place(&self, lines: &str) -> Place {
            Place { lines: lines.to_owned(), mounted: self.root().to_owned() }
        }
    }

    #[test]
    fn groups_are_those_of_the_controller_and_all_above() {
        let machine = Machine::new();
        machine.write("a/b/x", "");
        machine.write("memory/c/x", "7\n");
        let groups = |lines: &str| {
            let groups = machine.place(lines).groups("memory");
            let relative = |group: &Group| group.folder.strip_prefix(machine.root()).unwrap().display().to_string();
            groups.iter().map(|group| (group.version, relative(group))).collect::<Vec<_>>()
        };
        let of = |version, folders: &[&str]| {
            folders.iter().map(|folder| (version, (*folder).to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(groups("0::/a/b\n"), of(Version::Two, &["a/b", "a", ""]));
        assert_eq!(groups("5:cpu:/a\n4:hugetlb,memory:/c\n"), of(Version::One, &["memory/c", "memory"]));
        // The path of the host, seen from a container.
        assert_eq!(groups("4:memory:/docker/123\n"), of(Version::One, &["memory"]));
        assert_eq!(groups("nonsense\n"), []);
        let group = &machine.place("4:memory:/c\n").groups("memory")[0];
        assert_eq!((group.number("x"), group.text("x").as_deref(), group.number("y")), (Some(7), Some("7"), None));
    }
}
