//! The control groups that the process is in: where the kernel says what they may have.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
pub(super) const MOUNTED: &str = "/sys/fs/cgroup";

/// Groups of this process, as the kernel lists them.
pub(super) fn of_this_process() -> String {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// One group that has a say about a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Folder {
    /// Of version 1, for this resource alone.
    Version1(PathBuf),
    /// Of version 2.
    Version2(PathBuf),
}

/// The groups in the lines of `/proc/self/cgroup` that have a say about the resource of this controller, and those that they are in.
/// Below a namespace the paths there may lead nowhere: then what is mounted is the group.
pub(super) fn folders(groups: &str, mounted: &Path, controller: &str) -> Vec<Folder> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, folder): (_, fn(PathBuf) -> Folder) = match controllers {
            "" => (mounted.to_path_buf(), Folder::Version2),
            _ if controllers.split(',').any(|name| name == controller) => (mounted.join(controller), Folder::Version1),
            _ => continue,
        };
        let group = root.join(path.trim_start_matches('/'));
        let group = if group.is_dir() { group } else { root.clone() };
        let tree = group.ancestors().take_while(|above| above.starts_with(&root));
        found.extend(tree.map(|above| folder(above.to_path_buf())));
    }
    found
}
