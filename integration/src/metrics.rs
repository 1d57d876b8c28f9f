//! A container's statistics, the same for cgroup v1 and v2.

use anyhow::{Context, Result, bail};
use prost::Message;

use crate::messages::Metric;

const V1: &str = "io.containerd.cgroups.v1.Metrics";
const V2: &str = "io.containerd.cgroups.v2.Metrics";

/// What the tests look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Processes and threads.
    pub pids: u64,
    /// Most that there may be; 0 for no limit.
    pub pids_limit: u64,
    /// Time on the processors, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged, in bytes.
    pub memory: u64,
    /// Memory that may be charged, in bytes.
    pub memory_limit: u64,
}

/// Reads the answer to a metrics call, by the type that it says it has.
pub fn parse(metric: &Metric) -> Result<Stats> {
    let data = metric.data.as_ref().context("find data in the metric")?;
    let body = data.value.as_slice();
    match data.type_url.rsplit('/').next() {
        Some(V1) => of_v1(&v1::Metrics::decode(body)?),
        Some(V2) => of_v2(&v2::Metrics::decode(body)?),
        other => bail!("statistics of the unknown type {other:?}"),
    }
}

fn of_v1(metrics: &v1::Metrics) -> Result<Stats> {
    let pids = metrics.pids.as_ref().context("find pids")?;
    let usage = metrics
        .cpu
        .as_ref()
        .and_then(|cpu| cpu.usage.as_ref())
        .context("find cpu usage")?;
    let memory = metrics
        .memory
        .as_ref()
        .and_then(|memory| memory.usage.as_ref())
        .context("find memory usage")?;
    Ok(Stats {
        cgroup_version: 1,
        pids: pids.current,
        pids_limit: pids.limit,
        cpu_ns: usage.total,
        memory: memory.usage,
        memory_limit: memory.limit,
    })
}

fn of_v2(metrics: &v2::Metrics) -> Result<Stats> {
    let pids = metrics.pids.as_ref().context("find pids")?;
    let cpu = metrics.cpu.as_ref().context("find cpu")?;
    let memory = metrics.memory.as_ref().context("find memory")?;
    Ok(Stats {
        cgroup_version: 2,
        pids: pids.current,
        pids_limit: pids.limit,
        cpu_ns: cpu.usage_usec * 1000,
        memory: memory.usage,
        memory_limit: memory.usage_limit,
    })
}

/// `cgroups/cgroup1/stats/metrics.proto`, the fields above.
mod v1 {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Metrics {
        #[prost(message, optional, tag = "2")]
        pub pids: Option<super::Pids>,
        #[prost(message, optional, tag = "3")]
        pub cpu: Option<Cpu>,
        #[prost(message, optional, tag = "4")]
        pub memory: Option<Memory>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Cpu {
        #[prost(message, optional, tag = "1")]
        pub usage: Option<CpuUsage>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct CpuUsage {
        #[prost(uint64, tag = "1")]
        pub total: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Memory {
        #[prost(message, optional, tag = "33")]
        pub usage: Option<Entry>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Entry {
        #[prost(uint64, tag = "1")]
        pub limit: u64,
        #[prost(uint64, tag = "2")]
        pub usage: u64,
    }
}

/// `cgroups/cgroup2/stats/metrics.proto`, the fields above.
mod v2 {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Metrics {
        #[prost(message, optional, tag = "1")]
        pub pids: Option<super::Pids>,
        #[prost(message, optional, tag = "2")]
        pub cpu: Option<Cpu>,
        #[prost(message, optional, tag = "4")]
        pub memory: Option<Memory>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Cpu {
        #[prost(uint64, tag = "1")]
        pub usage_usec: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Memory {
        #[prost(uint64, tag = "32")]
        pub usage: u64,
        #[prost(uint64, tag = "33")]
        pub usage_limit: u64,
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Pids {
    #[prost(uint64, tag = "1")]
    current: u64,
    #[prost(uint64, tag = "2")]
    limit: u64,
}
