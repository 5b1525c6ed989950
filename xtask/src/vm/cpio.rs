//! An initramfs: the `newc` format of Linux's Documentation/driver-api/early-userspace/buffer-format.rst.
//! Written here so that no tool has to be installed for it.
//! Invariant: every directory comes before what lies in it, and each is written once.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// An archive in the making.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
    directories: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            next_inode: 1,
            directories: BTreeSet::new(),
            files: BTreeSet::new(),
        }
    }

    /// Adds a file at an absolute path, with the directories that lead to it. A path is added once.
    pub(crate) fn file(&mut self, path: &Path, content: &[u8], mode: u32) {
        if !self.files.insert(path.to_owned()) {
            return;
        }
        let above: Vec<&Path> = path.ancestors().skip(1).collect();
        for directory in above.into_iter().rev().filter(|dir| *dir != Path::new("/")) {
            if self.directories.insert(directory.to_owned()) {
                self.entry(directory, DIRECTORY | 0o755, &[]);
            }
        }
        self.entry(path, REGULAR | mode, content);
    }

    /// Ends the archive and writes it.
    pub(crate) fn write(mut self, file: &Path) -> Result<()> {
        self.entry(Path::new("TRAILER!!!"), 0, &[]);
        let mut out = std::fs::File::create(file)
            .with_context(|| format!("cannot write {}", file.display()))?;
        out.write_all(&self.bytes)?;
        Ok(())
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        let path = path.to_string_lossy();
        let name = path.trim_start_matches('/');
        // inode, mode, uid, gid, links, mtime, size, device and rdevice (major, minor), name length with its NUL, checksum
        let fields = [
            self.next_inode,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.next_inode += 1;
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    /// Names and contents start at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_first_and_once_and_all_is_aligned() {
        let mut archive = Archive::new();
        archive.file(Path::new("/lib64/a.so"), b"12345", 0o755);
        archive.file(Path::new("/lib64/b.so"), b"", 0o755);
        archive.file(Path::new("/lib64/b.so"), b"again", 0o755);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.cpio");
        archive.write(&file).unwrap();
        let bytes = std::fs::read(file).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 4);
        assert!(text.find("lib64\0").unwrap() < text.find("lib64/a.so\0").unwrap());
        assert!(text.contains("TRAILER!!!"));
    }
}
