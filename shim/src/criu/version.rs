//! CRIU's version, and what it says about this host.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A version of CRIU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// The 4 of 4.2.1.
    pub major: u32,
    /// The 2 of 4.2.1.
    pub minor: u32,
    /// The 1 of 4.2.1; zero when not printed.
    pub patch: u32,
}

impl Version {
    /// The version without a patch level.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self {
            major,
            minor,
            patch: 0,
        }
    }

    /// Reads the output of `criu --version`: `Version: 4.2.1`, then perhaps `GitID: …`.
    pub fn parse(output: &str) -> Option<Self> {
        let text = output
            .lines()
            .find_map(|line| line.strip_prefix("Version:"))?
            .trim();
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let major = numbers.next()?.ok()?;
        let minor = numbers.next()?.ok()?;
        let patch = numbers.next().and_then(Result::ok).unwrap_or(0);
        Some(Self { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch == 0 {
            Ok(())
        } else {
            write!(f, ".{}", self.patch)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_distributions_print_them() {
        for (output, expected) in [
            ("Version: 4.2.1\n", Some((4, 2, 1))),
            ("Version: 4.1\nGitID: v4.1-3-gabc\n", Some((4, 1, 0))),
            ("Version: 3.17.1\n", Some((3, 17, 1))),
            ("Version: 4.3-dev\n", Some((4, 3, 0))),
            ("Version: 4\n", None),
            ("usage: criu\n", None),
            ("", None),
        ] {
            let expected = expected.map(|(major, minor, patch)| Version { major, minor, patch });
            assert_eq!(Version::parse(output), expected, "{output:?}");
        }
    }

    #[test]
    fn versions_are_ordered_and_shown_as_printed() {
        assert!(Version::new(3, 19) < Version::new(4, 1));
        assert!(
            Version {
                major: 4,
                minor: 2,
                patch: 1
            } > Version::new(4, 2)
        );
        assert_eq!(
            Version {
                major: 4,
                minor: 2,
                patch: 1
            }
            .to_string(),
            "4.2.1"
        );
        assert_eq!(Version::new(4, 2).to_string(), "4.2");
    }
}
