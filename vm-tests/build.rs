//! Tells the tests which programs of the distribution they may use, so that one that cannot run here is ignored with a reason.
//! Invariant: nothing is built, downloaded or changed.

use std::path::Path;

/// Program, and the cfg that says it is there.
const PROGRAMS: [(&str, &str); 4] = [
    ("podman", "has_podman"),
    ("runc", "has_runc"),
    ("systemd", "has_systemd"),
    ("systemd-nspawn", "has_nspawn"),
];

fn main() {
    for (program, cfg) in PROGRAMS {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
        let places = [
            "/usr/bin",
            "/usr/sbin",
            "/usr/local/bin",
            "/usr/local/sbin",
            "/usr/lib/systemd",
        ];
        let mut files = places.iter().map(|place| Path::new(place).join(program));
        for file in files.clone() {
            println!("cargo::rerun-if-changed={}", file.display());
        }
        if files.any(|file| file.is_file()) {
            println!("cargo::rustc-cfg={cfg}");
        }
    }
}
