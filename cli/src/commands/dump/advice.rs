//! How what a shim advises, in the words of settings, is said to `cedana` for one dump.

use crate::error::Error;

/// A setting, as shims and preflight name it, and the flags that are the same for one dump.
const FLAGS: [(&str, &str); 8] = [
    ("dump.tcp", "--tcp-established (saved), or --tcp-close (closed)"),
    ("dump.skip-in-flight", "--skip-in-flight"),
    ("dump.external-unix-sockets", "--external-unix-sockets"),
    ("dump.ghost-limit", "--ghost-limit 1G"),
    ("dump.shell-job", "--shell-job"),
    ("dump.link-remap", "--leave-running=false"),
    ("dump.file-locks", "--file-locks"),
    ("dump.timeout", "--criu-opts '{\"timeout\": 600}'"),
];

/// The flags for the setting that a text names.
pub fn flags(text: &str) -> Option<&'static str> {
    let named = FLAGS.iter().find(|(setting, _)| text.contains(setting));
    named.map(|(_, flags)| *flags)
}

/// The failure of a dump, with the flags for what it advises: an annotation comes too late for a container that is there.
pub fn advised(error: Error) -> Error {
    match flags(&error.message) {
        Some(flags) => error.hint(format!("for this dump alone: {flags}")),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::super::criu_options;
    use super::*;

    #[test]
    fn an_annotation_that_is_advised_is_a_flag_here() {
        let said = "close it, or set the annotation cedana.dump.file-locks to true";
        assert_eq!(
            advised(Error::tool(said)).hints,
            ["for this dump alone: --file-locks"]
        );
        assert!(advised(Error::tool("the disk is full")).hints.is_empty());
    }

    #[test]
    fn every_option_that_is_advised_is_taken() {
        let mut options = 0;
        for (setting, flags) in FLAGS {
            let Some((_, json)) = flags.split_once("--criu-opts '") else {
                continue;
            };
            let json = json.split('\'').next().expect("a first part");
            let read = criu_options::parse(json).expect("options");
            assert!(read.settings.contains_key(setting), "{flags}");
            options += 1;
        }
        assert_eq!(options, 1);
    }
}
