//! How much of somebody's archive is taken before it is called a trap.

/// The most that is unpacked of an archive. The defaults are far above any checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Entries. CRIU writes some tens a process.
    pub entries_max: u64,
    /// Bytes of all files together, holes included.
    pub bytes_max: u64,
    /// How many times larger than the archive its files may be, holes and zeros not counted: those take no disk.
    pub ratio_max: u64,
    /// Up to here no ratio is too large, in bytes: little archives of repetitive memory compress extremely.
    pub ratio_from: u64,
}

/// Entries of what was in memory. A tmpfs has as many files as half of the host's memory has pages, unless it is told otherwise.
pub(crate) const MEMORY_ENTRIES_MAX: u64 = 1 << 24;

/// The longest path in an archive, in bytes: the kernel's own limit.
pub(crate) const PATH_BYTES_MAX: usize = 4096;

/// The deepest that a path may go. The kernel's limit would be 2048; removing what is so deep takes a stack.
pub(crate) const DEPTH_MAX: usize = 128;

/// The most that an extended header may take, in bytes. Attributes are up to 64 KiB each, and few.
pub(crate) const EXTENDED_BYTES_MAX: u64 = 1 << 20;

/// Parts that a sparse file may have. Each takes 16 bytes of memory while it is unpacked.
pub(crate) const SPARSE_PARTS_MAX: u64 = 1 << 20;

/// Zeros that may follow the end of a tar, in bytes: tools fill the last record, of 10 KiB unless told otherwise.
pub(crate) const TAIL_BYTES_MAX: u64 = 1 << 20;

impl Limits {
    /// For what was in memory: of a tmpfs, where files are cheap.
    pub fn of_memory() -> Self {
        Self {
            entries_max: MEMORY_ENTRIES_MAX,
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries_max: 1 << 20,
            bytes_max: 16 << 40,
            ratio_max: 2000,
            ratio_from: 1 << 30,
        }
    }
}
