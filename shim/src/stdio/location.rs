//! What a client can write where a standard stream is expected, and what it means. Text only, opens nothing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::StdioError;

/// Where a stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Location {
    /// Nowhere: the container gets /dev/null.
    Nothing,
    /// Something that exists: nearly always a fifo.
    Path(PathBuf),
    /// A file to append to, created with its parents if missing.
    File(PathBuf),
    /// A program that reads the output.
    Binary(LoggerCommand),
}

/// How a logging binary is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoggerCommand {
    /// The program.
    pub path: PathBuf,
    /// Each query key followed by its first value, as containerd passes them.
    pub arguments: Vec<OsString>,
    /// Query keys `env.NAME`, without that prefix, and their first values.
    pub environment: Vec<(OsString, OsString)>,
    /// `binary-v2`: only a written byte means ready, so a logger that crashed at once is noticed.
    pub must_say_ready: bool,
}

/// Reads a stream's location: a plain path, `fifo:`, `file:`, `binary:` or `binary-v2:`.
pub(super) fn parse(uri: &str) -> Result<Location, StdioError> {
    let invalid = |reason| StdioError::Invalid {
        uri: uri.to_owned(),
        reason,
    };
    if uri.is_empty() {
        return Ok(Location::Nothing);
    }
    let Some((scheme, rest)) = split_scheme(uri) else {
        return Ok(Location::Path(PathBuf::from(uri)));
    };
    let rest = rest.split_once('#').map_or(rest, |(rest, _fragment)| rest);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path =
        decode(without_authority(path), false).ok_or_else(|| invalid("bad percent encoding in its path"))?;
    if path.is_empty() {
        return Err(invalid("it has no path"));
    }
    let path = PathBuf::from(OsString::from_vec(path));
    match scheme {
        "fifo" => Ok(Location::Path(path)),
        "file" => Ok(Location::File(path)),
        "binary" | "binary-v2" => Ok(Location::Binary(command(path, query, scheme == "binary-v2"))),
        _ => Err(invalid("known schemes are fifo, file, binary and binary-v2")),
    }
}

fn split_scheme(uri: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = uri.split_once(':')?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(legal))
        .then_some((scheme, rest))
}

/// `//host/path` to `/path`: a host means nothing here.
fn without_authority(path: &str) -> &str {
    match path.strip_prefix("//") {
        None => path,
        Some(rest) => rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or(""),
    }
}

fn command(path: PathBuf, query: &str, must_say_ready: bool) -> LoggerCommand {
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // What cannot be decoded is left out, and only the first value of a key counts: so does Go's shim.
        if let (Some(key), Some(value)) = (decode(key, true), decode(value, true))
            && !pairs.iter().any(|(known, _)| *known == key)
        {
            pairs.push((key, value));
        }
    }
    let mut command = LoggerCommand {
        path,
        arguments: Vec::new(),
        environment: Vec::new(),
        must_say_ready,
    };
    for (key, value) in pairs {
        let value = OsString::from_vec(value);
        match key.strip_prefix(b"env.") {
            Some(name) => command
                .environment
                .push((OsString::from_vec(name.to_vec()), value)),
            None => command.arguments.extend([OsString::from_vec(key), value]),
        }
    }
    command
}

/// Undoes percent encoding, in a query also `+` for a space. None if it is malformed, or names a zero byte, which
/// neither a path nor an argument can hold.
fn decode(text: &str, query: bool) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if query => b' ',
            other => other,
        });
    }
    (!decoded.contains(&0)).then_some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(uri: &str) -> LoggerCommand {
        match parse(uri) {
            Ok(Location::Binary(command)) => command,
            other => panic!("{uri}: {other:?}"),
        }
    }

    #[test]
    fn a_location_is_nothing_a_path_a_file_or_a_binary() {
        let path = |text: &str| Location::Path(PathBuf::from(text));
        let file = |text: &str| Location::File(PathBuf::from(text));
        for (uri, expected) in [
            ("", Location::Nothing),
            ("/run/a/0-stdout", path("/run/a/0-stdout")),
            ("/run/50%/a:b?c", path("/run/50%/a:b?c")),
            ("fifo:///run/a", path("/run/a")),
            ("file:///var/log/a%20b.log", file("/var/log/a b.log")),
            ("file:/var/log/a", file("/var/log/a")),
            ("file://localhost/var/log/a", file("/var/log/a")),
            ("file:///a+b#fragment", file("/a+b")),
        ] {
            assert_eq!(parse(uri).unwrap(), expected, "{uri}");
        }
    }

    #[test]
    fn a_bad_location_is_refused() {
        for uri in [
            "http:///x",
            "file://",
            "file://host",
            "file:///a%2",
            "file:///a%zz",
            "binary:///a%00",
            "npipe://x",
        ] {
            assert!(matches!(parse(uri), Err(StdioError::Invalid { .. })), "{uri}");
        }
    }

    #[test]
    fn a_query_becomes_arguments_and_environment() {
        let command = binary(
            "binary:///usr/bin/log?_INTERNAL=/var/lib/x&debug&a=1&a=2&b=c%20d+e&bad=%z&env.LEVEL=high",
        );
        assert_eq!(command.path, PathBuf::from("/usr/bin/log"));
        assert_eq!(
            command.arguments,
            ["_INTERNAL", "/var/lib/x", "debug", "", "a", "1", "b", "c d e"]
        );
        assert_eq!(command.environment, [("LEVEL".into(), "high".into())]);
        assert!(!command.must_say_ready);
        assert!(binary("binary-v2:///x").must_say_ready);
    }
}
