//! From the file system: which files count, and whose they have to be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;
use crate::policy::Ownership;
use crate::quota::{Limits, Resource};

const SECTION: &str = "[interface.\"*\"]\nqueue-lock = \"none\"\n";

fn rule(name: &str) -> String {
    format!(
        "[[allow]]\nname = \"{name}\"\nuser = 0\ninterface = \"*\"\nqueues = \"*\"\nsockets = [\"prepared\"]\n"
    )
}

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let main = directory.path().join("policy.toml");
    fs::write(&main, SECTION).unwrap();
    fs::create_dir(directory.path().join("policy.d")).unwrap();
    (directory, main)
}

#[test]
fn files_beside_the_main_one_by_name() {
    let (directory, main) = directory();
    let beside = |name: &str| directory.path().join("policy.d").join(name);
    for name in ["20-b.toml", "10-a.toml", "30-link"] {
        fs::write(beside(name), rule(name)).unwrap();
    }
    std::os::unix::fs::symlink("30-link", beside("30-c.toml")).unwrap();
    // Not policy files: another suffix, and what an editor leaves.
    fs::write(beside("README"), "see the manual").unwrap();
    fs::write(beside(".10-a.toml.swp"), "\0").unwrap();
    fs::write(beside(".#10-a.toml"), "\0").unwrap();

    let loaded = Policy::load(&main, Ownership::Warn).unwrap();
    let expected = [
        main,
        beside("10-a.toml"),
        beside("20-b.toml"),
        beside("30-c.toml"),
    ];
    assert_eq!(loaded.files, expected);
    let names: Vec<&str> = loaded
        .policy
        .rules()
        .iter()
        .map(|rule| rule.name.as_str())
        .collect();
    assert_eq!(names, ["10-a.toml", "20-b.toml", "30-link"]);
}

#[test]
fn a_file_that_cannot_be_read_is_no_policy() {
    let (directory, main) = directory();
    std::os::unix::fs::symlink("nowhere", directory.path().join("policy.d/broken.toml")).unwrap();
    let error = Policy::load(&main, Ownership::Warn).unwrap_err().to_string();
    assert!(
        error.contains("cannot be read: No such file or directory"),
        "{error}"
    );
    let error = Policy::load(&directory.path().join("none.toml"), Ownership::Warn).unwrap_err();
    assert!(error.to_string().starts_with("error: cannot be read"), "{error}");
}

#[test]
fn who_can_write_a_policy_can_grant() {
    let (directory, main) = directory();
    fs::write(directory.path().join("policy.d/a.toml"), rule("a")).unwrap();
    let change = |path: &str, mode| {
        let path = directory.path().join(path);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let demanded = || match Policy::load(&main, Ownership::Demand) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    change("policy.toml", 0o644);
    change("policy.d/a.toml", 0o644);
    change("policy.d", 0o755);
    if rustix::process::geteuid().is_root() {
        assert_eq!(demanded(), "");
    } else {
        assert!(demanded().contains("not to root"));
    }
    for path in ["policy.toml", "policy.d/a.toml", "policy.d", "."] {
        let written = change(path, 0o777);
        if rustix::process::geteuid().is_root() {
            let error = demanded();
            assert!(
                error.contains("error: can be written by its group and everybody (mode 0777)"),
                "{error}"
            );
            let line = format!("run: chmod go-w {}", written.trim_end_matches("/."));
            assert!(error.contains(&line), "{error}\n{line}");
        }
        let looked_at = Policy::load(&main, Ownership::Warn).unwrap();
        assert!(
            looked_at
                .warnings
                .iter()
                .any(|warning| warning.position.is_none())
        );
        change(path, 0o755);
    }
}

#[test]
fn the_example_is_good() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy.example.toml");
    let loaded = Policy::load(&example, Ownership::Warn).unwrap();
    assert_eq!(loaded.policy.rule_count(), 4);
    // Every key that there is stands in it.
    let text = fs::read_to_string(&example).unwrap();
    for key in [
        "xdp",
        "reserved",
        "queue-lock",
        "uplink",
        "name",
        "user",
        "group",
        "interface",
        "queues",
        "sockets",
        "limits",
        "activate-within-ms",
        "insert",
        "zero-copy",
        "direction",
        "hugepages",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(&format!("{key} = "))),
            "{key}"
        );
    }
    // What it says of what counts where nothing is written.
    assert_eq!(loaded.policy.limits(), Limits::default());
    // Rules have keys of these names, too.
    let limits = text.split("[[allow]]").next().unwrap_or_default();
    for resource in Resource::ALL {
        let is_here = |line: &&str| line.starts_with(&format!("{resource} = "));
        assert_eq!(limits.lines().filter(is_here).count(), 2, "{resource}");
    }
}
