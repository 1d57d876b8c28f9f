//! What the readers of both cgroup versions share: pure parsers, and numbers from files.
//!
//! A file that is missing gives 0 or nothing, as in containerd: the controller is not enabled, the kernel is older
//! or built without it, and a client prefers the other figures to an error.

use std::path::Path;

use containerd_shim_protos::protobuf::Message;

use super::{CgroupError, Metrics, files};

/// Numbers by their names: lines of the form `name number`.
#[derive(Debug)]
pub(super) struct Keyed<'a>(Vec<(&'a str, u64)>);

impl<'a> Keyed<'a> {
    /// Lines of another form are skipped.
    pub(super) fn parse(text: &'a str) -> Self {
        let line = |line: &'a str| {
            let (name, value) = line.split_once(' ')?;
            Some((name, number_in(value)?))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// The number of a name; 0 when it is not there.
    pub(super) fn get(&self, name: &str) -> u64 {
        self.find(name).unwrap_or(0)
    }

    /// The number of a name.
    pub(super) fn find(&self, name: &str) -> Option<u64> {
        self.0
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| *value)
    }
}

/// A number as cgroup files write it: `max` is the largest, negative ones are 0.
fn number_in(text: &str) -> Option<u64> {
    let text = text.trim();
    match text {
        "max" => Some(u64::MAX),
        _ if text.starts_with('-') => text.parse::<i64>().ok().map(|_| 0),
        _ => text.parse().ok(),
    }
}

/// The number in a file of its own; 0 when it is not there.
pub(super) fn number(dir: &Path, file: &str) -> u64 {
    files::read_optional(&dir.join(file))
        .and_then(|text| number_in(&text))
        .unwrap_or(0)
}

/// The text of a file; empty when it is not there.
pub(super) fn text(dir: &Path, file: &str) -> String {
    files::read_optional(&dir.join(file)).unwrap_or_default()
}

/// Use of an RDMA device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rdma {
    pub(super) device: String,
    pub(super) handles: u32,
    pub(super) objects: u32,
}

/// Lines of the form `device hca_handle=number hca_object=max`.
pub(super) fn rdma(text: &str) -> Vec<Rdma> {
    let value = |pair: &str, name: &str| {
        let number = number_in(pair.strip_prefix(name)?.strip_prefix('=')?)?;
        Some(u32::try_from(number).unwrap_or(u32::MAX))
    };
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let device = fields.next()?.to_owned();
        let handles = value(fields.next()?, "hca_handle")?;
        let objects = value(fields.next()?, "hca_object")?;
        Some(Rdma {
            device,
            handles,
            objects,
        })
    };
    text.lines().filter_map(line).collect()
}

/// The sizes of huge pages of this host, as cgroup file names spell them.
pub(super) fn huge_page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
    let mut sizes: Vec<(u64, String)> = names.filter_map(|name| huge_page_size(name.to_str()?)).collect();
    sizes.sort_unstable();
    sizes.into_iter().map(|(_, name)| name).collect()
}

/// `hugepages-2048kB` is `2MB`, in the kernel's spelling of units (`mm/hugetlb_cgroup.c`).
fn huge_page_size(name: &str) -> Option<(u64, String)> {
    let size: u64 = name
        .strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()?;
    let text = match size {
        0..=1023 => format!("{size}KB"),
        1024..=1_048_575 => format!("{}MB", size >> 10),
        _ => format!("{}GB", size >> 20),
    };
    Some((size, text))
}

/// The message in the form the Stats call returns it. The type's name is given, because asking the message for it
/// would build the descriptors of its whole file.
pub(super) fn encode(type_url: &'static str, message: &impl Message) -> Result<Metrics, CgroupError> {
    match message.write_to_bytes() {
        Ok(value) => Ok(Metrics { type_url, value }),
        Err(error) => Err(CgroupError::Unsupported(format!("encode metrics: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        for (text, number) in [
            ("0\n", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("max\n", Some(u64::MAX)),
            ("-1", Some(0)),
            ("-99999999999999999999", None),
            ("", None),
            ("1 2", None),
            ("0x10", None),
        ] {
            assert_eq!(number_in(text), number, "{text:?}");
        }
    }

    #[test]
    fn odd_lines_do_not_spoil_the_others() {
        let keyed = Keyed::parse("anon 4096\n\nodd\nfile x\nslab 7\nmax max\n");
        assert_eq!(
            (keyed.get("anon"), keyed.get("slab"), keyed.get("max")),
            (4096, 7, u64::MAX)
        );
        assert_eq!((keyed.find("file"), keyed.find("odd")), (None, None));
    }

    #[test]
    fn rdma_lines_need_both_figures() {
        let text =
            "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=max\nbad hca_handle=1\n";
        let expected = [("mlx4_0", 2, 2000), ("ocrdma1", 3, u32::MAX)];
        let expected: Vec<Rdma> = expected
            .iter()
            .map(|(device, handles, objects)| Rdma {
                device: (*device).to_owned(),
                handles: *handles,
                objects: *objects,
            })
            .collect();
        assert_eq!(rdma(text), expected);
    }

    #[test]
    fn huge_pages_have_the_kernels_units() {
        for (name, size) in [
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-16777216kB", Some("16GB")),
            ("hugepages-2048", None),
            ("other", None),
        ] {
            assert_eq!(
                huge_page_size(name).map(|(_, text)| text).as_deref(),
                size,
                "{name}"
            );
        }
    }
}
