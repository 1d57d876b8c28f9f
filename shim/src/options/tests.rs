use oci_bundles::spec::{IdMapping, LinuxView, ProcessView, UserView};

use super::*;

fn named(binary: &str) -> Options {
    Options {
        binary_name: binary.to_owned(),
        ..Options::default()
    }
}

/// `runtimeoptions.v1.Options` by hand: fields 1 to 3 are strings or bytes.
fn generic(fields: &[(u8, &str)]) -> Vec<u8> {
    let field = |(number, text): &(u8, &str)| {
        let mut bytes = vec![number << 3 | 2, u8::try_from(text.len()).unwrap()];
        bytes.extend(text.bytes());
        bytes
    };
    fields.iter().flat_map(field).collect()
}

#[test]
fn nothing_said_is_the_default() {
    assert_eq!(Options::from_any("", b"").unwrap(), Options::default());
}

#[test]
fn runc_options_arrive_whole_with_and_without_a_host() {
    let said = oci::Options {
        no_pivot_root: true,
        io_uid: 1000,
        binary_name: "crun".into(),
        root: "/r".into(),
        systemd_cgroup: true,
        criu_work_path: "/w".into(),
        ..oci::Options::default()
    };
    let want = Options {
        no_pivot_root: true,
        io_uid: Some(1000),
        root: "/r".into(),
        systemd_cgroup: true,
        criu_work_path: "/w".into(),
        ..named("crun")
    };
    let bytes = said.write_to_bytes().unwrap();
    assert_eq!(
        Options::from_any("containerd.runc.v1.Options", &bytes).unwrap(),
        want
    );
    assert_eq!(
        Options::from_any("type.googleapis.com/containerd.runc.v1.Options", &bytes).unwrap(),
        want
    );
    assert!(matches!(
        Options::from_any(RUNC_OPTIONS, b"\xff"),
        Err(OptionsError::Decode(_))
    ));
    assert!(matches!(
        Options::from_any("other.Options", b""),
        Err(OptionsError::UnknownType(_))
    ));
}

#[test]
fn generic_options_are_read_from_their_table_or_from_the_file_they_name() {
    let table = "# from CRI\nBinaryName = \"/usr/bin/crun\"\nSystemdCgroup = true # yes\nTypeUrl = \"x\"\n[more]\nRoot = 1";
    let want = Options {
        systemd_cgroup: true,
        ..named("/usr/bin/crun")
    };
    let read = |bytes: &[u8]| Options::from_any("runtimeoptions.v1.Options", bytes);
    assert_eq!(read(&generic(&[(1, RUNC_OPTIONS), (3, table)])).unwrap(), want);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("options.toml");
    fs::write(&path, table).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(read(&generic(&[(2, path)])).unwrap(), want);
    assert!(matches!(
        read(&generic(&[(2, "/nonexistent/x")])),
        Err(OptionsError::Io { .. })
    ));
    assert_eq!(read(&generic(&[(1, RUNC_OPTIONS)])).unwrap(), Options::default());
    assert_eq!(read(b"").unwrap(), Options::default());
}

#[test]
fn a_table_with_settings_of_ours_is_kept_whole() {
    let read = |table| Options::from_any("runtimeoptions.v1.Options", &generic(&[(3, table)])).unwrap();
    let table = "SystemdCgroup = true\n[cedana]\n  'dump.tcp' = 'close'\n";
    assert_eq!(read(table).settings, table);
    assert_eq!(read("SystemdCgroup = true\n").settings, "");
    let bundle = tempfile::tempdir().unwrap();
    read(table).save(bundle.path()).unwrap();
    assert_eq!(Options::load(bundle.path()).unwrap(), read(table));
}

#[test]
fn tables_are_read_or_refused_with_their_line() {
    let cases: &[(&str, Result<Options, usize>)] = &[
        ("", Ok(Options::default())),
        ("BinaryName = 'a\\b'", Ok(named("a\\b"))),
        ("BinaryName=\"a\\\\b\\\"c\" # x", Ok(named("a\\b\"c"))),
        (
            "IoUid = 0\nIoGid = 7",
            Ok(Options {
                io_gid: Some(7),
                ..Options::default()
            }),
        ),
        (
            "\"Root\" = \"/r\"",
            Ok(Options {
                root: "/r".into(),
                ..Options::default()
            }),
        ),
        ("\n\nBinaryName", Err(3)),
        ("BinaryName = runc", Err(1)),
        ("BinaryName = \"runc", Err(1)),
        ("SystemdCgroup = \"true\"", Err(1)),
        ("IoUid = -1", Err(1)),
    ];
    for (text, want) in cases {
        match (table::parse(text), want) {
            (Ok(got), Ok(want)) => assert_eq!(&got, want, "{text}"),
            (Err(OptionsError::Table { line, .. }), Err(want)) => assert_eq!(line, *want, "{text}"),
            (got, want) => panic!("{text}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn what_is_saved_is_loaded_also_from_other_shims() {
    let bundle = tempfile::tempdir().unwrap();
    let path = bundle.path();
    assert_eq!(Options::load(path).unwrap(), Options::default());

    fs::write(path.join(RUNTIME_FILE), "crun\n").unwrap();
    assert_eq!(Options::load(path).unwrap(), named("crun"));

    for text in ["", "{}", "{\"task_api_version\":3,\"from_the_future\":[1]}"] {
        fs::write(path.join(OPTIONS_FILE), text).unwrap();
        assert_eq!(Options::load(path).unwrap(), named("crun"), "{text}");
    }
    fs::write(path.join(OPTIONS_FILE), "{").unwrap();
    assert!(matches!(Options::load(path), Err(OptionsError::Json { .. })));

    let all = Options {
        io_uid: Some(5),
        systemd_cgroup: true,
        ..named("/bin/runc")
    };
    all.save(path).unwrap();
    assert_eq!(Options::load(path).unwrap(), all);
    let text = fs::read_to_string(path.join(OPTIONS_FILE)).unwrap();
    assert_eq!(
        text,
        r#"{"io_uid":5,"binary_name":"/bin/runc","systemd_cgroup":true}"#
    );
}

#[test]
fn systemd_paths_are_known_by_their_form() {
    let cases = [
        ("system.slice:docker:abc", true),
        ("kubepods-burstable-pod1.slice:cri-containerd:abc", true),
        (":cri-containerd:abc", true),
        ("", false),
        ("/default/abc", false),
        ("/k8s.io/a:b:c", false),
        ("a:b", false),
        ("a:b:", false),
        ("a:b:c:d", false),
    ];
    for (path, want) in cases {
        assert_eq!(is_systemd_path(path), want, "{path}");
    }
}

#[test]
fn owners_of_pipes_follow_the_id_mappings() {
    let range = |container_id, host_id, size| IdMapping {
        container_id,
        host_id,
        size,
    };
    let spec = |uid, mappings: &[IdMapping]| SpecView {
        process: Some(ProcessView {
            user: UserView { uid, gid: 0 },
            ..ProcessView::default()
        }),
        linux: LinuxView {
            uid_mappings: mappings.to_vec(),
            ..LinuxView::default()
        },
        ..SpecView::default()
    };
    let cases = [
        (0, vec![], None),
        (0, vec![range(0, 100_000, 65_536)], Some(100_000)),
        (33, vec![range(0, 5, 1), range(1, 200, 100)], Some(232)),
        (100, vec![range(0, 5, 1), range(1, 200, 100)], Some(299)),
        (101, vec![range(0, 5, 1), range(1, 200, 100)], None),
        (9, vec![range(0, u32::MAX, 10)], None),
    ];
    for (uid, mappings, want) in cases {
        let mut options = Options::default();
        options.infer(&spec(uid, &mappings));
        assert_eq!(options.io_uid, want, "{uid} in {mappings:?}");
    }
    let mut said = Options {
        io_uid: Some(1),
        ..Options::default()
    };
    said.infer(&spec(0, &[range(0, 100_000, 65_536)]));
    assert_eq!(said.io_uid, Some(1), "what was said stays");
}
