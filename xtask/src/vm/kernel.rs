//! Debian kernels by lock file: the SHA-256 and nothing else decides what is booted.
//! apt is used with a configuration of its own, so that the machine's packages and lists stay as they are.
//! Invariant: an image is used only if its package had the digest of the lock file, or the archive's signature just vouched for it (`--update`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::modules;
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
    /// From 6.19 on the modules are a package of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    modules: Option<Package>,
}

/// One package of the archive.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Package {
    package: String,
    path: String,
    sha256: String,
}

/// A kernel that is on disk.
pub(crate) struct Kernel {
    /// The line: `6.12`
    pub(crate) name: String,
    /// `6.12.117+deb13-cloud-amd64`
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// The modules that tests can use, in the order in which they load.
    pub(crate) modules: Vec<PathBuf>,
}

/// The lines of the lock file.
pub(crate) fn lines(lock_file: &Path) -> Result<Vec<String>> {
    Ok(read(lock_file)?
        .kernel
        .into_iter()
        .map(|kernel| kernel.name)
        .collect())
}

fn read(lock_file: &Path) -> Result<Lock> {
    let text = std::fs::read_to_string(lock_file)
        .with_context(|| format!("cannot read {}", lock_file.display()))?;
    toml::from_str(&text).context("kernels.lock is broken")
}

/// Gives the kernel of that name, downloading it at first use.
pub(crate) fn ensure(lock_file: &Path, name: Option<&str>, update: bool) -> Result<Kernel> {
    let mut lock = read(lock_file)?;
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
    let release = ["linux-image-", "linux-binary-"]
        .iter()
        .find_map(|prefix| locked.package.strip_prefix(prefix))
        .with_context(|| format!("{} is not a kernel package", locked.package))?
        .to_owned();
    // The digest is part of the name: a changed lock file never finds an old image.
    let short = locked.sha256.get(..16).context("sha256 is too short")?;
    let image = cache.join(format!("vmlinuz-{release}-{short}"));
    let edition = modules::edition();
    let modules = cache.join(format!("modules-{release}-{short}-{edition}"));
    if !image.is_file() || !modules.is_dir() {
        let unpacked = cache.join("unpacked");
        drop(std::fs::remove_dir_all(&unpacked));
        let main = Package {
            package: locked.package.clone(),
            path: locked.path.clone(),
            sha256: locked.sha256.clone(),
        };
        for package in std::iter::once(&main).chain(&locked.modules) {
            println!("vm: downloading {} ({})", package.package, locked.suite);
            if let Err(error) = unpack(package, locked, cache, &unpacked) {
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
        }
        // Renamed into place, so that an interrupted run leaves no half an image.
        modules::keep(&unpacked, &cache.join("modules.new"))?;
        drop(std::fs::remove_dir_all(&modules));
        std::fs::rename(cache.join("modules.new"), &modules)?;
        std::fs::rename(vmlinuz(&unpacked, &release)?, &image)?;
        std::fs::remove_dir_all(&unpacked)?;
    }
    Ok(Kernel {
        name: locked.name.clone(),
        release,
        image,
        modules: modules::kept(&modules)?,
    })
}

/// Downloads a package, and unpacks it if it is the one that is locked.
fn unpack(package: &Package, locked: &Locked, cache: &Path, to: &Path) -> Result<()> {
    let file = cache.join("package.deb");
    let url = format!("{}/{}", debian::archive(&locked.archive)?, package.path);
    download(&url, &file)?;
    let digest = sha256(&file)?;
    if digest != package.sha256 {
        bail!(
            "{url} has SHA-256 {digest}, the lock file says {}",
            package.sha256
        );
    }
    shell::capture(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(to))?;
    std::fs::remove_file(&file)?;
    Ok(())
}

/// The kernel image; its place depends on the kernel's age.
fn vmlinuz(unpacked: &Path, release: &str) -> Result<PathBuf> {
    [
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
    ]
    .map(|path| unpacked.join(path))
    .into_iter()
    .find(|path| path.is_file())
    .with_context(|| format!("no vmlinuz in the package of {release}"))
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
    let kind = locked.package.split('-').nth(1).unwrap_or("image");
    // A line of one number is the newest of all that begin with it.
    let line = locked.name.trim_end_matches(".x");
    let prefix = format!("linux-{kind}-{line}.");
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
    let found = locate(package, &options)?;
    let modules = match &locked.modules {
        None => None,
        Some(_) => {
            let named = package.replacen(&format!("linux-{kind}-"), "linux-modules-", 1);
            Some(locate(&named, &options)?)
        }
    };
    Ok(Locked {
        package: found.package,
        path: found.path,
        sha256: found.sha256,
        modules,
        ..locked.clone()
    })
}

/// Where a package lies, and its digest, as the archive's signed lists say.
fn locate(package: &str, options: &[String]) -> Result<Package> {
    let uris = shell::capture(Command::new("apt-get").args(options).args([
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
    Ok(Package {
        package: package.to_owned(),
        path,
        sha256: sha256.to_owned(),
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
            let line = kernel.name.trim_end_matches("x");
            assert!(kernel.package.contains(line) && kernel.path.starts_with("pool/"));
        }
    }
}
