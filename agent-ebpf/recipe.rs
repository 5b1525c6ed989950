//! How the kernel side is built: one recipe, compiled into agent-userspace's build script and into xtask (`#[path]`).
//! On the path: before everything; the object that comes out is embedded in the daemon.
//! INVARIANT: always from source, with the pinned compiler; RUSTC_BOOTSTRAP reaches this one child build and nothing else.

#![allow(
    unreachable_pub,
    dead_code,
    reason = "a module of two programs; each uses its part"
)]

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The BPF target that the kernel side is built for.
const TARGET: &str = "bpfel-unknown-none";

/// Where the eBPF toolchain lives: `sysroot/` (the compiler with rust-src), `bpf-linker/bin/`, `llvm/lib/`.
pub struct Toolchain {
    /// The directory that holds the three.
    pub root: PathBuf,
}

/// Why the kernel side could not be built.
#[derive(Debug)]
pub enum BuildError {
    /// Cargo could not be started.
    Cargo(io::Error),
    /// Cargo ran and failed; its messages say why.
    Failed,
    /// A part of the toolchain is not there.
    Missing(PathBuf),
    /// Neither `SLUICE_TOOLCHAIN` nor `HOME` is set.
    NoHome,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Cargo(error) => write!(f, "cargo could not be started: {error}"),
            BuildError::Failed => f.write_str("the kernel side (agent-ebpf) did not build"),
            BuildError::Missing(path) => {
                write!(
                    f,
                    "the eBPF toolchain is incomplete: {} is missing; run `cargo xtask setup`",
                    path.display()
                )
            }
            BuildError::NoHome => {
                f.write_str("set HOME or SLUICE_TOOLCHAIN, then run `cargo xtask setup`")
            }
        }
    }
}

impl std::error::Error for BuildError {}

impl Toolchain {
    /// The toolchain's place: `SLUICE_TOOLCHAIN`, else `$HOME/.cache/sluice/toolchain`. It need not exist yet.
    pub fn place() -> Result<Self, BuildError> {
        if let Some(root) = env::var_os("SLUICE_TOOLCHAIN") {
            return Ok(Self {
                root: PathBuf::from(root),
            });
        }
        let home = env::var_os("HOME").ok_or(BuildError::NoHome)?;
        Ok(Self {
            root: Path::new(&home).join(".cache/sluice/toolchain"),
        })
    }

    /// The compiler inside the private sysroot.
    pub fn rustc(&self) -> PathBuf {
        self.root.join("sysroot/bin/rustc")
    }

    /// The standard library's source, from which `core` is built for the BPF target.
    pub fn rust_src(&self) -> PathBuf {
        self.root
            .join("sysroot/lib/rustlib/src/rust/library/core/src/lib.rs")
    }

    /// The linker, built against the compiler's own LLVM.
    pub fn linker(&self) -> PathBuf {
        self.root.join("bpf-linker/bin/bpf-linker")
    }

    /// The directory with the compiler's own LLVM under the names that the linker looks for.
    pub fn llvm(&self) -> PathBuf {
        self.root.join("llvm/lib")
    }

    /// Every file without which nothing builds; the first that is missing is the error.
    pub fn check(&self) -> Result<(), BuildError> {
        for part in [
            self.rustc(),
            self.rust_src(),
            self.linker(),
            self.llvm().join("libLLVM.so"),
        ] {
            if !part.exists() {
                return Err(BuildError::Missing(part));
            }
        }
        Ok(())
    }

    /// Builds the kernel side of the workspace into `target_dir` and returns the object's path.
    pub fn build(&self, workspace: &Path, target_dir: &Path) -> Result<PathBuf, BuildError> {
        self.check()?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(cargo);
        command
            .current_dir(workspace)
            .args([
                "build",
                "--package",
                "agent-ebpf",
                "--bins",
                "--release",
                "--locked",
            ])
            .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
            .arg(target_dir)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTC", self.rustc())
            .env("LD_LIBRARY_PATH", self.libraries())
            .env("PATH", self.path())
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(workspace))
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
            .env("CARGO_PROFILE_RELEASE_LTO", "off");
        // Set by cargo or rustup for the host's build; none of it fits the BPF target.
        for name in [
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CLIPPY_ARGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTDOC",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            command.env_remove(name);
        }
        let status = command.status().map_err(BuildError::Cargo)?;
        let object = target_dir.join(TARGET).join("release/agent-ebpf");
        if status.success() && object.exists() {
            Ok(object)
        } else {
            Err(BuildError::Failed)
        }
    }

    /// Paths of this machine stay out of the object: two checkouts build the same bytes.
    fn flags(&self, workspace: &Path) -> OsString {
        let mut flags = OsString::from("--cfg=bpf_target_arch=\"");
        flags.push(target_arch());
        flags.push("\"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf");
        let mut remap = |from: &Path, to: &str| {
            flags.push("\x1f--remap-path-prefix=");
            flags.push(from);
            flags.push("=");
            flags.push(to);
        };
        remap(workspace, "/sluice");
        remap(&self.root.join("sysroot"), "/rust");
        if let Some(cargo_home) = cargo_home() {
            remap(&cargo_home, "/cargo");
        }
        flags
    }

    fn path(&self) -> OsString {
        let mut path = OsString::from(self.root.join("bpf-linker/bin"));
        if let Some(inherited) = env::var_os("PATH") {
            path.push(":");
            path.push(inherited);
        }
        path
    }

    /// The private sysroot's libraries first: rustup points to its own, whose rust-src may be missing.
    fn libraries(&self) -> OsString {
        let mut libraries = OsString::from(self.root.join("sysroot/lib"));
        libraries.push(":");
        libraries.push(self.llvm());
        libraries
    }
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}

/// The machine that the programs will run on, as the bindings call it.
fn target_arch() -> String {
    env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.to_owned())
}
