//! What takes part in a dump or a restore is killed in the middle of it: the application goes on or is gone as a whole,
//! the books are true, and the next try works.
//!
//! The middle is made to last: CRIU is stopped as soon as it holds the container's init.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::attached::Attached;
use integration::by_ctr::Talker;
use integration::host::Host;
use integration::leftovers::command_line;
use integration::messages::Status;
use integration::need;
use integration::spoken::{Spoken, counter, dump_and_kill};
use integration::stdio::{StreamNames, eventually};
use integration::workload::Workload;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// Long enough to be met in the middle: CRIU saves this much in some 50 ms.
const MEMORY_MIB: &str = "192";
/// How long CRIU may take to get hold of a process; it needs 50 ms.
const CRIU_DEADLINE: Duration = Duration::from_secs(20);

/// A dump that stands still in its middle.
struct Standing {
    client: Attached,
    criu: Pid,
}

impl Standing {
    /// Starts a dump of container `c` and stops CRIU while it saves the init's memory. Killed before that, while it puts its code into
    /// the init, it would take that with it (one of eight kills), which is no fault of a shim's.
    fn begin(host: &Host, init: u32) -> Result<Self> {
        let images = host.dir().join("images").display().to_string();
        let args = host.ctr_args(&["tasks", "checkpoint", "--image-path", &images, "c"]);
        let client = Attached::start(Command::new("ctr").args(args))?;
        let criu = poll("CRIU to save the init's memory", || {
            tracer(init).filter(|criu| saves_memory(*criu))
        })?;
        kill(criu, Signal::SIGSTOP).context("stop CRIU")?;
        Ok(Self { client, criu })
    }

    /// Waits for the client, which must fail; returns what it said.
    fn fails(mut self) -> Result<String> {
        let status = self.client.wait()?;
        let said = self.client.stderr();
        ensure!(!status.success(), "the dump succeeded");
        Ok(said)
    }
}

/// Looks again and again, every millisecond, because the moment looked for is short.
fn poll<T>(what: &str, look: impl Fn() -> Option<T>) -> Result<T> {
    let end = Instant::now() + CRIU_DEADLINE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("waited {CRIU_DEADLINE:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether CRIU has begun to write down which pages it saves: it has its image directory open.
fn saves_memory(criu: Pid) -> bool {
    let open = fs::read_dir(format!("/proc/{criu}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let mut places = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    places.any(|place| place.join("pagemap-1.img").exists())
}

fn tracer(pid: u32) -> Option<Pid> {
    field(pid.try_into().ok()?, "TracerPid:")
        .filter(|tracer| *tracer != 0)
        .map(Pid::from_raw)
}

fn field(pid: i32, name: &str) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))?
        .trim()
        .parse()
        .ok()
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc")
        .map(|entries| entries.flatten().collect::<Vec<_>>())
        .unwrap_or_default();
    entries
        .iter()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The runc that does `verb` for the test's containers.
fn runc(host: &Host, verb: &str) -> Option<Pid> {
    let does = |line: &str| {
        line.contains("runc ") && line.contains(host.namespace()) && line.contains(&format!(" {verb} "))
    };
    pids()
        .into_iter()
        .find(|pid| command_line(*pid).is_some_and(|line| does(&line)))
        .map(Pid::from_raw)
}

/// The CRIU that restores for this runc. There was one before it, which only said its version; CRIU writes into its
/// command line what it was asked for.
fn restoring(runc: Pid) -> Option<Pid> {
    let restores = |pid: &i32| command_line(*pid).is_some_and(|line| line.starts_with("criu: restore"));
    let mut children = pids()
        .into_iter()
        .filter(|pid| field(*pid, "PPid:") == Some(runc.as_raw()));
    children.find(restores).map(Pid::from_raw)
}

/// The container goes on, and a dump of it works.
fn check_unharmed(host: &Host, talker: &mut Talker) -> Result<()> {
    // The client resumes it after it has said that the dump failed.
    let resumed = || talker.status().is_ok_and(|status| status == Status::Running);
    let waited = eventually("the container to run", CRIU_DEADLINE, resumed);
    waited.with_context(|| format!("its status is {:?}", talker.status()))?;
    let before = talker.check()?;
    talker.checkpoint("after")?;
    assert_eq!(talker.check()?, before + 1);
    ensure!(
        talker.pid().is_ok_and(|pid| tracer(pid).is_none()),
        "somebody still holds the init of {}",
        host.namespace()
    );
    Ok(())
}

#[test]
fn criu_killed_in_a_dump_leaves_the_application_running() -> Result<()> {
    need!(
        OurShim,
        "containerd's own shim leaves the container paused now and then"
    );
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["memory", MEMORY_MIB], &[])?;
    let dump = Standing::begin(&host, talker.pid()?)?;
    kill(dump.criu, Signal::SIGKILL)?;
    let said = dump.fails()?;
    ensure!(said.contains("crashed or was killed"), "{said}");
    check_unharmed(&host, &mut talker)?;
    talker.remove()
}

#[test]
fn runc_killed_in_a_dump_leaves_the_application_running() -> Result<()> {
    need!(
        OurShim,
        "containerd's own shim leaves CRIU behind, which holds the container"
    );
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["memory", MEMORY_MIB], &[])?;
    let dump = Standing::begin(&host, talker.pid()?)?;
    kill(
        runc(&host, "checkpoint").context("find runc checkpoint")?,
        Signal::SIGKILL,
    )?;
    let _said = dump.fails()?;
    check_unharmed(&host, &mut talker)?;
    talker.remove()
}

#[test]
fn shim_killed_in_a_dump_leaves_nothing() -> Result<()> {
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["memory", MEMORY_MIB], &[])?;
    let init = talker.pid()?;
    let dump = Standing::begin(&host, init)?;
    let shim = host.known("c", counter()).shim_pid()?;
    kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    let _said = dump.fails()?;
    eventually("the task to be gone", CRIU_DEADLINE, || {
        host.api().get("c", "").is_err()
    })?;
    talker.gone()?;
    host.assert_clean()?;
    let mut next = Talker::run(&host, "c", WORKLOAD, &["memory", "1"], &[])?;
    assert_eq!(next.check()?, 1);
    next.remove()
}

#[test]
fn init_killed_in_a_dump_is_an_exit_like_any_other() -> Result<()> {
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let events = host.events()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["memory", MEMORY_MIB], &[])?;
    let init = talker.pid()?;
    let dump = Standing::begin(&host, init)?;
    kill(Pid::from_raw(init.try_into()?), Signal::SIGKILL)?;
    kill(dump.criu, Signal::SIGCONT)?;
    let _said = dump.fails()?;
    let exit = events.find("c", |event| event.kind == "exit")?;
    assert_eq!(exit.status, Some(137));
    talker.gone()
}

#[test]
fn state_answers_while_a_dump_is_under_way() -> Result<()> {
    need!(OurShim, "containerd's own shim answers after the dump");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["memory", MEMORY_MIB], &[])?;
    let mut dump = Standing::begin(&host, talker.pid()?)?;
    // The client paused the container before it asked for the dump.
    assert_eq!(talker.status()?, Status::Paused);
    kill(dump.criu, Signal::SIGCONT)?;
    ensure!(
        dump.client.wait()?.success(),
        "the dump failed: {}",
        dump.client.stderr()
    );
    assert_eq!(talker.status()?, Status::Running);
    check_unharmed(&host, &mut talker)?;
    talker.remove()
}

#[test]
fn containerd_killed_in_a_dump_finds_the_container_running() -> Result<()> {
    need!(Criu, "dumps");
    let mut host = Host::with_own_containerd()?;
    let spoken = Spoken::run(host.container("c", counter())?)?;
    spoken.says("one", "1 one")?;
    let init = spoken.container.state()?.pid;
    let dump = Standing::begin(&host, init)?;
    host.daemon()?.kill()?;
    kill(dump.criu, Signal::SIGCONT)?;
    let _said = dump.fails()?;
    poll("CRIU to let go", || tracer(init).is_none().then_some(()))?;
    host.daemon()?.restart()?;
    eventually("the container to be known", CRIU_DEADLINE, || {
        spoken.container.status().is_ok()
    })?;
    if spoken.container.status()? == Status::Paused {
        // The client paused it, and was cut off before it could resume it.
        spoken.container.api().resume("c")?;
    }
    spoken.says("two", "2 two")?;
    let _dump = dump_and_kill(&host, &spoken.container)?;
    Ok(())
}

/// As [`counter`], with so much memory that its restore takes long enough to be met in the middle.
fn large_counter() -> Workload {
    let fill = "x=$(head -c 100000000 /dev/zero | tr '\\0' x)";
    Workload::shell(&format!(
        "{fill}; n=0; while read line; do n=$((n+1)); echo $n $line; done"
    ))
}

/// A restore of container `c` whose CRIU, runc or shim is killed in the middle.
fn killed_restore(victim: &str) -> Result<()> {
    let host = Host::new()?;
    // With all of its memory at once, so that there is time to meet it.
    let eager = large_counter().annotation("cedana.restore.lazy", "false");
    let first = Spoken::run(host.container("c", eager)?)?;
    first.says("one", "1 one")?;
    let dump = dump_and_kill(&host, &first.container)?;
    let container = first.container.clone();
    let kept = dump.clone();
    let restore = std::thread::spawn(move || {
        let created = container.create_from(&StreamNames::default(), kept);
        created.and_then(|_pid| container.start())
    });
    let runc = poll("runc to restore", || runc(&host, "restore"))?;
    let criu = poll("CRIU to restore", || restoring(runc))?;
    kill(criu, Signal::SIGSTOP)?;
    match victim {
        "criu" => kill(criu, Signal::SIGKILL)?,
        "runc" => kill(runc, Signal::SIGKILL)?,
        _ => kill(
            Pid::from_raw(field(runc.as_raw(), "PPid:").context("find the shim")?),
            Signal::SIGKILL,
        )?,
    }
    let restored = restore
        .join()
        .map_err(|_| anyhow::anyhow!("the restoring thread panicked"))?;
    ensure!(restored.is_err(), "the restore succeeded");
    eventually("the task to be gone", CRIU_DEADLINE, || {
        host.api().get("c", "").is_err()
    })?;
    host.assert_clean()?;
    let removed = first.container.path_in_upper("bin");
    ensure!(
        !removed.exists(),
        "files of the container were removed: {:?}",
        fs::read_dir(&removed)?.count()
    );
    let again = Spoken::restore(first.container, dump)?;
    again.says("two", "2 two")
}

#[test]
fn criu_killed_in_a_restore_leaves_nothing_and_the_next_works() -> Result<()> {
    need!(OurShim, "containerd's own shim leaves a created task");
    need!(Criu, "dumps");
    killed_restore("criu")
}

#[test]
fn runc_killed_in_a_restore_leaves_nothing_and_the_next_works() -> Result<()> {
    need!(OurShim, "containerd's own shim leaves a created task");
    need!(Criu, "dumps");
    killed_restore("runc")
}

#[test]
fn shim_killed_in_a_restore_leaves_nothing_and_the_next_works() -> Result<()> {
    need!(OurShim, "containerd's own shim leaves CRIU behind");
    need!(Criu, "dumps");
    killed_restore("shim")
}
