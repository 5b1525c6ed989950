//! Running other programs: one place that shows what is run, as whom, and what came of it.
//! Invariant: a program that fails is an error that names it; no output is thrown away on failure.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The directory of the workspace's `Cargo.toml`.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Where cargo puts what it builds: `CARGO_TARGET_DIR` or `target/`.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where downloads are kept between checkouts: `$XDG_CACHE_HOME/sluice` or `$HOME/.cache/sluice`.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let dir = base.join("sluice");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|ids| ids.split_whitespace().nth(1))
            == Some("0")
    })
}

/// `cargo`, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // `cargo run` leaves these behind; they would reach build scripts and make them run again.
    for name in [
        "CARGO_MANIFEST_DIR",
        "CARGO_PKG_NAME",
        "CARGO_PKG_VERSION",
        "OUT_DIR",
    ] {
        command.env_remove(name);
    }
    command
}

/// A command that must be root: itself where we are, through sudo where we are not.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("-E").arg(program);
    command
}

/// Whether `program` is found in PATH, or in the directories where root's programs live.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// Shows the command, runs it with our terminal, and fails if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("  $ {}", show(command));
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", show(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", show(command));
    }
    Ok(())
}

/// Runs quietly and gives stdout; on failure the error carries both streams.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", show(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed ({})\n{}{}",
            show(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a program printed, and whether it succeeded.
pub(crate) struct Told {
    /// Both streams, in the order in which their lines arrived.
    pub(crate) text: String,
    /// Whether it exited with 0.
    pub(crate) success: bool,
}

/// Runs with both streams copied to our own as they come, and kept.
pub(crate) fn tee(command: &mut Command) -> Result<Told> {
    println!("  $ {}", show(command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", show(command)))?;
    let (sender, lines) = std::sync::mpsc::channel();
    let forward = |stream: Option<Box<dyn Read + Send>>| {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let Some(stream) = stream else { return };
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                // The receiver outlives both threads; an error here means that we are ending anyway.
                drop(sender.send(line));
            }
        })
    };
    let threads = [
        forward(child.stdout.take().map(|s| Box::new(s) as _)),
        forward(child.stderr.take().map(|s| Box::new(s) as _)),
    ];
    drop(sender);
    let mut text = String::new();
    let mut stdout = std::io::stdout();
    for line in lines {
        writeln!(stdout, "{line}")?;
        text.push_str(&line);
        text.push('\n');
    }
    for thread in threads {
        drop(thread.join());
    }
    Ok(Told {
        text,
        success: child.wait()?.success(),
    })
}

/// The command as one would type it, with the arguments quoted where they need it.
pub(crate) fn show(command: &Command) -> String {
    let quote = |text: &OsStr| {
        let text = text.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        if !text.is_empty() && text.chars().all(plain) {
            text.into_owned()
        } else {
            format!("'{}'", text.replace('\'', "'\\''"))
        }
    };
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    std::iter::once(quote(name))
        .chain(command.get_args().map(quote))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("/usr/bin/env");
        command.args(["-i", "it's", ""]);
        assert_eq!(show(&command), r"env -i 'it'\''s' ''");
    }

    #[test]
    fn tee_keeps_both_streams_and_the_verdict() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let told = tee(&mut command).unwrap();
        assert!(told.text.contains("out\n") && told.text.contains("err\n"));
        assert!(!told.success);
    }

    #[test]
    fn a_failure_names_the_program_and_what_it_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo why >&2; exit 3"]);
        let error = capture(&mut command).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("why"), "{error}");
    }
}
