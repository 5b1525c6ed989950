//! Debian kernels by lock file: the SHA-256 and nothing else decides what is booted.
//! apt is used with a configuration of its own, so that the machine's packages and lists stay as they are.
//! Invariant: an image is used only if its package had the digest of the lock file, or the archive's signature just vouched for it (`--update`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{debian, shell};

/// `vm-tests/kernels.lock`.
#[derive(Deserialize, Serialize)]
struct Lock {
    kernel: Vec<Locked>,
}

/// One kernel line of one Debian suite.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Locked {
    /// `6.12`
    name: String,
    /// `trixie-security`
    suite: String,
    /// `linux-image-6.12.117+deb13-cloud-amd64`
    package: String,
    /// `debian-security`
    archive: String,
    /// Within the archive: `pool/updates/main/..`, as it stands in a URL.
    path: String,
    sha256: String,
}

/// A kernel that is on disk.
pub(crate) struct Kernel {
    /// `6.12.117+deb13-cloud-amd64`
    pub(crate) release: String,
    pub(crate) image: PathBuf,
}

/// Gives the kernel of that name, downloading it at first use.
pub(crate) fn ensure(lock_file: &Path, name: Option<&str>, update: bool) -> Result<Kernel> {
    let text = std::fs::read_to_string(lock_file)
        .with_context(|| format!("cannot read {}", lock_file.display()))?;
    let mut lock: Lock = toml::from_str(&text).context("kernels.lock is broken")?;
    let names: Vec<_> = lock
        .kernel
        .iter()
        .map(|kernel| kernel.name.clone())
        .collect();
    let locked = lock
        .kernel
        .iter_mut()
        .find(|kernel| name.is_none_or(|name| kernel.name == name))
        .with_context(|| {
            format!(
                "no such kernel in the lock file; it has {}",
                names.join(", ")
            )
        })?;

    let cache = shell::cache_dir()?.join("kernels");
    std::fs::create_dir_all(&cache)?;
    // Two runs at once share the cache; the second waits here.
    let guard = File::create(cache.join("lock"))?;
    guard.lock().context("cannot lock the kernel cache")?;

    if update {
        *locked = newest(locked, &cache)?;
        let locked = locked.clone();
        std::fs::write(lock_file, format!("{HEAD}{}", toml::to_string(&lock)?))?;
        println!("vm: {} is now {}", locked.name, locked.package);
        return fetched(&locked, &cache);
    }
    fetched(locked, &cache)
}

const HEAD: &str = "# The kernels that the kernel tests run on. `cargo xtask vm --update` moves one to the newest of its line.\n\n";

fn fetched(locked: &Locked, cache: &Path) -> Result<Kernel> {
    let release = locked
        .package
        .strip_prefix("linux-image-")
        .with_context(|| format!("{} is not a kernel package", locked.package))?
        .to_owned();
    // The digest is part of the name: a changed lock file never finds an old image.
    let short = locked.sha256.get(..16).context("sha256 is too short")?;
    let image = cache.join(format!("vmlinuz-{release}-{short}"));
    if image.is_file() {
        return Ok(Kernel { release, image });
    }
    println!("vm: downloading {} ({})", locked.package, locked.suite);
    let package = cache.join("package.deb");
    let url = format!("{}/{}", debian::archive(&locked.archive)?, locked.path);
    if let Err(error) = download(&url, &package) {
        // Debian removes superseded versions.
        let newer = newest(locked, cache).with_context(|| format!("{error:#}"))?;
        if newer.sha256 == locked.sha256 {
            return Err(error);
        }
        println!(
            "vm: NOTE: the locked package is gone; using {} instead, signed by the same archive. \
             `cargo xtask vm --update` locks it",
            newer.package
        );
        return fetched(&newer, cache);
    }
    let digest = sha256(&package)?;
    if digest != locked.sha256 {
        bail!(
            "{url} has SHA-256 {digest}, the lock file says {}",
            locked.sha256
        );
    }
    unpack(&package, &release, &image)?;
    std::fs::remove_file(&package)?;
    Ok(Kernel { release, image })
}

fn download(url: &str, to: &Path) -> Result<()> {
    shell::run(
        Command::new("curl")
            .args([
                "--fail",
                "--location",
                "--silent",
                "--show-error",
                "--retry",
                "3",
                "--output",
            ])
            .arg(to)
            .arg(url),
    )
}

fn sha256(file: &Path) -> Result<String> {
    let digest = Sha256::digest(std::fs::read(file)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Takes the kernel image out of the package; its place there depends on the kernel's age.
fn unpack(package: &Path, release: &str, image: &Path) -> Result<()> {
    let dir = package.with_extension("unpacked");
    drop(std::fs::remove_dir_all(&dir));
    shell::capture(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package)
            .arg(&dir),
    )?;
    let inside = [
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
    ]
    .map(|path| dir.join(path))
    .into_iter()
    .find(|path| path.is_file())
    .with_context(|| format!("no vmlinuz in the package of {release}"))?;
    // Renamed into place, so that an interrupted run leaves no half an image.
    std::fs::rename(inside, image)?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// Asks the archive for the newest kernel of this line.
fn newest(locked: &Locked, cache: &Path) -> Result<Locked> {
    let apt = cache.join("apt");
    std::fs::create_dir_all(apt.join("lists/partial"))?;
    std::fs::create_dir_all(apt.join("cache/archives/partial"))?;
    let base = debian::archive(&locked.archive)?;
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    std::fs::write(
        apt.join("sources.list"),
        format!("deb [signed-by={keyring}] {base} {} main\n", locked.suite),
    )?;
    let options = [
        format!(
            "-oDir::Etc::sourcelist={}",
            apt.join("sources.list").display()
        ),
        "-oDir::Etc::sourceparts=/dev/null".into(),
        format!("-oDir::State::Lists={}", apt.join("lists").display()),
        "-oDir::State::status=/dev/null".into(),
        format!("-oDir::Cache={}", apt.join("cache").display()),
        "-oAPT::Sandbox::User=root".into(),
        "-oAPT::Architecture=amd64".into(),
    ];
    shell::capture(Command::new("apt-get").args(&options).arg("update"))?;
    let prefix = format!("linux-image-{}.", locked.name);
    let all = shell::capture(
        Command::new("apt-cache")
            .args(&options)
            .args(["pkgnames", &prefix]),
    )?;
    let package = all
        .lines()
        .filter(|name| name.ends_with("-cloud-amd64"))
        .max_by_key(|name| version(name))
        .with_context(|| format!("{} has no {prefix}*-cloud-amd64", locked.suite))?;
    let uris = shell::capture(Command::new("apt-get").args(&options).args([
        "download",
        "--print-uris",
        package,
    ]))?;
    // 'URL' file size SHA256:digest
    let mut words = uris.split_whitespace();
    let path = words
        .next()
        .and_then(|url| url.trim_matches('\'').split_once("/pool/"))
        .map(|(_, path)| format!("pool/{path}"))
        .context("apt-get printed no URL of a pool")?;
    let sha256 = words
        .find_map(|word| word.strip_prefix("SHA256:"))
        .context("apt-get printed no SHA256")?;
    Ok(Locked {
        package: package.to_owned(),
        path,
        sha256: sha256.to_owned(),
        ..locked.clone()
    })
}

/// The numbers of a version, in the order in which they count.
fn version(package: &str) -> Vec<u32> {
    package
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_as_numbers() {
        assert!(
            version("linux-image-6.12.117+deb13-cloud")
                > version("linux-image-6.12.57+deb13-cloud")
        );
    }

    #[test]
    fn the_lock_file_of_the_checkout_is_whole() {
        let text = std::fs::read_to_string(shell::root().join("vm-tests/kernels.lock")).unwrap();
        let lock: Lock = toml::from_str(&text).unwrap();
        for kernel in lock.kernel {
            assert_eq!(kernel.sha256.len(), 64, "{}", kernel.name);
            assert!(kernel.package.contains(&kernel.name) && kernel.path.starts_with("pool/"));
        }
    }
}
