//! The options table that CRI and dockerd pass on as text: flat TOML, `Key = value`, a key a line.
//!
//! Only what such a table can hold is understood: basic and literal strings, booleans, whole numbers. A TOML crate
//! would be more text in memory than all the rest of `start`.

use super::{Options, OptionsError};

/// Reads the keys of containerd's runc options from the top level of a table. Other keys and tables are left alone:
/// the table also holds what containerd itself needs (`TypeUrl`, `ConfigPath`).
pub(super) fn parse(text: &str) -> Result<Options, OptionsError> {
    let mut options = Options::default();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            break;
        }
        if !line.is_empty() && !line.starts_with('#') {
            set(&mut options, line).map_err(|problem| OptionsError::Table {
                line: index + 1,
                problem,
            })?;
        }
    }
    Ok(options)
}

fn set(options: &mut Options, line: &str) -> Result<(), String> {
    let (key, value) = line.split_once('=').ok_or("no '='")?;
    let key = key.trim().trim_matches('"');
    let value = value.trim();
    match key {
        "NoPivotRoot" => options.no_pivot_root = boolean(value)?,
        "NoNewKeyring" => options.no_new_keyring = boolean(value)?,
        "ShimCgroup" => options.shim_cgroup = string(value)?,
        "IoUid" => options.io_uid = number(value)?,
        "IoGid" => options.io_gid = number(value)?,
        "BinaryName" => options.binary_name = string(value)?,
        "Root" => options.root = string(value)?,
        "SystemdCgroup" => options.systemd_cgroup = boolean(value)?,
        "CriuImagePath" => options.criu_image_path = string(value)?,
        "CriuWorkPath" => options.criu_work_path = string(value)?,
        _ => {}
    }
    Ok(())
}

fn boolean(value: &str) -> Result<bool, String> {
    match bare(value) {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("{other} is neither true nor false")),
    }
}

fn number(value: &str) -> Result<Option<u32>, String> {
    let number: u32 = bare(value)
        .parse()
        .map_err(|_| format!("{} is no id", bare(value)))?;
    Ok((number != 0).then_some(number))
}

fn string(value: &str) -> Result<String, String> {
    let mut rest = value.chars();
    let quote = rest.next();
    let mut text = String::new();
    if !matches!(quote, Some('"' | '\'')) {
        return Err(format!("{value} is no string"));
    }
    while let Some(next) = rest.next() {
        match next {
            '\\' if quote == Some('"') => match rest.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(plain @ ('"' | '\\')) => text.push(plain),
                _ => return Err(format!("{value} has an escape that is not understood")),
            },
            end if Some(end) == quote => return Ok(text),
            other => text.push(other),
        }
    }
    Err(format!("{value} has no end"))
}

/// A value without quotes, without the comment behind it.
fn bare(value: &str) -> &str {
    value.split('#').next().unwrap_or(value).trim()
}
