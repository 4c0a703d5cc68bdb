//! The header is what cbindgen makes of the sources, and C compilers take it. `UPDATE_HEADER=1 cargo test -p
//! xsk-client-capi` writes it anew.

#![allow(clippy::unwrap_used, reason = "tests panic, they do not return errors")]

use std::path::Path;
use std::process::Command;

fn made() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in ["outcome.rs", "client.rs", "grant.rs"] {
        builder = builder.with_src(folder.join("src").join(file));
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    // What Rust's readers are told of safety, C's know.
    let text = String::from_utf8(text).unwrap();
    let mut lines = Vec::new();
    let mut skipping = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed == "* # Safety" {
            skipping = true;
            while lines.last().is_some_and(|last: &&str| last.trim() == "*") {
                lines.pop();
            }
        }
        skipping = skipping && !trimmed.starts_with("*/");
        if !skipping {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_header_is_what_the_sources_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/xsk-client.h");
    let made = made();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == made,
        "{} is not what the sources say: UPDATE_HEADER=1 cargo test -p xsk-client-capi",
        path.display()
    );
}

/// A C program, compiled with all warnings against header and static library: wrong use is refused with a sentence, and
/// nothing of it is fatal.
#[test]
fn a_c_program_compiles_and_wrong_use_is_told() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = std::env::current_exe().unwrap();
    let library = here.parent().unwrap().join("libxsk_client_c.a");
    assert!(
        library.is_file(),
        "cargo builds {} for its tests",
        library.display()
    );
    let scratch = std::env::temp_dir().join(format!("xsk-client-capi-{}", std::process::id()));
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
        .arg(folder.join("include"))
        .arg(folder.join("tests/wrong_use.c"))
        .arg(library)
        .args(["-lpthread", "-ldl", "-lm", "-o"])
        .arg(&scratch)
        .status()
        .unwrap();
    assert!(compiled.success());
    let output = Command::new(&scratch)
        .env_remove("LISTEN_FDS")
        .env("XSK_BROKER_SOCKET", "/nonexistent/broker.sock")
        .output()
        .unwrap();
    std::fs::remove_file(&scratch).unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
