"""A control group for one proxy, so that its memory or its CPU time has an end. Version 1 or 2, whichever is mounted."""

import os
import pathlib

ROOT = pathlib.Path("/sys/fs/cgroup")
PERIOD_US = 100_000


class Group:
    """The directories of one group: one with version 2, one for each controller with version 1."""

    def __init__(self, folders):
        self.folders = folders

    def enter(self):
        """Moves the calling process in."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    def throttled(self):
        """(periods in which it was stopped for having used its share, kernel's count of memory kills)."""
        return self.counter("cpu.stat", "nr_throttled"), self.counter(
            "memory.events", "oom_kill"
        ) + self.counter("memory.oom_control", "oom_kill")

    def counter(self, file, name):
        for folder in self.folders:
            if (folder / file).exists():
                for line in (folder / file).read_text(encoding="ascii").splitlines():
                    if line.split()[0] == name:
                        return int(line.split()[1])
        return 0

    def remove(self):
        for folder in self.folders:
            folder.rmdir()


def make(name, memory_mib, cpu_quota):
    """A new group; `None` if nothing is to be limited. `cpu_quota` is a share of one core."""
    if memory_mib is None and cpu_quota is None:
        return None
    settings = {}
    if (ROOT / "cgroup.controllers").exists():
        if memory_mib:
            settings["memory.max"] = str(memory_mib << 20)
        if cpu_quota:
            settings["cpu.max"] = f"{int(PERIOD_US * cpu_quota)} {PERIOD_US}"
        return settle([(ROOT / f"tollgate-{name}", settings)])
    folders = []
    if memory_mib:
        folders.append((ROOT / "memory" / f"tollgate-{name}", {"memory.limit_in_bytes": str(memory_mib << 20)}))
    if cpu_quota:
        quota = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(int(PERIOD_US * cpu_quota))}
        folders.append((ROOT / "cpu" / f"tollgate-{name}", quota))
    return settle(folders)


def settle(folders):
    for folder, settings in folders:
        folder.mkdir()
        for file, value in settings.items():
            (folder / file).write_text(value, encoding="ascii")
    return Group([folder for folder, _ in folders])


def refusal(setup):
    """Why a proxy cannot have the group that is asked for, or an empty string."""
    try:
        group = make(f"probe-{os.getpid()}", setup.memory_mib, setup.cpu_quota)
    except OSError as error:
        return f"no control group: {error}"
    if group:
        group.remove()
    return ""
