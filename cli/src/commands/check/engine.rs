//! containerd: whether it answers, and which it is.

use std::path::Path;

use super::checks::Checks;
use super::tool::version;
use crate::engines::containerd::Containerd;

const COMPONENT: &str = "containerd";

/// The oldest that starts shims as ours is started.
const OLDEST: (u32, u32) = (1, 7);

/// Looks at the one that listens on this socket.
pub async fn look(socket: &Path, namespace: &str, checks: &mut Checks) {
    let asked = match Containerd::connect(socket, namespace).await {
        Ok(engine) => engine.version().await,
        Err(error) => Err(error),
    };
    match asked {
        Ok(said) => {
            checks.good(COMPONENT, "socket", socket.display().to_string());
            judge(&said, checks);
        }
        Err(error) => {
            let remedy = "start it, or name another one by --address or $CONTAINERD_ADDRESS";
            checks.error(COMPONENT, "socket", error.message, remedy);
        }
    }
}

fn judge(said: &str, checks: &mut Checks) {
    if version(said).is_some_and(|version| version < OLDEST) {
        checks.error(COMPONENT, "version", said, "install containerd 1.7 or later");
    } else {
        checks.good(COMPONENT, "version", said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_old_one_is_refused() {
        for (said, errors) in [
            ("1.7.24~ds1", 0),
            ("v2.1.9", 0),
            ("1.6.36", 1),
            ("a build without a number", 0),
        ] {
            let mut checks = Checks::default();
            judge(said, &mut checks);
            assert_eq!(checks.errors(), errors, "{said}");
        }
    }
}
