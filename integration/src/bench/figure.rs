//! What is measured, in which unit, and how much of containerd's own cost ours may be.

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// Name in `target/bench.json`.
    pub key: &'static str,
    /// Unit of both columns.
    pub unit: &'static str,
    /// Ours divided by theirs may not be above this.
    pub ratio_max: f64,
}

/// Every figure, in the order of the table.
pub const FIGURES: [Figure; 7] = [
    RUN,
    EXEC,
    SHIM_RSS,
    SHIM_DIRTY,
    SHIM_THREADS,
    DUMP_SMALL,
    RESTORE_SMALL,
];

/// `ctr run --rm … true`, the whole command.
pub const RUN: Figure = Figure {
    key: "run",
    unit: "ms",
    ratio_max: 0.65,
};
/// `ctr tasks exec … true` in a running container.
pub const EXEC: Figure = Figure {
    key: "exec",
    unit: "ms",
    ratio_max: 0.8,
};
/// Resident memory of an idle shim with one container, after 50 execs.
pub const SHIM_RSS: Figure = Figure {
    key: "shim_rss",
    unit: "KiB",
    ratio_max: 0.25,
};
/// Private dirty memory of that shim.
pub const SHIM_DIRTY: Figure = Figure {
    key: "shim_dirty",
    unit: "KiB",
    ratio_max: 0.25,
};
/// Threads of that shim.
pub const SHIM_THREADS: Figure = Figure {
    key: "shim_threads",
    unit: "threads",
    ratio_max: 0.25,
};
/// A checkpoint of a small container that goes on running.
pub const DUMP_SMALL: Figure = Figure {
    key: "dump_small",
    unit: "ms",
    ratio_max: 0.6,
};
/// Create and start from that checkpoint, until its process runs on.
pub const RESTORE_SMALL: Figure = Figure {
    key: "restore_small",
    unit: "ms",
    ratio_max: 0.5,
};

/// One of the two shims that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `io.containerd.cedana.v1`.
    Ours,
    /// `io.containerd.runc.v2`.
    Theirs,
}

impl Side {
    /// The name containerd resolves to the shim's binary.
    pub fn runtime(self) -> &'static str {
        match self {
            Self::Ours => "io.containerd.cedana.v1",
            Self::Theirs => "io.containerd.runc.v2",
        }
    }

    /// A word for ids and tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Theirs => "theirs",
        }
    }
}
