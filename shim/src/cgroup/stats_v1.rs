//! Metrics of a cgroup v1, with every field containerd's own shim fills.

use std::collections::BTreeMap;
use std::path::Path;

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat,
    Metrics as Message, PidsStat, RdmaEntry, RdmaStat, Throttle,
};
use containerd_shim_protos::protobuf::MessageField;

use super::stats::{Keyed, encode, huge_page_sizes, number, rdma, text};
use super::{Cgroup, CgroupError, Metrics};

const TYPE_URL: &str = "io.containerd.cgroups.v1.Metrics";

/// Nanoseconds of one tick of `cpuacct.stat`: the kernel counts in USER_HZ, which is 100 on every architecture
/// that runs containers.
const TICK_NS: u64 = 10_000_000;

pub(super) fn read(cgroup: &Cgroup) -> Result<Metrics, CgroupError> {
    if !cgroup.exists() {
        let dir = cgroup.main_dir().unwrap_or(Path::new(""));
        return Err(CgroupError::Gone(dir.display().to_string()));
    }
    let mut message = Message::new();
    message.cpu = MessageField::some(CPUStat {
        usage: MessageField::some(cgroup.dir("cpuacct").map(cpu_usage).unwrap_or_default()),
        throttling: MessageField::some(cgroup.dir("cpu").map(throttling).unwrap_or_default()),
        ..CPUStat::default()
    });
    message.memory = cgroup.dir("memory").map(memory).into();
    message.memory_oom_control = cgroup.dir("memory").map(oom_control).into();
    message.pids = cgroup.dir("pids").map(pids).into();
    message.blkio = cgroup.dir("blkio").map(block_io).into();
    message.rdma = cgroup.dir("rdma").map(rdma_stat).into();
    if let Some(dir) = cgroup.dir("hugetlb") {
        message.hugetlb = huge_page_sizes()
            .into_iter()
            .map(|size| huge_pages(dir, size))
            .collect();
    }
    encode(TYPE_URL, &message)
}

fn cpu_usage(dir: &Path) -> CPUUsage {
    let text = text(dir, "cpuacct.stat");
    let stat = Keyed::parse(&text);
    CPUUsage {
        total: number(dir, "cpuacct.usage"),
        user: stat.get("user").saturating_mul(TICK_NS),
        kernel: stat.get("system").saturating_mul(TICK_NS),
        per_cpu: numbers(&super::stats::text(dir, "cpuacct.usage_percpu")),
        ..CPUUsage::default()
    }
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace()
        .map_while(|number| number.parse().ok())
        .collect()
}

fn throttling(dir: &Path) -> Throttle {
    let text = text(dir, "cpu.stat");
    let stat = Keyed::parse(&text);
    Throttle {
        periods: stat.get("nr_periods"),
        throttled_periods: stat.get("nr_throttled"),
        throttled_time: stat.get("throttled_time"),
        ..Throttle::default()
    }
}

fn pids(dir: &Path) -> PidsStat {
    // Version 1 of the message says "no limit" with 0.
    let limit = Some(number(dir, "pids.max"))
        .filter(|limit| *limit != u64::MAX)
        .unwrap_or(0);
    PidsStat {
        current: number(dir, "pids.current"),
        limit,
        ..PidsStat::default()
    }
}

fn memory(dir: &Path) -> MemoryStat {
    MemoryStat {
        usage: MessageField::some(memory_entry(dir, "memory")),
        swap: MessageField::some(memory_entry(dir, "memory.memsw")),
        kernel: MessageField::some(memory_entry(dir, "memory.kmem")),
        kernel_tcp: MessageField::some(memory_entry(dir, "memory.kmem.tcp")),
        ..parse_memory(&text(dir, "memory.stat"))
    }
}

fn memory_entry(dir: &Path, prefix: &str) -> MemoryEntry {
    MemoryEntry {
        limit: number(dir, &format!("{prefix}.limit_in_bytes")),
        usage: number(dir, &format!("{prefix}.usage_in_bytes")),
        max: number(dir, &format!("{prefix}.max_usage_in_bytes")),
        failcnt: number(dir, &format!("{prefix}.failcnt")),
        ..MemoryEntry::default()
    }
}

fn parse_memory(text: &str) -> MemoryStat {
    let stat = Keyed::parse(text);
    MemoryStat {
        cache: stat.get("cache"),
        rss: stat.get("rss"),
        rss_huge: stat.get("rss_huge"),
        mapped_file: stat.get("mapped_file"),
        dirty: stat.get("dirty"),
        writeback: stat.get("writeback"),
        pg_pg_in: stat.get("pgpgin"),
        pg_pg_out: stat.get("pgpgout"),
        pg_fault: stat.get("pgfault"),
        pg_maj_fault: stat.get("pgmajfault"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        hierarchical_memory_limit: stat.get("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat.get("hierarchical_memsw_limit"),
        total_cache: stat.get("total_cache"),
        total_rss: stat.get("total_rss"),
        total_rss_huge: stat.get("total_rss_huge"),
        total_mapped_file: stat.get("total_mapped_file"),
        total_dirty: stat.get("total_dirty"),
        total_writeback: stat.get("total_writeback"),
        total_pg_pg_in: stat.get("total_pgpgin"),
        total_pg_pg_out: stat.get("total_pgpgout"),
        total_pg_fault: stat.get("total_pgfault"),
        total_pg_maj_fault: stat.get("total_pgmajfault"),
        total_inactive_anon: stat.get("total_inactive_anon"),
        total_active_anon: stat.get("total_active_anon"),
        total_inactive_file: stat.get("total_inactive_file"),
        total_active_file: stat.get("total_active_file"),
        total_unevictable: stat.get("total_unevictable"),
        ..MemoryStat::default()
    }
}

fn oom_control(dir: &Path) -> MemoryOomControl {
    let text = text(dir, "memory.oom_control");
    let control = Keyed::parse(&text);
    MemoryOomControl {
        oom_kill_disable: control.get("oom_kill_disable"),
        under_oom: control.get("under_oom"),
        oom_kill: control.get("oom_kill"),
        ..MemoryOomControl::default()
    }
}

/// Bytes and operations are counted in several places: by the old fair scheduler (CFQ, with more figures), by its
/// successor (BFQ), and at the top of every queue. The first that has counted anything is taken.
fn block_io(dir: &Path) -> BlkIOStat {
    let devices = parse_devices(&text(Path::new("/proc"), "partitions"));
    let entries = |file: &str| parse_block_io(&text(dir, file), &devices);
    let mut stat = BlkIOStat {
        io_service_bytes_recursive: entries("blkio.io_service_bytes_recursive"),
        io_serviced_recursive: entries("blkio.io_serviced_recursive"),
        io_queued_recursive: entries("blkio.io_queued_recursive"),
        io_service_time_recursive: entries("blkio.io_service_time_recursive"),
        io_wait_time_recursive: entries("blkio.io_wait_time_recursive"),
        io_merged_recursive: entries("blkio.io_merged_recursive"),
        io_time_recursive: entries("blkio.time_recursive"),
        sectors_recursive: entries("blkio.sectors_recursive"),
        ..BlkIOStat::default()
    };
    for (prefix, suffix) in [
        ("blkio.bfq", "_recursive"),
        ("blkio.throttle", "_recursive"),
        ("blkio.throttle", ""),
    ] {
        if !stat.io_serviced_recursive.is_empty() {
            break;
        }
        stat.io_service_bytes_recursive = entries(&format!("{prefix}.io_service_bytes{suffix}"));
        stat.io_serviced_recursive = entries(&format!("{prefix}.io_serviced{suffix}"));
    }
    stat
}

/// Lines of the form `8:0 Read 4096`, or `8:0 4096`; the totals at the end are left out.
fn parse_block_io(text: &str, devices: &BTreeMap<(u64, u64), String>) -> Vec<BlkIOEntry> {
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let (major, minor) = fields.next()?.split_once(':')?;
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        let (op, value) = match (fields.next()?, fields.next()) {
            (op, Some(value)) => (op, value),
            (value, None) => ("", value),
        };
        Some(BlkIOEntry {
            op: op.to_owned(),
            device: devices.get(&(major, minor)).cloned().unwrap_or_default(),
            major,
            minor,
            value: value.parse().ok()?,
            ..BlkIOEntry::default()
        })
    };
    text.lines().filter_map(line).collect()
}

/// `/proc/partitions`: `major minor blocks name`, after a heading.
fn parse_devices(text: &str) -> BTreeMap<(u64, u64), String> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let key = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((key, format!("/dev/{}", fields.nth(1)?)))
    };
    text.lines().filter_map(line).collect()
}

fn rdma_stat(dir: &Path) -> RdmaStat {
    let entries = |file: &str| {
        let entry = |one: super::stats::Rdma| RdmaEntry {
            device: one.device,
            hca_handles: one.handles,
            hca_objects: one.objects,
            ..RdmaEntry::default()
        };
        rdma(&text(dir, file)).into_iter().map(entry).collect()
    };
    RdmaStat {
        current: entries("rdma.current"),
        limit: entries("rdma.max"),
        ..RdmaStat::default()
    }
}

fn huge_pages(dir: &Path, size: String) -> HugetlbStat {
    HugetlbStat {
        usage: number(dir, &format!("hugetlb.{size}.usage_in_bytes")),
        max: number(dir, &format!("hugetlb.{size}.max_usage_in_bytes")),
        failcnt: number(dir, &format!("hugetlb.{size}.failcnt")),
        pagesize: size,
        ..HugetlbStat::default()
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::Message as _;

    use super::*;
    use crate::cgroup::{Hierarchy, Tree};

    fn cgroup(dir: &Path, controllers: &[&str]) -> Cgroup {
        let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        Cgroup {
            tree: Tree::V1(vec![Hierarchy {
                controllers,
                dir: dir.to_owned(),
            }]),
        }
    }

    #[test]
    fn every_field_comes_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cpuacct.usage", "123456\n"),
            ("cpuacct.usage_percpu", "100000 23456 \n"),
            ("cpuacct.stat", "user 3\nsystem 4\n"),
            ("cpu.stat", "nr_periods 5\nnr_throttled 2\nthrottled_time 99\n"),
            (
                "memory.stat",
                "cache 1\nrss 2\npgpgin 3\nhierarchical_memsw_limit 4\ntotal_unevictable 5\n",
            ),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.memsw.failcnt", "6\n"),
            ("memory.kmem.tcp.max_usage_in_bytes", "7\n"),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 1\noom_kill 8\n",
            ),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            ("blkio.bfq.io_serviced_recursive", "Total 0\n"),
            (
                "blkio.throttle.io_serviced",
                "1023:7 Read 5\n1023:7 Total 5\nTotal 5\n",
            ),
            (
                "blkio.throttle.io_service_bytes",
                "1023:7 Read 4096\nodd line\nTotal 4096\n",
            ),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let all = cgroup(dir.path(), &["cpu", "cpuacct", "memory", "pids", "blkio"]);
        let metrics = all.stats().unwrap();
        assert_eq!(metrics.type_url, "io.containerd.cgroups.v1.Metrics");
        let message = Message::parse_from_bytes(&metrics.value).unwrap();
        let cpu = &message.cpu.usage;
        assert_eq!(
            (cpu.total, cpu.user, cpu.kernel),
            (123_456, 30_000_000, 40_000_000)
        );
        assert_eq!(cpu.per_cpu, [100_000, 23_456]);
        assert_eq!(
            (
                message.cpu.throttling.throttled_periods,
                message.cpu.throttling.throttled_time
            ),
            (2, 99)
        );
        let memory = &message.memory;
        assert_eq!(
            (
                memory.cache,
                memory.rss,
                memory.pg_pg_in,
                memory.total_unevictable
            ),
            (1, 2, 3, 5)
        );
        assert_eq!(
            (memory.usage.usage, memory.usage.limit),
            (4096, 9_223_372_036_854_771_712)
        );
        assert_eq!(
            (
                memory.hierarchical_swap_limit,
                memory.swap.failcnt,
                memory.kernel_tcp.max
            ),
            (4, 6, 7)
        );
        assert_eq!(
            (
                message.memory_oom_control.under_oom,
                message.memory_oom_control.oom_kill
            ),
            (1, 8)
        );
        assert_eq!((message.pids.current, message.pids.limit), (2, 0));
        let io = |entries: &[BlkIOEntry]| {
            entries
                .iter()
                .map(|io| (io.op.clone(), io.value))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            io(&message.blkio.io_serviced_recursive),
            [("Read".to_owned(), 5), ("Total".to_owned(), 5)]
        );
        assert_eq!(
            io(&message.blkio.io_service_bytes_recursive),
            [("Read".to_owned(), 4096)]
        );
        assert!(message.hugetlb.is_empty() && message.rdma.is_none());
    }

    #[test]
    fn a_removed_cgroup_is_gone() {
        let gone = cgroup(Path::new("/proc/self/nothing"), &["memory"]);
        assert!(matches!(gone.stats(), Err(CgroupError::Gone(_))));
    }

    #[test]
    fn devices_are_known_by_their_numbers() {
        let devices =
            parse_devices("major minor  #blocks  name\n\n   8        0  1048576 sda\n 254 1 5 vda1\nodd\n");
        assert_eq!(devices.get(&(8, 0)).map(String::as_str), Some("/dev/sda"));
        assert_eq!(
            parse_block_io("254:1 12\n9:9 Sync 3\n", &devices)
                .first()
                .unwrap()
                .device,
            "/dev/vda1"
        );
        assert_eq!(parse_block_io("9:9 Sync 3\n8:0 Read\n", &devices).len(), 1);
    }
}
