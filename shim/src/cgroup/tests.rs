//! Real cgroups with real processes. They need root, and the hierarchies they are about.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use super::*;

/// What every wait of a test ends at.
const LIMIT: Duration = Duration::from_secs(20);

/// Between two looks at what nobody announces.
const PAUSE: Duration = Duration::from_millis(1);

/// Cgroups of one test, taken away with all their processes when it ends.
struct Scratch {
    cgroup: Cgroup,
    children: Vec<Child>,
}

/// Says which tests did not run, and why.
#[expect(clippy::print_stderr, reason = "a test that does not run says so")]
fn skip(name: &str, reason: &str) {
    eprintln!("skipped {name}: {reason}");
}

impl Scratch {
    /// On cgroup v1, a directory beside our own in each of the hierarchies.
    fn v1(name: &str, controllers: &[&str]) -> Option<Self> {
        let own = paths::of_process("self").unwrap();
        let mut all = Vec::new();
        for controller in controllers {
            let Some(parent) = own.dir(controller).filter(|_| !own.is_unified()) else {
                skip(name, &format!("no {controller} hierarchy of cgroup v1"));
                return None;
            };
            let dir = parent.join(format!("cedana-test-{name}-{}", std::process::id()));
            all.push(Hierarchy {
                controllers: vec![(*controller).to_owned()],
                dir,
            });
        }
        Self::make(name, Cgroup { tree: Tree::V1(all) })
    }

    /// On cgroup v2, or in the unified hierarchy of a hybrid host.
    fn v2(name: &str) -> Option<Self> {
        let own = paths::of_process("self").unwrap();
        let unified = match &own.tree {
            Tree::V2(dir) => Some(dir),
            Tree::V1(all) => all
                .iter()
                .find(|one| one.controllers.is_empty())
                .map(|one| &one.dir),
        };
        let Some(parent) = unified else {
            skip(name, "no unified hierarchy");
            return None;
        };
        let dir = parent.join(format!("cedana-test-{name}-{}", std::process::id()));
        Self::make(name, Cgroup { tree: Tree::V2(dir) })
    }

    fn make(name: &str, cgroup: Cgroup) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip(name, "needs root");
            return None;
        }
        for dir in cgroup.dirs() {
            std::fs::create_dir(dir).unwrap();
        }
        Some(Self {
            cgroup,
            children: Vec::new(),
        })
    }

    /// Starts a shell that reads its script from a pipe, so it does nothing before it is where it belongs.
    fn shell(&mut self, below: &str) -> i32 {
        let child = Command::new("sh").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        for dir in self.cgroup.dirs() {
            let dir = dir.join(below);
            std::fs::create_dir_all(&dir).unwrap();
            files::write(&dir.join("cgroup.procs"), &pid.to_string()).unwrap();
        }
        i32::try_from(pid).unwrap()
    }

    fn tell(&mut self, script: &str) {
        let input = self.children.last_mut().unwrap().stdin.as_mut().unwrap();
        input.write_all(script.as_bytes()).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
        }
        if let Tree::V2(dir) = &self.cgroup.tree {
            drop(files::write(&dir.join("cgroup.freeze"), "0"));
        } else if let Some(dir) = self.cgroup.dir("freezer") {
            drop(files::write(&dir.join("freezer.state"), "THAWED"));
        }
        for child in &mut self.children {
            drop(child.wait());
        }
        run(async {
            drop(self.cgroup.remove(LIMIT).await);
        });
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// The state letter of a process.
fn state(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim().chars().next().unwrap()
}

fn check_freeze_and_thaw(scratch: Option<Scratch>) {
    let Some(mut scratch) = scratch else { return };
    let pids = [scratch.shell(""), scratch.shell("below/deep")];
    let cgroup = scratch.cgroup.clone();
    let mut sorted = pids.to_vec();
    sorted.sort_unstable();
    assert_eq!(cgroup.procs(), sorted);
    assert!(!cgroup.stats().unwrap().value.is_empty());
    cgroup.enable_controllers().unwrap();
    run(async {
        for _ in 0..20 {
            cgroup.freeze(LIMIT).await.unwrap();
            assert!(cgroup.is_frozen());
            cgroup.freeze(LIMIT).await.unwrap();
            cgroup.thaw(LIMIT).await.unwrap();
            assert!(!cgroup.is_frozen());
        }
        assert!(matches!(
            cgroup.remove(Duration::ZERO).await,
            Err(CgroupError::Deadline { .. })
        ));
    });
}

#[test]
fn a_v1_cgroup_freezes_and_thaws() {
    check_freeze_and_thaw(Scratch::v1("freeze1", &["freezer", "pids"]));
}

#[test]
fn a_v2_cgroup_freezes_and_thaws() {
    check_freeze_and_thaw(Scratch::v2("freeze2"));
}

fn check_kill(scratch: Option<Scratch>) {
    let Some(mut scratch) = scratch else { return };
    let _first = scratch.shell("");
    scratch.tell("while :; do (:); done\n");
    let _second = scratch.shell("below");
    scratch.tell("sh -c 'exec sleep 1000' & wait\n");
    let cgroup = scratch.cgroup.clone();
    run(async {
        cgroup.freeze(LIMIT).await.unwrap();
        cgroup.kill_all(LIMIT).await.unwrap();
        assert_eq!(cgroup.procs(), Vec::<i32>::new());
        for child in &mut scratch.children {
            assert!(!child.wait().unwrap().success());
        }
        cgroup.remove(LIMIT).await.unwrap();
        assert!(cgroup.dirs().iter().all(|dir| !dir.exists()));
        assert!(!cgroup.exists() && !cgroup.is_frozen() && cgroup.procs().is_empty());
        cgroup.kill_all(LIMIT).await.unwrap();
        cgroup.remove(LIMIT).await.unwrap();
        assert!(matches!(cgroup.freeze(LIMIT).await, Err(CgroupError::Gone(_))));
        assert!(matches!(cgroup.stats(), Err(CgroupError::Gone(_))));
    });
}

#[test]
fn a_v1_cgroup_that_forks_and_is_frozen_is_killed_and_removed() {
    check_kill(Scratch::v1("kill1", &["freezer", "pids"]));
}

#[test]
fn a_v2_cgroup_that_forks_and_is_frozen_is_killed_and_removed() {
    check_kill(Scratch::v2("kill2"));
}

#[test]
fn a_v2_cgroup_without_a_kill_file_is_killed_as_well() {
    let Some(mut scratch) = Scratch::v2("kill3") else {
        return;
    };
    let _pid = scratch.shell("below");
    scratch.tell("hop() { hop & }; hop; read gone\n");
    let dir = scratch.cgroup.main_dir().unwrap().to_owned();
    run(async {
        let killed = async {
            kill::kill_frozen(&dir).await.unwrap();
            events::reached(&dir, "populated", 0).await.unwrap();
        };
        tokio::time::timeout(LIMIT, killed).await.unwrap();
        assert_eq!(scratch.cgroup.procs(), Vec::<i32>::new());
    });
}

#[test]
fn a_process_that_hops_from_pid_to_pid_is_killed() {
    let Some(mut scratch) = Scratch::v1("hop", &["freezer", "pids"]) else {
        return;
    };
    // Should it get away, it does so alone.
    files::write(&scratch.cgroup.dir("pids").unwrap().join("pids.max"), "50").unwrap();
    let pid = scratch.shell("");
    scratch.tell("hop() { hop & }; hop; read gone\n");
    run(async {
        let hopping = async {
            while scratch.cgroup.procs().into_iter().all(|other| other == pid) {
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::time::timeout(LIMIT, hopping).await.unwrap();
        scratch.cgroup.kill_all(LIMIT).await.unwrap();
        assert_eq!(scratch.cgroup.procs(), Vec::<i32>::new());
    });
}

#[test]
fn a_hierarchy_in_which_the_container_is_where_we_are_is_left_alone() {
    let Some(mut scratch) = Scratch::v1("left", &["freezer"]) else {
        return;
    };
    let own = paths::of_process("self").unwrap();
    let shared = Hierarchy {
        controllers: vec!["pids".to_owned()],
        dir: own.dir("pids").unwrap().to_owned(),
    };
    let _pid = scratch.shell("");
    let Tree::V1(mut all) = scratch.cgroup.tree.clone() else {
        return;
    };
    all.insert(0, shared);
    let cgroup = Cgroup { tree: Tree::V1(all) };
    run(async {
        cgroup.freeze(LIMIT).await.unwrap();
        cgroup.kill_all(LIMIT).await.unwrap();
        cgroup.remove(LIMIT).await.unwrap();
        assert!(!cgroup.exists() && cgroup.dir("pids").unwrap().exists());
    });
}

#[test]
fn a_process_is_found_in_its_cgroup() {
    let Some(mut scratch) = Scratch::v1("find", &["freezer", "memory"]) else {
        return;
    };
    let pid = scratch.shell("");
    let found = Cgroup::of_pid(pid).unwrap();
    for controller in ["freezer", "memory"] {
        assert_eq!(
            found.dir(controller),
            scratch.cgroup.dir(controller),
            "{controller}"
        );
    }
    assert_ne!(state(pid), 'Z');
    assert!(found.stats().unwrap().value.len() > 100);
}

#[test]
fn what_holds_ourselves_is_neither_frozen_nor_killed() {
    let own = Cgroup::of_pid(i32::try_from(std::process::id()).unwrap()).unwrap();
    run(async {
        assert!(matches!(own.freeze(LIMIT).await, Err(CgroupError::Shared(_))));
        assert!(matches!(own.kill_all(LIMIT).await, Err(CgroupError::Shared(_))));
        assert!(matches!(own.remove(LIMIT).await, Err(CgroupError::Shared(_))));
    });
}

#[test]
fn a_process_that_is_gone_is_told_apart() {
    // Above the largest pid the kernel can give.
    assert!(matches!(Cgroup::of_pid(1 << 23), Err(CgroupError::Gone(_))));
}

#[test]
fn an_out_of_memory_kill_is_told_on_v1() {
    let Some(mut scratch) = Scratch::v1("oom1", &["memory"]) else {
        return;
    };
    let _pid = scratch.shell("");
    let dir = scratch.cgroup.dir("memory").unwrap().to_owned();
    files::write(&dir.join("memory.limit_in_bytes"), &(8 << 20).to_string()).unwrap();
    run(async {
        let mut watch = scratch.cgroup.oom_watch().unwrap();
        scratch.tell("tail /dev/zero; exit 3\n");
        assert_eq!(tokio::time::timeout(LIMIT, watch.next()).await.unwrap(), Some(()));
        let status = scratch.children.last_mut().unwrap().wait().unwrap();
        assert!(status.code().is_none_or(|code| code == 3), "{status}");
        // One kill can be told more than once; what counts is that the removal ends it.
        scratch.cgroup.remove(LIMIT).await.unwrap();
        while tokio::time::timeout(LIMIT, watch.next()).await.unwrap().is_some() {}
    });
}

/// On v2 through plain files, which are watched the same way: the memory controller may be v1's here.
#[test]
fn an_out_of_memory_kill_is_told_once_on_v2() {
    let dir = tempfile::tempdir().unwrap();
    let set = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
    set("memory.events", "oom 0\noom_kill 0\n");
    set("cgroup.events", "populated 1\nfrozen 0\n");
    let cgroup = Cgroup {
        tree: Tree::V2(dir.path().to_owned()),
    };
    run(async {
        let mut watch = cgroup.oom_watch().unwrap();
        set("memory.events", "oom 1\noom_kill 0\n");
        assert!(
            tokio::time::timeout(Duration::from_millis(20), watch.next())
                .await
                .is_err()
        );
        set("memory.events", "oom 1\noom_kill 2\n");
        assert_eq!(tokio::time::timeout(LIMIT, watch.next()).await.unwrap(), Some(()));
        assert!(
            tokio::time::timeout(Duration::from_millis(20), watch.next())
                .await
                .is_err()
        );
        set("memory.events", "oom 2\noom_kill 3\n");
        assert!(watch.is_pending());
        assert!(!watch.is_pending());
        set("cgroup.events", "populated 0\nfrozen 0\n");
        assert_eq!(tokio::time::timeout(LIMIT, watch.next()).await.unwrap(), None);
    });
}
