//! Compiles the C programs against the headers of the libxdp that libxdp-sys has brought.

use std::path::PathBuf;
use std::process::Command;

const SOURCES: [&str; 2] = ["src/reflect.c", "src/bound.c"];

fn main() {
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    println!("cargo:rerun-if-changed=../../../client-lib/capi/include/xsk-client.h");
    let bpf = std::env::var("DEP_BPF_INCLUDE").expect("libbpf-sys tells where its headers are");
    cc::Build::new()
        .files(SOURCES)
        .include(libxdp_headers())
        .include(bpf)
        .include("../../../client-lib/capi/include")
        // As Debian compiles.
        .opt_level(2)
        .flag("-std=gnu11")
        .flag("-Wall")
        .compile("reflect");
}

/// libxdp-sys tells of a folder that lacks the header, so cargo is asked where the package is.
fn libxdp_headers() -> PathBuf {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--filter-platform"])
        .arg(std::env::var("TARGET").expect("cargo tells the target"))
        .output()
        .expect("cargo can be started");
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let manifest = text
        .split('"')
        .find(|word| word.contains("/libxdp-sys-") && word.ends_with("/Cargo.toml"))
        .expect("libxdp-sys is a dependency");
    let headers = PathBuf::from(manifest)
        .with_file_name("xdp-tools")
        .join("headers");
    assert!(
        headers.join("xdp/xsk.h").is_file(),
        "{} has no xdp/xsk.h",
        headers.display()
    );
    headers
}
