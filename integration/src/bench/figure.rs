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
    /// Ours may not be above this, whatever theirs is.
    pub ours_max: Option<f64>,
}

/// Every figure, in the order of the table.
pub const FIGURES: [Figure; 21] = [
    RUN,
    EXEC,
    SHIM_RSS,
    SHIM_DIRTY,
    SHIM_THREADS,
    DUMP_SMALL,
    FREEZE_1G,
    FREEZE_FLOOR,
    DUMP_1G,
    DUMP_1G_TEXT,
    DUMP_1G_TEXT_SIZE,
    DUMP_HALF_ZERO,
    DUMP_SHM,
    CAPTURE_MEMORY,
    RESTORE_SMALL,
    RESTORE_1G,
    RESTORE_1G_ZSTD,
    RESTORE_4G,
    FILL_RATE,
    RUN_REGISTRY,
    PS_1000,
];

/// `ctr run --rm … true`, the whole command.
pub const RUN: Figure = Figure {
    key: "run",
    unit: "ms",
    ratio_max: 0.65,
    ours_max: None,
};
/// `ctr tasks exec … true` in a running container.
pub const EXEC: Figure = Figure {
    key: "exec",
    unit: "ms",
    ratio_max: 0.8,
    ours_max: None,
};
/// Resident memory of an idle shim with one container, after 50 execs.
pub const SHIM_RSS: Figure = Figure {
    key: "shim_rss",
    unit: "KiB",
    ratio_max: 0.25,
    ours_max: None,
};
/// Private dirty memory of that shim.
pub const SHIM_DIRTY: Figure = Figure {
    key: "shim_dirty",
    unit: "KiB",
    ratio_max: 0.25,
    ours_max: None,
};
/// Threads of that shim.
pub const SHIM_THREADS: Figure = Figure {
    key: "shim_threads",
    unit: "threads",
    ratio_max: 0.25,
    ours_max: None,
};
/// A checkpoint of a small container that goes on running.
pub const DUMP_SMALL: Figure = Figure {
    key: "dump_small",
    unit: "ms",
    ratio_max: 0.6,
    ours_max: None,
};
/// How long a program with 1 GiB stands during a dump after which it runs on.
pub const FREEZE_1G: Figure = Figure {
    key: "freeze_1g",
    unit: "ms",
    ratio_max: 0.5,
    ours_max: None,
};
/// The same, and in the place of theirs the least that runc and CRIU can do: nobody keeps the pages.
pub const FREEZE_FLOOR: Figure = Figure {
    key: "freeze_floor",
    unit: "ms",
    ratio_max: 1.3,
    ours_max: None,
};
/// That dump until it is on the disk.
pub const DUMP_1G: Figure = Figure {
    key: "dump_1g",
    unit: "ms",
    ratio_max: 1.0,
    ours_max: None,
};
/// That dump of what compresses, ours into one zstd file.
pub const DUMP_1G_TEXT: Figure = Figure {
    key: "dump_1g_text",
    unit: "ms",
    ratio_max: 1.2,
    ours_max: None,
};
/// What the two take on the disk.
pub const DUMP_1G_TEXT_SIZE: Figure = Figure {
    key: "dump_1g_text_size",
    unit: "MiB",
    ratio_max: 0.55,
    ours_max: None,
};
/// What a dump of 1 GiB takes on the disk where every second page is zero.
pub const DUMP_HALF_ZERO: Figure = Figure {
    key: "dump_half_zero",
    unit: "MiB",
    ratio_max: 0.52,
    ours_max: None,
};
/// A dump of a container with 64 MiB in `/dev/shm`, until it is on the disk.
pub const DUMP_SHM: Figure = Figure {
    key: "dump_shm",
    unit: "ms",
    ratio_max: 0.15,
    ours_max: None,
};
/// The worker's peak beyond its buffer during that dump, and what it may be in the place of theirs.
pub const CAPTURE_MEMORY: Figure = Figure {
    key: "capture_memory",
    unit: "MiB",
    ratio_max: 1.0,
    ours_max: Some(64.0),
};
/// Create and start from that checkpoint, until its process runs on.
pub const RESTORE_SMALL: Figure = Figure {
    key: "restore_small",
    unit: "ms",
    ratio_max: 0.5,
    ours_max: None,
};

/// The same of a program with 1 GiB.
pub const RESTORE_1G: Figure = Figure {
    key: "restore_1g",
    unit: "ms",
    ratio_max: 0.2,
    ours_max: None,
};
/// The same for ours by `cedana restore` out of one file, compressed, beside theirs out of a directory.
pub const RESTORE_1G_ZSTD: Figure = Figure {
    key: "restore_1g_zstd",
    unit: "ms",
    ratio_max: 0.3,
    ours_max: None,
};
/// Ours of a program with 4 GiB, and ours of 1 GiB in the place of theirs: a restore does not wait for memory.
pub const RESTORE_4G: Figure = Figure {
    key: "restore_4g_vs_1g",
    unit: "ms",
    ratio_max: 1.2,
    ours_max: None,
};

/// GiB a second that come behind a lazily restored process, and CRIU's own daemon in the place of theirs.
pub const FILL_RATE: Figure = Figure {
    key: "fill_rate",
    unit: "GiB/s",
    ratio_max: f64::INFINITY,
    ours_max: None,
};

/// Figures of which more is better, and how many times theirs ours is to be.
const RATES: [(&str, f64); 1] = [(FILL_RATE.key, 2.5)];

impl Figure {
    /// Ours divided by theirs may not be below this.
    pub fn ratio_min(&self) -> f64 {
        let rate = RATES.iter().find(|(key, _)| *key == self.key);
        rate.map_or(0.0, |(_, least)| *least)
    }
}

/// `ctr run --rm … true` of our shim with the registry, in the place of theirs without one.
pub const RUN_REGISTRY: Figure = Figure {
    key: "run_registry",
    unit: "ms",
    ratio_max: 1.03,
    ours_max: None,
};
/// `cedana ps` of a thousand running jobs, and `ctr tasks list` of the same in the place of theirs.
pub const PS_1000: Figure = Figure {
    key: "ps_1000",
    unit: "ms",
    ratio_max: 0.35,
    ours_max: Some(50.0),
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
