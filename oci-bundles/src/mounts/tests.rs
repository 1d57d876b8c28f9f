//! Real mounts, each test in a mount namespace of its own that ends with its thread. They need root.

use super::*;

const MIB: u64 = 1 << 20;

/// Runs in a private mount namespace, in a directory on a tmpfs; says so and does nothing without root.
fn in_namespace(name: &str, test: impl FnOnce(&Path) + Send) {
    if !nix::unistd::geteuid().is_root() {
        skip(name, "needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            call_mount(
                Path::new("none"),
                Path::new("/"),
                "",
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                "",
            )
            .unwrap();
            call_mount(Path::new("tmpfs"), dir.path(), "tmpfs", MsFlags::empty(), "").unwrap();
            test(dir.path());
        });
        thread.join().unwrap();
    });
}

#[expect(clippy::print_stderr, reason = "a test that does not run says so")]
fn skip(name: &str, reason: &str) {
    eprintln!("skipped {name}: {reason}");
}

fn mount_of(kind: &str, source: &Path, options: &[&str]) -> Mount {
    Mount {
        kind: kind.to_owned(),
        source: source.display().to_string(),
        target: String::new(),
        options: options.iter().map(|text| (*text).to_owned()).collect(),
    }
}

fn make(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

/// The lines of this thread's mounts at or below a path.
fn mounted(path: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let is_there = |line: &&str| {
        line.split(' ')
            .nth(4)
            .is_some_and(|point| Path::new(point).starts_with(path))
    };
    text.lines().filter(is_there).map(str::to_owned).collect()
}

#[test]
fn a_read_only_bind_mount_cannot_be_written() {
    in_namespace("read-only bind", |dir| {
        let (source, rootfs) = (make(dir, "source"), make(dir, "rootfs"));
        fs::write(source.join("file"), "x").unwrap();
        mount_all(
            &[mount_of("bind", &source, &["rbind", "ro", "rprivate"])],
            &rootfs,
        )
        .unwrap();
        assert_eq!(fs::read_to_string(rootfs.join("file")).unwrap(), "x");
        let written = fs::write(rootfs.join("file"), "y").unwrap_err();
        assert_eq!(written.raw_os_error(), Some(nix::libc::EROFS));
        unmount_recursive(&rootfs).unwrap();
        assert_eq!(mounted(&rootfs), Vec::<String>::new());
    });
}

#[test]
fn an_overlay_of_many_layers_with_long_paths_is_mounted() {
    in_namespace("long overlay", |dir| {
        let long = "snapshots-".repeat(12);
        let mut lower = Vec::new();
        for number in 0..100 {
            let layer = make(dir, &format!("{long}/{number}/fs"));
            fs::write(layer.join(format!("from-{number}")), "").unwrap();
            lower.push(layer.display().to_string());
        }
        let (upper, work) = (make(dir, "upper"), make(dir, "work"));
        let options = [
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let (before, rootfs) = (std::env::current_dir().unwrap(), make(dir, "rootfs"));
        mount_all(&[mount_of("overlay", Path::new("overlay"), &options)], &rootfs).unwrap();
        assert!(rootfs.join("from-0").exists() && rootfs.join("from-99").exists());
        fs::write(rootfs.join("new"), "x").unwrap();
        assert!(upper.join("new").exists());
        assert_eq!(std::env::current_dir().unwrap(), before);
        unmount_recursive(&rootfs).unwrap();
    });
}

#[test]
fn a_failure_takes_back_what_was_mounted_before_it() {
    in_namespace("undo", |dir| {
        let (source, rootfs) = (make(dir, "source/below"), make(dir, "rootfs"));
        let source = source.parent().unwrap().to_owned();
        let good = mount_of("bind", &source, &["rbind"]);
        let below = Mount {
            target: "/below".to_owned(),
            ..mount_of("tmpfs", Path::new("tmpfs"), &["size=1m", "noexec"])
        };
        for bad in [
            mount_of("bind", &dir.join("missing"), &["rbind"]),
            mount_of("tmpfs", Path::new("tmpfs"), &["nonsense=1"]),
            Mount {
                target: "missing".to_owned(),
                ..good.clone()
            },
        ] {
            assert!(mount_all(&[good.clone(), below.clone(), bad], &rootfs).is_err());
            assert_eq!(mounted(&rootfs), Vec::<String>::new());
        }
        mount_all(&[good, below], &rootfs).unwrap();
        assert_eq!(mounted(&rootfs).len(), 2);
        unmount_recursive(&rootfs).unwrap();
        assert_eq!(mounted(&rootfs), Vec::<String>::new());
    });
}

#[test]
fn a_link_in_the_root_does_not_lead_out_of_it() {
    in_namespace("link", |dir| {
        let (outside, rootfs) = (make(dir, "outside"), make(dir, "rootfs"));
        // Where the link leads when the root file system is taken for the root.
        let inside = make(
            dir,
            &format!("rootfs/{}", outside.strip_prefix("/").unwrap().display()),
        );
        std::os::unix::fs::symlink(&outside, rootfs.join("link")).unwrap();
        let mount = Mount {
            target: "link".to_owned(),
            ..mount_of("tmpfs", Path::new("tmpfs"), &[])
        };
        mount_all(&[mount], &rootfs).unwrap();
        assert_eq!(mounted(&outside), Vec::<String>::new());
        assert_eq!(mounted(&inside).len(), 1);
        unmount_recursive(&rootfs).unwrap();
    });
}

#[test]
fn busy_and_stacked_mounts_go_as_well() {
    in_namespace("busy", |dir| {
        let rootfs = make(dir, "rootfs");
        let tmpfs = mount_of("tmpfs", Path::new("tmpfs"), &[]);
        mount_all(&[tmpfs.clone(), tmpfs.clone()], &rootfs).unwrap();
        fs::create_dir_all(rootfs.join("a/b")).unwrap();
        mount_all(
            &[Mount {
                target: "a/b".to_owned(),
                ..tmpfs
            }],
            &rootfs,
        )
        .unwrap();
        let held = fs::File::create(rootfs.join("a/b/open")).unwrap();
        assert_eq!(mounted(&rootfs).len(), 3);
        unmount_recursive(&rootfs).unwrap();
        assert_eq!(mounted(&rootfs), Vec::<String>::new());
        drop(held);
        // A plain directory with a mount below it.
        let plain = make(dir, "plain/x");
        mount_all(&[mount_of("tmpfs", Path::new("tmpfs"), &[])], &plain).unwrap();
        unmount_recursive(plain.parent().unwrap()).unwrap();
        assert_eq!(mounted(&plain), Vec::<String>::new());
    });
}

#[test]
fn mapped_ids_are_shown_by_bind_and_overlay() {
    in_namespace("mapped ids", |dir| {
        use std::os::unix::fs::MetadataExt;
        let maps = ["uidmap=0:1000:10", "gidmap=0:2000:10"];
        let (lower, rootfs) = (make(dir, "lower"), make(dir, "rootfs"));
        fs::write(lower.join("file"), "x").unwrap();
        let owner = |path: &Path| fs::metadata(path).map(|of| (of.uid(), of.gid())).unwrap();

        let bound = mount_all(&[mount_of("bind", &lower, &["rbind", maps[0], maps[1]])], &rootfs);
        if let Err(MountError::Io { action, source, .. }) = &bound
            && action == "map ids of"
        {
            skip("mapped ids", &source.to_string());
            return;
        }
        bound.unwrap();
        assert_eq!(owner(&rootfs.join("file")), (1000, 2000));
        assert_eq!(mounted(&rootfs).len(), 1);
        unmount_recursive(&rootfs).unwrap();

        let lower_option = format!("lowerdir={}:{}", lower.display(), make(dir, "lowest").display());
        let overlay = mount_of(
            "overlay",
            Path::new("overlay"),
            &[&lower_option, maps[0], maps[1]],
        );
        mount_all(&[overlay], &rootfs).unwrap();
        assert_eq!(owner(&rootfs.join("file")), (1000, 2000));
        assert_eq!(owner(&lower.join("file")), (0, 0));
        let names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(
            !names
                .iter()
                .any(|name| name.to_string_lossy().starts_with(".lower")),
            "{names:?}"
        );
        assert_eq!(mounted(dir).len(), 2, "the tmpfs and the overlay");
        unmount_recursive(&rootfs).unwrap();
    });
}

#[test]
fn an_image_file_is_mounted_by_a_loop_device_that_goes_with_it() {
    in_namespace("loop", |dir| {
        if !Path::new("/dev/loop-control").exists() {
            skip("loop", "no /dev/loop-control");
            return;
        }
        let (image, rootfs) = (dir.join("image"), make(dir, "rootfs"));
        fs::File::create(&image).unwrap().set_len(8 * MIB).unwrap();
        let made = std::process::Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4"])
            .arg(&image)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            skip("loop", "no mke2fs");
            return;
        }
        mount_all(&[mount_of("ext4", &image, &["loop", "ro"])], &rootfs).unwrap();
        assert!(rootfs.join("lost+found").exists());
        let device = mounted(&rootfs)[0].split(' ').rev().nth(1).unwrap().to_owned();
        let backing = PathBuf::from(format!(
            "/sys/block/{}/loop/backing_file",
            device.trim_start_matches("/dev/")
        ));
        assert!(backing.exists(), "{}", backing.display());
        unmount_recursive(&rootfs).unwrap();
        assert!(!backing.exists());
    });
}
