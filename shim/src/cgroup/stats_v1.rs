//! (being written)
use super::{Cgroup, CgroupError, Metrics};
pub(super) fn read(_cgroup: &Cgroup) -> Result<Metrics, CgroupError> {
    Err(CgroupError::Unsupported("stats".to_owned()))
}
