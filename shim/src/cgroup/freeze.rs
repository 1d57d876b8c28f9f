//! Freezing and thawing a cgroup, without the 100 ms steps in which runc and CRIU look.

use std::path::Path;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Cgroup, CgroupError, Tree, events, files};

/// Looks at cgroup v1's `freezer.state` before the first pause: a quiet container is frozen by the first.
const EAGER_LOOKS: u32 = 10;

/// First and longest pause between two looks. The timer's grain is one millisecond; the doubling keeps a
/// container that takes seconds (a task in the kernel's D state) from costing a core.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(16);

/// After so many looks a freeze on cgroup v1 is begun anew from thawed: tasks that fork while they are being
/// frozen can leave the state at FREEZING for ever (runc does the same).
const LOOKS_UNTIL_RETHAW: u32 = 50;

/// The time a freeze that failed is given to be taken back.
const TAKE_BACK_LIMIT: Duration = Duration::from_secs(1);

impl Cgroup {
    /// Freezes every task of the subtree and returns when they stand. When it cannot within `limit`, or fails,
    /// the cgroup is thawed again and the error returned.
    pub async fn freeze(&self, limit: Duration) -> Result<(), CgroupError> {
        if let Some(dir) = self.dir("freezer") {
            self.check_not_shared(dir)?;
        }
        let frozen = match timeout(limit, self.set_frozen(true)).await {
            Ok(result) => result,
            Err(_) => Err(self.too_slow("freeze", limit)),
        };
        if frozen.is_err() {
            // The first error is the one to tell; a thaw that fails as well is seen by the next freeze or thaw.
            drop(timeout(TAKE_BACK_LIMIT, self.set_frozen(false)).await);
        }
        frozen
    }

    /// Lets every task of the subtree go on. Thawing what is not frozen is fine; a frozen ancestor makes this
    /// fail at the deadline.
    pub async fn thaw(&self, limit: Duration) -> Result<(), CgroupError> {
        match timeout(limit, self.set_frozen(false)).await {
            Ok(result) => result,
            Err(_) => Err(self.too_slow("thaw", limit)),
        }
    }

    /// Whether every task stands, be it for this cgroup or for an ancestor. False when the cgroup is gone or has
    /// no freezer.
    pub fn is_frozen(&self) -> bool {
        match &self.tree {
            Tree::V2(dir) => files::read_optional(&dir.join("cgroup.events"))
                .is_some_and(|text| files::keyed(&text, "frozen") == Some(1)),
            Tree::V1(_) => self
                .dir("freezer")
                .and_then(|dir| files::read_optional(&dir.join("freezer.state")))
                .is_some_and(|text| text.trim() == "FROZEN"),
        }
    }

    pub(super) async fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        match &self.tree {
            Tree::V2(dir) => {
                files::write(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
                events::reached(dir, "frozen", u64::from(frozen)).await
            }
            Tree::V1(_) => {
                let dir = self.dir("freezer").ok_or_else(|| {
                    CgroupError::Unsupported("the freezer hierarchy is not mounted".to_owned())
                })?;
                set_state(
                    &dir.join("freezer.state"),
                    if frozen { "FROZEN" } else { "THAWED" },
                )
                .await
            }
        }
    }

    pub(super) fn too_slow(&self, action: &'static str, limit: Duration) -> CgroupError {
        let dir = self.main_dir().unwrap_or(Path::new("")).to_owned();
        CgroupError::Deadline { action, dir, limit }
    }
}

/// Cgroup v1: the file tells nobody when it changes. The state is written again at each look, which catches tasks
/// that were forked meanwhile.
async fn set_state(path: &Path, wanted: &str) -> Result<(), CgroupError> {
    let mut pause = PAUSE_MIN;
    for look in 1u32.. {
        files::write(path, wanted)?;
        if files::read(path)?.trim() == wanted {
            return Ok(());
        }
        if look % LOOKS_UNTIL_RETHAW == 0 {
            files::write(path, "THAWED")?;
        }
        if look < EAGER_LOOKS {
            tokio::task::yield_now().await;
        } else {
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
    Ok(())
}
