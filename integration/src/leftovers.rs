//! What a container can leave behind on a machine, and how to find it.
//!
//! Everything is found by the containerd namespace of the test, which is in the shim's arguments, in the bundle's path,
//! in the cgroup's path, and nowhere else on the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The kernel removes a dead container's things behind the back of whoever waited for its exit.
const SETTLE: Duration = Duration::from_secs(10);

/// Between two looks. Nothing tells when a mount or a cgroup of somebody else has gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// containerd cgroup nesting is shallow: hierarchy, instance, slice, namespace, container.
const CGROUP_DEPTH_MAX: usize = 6;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// containerd's `state` directory.
    pub state: PathBuf,
    /// containerd's `root` directory.
    pub root: PathBuf,
    /// The containerd namespace.
    pub namespace: String,
}

impl Places {
    /// Everything that is there, one line for each thing, after things on their way out had time to go.
    pub fn settled(&self, sockets: &[PathBuf]) -> Vec<String> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let found = self.now(sockets);
            if found.is_empty() || Instant::now() > deadline {
                return found;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Everything that is there now.
    pub fn now(&self, sockets: &[PathBuf]) -> Vec<String> {
        let mut found = Vec::new();
        found.extend(
            self.processes()
                .iter()
                .map(|(pid, name)| format!("process {pid} {name}")),
        );
        found.extend(self.mounts().into_iter().map(|path| format!("mount {path}")));
        found.extend(
            self.cgroups()
                .iter()
                .map(|path| format!("cgroup {}", path.display())),
        );
        found.extend(
            self.directories()
                .iter()
                .map(|path| format!("directory {}", path.display())),
        );
        found.extend(
            sockets
                .iter()
                .filter(|path| path.exists())
                .map(|path| format!("socket {}", path.display())),
        );
        found
    }

    /// Shims, runc and the processes of containers: pid and command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        let pids = entries(Path::new("/proc"))
            .into_iter()
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok());
        pids.filter(|pid| *pid != own)
            .filter_map(|pid| Some((pid, self.whose(pid)?)))
            .collect()
    }

    /// The shims of the namespace, without those that containerd runs for a moment to start or to clean up.
    pub fn shims(&self) -> Vec<i32> {
        self.processes()
            .into_iter()
            .filter(|(_, line)| is_serving_shim(line))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// The command line of a process that belongs to the namespace.
    fn whose(&self, pid: i32) -> Option<String> {
        let line = command_line(pid)?;
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let words = line
            .split(' ')
            .any(|word| word == self.namespace || word.contains(&format!("/{}/", self.namespace)));
        let is_containerd = line.starts_with("containerd ");
        (!is_containerd && (words || cgroup.contains(&self.namespace))).then_some(line)
    }

    /// Cgroups of containers. The directory named as the namespace is their parent: runc makes it and never removes it.
    fn cgroups(&self) -> Vec<PathBuf> {
        let is_parent = |path: &PathBuf| path.file_name().is_some_and(|last| *last == *self.namespace);
        cgroups(&self.namespace)
            .into_iter()
            .filter(|path| !is_parent(path))
            .collect()
    }

    fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mount_points(&table)
            .filter(|point| point.contains(&format!("/{}/", self.namespace)))
            .collect()
    }

    /// Bundles, work directories and runc's state.
    fn directories(&self) -> Vec<PathBuf> {
        let of = |base: &Path, kind: &str| entries(&base.join(kind).join(&self.namespace));
        let mut all = of(&self.state, "io.containerd.runtime.v2.task");
        all.extend(of(&self.root, "io.containerd.runtime.v2.task"));
        all.extend(of(Path::new("/run/containerd"), "runc"));
        all
    }

    /// Kills and unmounts whatever is left, for the sake of the tests after this one.
    pub fn sweep(&self) {
        use nix::sys::signal::{Signal, kill};
        for (pid, _) in self.processes() {
            let _gone_meanwhile = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
        for point in self.mounts() {
            let _gone_meanwhile = nix::mount::umount2(point.as_str(), nix::mount::MntFlags::MNT_DETACH);
        }
        for dir in self.directories() {
            let _gone_meanwhile = fs::remove_dir_all(dir);
        }
        let mut deepest_first = cgroups(&self.namespace);
        deepest_first.reverse();
        for dir in deepest_first {
            let _busy_or_gone = fs::remove_dir(dir);
        }
    }
}

fn is_serving_shim(line: &str) -> bool {
    let mut words = line.split(' ');
    let is_shim = words
        .next()
        .is_some_and(|program| program.contains("containerd-shim-"));
    is_shim && !words.any(|word| word == "start" || word == "delete")
}

/// Arguments of a process, separated by spaces. `None` for a process that has gone, a zombie or a kernel thread.
pub fn command_line(pid: i32) -> Option<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&raw)
        .trim_end_matches('\0')
        .replace('\0', " ");
    (!line.is_empty()).then_some(line)
}

/// Directories below `/sys/fs/cgroup` with `name` in their own name, parents before children.
pub fn cgroups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    descend(Path::new(CGROUP_ROOT), name, false, CGROUP_DEPTH_MAX, &mut found);
    found
}

/// The cgroup of a process in one v1 hierarchy, or in the unified one for "".
pub fn cgroup_of(pid: u32, controller: &str) -> Option<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    cgroup_path(&table, controller).map(|path| {
        let hierarchy = Path::new(CGROUP_ROOT).join(controller);
        hierarchy.join(path.trim_start_matches('/'))
    })
}

fn cgroup_path<'t>(table: &'t str, controller: &str) -> Option<&'t str> {
    table.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        controllers
            .split(',')
            .any(|it| it == controller)
            .then(|| fields.next())?
    })
}

fn descend(dir: &Path, name: &str, within: bool, depth: usize, found: &mut Vec<PathBuf>) {
    for path in entries(dir)
        .into_iter()
        .filter(|path| path.is_dir() && !path.is_symlink())
    {
        let named = within
            || path
                .file_name()
                .is_some_and(|last| last.to_string_lossy().contains(name));
        if named {
            found.push(path.clone());
        }
        if depth > 1 {
            descend(&path, name, named, depth - 1, found);
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|all| all.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

/// The fifth field of `/proc/self/mountinfo`.
fn mount_points(table: &str) -> impl Iterator<Item = String> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table_gives_its_mount_points() {
        let table = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
            37 35 0:5 / /proc rw - proc proc rw\n";
        assert_eq!(mount_points(table).collect::<Vec<_>>(), ["/mnt2", "/proc"]);
    }

    #[test]
    fn a_shim_serves_unless_it_was_run_for_an_action() {
        assert!(is_serving_shim(
            "/usr/bin/containerd-shim-runc-v2 -namespace n -id c -address /run/x.sock"
        ));
        assert!(!is_serving_shim(
            "/usr/bin/containerd-shim-runc-v2 -namespace n -id c -bundle /run/b delete"
        ));
        assert!(!is_serving_shim("containerd --config /tmp/c"));
    }

    #[test]
    fn a_cgroup_table_gives_the_path_in_a_hierarchy() {
        let v1 = "5:cpu,cpuacct:/a/b\n4:memory:/a\n0::/\n";
        assert_eq!(cgroup_path(v1, "memory"), Some("/a"));
        assert_eq!(cgroup_path(v1, "cpuacct"), Some("/a/b"));
        assert_eq!(cgroup_path(v1, "pids"), None);
        assert_eq!(cgroup_path("0::/x.slice\n", ""), Some("/x.slice"));
    }
}
