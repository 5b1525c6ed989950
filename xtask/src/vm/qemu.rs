//! One boot of one kernel in QEMU: no disk, no network, no modules; a serial line out, and an end by power-off.
//! Invariant: ends within its timeout whatever the guest does, and never leaves a machine running.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What to boot.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) append: String,
    pub(crate) timeout: Duration,
}

/// How a machine ended.
pub(crate) struct Ended {
    /// Everything it printed.
    pub(crate) serial: String,
    /// None: killed.
    pub(crate) code: Option<i32>,
    /// The same for people.
    pub(crate) how: String,
}

/// What executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl Machine<'_> {
    /// KVM only if it works: the device alone says nothing (a guest without nested virtualisation may have one).
    pub(crate) fn accelerator(&self) -> Accelerator {
        let opens = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        let module = ["kvm_intel", "kvm_amd"]
            .iter()
            .any(|module| Path::new("/sys/module").join(module).is_dir());
        if opens && module {
            Accelerator::Kvm
        } else {
            Accelerator::Tcg
        }
    }

    /// Boots, copies the serial line to our stdout, and waits for the end.
    pub(crate) fn boot(&self) -> Result<Ended> {
        let accelerator: &[&str] = match self.accelerator() {
            Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => &[
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "Haswell-noTSX,-invpcid,-pcid,-tsc-deadline,-x2apic",
            ],
        };
        // One processor: an emulated second one can run into a breakpoint that the kernel has already taken back while it
        // attaches a BPF trampoline (text_poke), which a real one cannot, and the guest panics.
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-machine",
                "q35",
                "-m",
                "2048",
                "-smp",
                "1",
                "-nodefaults",
                "-no-reboot",
            ])
            .args(["-display", "none", "-nic", "none", "-serial", "stdio"])
            .args(accelerator)
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .arg("-append")
            .arg(&self.append)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        self.watch(Running(child))
    }

    fn watch(&self, mut machine: Running) -> Result<Ended> {
        let stdout = machine.0.stdout.take().context("qemu has no stdout")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let deadline = Instant::now() + self.timeout;
        let mut serial = String::new();
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    println!("  | {}", line.trim_end());
                    serial.push_str(&line);
                    serial.push('\n');
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let how = format!("no end within {} s", self.timeout.as_secs());
                    return Ok(Ended {
                        serial,
                        code: None,
                        how,
                    });
                }
            }
        }
        let status = machine.0.wait()?;
        Ok(Ended {
            serial,
            code: status.code(),
            how: format!("qemu ended with {status}"),
        })
    }
}

/// A machine that does not outlive its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
