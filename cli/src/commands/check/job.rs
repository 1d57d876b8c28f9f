//! `cedana check JOB`: asks the job's shim's binary what stands in the way, and adds what the host lacks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jobs::liveness;
use jobs::preflight::{Finding, REPORT_BYTES_MAX, Report, Severity};
use jobs::record::{Record, Status};
use jobs::registry::Job;
use serde::Serialize;

use super::criu;
use super::kernel::Release;
use super::tool::{Places, Silent, run};
use crate::commands::dump::advice;
use crate::commands::restore::starts_afresh;
use crate::context::Context;
use crate::engines::our_shim;
use crate::error::Error;
use crate::jobs::Jobs;
use crate::output::{self, size};

/// A container of thousands of processes takes a second to look through.
const PREFLIGHT_LIMIT: Duration = Duration::from_secs(60);

/// Says where settings go, once, below what needs one.
const HOW_TO_SET: &str = "a setting for good is an annotation of the container, when it is created, or a line of the configuration";

/// What is printed of a job.
#[derive(Debug, Serialize)]
struct Document<'a> {
    job: &'a str,
    can_dump: bool,
    #[serde(flatten)]
    report: &'a Report,
}

/// Does it.
///
/// # Errors
/// There is no such job, it does not run, or it cannot be saved now.
pub async fn run_for(name: &str, namespace: Option<&str>, context: &Context) -> Result<(), Error> {
    let jobs = Jobs::open(context).await?;
    let job = jobs.find(name, namespace)?;
    refuse_what_does_not_run(&job)?;
    let mut report = ask(&job.record).await?;
    add_host(&mut report).await;
    add_engine(&mut report, &job);
    let can_dump = report.can_be_dumped();
    if context.json {
        output::json(&Document {
            job: &job.name,
            can_dump,
            report: &report,
        })?;
    } else {
        output::stdout(&text(&job.name, &report))?;
    }
    if can_dump {
        return Ok(());
    }
    Err(Error::unsupported(format!("{} cannot be dumped now", job.name)))
}

fn refuse_what_does_not_run(job: &Job) -> Result<(), Error> {
    if job.is_alive() && job.record.status != Status::Created {
        return Ok(());
    }
    let error = Error::wrong_state(format!("{} does not run: it is {}", job.name, job.status));
    Err(if job.checkpoints.count > 0 && !job.is_alive() {
        error.hint(format!("cedana restore job {} brings it back", job.name))
    } else {
        error
    })
}

/// Runs a shim's binary on the container: that of the container's own shim, which knows what it can do, else the one of this
/// host.
async fn ask(record: &Record) -> Result<Report, Error> {
    let pid = record.init.pid.to_string();
    let bundle = record.bundle.display().to_string();
    let mut arguments = vec!["preflight", "-pid", &pid];
    if record.bundle.join("config.json").is_file() {
        arguments.extend(["-bundle", &bundle]);
    }
    let mut last = Error::tool("the shim's binary, containerd-shim-cedana-v1, is not found")
        .hint("install it beside this command");
    for binary in binaries(record) {
        match run(&binary, &arguments, PREFLIGHT_LIMIT).await {
            Ok(said) if said.success => return parse(&said.stdout),
            Ok(said) => last = Error::tool(said.last_line().to_owned()),
            Err(silent) => last = of_silent(&binary, &silent),
        }
    }
    Err(last)
}

fn binaries(record: &Record) -> Vec<PathBuf> {
    let shim = &record.shim.process;
    let own = liveness::is_alive(shim).then(|| PathBuf::from(format!("/proc/{}/exe", shim.pid)));
    own.into_iter().chain(our_shim()).collect()
}

fn of_silent(binary: &Path, silent: &Silent) -> Error {
    Error::tool(format!("{} {silent}", binary.display()))
}

fn parse(text: &str) -> Result<Report, Error> {
    let bad = |why: &str| Error::tool(format!("failed to read what the shim found: {why}"));
    if text.len() as u64 > REPORT_BYTES_MAX {
        return Err(bad("it is too long"));
    }
    serde_json::from_str(text).map_err(|source| bad(&source.to_string()))
}

/// A dump also fails where CRIU is missing, or too old for what the container holds.
async fn add_host(report: &mut Report) {
    let finding = match criu::version(&Places::own()).await {
        None => host("no-criu", "CRIU is not installed, or does not run"),
        Some(version) if report.network_sockets > 0 && criu::lacks_sockets(version, Release::running()) => {
            let (major, minor) = version;
            let release = Release::running();
            host(
                "old-criu",
                &format!("CRIU {major}.{minor} cannot save network sockets on kernel {release}"),
            )
        }
        Some(_) => return,
    };
    report.findings.push(finding);
    report.findings.sort_by(Finding::order);
}

/// What its engine could do with a checkpoint.
fn add_engine(report: &mut Report, job: &Job) {
    if job.record.sandbox {
        report.findings.push(Finding {
            code: "sandbox".to_owned(),
            severity: Severity::Blocks,
            what: "it is the pause container of a pod, which ends with it".to_owned(),
            process: None,
            remedy: "save a container of the pod".to_owned(),
        });
    }
    if starts_afresh(job.engine, job.managed) {
        report.findings.push(Finding {
            code: "other-runtime".to_owned(),
            severity: Severity::Note,
            what: format!(
                "{} could not restore it: it was created for another runtime",
                job.engine
            ),
            process: None,
            remedy: "save it with --leave-running; one that is created with --runtime io.containerd.cedana.v1 is restored".to_owned(),
        });
    }
    report.findings.sort_by(Finding::order);
}

fn host(code: &str, what: &str) -> Finding {
    Finding {
        code: code.to_owned(),
        severity: Severity::Blocks,
        what: what.to_owned(),
        process: None,
        remedy: "install CRIU 4.2 or later; cedana check tells more".to_owned(),
    }
}

fn text(job: &str, report: &Report) -> String {
    let mut text = String::new();
    let job = output::text::line(job);
    for finding in &report.findings {
        let mark = match finding.severity {
            Severity::Blocks | Severity::NeedsSetting => "✖",
            Severity::NotSaved | Severity::Note => "!",
        };
        text.push_str(&format!("{mark} {}\n", output::text::line(&finding.what)));
        if !finding.remedy.is_empty() {
            text.push_str(&format!("    {}\n", output::text::line(&finding.remedy)));
        }
        if let Some(flags) = advice::flags(&finding.remedy) {
            text.push_str(&format!("    for one dump: cedana dump job {job} {flags}\n"));
        }
    }
    for unseen in &report.unseen {
        text.push_str(&format!("? not looked at: {}\n", output::text::line(unseen)));
    }
    let needs_setting = |finding: &Finding| finding.severity == Severity::NeedsSetting;
    if report.findings.iter().any(needs_setting) {
        text.push_str(&format!("    ({HOW_TO_SET})\n"));
    }
    let plural = if report.processes == 1 { "" } else { "es" };
    let able = if report.can_be_dumped() {
        "can be dumped now"
    } else {
        "cannot be dumped now"
    };
    text.push_str(&format!(
        "{job} {able} ({} process{plural}, {} of memory)\n",
        report.processes,
        size::whole(report.memory)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Finding {
        Finding {
            code: "x".to_owned(),
            severity,
            what: "process 7 (a\x1b[2J) holds it".to_owned(),
            process: None,
            remedy: "drop it".to_owned(),
        }
    }

    #[test]
    fn what_is_in_the_way_is_said_with_what_to_do() {
        let report = Report {
            processes: 1,
            memory: 3 << 20,
            findings: vec![finding(Severity::Blocks), finding(Severity::NotSaved)],
            unseen: vec!["x".to_owned()],
            ..Report::default()
        };
        assert_eq!(
            text("web", &report),
            "✖ process 7 (a\\u{1b}[2J) holds it\n    drop it\n\
             ! process 7 (a\\u{1b}[2J) holds it\n    drop it\n\
             ? not looked at: x\n\
             web cannot be dumped now (1 process, 3 MiB of memory)\n"
        );
        let clear = Report {
            processes: 2,
            ..Report::default()
        };
        assert_eq!(
            text("web", &clear),
            "web can be dumped now (2 processes, 0 bytes of memory)\n"
        );
    }

    #[test]
    fn where_settings_go_is_said_once() {
        let report = Report {
            findings: vec![finding(Severity::NeedsSetting), finding(Severity::NeedsSetting)],
            ..Report::default()
        };
        assert_eq!(text("web", &report).matches(HOW_TO_SET).count(), 1);
        let locks = Finding {
            remedy: "set dump.file-locks to true".to_owned(),
            ..finding(Severity::NeedsSetting)
        };
        let report = Report {
            findings: vec![locks],
            ..Report::default()
        };
        assert!(text("web", &report).contains("for one dump: cedana dump job web --file-locks\n"));
    }

    #[test]
    fn only_a_report_is_a_report() {
        assert!(parse(r#"{"pid":7}"#).is_ok());
        assert!(parse("usage").is_err());
        assert!(parse(&" ".repeat(2 << 20)).is_err());
    }
}
