//! The driver of the GPU, if there is one.

use std::fs;
use std::path::Path;

use super::checks::Checks;

const COMPONENT: &str = "gpu";
const NVIDIA: &str = "/proc/driver/nvidia/version";
const AMD: &str = "/dev/kfd";

/// Looks for one.
pub fn look(checks: &mut Checks) {
    let remedy = "containers that do not use it can be saved";
    let nvidia = fs::read_to_string(NVIDIA).ok();
    if let Some(text) = nvidia {
        let version = driver(&text).unwrap_or("of an unknown version");
        let found = format!("NVIDIA driver {version}: this build does not save the state of GPUs");
        checks.warning(COMPONENT, "driver", found, remedy);
    } else if Path::new(AMD).exists() {
        checks.warning(
            COMPONENT,
            "driver",
            "AMD: this build does not save the state of GPUs",
            remedy,
        );
    } else {
        checks.absent(COMPONENT, "driver", "none");
    }
}

/// The number in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.01  Thu …`, also of the open module.
fn driver(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    line.split_whitespace()
        .find(|word| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_says_its_version() {
        for (text, expected) in [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC version: 12.2",
                Some("535.129.03"),
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159  Release Build\n",
                Some("580.159"),
            ),
            ("GCC version: 12.2.0", None),
            ("", None),
        ] {
            assert_eq!(driver(text), expected, "{text}");
        }
    }
}
