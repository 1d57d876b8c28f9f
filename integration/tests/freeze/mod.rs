//! Pause and resume: the freezer of cgroup v1, and that of v2.

use anyhow::Result;
use integration::host::Host;
use integration::messages::Status;
use integration::workload::Workload;

const KILL: u32 = 9;
const TERM: u32 = 15;

#[test]
fn a_paused_task_says_so_and_goes_on_when_resumed() -> Result<()> {
    let host = Host::new()?;
    let (container, _stdout) = host.run_until_ready(Workload::forever())?;
    container.api().pause("c")?;
    assert_eq!(container.status()?, Status::Paused);
    container.api().resume("c")?;
    assert_eq!(container.status()?, Status::Running);
    container.kill(TERM)?;
    assert_eq!(container.wait()?, 143);
    Ok(())
}

#[test]
fn a_signal_to_a_paused_task_arrives_when_it_is_resumed() -> Result<()> {
    let host = Host::new()?;
    let (container, _stdout) = host.run_until_ready(Workload::forever())?;
    container.api().pause("c")?;
    container.kill(TERM)?;
    assert_eq!(container.status()?, Status::Paused);
    container.api().resume("c")?;
    assert_eq!(container.wait()?, 143);
    Ok(())
}

#[test]
fn kill_ends_a_paused_task() -> Result<()> {
    let host = Host::new()?;
    let (container, _stdout) = host.run_until_ready(Workload::forever())?;
    container.api().pause("c")?;
    container.kill(KILL)?;
    assert_eq!(container.wait()?, 137);
    assert_eq!(container.status()?, Status::Stopped);
    assert_eq!(container.delete()?, 137);
    host.assert_clean()
}
