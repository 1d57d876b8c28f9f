//! Metrics of a cgroup v2, with every field containerd's own shim fills.

use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics as Message, PSIData, PSIStats,
    PidsStat, RdmaEntry, RdmaStat,
};
use containerd_shim_protos::protobuf::MessageField;

use super::stats::{Keyed, encode, huge_page_sizes, number, rdma, text};
use super::{CgroupError, Metrics, files};

const TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";

pub(super) fn read(dir: &Path) -> Result<Metrics, CgroupError> {
    // Every cgroup has this file: without it there is nothing to report on.
    let cpu = files::read(&dir.join("cpu.stat"))?;
    let mut message = Message::new();
    message.pids = MessageField::some(pids(dir));
    message.cpu = MessageField::some(CPUStat {
        psi: psi(&text(dir, "cpu.pressure")),
        ..parse_cpu(&cpu)
    });
    message.memory = MessageField::some(memory(dir));
    message.memory_events = memory_events(&text(dir, "memory.events"));
    message.io = MessageField::some(IOStat {
        usage: parse_io(&text(dir, "io.stat")),
        psi: psi(&text(dir, "io.pressure")),
        ..IOStat::default()
    });
    message.rdma = MessageField::some(RdmaStat {
        current: rdma_entries(&text(dir, "rdma.current")),
        limit: rdma_entries(&text(dir, "rdma.max")),
        ..RdmaStat::default()
    });
    message.hugetlb = huge_page_sizes()
        .into_iter()
        .map(|size| huge_pages(dir, size))
        .collect();
    encode(TYPE_URL, &message)
}

fn pids(dir: &Path) -> PidsStat {
    PidsStat {
        current: number(dir, "pids.current"),
        limit: number(dir, "pids.max"),
        ..PidsStat::default()
    }
}

fn parse_cpu(text: &str) -> CPUStat {
    let stat = Keyed::parse(text);
    CPUStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
        ..CPUStat::default()
    }
}

fn memory(dir: &Path) -> MemoryStat {
    MemoryStat {
        usage: number(dir, "memory.current"),
        usage_limit: number(dir, "memory.max"),
        max_usage: number(dir, "memory.peak"),
        swap_usage: number(dir, "memory.swap.current"),
        swap_limit: number(dir, "memory.swap.max"),
        swap_max_usage: number(dir, "memory.swap.peak"),
        psi: psi(&text(dir, "memory.pressure")),
        ..parse_memory(&text(dir, "memory.stat"))
    }
}

fn parse_memory(text: &str) -> MemoryStat {
    let stat = Keyed::parse(text);
    // Since 5.9 the working set is told apart by kind; the message still wants the sum.
    let sum = |name: &str| {
        let kinds = || {
            stat.get(&format!("{name}_anon"))
                .saturating_add(stat.get(&format!("{name}_file")))
        };
        stat.find(name).unwrap_or_else(kinds)
    };
    MemoryStat {
        anon: stat.get("anon"),
        file: stat.get("file"),
        kernel_stack: stat.get("kernel_stack"),
        slab: stat.get("slab"),
        sock: stat.get("sock"),
        shmem: stat.get("shmem"),
        file_mapped: stat.get("file_mapped"),
        file_dirty: stat.get("file_dirty"),
        file_writeback: stat.get("file_writeback"),
        anon_thp: stat.get("anon_thp"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        slab_reclaimable: stat.get("slab_reclaimable"),
        slab_unreclaimable: stat.get("slab_unreclaimable"),
        pgfault: stat.get("pgfault"),
        pgmajfault: stat.get("pgmajfault"),
        workingset_refault: sum("workingset_refault"),
        workingset_activate: sum("workingset_activate"),
        workingset_nodereclaim: stat.get("workingset_nodereclaim"),
        pgrefill: stat.get("pgrefill"),
        pgscan: stat.get("pgscan"),
        pgsteal: stat.get("pgsteal"),
        pgactivate: stat.get("pgactivate"),
        pgdeactivate: stat.get("pgdeactivate"),
        pglazyfree: stat.get("pglazyfree"),
        pglazyfreed: stat.get("pglazyfreed"),
        thp_fault_alloc: stat.get("thp_fault_alloc"),
        thp_collapse_alloc: stat.get("thp_collapse_alloc"),
        ..MemoryStat::default()
    }
}

/// Absent without the memory controller, so that a client can tell "none" from "not counted".
fn memory_events(text: &str) -> MessageField<MemoryEvents> {
    if text.is_empty() {
        return MessageField::none();
    }
    let events = Keyed::parse(text);
    MessageField::some(MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        oom_group_kill: events.get("oom_group_kill"),
        ..MemoryEvents::default()
    })
}

/// Lines of the form `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn parse_io(text: &str) -> Vec<IOEntry> {
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let (major, minor) = fields.next()?.split_once(':')?;
        let mut entry = IOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..IOEntry::default()
        };
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match name {
                "rbytes" => entry.rbytes = value,
                "wbytes" => entry.wbytes = value,
                "rios" => entry.rios = value,
                "wios" => entry.wios = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(line).collect()
}

/// Lines of the form `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`. Absent where the kernel keeps no account.
fn psi(text: &str) -> MessageField<PSIStats> {
    if text.is_empty() {
        return MessageField::none();
    }
    let kind = |kind: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let value = |name: &str| {
            line.split(' ')
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
                .unwrap_or("0")
        };
        Some(PSIData {
            avg10: value("avg10").parse().unwrap_or(0.0),
            avg60: value("avg60").parse().unwrap_or(0.0),
            avg300: value("avg300").parse().unwrap_or(0.0),
            total: value("total").parse().unwrap_or(0),
            ..PSIData::default()
        })
    };
    MessageField::some(PSIStats {
        some: kind("some").into(),
        full: kind("full").into(),
        ..PSIStats::default()
    })
}

fn rdma_entries(text: &str) -> Vec<RdmaEntry> {
    let entry = |one: super::stats::Rdma| RdmaEntry {
        device: one.device,
        hca_handles: one.handles,
        hca_objects: one.objects,
        ..RdmaEntry::default()
    };
    rdma(text).into_iter().map(entry).collect()
}

fn huge_pages(dir: &Path, size: String) -> HugeTlbStat {
    HugeTlbStat {
        current: number(dir, &format!("hugetlb.{size}.current")),
        max: number(dir, &format!("hugetlb.{size}.max")),
        failcnt: Keyed::parse(&text(dir, &format!("hugetlb.{size}.events"))).get("max"),
        pagesize: size,
        ..HugeTlbStat::default()
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::Message as _;

    use super::*;

    #[test]
    fn every_field_comes_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 100\nuser_usec 60\nsystem_usec 40\nnr_periods 5\nnr_throttled 2\nthrottled_usec 9\nnr_bursts 1\nburst_usec 3\n",
            ),
            (
                "memory.stat",
                "anon 4096\nfile 8192\nworkingset_refault_anon 2\nworkingset_refault_file 3\nworkingset_activate 7\nthp_collapse_alloc 1\n",
            ),
            ("memory.current", "12288\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "20000\n"),
            ("memory.swap.current", "1\n"),
            ("memory.swap.max", "0\n"),
            (
                "memory.events",
                "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n",
            ),
            (
                "memory.pressure",
                "some avg10=0.50 avg60=1.25 avg300=2.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
            ),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n253:1 \nodd\n",
            ),
            ("rdma.current", "mlx4_0 hca_handle=2 hca_object=9\n"),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let metrics = read(dir.path()).unwrap();
        assert_eq!(metrics.type_url, "io.containerd.cgroups.v2.Metrics");
        let message = Message::parse_from_bytes(&metrics.value).unwrap();
        assert_eq!(
            (
                message.cpu.usage_usec,
                message.cpu.throttled_usec,
                message.cpu.burst_usec
            ),
            (100, 9, 3)
        );
        assert!(message.cpu.psi.is_none());
        let memory = &message.memory;
        assert_eq!(
            (memory.anon, memory.file, memory.thp_collapse_alloc),
            (4096, 8192, 1)
        );
        assert_eq!((memory.workingset_refault, memory.workingset_activate), (5, 7));
        assert_eq!(
            (memory.usage, memory.usage_limit, memory.max_usage),
            (12288, u64::MAX, 20000)
        );
        assert_eq!(
            (memory.swap_usage, memory.swap_limit, memory.swap_max_usage),
            (1, 0, 0)
        );
        assert_eq!(
            (
                memory.psi.some.avg60,
                memory.psi.some.total,
                memory.psi.full.total
            ),
            (1.25, 77, 7)
        );
        assert_eq!(
            (
                message.memory_events.oom_kill,
                message.memory_events.oom_group_kill
            ),
            (4, 5)
        );
        assert_eq!((message.pids.current, message.pids.limit), (3, u64::MAX));
        let io: Vec<_> = message
            .io
            .usage
            .iter()
            .map(|io| (io.major, io.minor, io.rbytes, io.wios))
            .collect();
        assert_eq!(io, [(8, 0, 1, 4), (253, 1, 0, 0)]);
        assert_eq!((message.rdma.current.len(), message.rdma.limit.len()), (1, 0));
    }

    #[test]
    fn controllers_that_are_off_leave_zeros_and_a_removed_cgroup_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path()), Err(CgroupError::Gone(_))));
        std::fs::write(dir.path().join("cpu.stat"), "usage_usec 1\n").unwrap();
        let message = Message::parse_from_bytes(&read(dir.path()).unwrap().value).unwrap();
        assert_eq!(message.cpu.usage_usec, 1);
        assert!(message.memory.is_some() && message.memory_events.is_none());
    }
}
