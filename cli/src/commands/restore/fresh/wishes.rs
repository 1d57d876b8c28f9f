//! Which wishes of a foreign `config.json` are granted to a new container.
//!
//! ```text
//!   granted   what it runs: arguments, environment, directory, user, terminal; its host name
//!             paths that it may not see or write: only ever more of them
//!             mounts that show nothing of this machine: memory, the cgroups that it is in, read-only
//!             names that engines resolve for it: hosts, host name, resolver, a /dev/shm of its own
//!   refused   any other mount of a file or directory of the host: the user decides on those
//!   ignored   devices, capabilities, hooks, namespaces, limits, seccomp, annotations: they are those of a new container
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Fields of `process` that say what runs.
const OF_PROCESS: [&str; 4] = ["args", "env", "cwd", "terminal"];

/// Where engines mount files of their own making, and what of this machine says the same. The last ones are empty markers.
const OF_ENGINES: [(&str, &str); 6] = [
    ("/etc/hosts", "/etc/hosts"),
    ("/etc/hostname", "/etc/hostname"),
    ("/etc/resolv.conf", "/etc/resolv.conf"),
    ("/run/.containerenv", "/dev/null"),
    ("/var/run/.containerenv", "/dev/null"),
    ("/dev/termination-log", "/dev/null"),
];

/// Where a client's shared memory is mounted.
const SHM: &str = "/dev/shm";

/// The source of a private one: a directory that our shim makes in the bundle, which lies in memory and goes with the container.
const OWN_SHM: &str = "cedana-shm";

/// Mounts that a `config.json` may list.
const MOUNTS_MAX: usize = 4096;

/// What is taken over as it stands has to be what it should be: containerd starts a shim before anybody reads it.
#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only their kinds matter")]
struct Words {
    process: Option<Process>,
    hostname: Option<String>,
    mounts: Option<Vec<serde_json::Map<String, Value>>>,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only their kinds matter")]
struct Process {
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    cwd: Option<String>,
    user: Option<User>,
    terminal: Option<bool>,
}

/// Written anew: containerd takes names of fields in any case, and what has another name would not have been checked.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct User {
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    umask: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_gids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
}

/// Whether the wishes are of the kinds that a `config.json` has.
///
/// # Errors
/// Which is not.
pub fn check(wished: &Value) -> serde_json::Result<()> {
    Words::deserialize(wished).map(drop)
}

/// Merges what may be had of `wished` into the spec of a new container.
///
/// # Errors
/// The mount that may not be had, in words.
pub fn grant(spec: &mut Value, wished: &Value) -> Result<(), String> {
    for name in OF_PROCESS {
        if let Some(value) = wished
            .pointer(&format!("/process/{name}"))
            .filter(|value| !value.is_null())
        {
            put(spec, &["process", name], value.clone());
        }
    }
    let user = wished.pointer("/process/user").map(User::deserialize);
    if let Some(user) = user.and_then(Result::ok) {
        put(spec, &["process", "user"], json!(user));
    }
    if let Some(name @ Value::String(_)) = wished.get("hostname") {
        put(spec, &["hostname"], name.clone());
    }
    for name in ["maskedPaths", "readonlyPaths"] {
        add_paths(spec, name, wished);
    }
    let mounts = wished.get("mounts").and_then(Value::as_array);
    if let (Some(mounts), Some(Value::Array(own))) = (mounts, spec.get_mut("mounts")) {
        // CRIU mounts what was there; of what was not, runc would only be misled: below a tmpfs it makes no mount points.
        own.retain(|mount| {
            mounts
                .iter()
                .any(|one| one.get("destination") == mount.get("destination"))
        });
    }
    for mount in mounts.into_iter().flatten().take(MOUNTS_MAX) {
        add_mount(spec, mount)?;
    }
    Ok(())
}

/// Has the container use a network namespace that is there.
pub fn join_network(spec: &mut Value, path: &Path) {
    let namespaces = spec
        .pointer_mut("/linux/namespaces")
        .and_then(Value::as_array_mut);
    if let Some(namespaces) = namespaces {
        namespaces.retain(|one| one.get("type").and_then(Value::as_str) != Some("network"));
        namespaces.push(json!({"type": "network", "path": path}));
    }
}

fn put(spec: &mut Value, path: &[&str], value: Value) {
    let mut at = spec;
    for name in path {
        if !at.is_object() {
            *at = json!({});
        }
        let Value::Object(fields) = at else { return };
        at = fields.entry((*name).to_owned()).or_insert(Value::Null);
    }
    *at = value;
}

fn add_paths(spec: &mut Value, name: &str, wished: &Value) {
    let pointer = format!("/linux/{name}");
    let more = wished.pointer(&pointer).and_then(Value::as_array);
    let mut paths = spec.pointer(&pointer).and_then(Value::as_array).cloned();
    let paths = paths.get_or_insert_with(Vec::new);
    for path in more.into_iter().flatten().filter(|path| path.is_string()) {
        if !paths.contains(path) {
            paths.push(path.clone());
        }
    }
    put(spec, &["linux", name], json!(paths));
}

fn add_mount(spec: &mut Value, wished: &Value) -> Result<(), String> {
    let text = |name: &str| wished.get(name).and_then(Value::as_str).unwrap_or_default();
    let (destination, kind) = (text("destination"), text("type"));
    let options = wished.get("options").and_then(Value::as_array);
    let is_bind = kind == "bind"
        || options
            .into_iter()
            .flatten()
            .any(|option| option == "bind" || option == "rbind");
    let granted = match (is_bind, kind) {
        (true, _) => Some(bind(destination, text("source"))?),
        (false, "cgroup" | "cgroup2") => Some(json!({
            "destination": destination, "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
        })),
        (false, "tmpfs" | "mqueue") => Some(json!({
            "destination": destination, "type": kind, "source": kind,
            "options": ["nosuid", "nodev"],
        })),
        // The kernel's own are in every container, and nothing else is mounted for a stranger.
        _ => None,
    };
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    if let (Some(granted), Some(mounts)) = (granted, mounts) {
        let at = |mount: &Value| mount.get("destination").and_then(Value::as_str) == Some(destination);
        let is_there = mounts.iter().any(at);
        if is_bind {
            // CRIU asks for the very kind of mount that was there.
            mounts.retain(|mount| !at(mount));
            mounts.push(granted);
        } else if !is_there {
            mounts.push(granted);
        }
    }
    Ok(())
}

fn bind(destination: &str, source: &str) -> Result<Value, String> {
    if destination == SHM {
        return Ok(json!({
            "destination": SHM, "type": "bind", "source": OWN_SHM,
            "options": ["bind", "nosuid", "noexec", "nodev"],
        }));
    }
    let known = OF_ENGINES.iter().find(|(own, _)| *own == destination);
    let Some((_, here)) = known else {
        return Err(format!("it mounts {source} of its host at {destination}"));
    };
    Ok(json!({
        "destination": destination, "type": "bind", "source": here,
        "options": ["bind", "ro", "nosuid", "noexec", "nodev"],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Value {
        json!({
            "process": {"args": ["sh"], "capabilities": {"bounding": ["CAP_KILL"]}},
            "mounts": [{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}],
            "linux": {"maskedPaths": ["/proc/kcore"], "namespaces": [{"type": "pid"}, {"type": "network"}]},
        })
    }

    #[test]
    fn wishes_have_the_kinds_of_a_configuration() {
        for (wished, ok) in [
            (json!({}), true),
            (
                json!({"process": {"args": ["sh"], "user": {"uid": 7, "additionalGids": [1]}, "terminal": true}}),
                true,
            ),
            (
                json!({"process": {"args": null}, "mounts": null, "hostname": null}),
                true,
            ),
            (json!({"process": {"args": 7}}), false),
            (json!({"process": {"args": ["sh", 7]}}), false),
            (json!({"process": {"env": "A=b"}}), false),
            (json!({"process": {"cwd": ["/"]}}), false),
            (json!({"process": {"user": "root"}}), false),
            (json!({"process": {"user": {"uid": -1}}}), false),
            (json!({"process": {"terminal": "yes"}}), false),
            (json!({"process": []}), false),
            (json!({"mounts": {}}), false),
            (json!({"mounts": ["/proc"]}), false),
            (json!([]), false),
            (json!("spec"), false),
        ] {
            assert_eq!(check(&wished).is_ok(), ok, "{wished}");
        }
        let mut spec = fresh();
        grant(&mut spec, &json!({"process": {"args": null, "cwd": "/srv"}})).expect("granted");
        assert_eq!(spec["process"]["args"], json!(["sh"]), "no wish");
    }

    #[test]
    fn what_runs_is_granted_and_what_it_may_do_is_not() {
        let mut spec = fresh();
        let wished = json!({
            "process": {
                "args": ["counter"], "cwd": "/srv", "user": {"uid": 7, "GID": "x"}, "apparmorProfile": "unconfined",
                "capabilities": {"bounding": ["CAP_SYS_ADMIN"]}, "noNewPrivileges": false,
            },
            "hostname": "far",
            "hooks": {"prestart": [{"path": "/bin/sh"}]},
            "annotations": {"org.criu.config": "/evil"},
            "linux": {
                "maskedPaths": ["/proc/keys", 7], "devices": [{"path": "/dev/sda"}],
                "namespaces": [], "resources": {}, "cgroupsPath": "/",
            },
            "root": {"path": "/"},
        });
        grant(&mut spec, &wished).expect("granted");
        let expected = json!({
            "process": {
                "args": ["counter"], "cwd": "/srv", "user": {"uid": 7},
                "capabilities": {"bounding": ["CAP_KILL"]},
            },
            "hostname": "far",
            "mounts": [{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}],
            "linux": {
                "maskedPaths": ["/proc/kcore", "/proc/keys"], "readonlyPaths": [],
                "namespaces": [{"type": "pid"}, {"type": "network"}],
            },
        });
        assert_eq!(spec, expected);
    }

    #[test]
    fn nothing_of_the_host_is_mounted_for_an_archive() {
        for (mount, source) in [
            (
                json!({"destination": "/etc/hosts", "type": "bind", "source": "/etc/shadow"}),
                Some("/etc/hosts"),
            ),
            (
                json!({"destination": "/run/.containerenv", "options": ["rbind"], "source": "/"}),
                Some("/dev/null"),
            ),
            (
                json!({"destination": "/dev/shm", "type": "bind", "source": "/root"}),
                Some(OWN_SHM),
            ),
            (
                json!({"destination": "/data", "type": "bind", "source": "/srv"}),
                None,
            ),
            (
                json!({"destination": "/data", "type": "none", "options": ["bind"], "source": "/"}),
                None,
            ),
        ] {
            let mut spec = fresh();
            let granted = grant(&mut spec, &json!({"mounts": [mount]}));
            let mounts = spec["mounts"].as_array().expect("mounts");
            let found = mounts
                .iter()
                .find(|one| one["destination"] == mount["destination"] && one["type"] == "bind");
            assert_eq!(found.and_then(|one| one["source"].as_str()), source, "{mount}");
            assert_eq!(granted.is_ok(), source.is_some(), "{mount}");
        }
        for (kind, count) in [
            ("overlay", 0),
            ("ext4", 0),
            ("proc", 0),
            ("cgroup2", 1),
            ("tmpfs", 1),
        ] {
            let mut spec = fresh();
            let mount = json!({"destination": format!("/{kind}"), "type": kind, "source": "/dev/sda"});
            grant(&mut spec, &json!({"mounts": [mount]})).expect("ignored or granted");
            assert_eq!(spec["mounts"].as_array().expect("mounts").len(), count, "{kind}");
            assert!(!spec.to_string().contains("/dev/sda"));
        }
    }

    #[test]
    fn the_network_is_the_one_that_the_user_names() {
        let mut spec = fresh();
        join_network(&mut spec, Path::new("/run/netns/a"));
        let expected = json!([{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}]);
        assert_eq!(spec["linux"]["namespaces"], expected);
    }
}
