//! CA trust and names inside a container that is being created: its bundle with the tenant's root, a resolv.conf of ours.
//! Called by the OCI hook, when the container's mounts are made and its root is not entered yet.
//! INVARIANT: every path of the image is resolved inside the image's own root; only certificates are copied out of its files.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::MountFlags;
use rustix::thread::LinkNameSpaceType;

use super::trust::{MAX_BUNDLE, SYSTEM_BUNDLES, certificates};

/// What a container is given.
#[derive(Debug)]
pub struct Furniture {
    /// The tenant's root certificate, PEM.
    pub root_pem: String,
    /// The name server of its resolv.conf.
    pub nameserver: IpAddr,
    /// A directory of the host that is covered, in the container's mount namespace alone, by the files to show.
    pub place: PathBuf,
    /// The container's root directory, as the host sees it.
    pub rootfs: PathBuf,
}

/// Why a container has not got it.
#[derive(Debug, thiserror::Error)]
pub enum FurnishError {
    /// The tenant's root is not a PEM certificate.
    #[error("the tenant's root certificate is not PEM")]
    BadRoot,
    /// The system refused.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The container shares the host's mounts.
    #[error("the container has no mount namespace of its own")]
    NoMounts,
    /// What is mounted in the container would be mounted on the host.
    #[error(
        "the container's mounts are shared with the host's (linux.rootfsPropagation); make them slave or private"
    )]
    SharedMounts,
}

impl Furniture {
    /// Enters the mount namespace of a process and shows the files there. Call it from a process that has one thread, and
    /// that ends after it.
    ///
    /// # Errors
    /// Something cannot be shown; the container must not start then.
    pub fn put_into(&self, pid: u32) -> Result<(), FurnishError> {
        let root = certificates(&self.root_pem).ok_or(FurnishError::BadRoot)?;
        enter(pid)?;
        let rootfs = step("open the container's root", open_directory(&self.rootfs))?;
        let bundles = bundles(&rootfs);
        let mut combined = String::new();
        for bundle in &bundles {
            if let Some(found) = step("read the container's CA bundle", read(bundle))? {
                combined = found;
                break;
            }
        }
        combined.push_str(&root);
        let resolv = format!(
            "nameserver {}\noptions edns0 timeout:2 attempts:2\n",
            self.nameserver
        );
        if step("read the container's mounts", is_shared(&self.place))? {
            return Err(FurnishError::SharedMounts);
        }
        step("cover the runtime directory", self.cover())?;
        let shown = [
            ("ca-bundle.pem", combined.as_str()),
            ("resolv.conf", resolv.as_str()),
        ];
        for (name, content) in shown {
            step(
                "write a file to show",
                fs::write(self.place.join(name), content),
            )?;
        }
        for bundle in bundles {
            step("show the CA bundle", self.show("ca-bundle.pem", &bundle))?;
        }
        match find(&rootfs, "etc/resolv.conf", OFlags::PATH) {
            Ok(resolv) => step("show resolv.conf", self.show("resolv.conf", &resolv))?,
            // An image without one has no names at all, unless it is given one.
            Err(_) => step(
                "write resolv.conf",
                create(&rootfs, "etc/resolv.conf", &resolv),
            )?,
        }
        step("make the files read-only", self.seal())
    }

    fn cover(&self) -> io::Result<()> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let options = c"mode=755,size=32m,nr_inodes=16";
        Ok(rustix::mount::mount(
            "sluice",
            &self.place,
            "tmpfs",
            flags,
            Some(options),
        )?)
    }

    fn show(&self, name: &str, onto: &OwnedFd) -> io::Result<()> {
        let onto = format!("/proc/self/fd/{}", onto.as_raw_fd());
        Ok(rustix::mount::mount_bind(self.place.join(name), onto)?)
    }

    /// The file system itself: it is the same wherever its files are shown.
    fn seal(&self) -> io::Result<()> {
        let flags =
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        Ok(rustix::mount::mount_remount(&self.place, flags, "")?)
    }
}

/// Goes where the process sees its mounts, which must not be where this one does.
fn enter(pid: u32) -> Result<(), FurnishError> {
    let open = |path: String| step("open the container's mount namespace", File::open(path));
    let (own, theirs) = (
        open("/proc/self/ns/mnt".to_owned())?,
        open(format!("/proc/{pid}/ns/mnt"))?,
    );
    let inode = |file: &File| {
        let facts = rustix::fs::fstat(file).map_err(io::Error::from);
        step("look at a mount namespace", facts).map(|facts| facts.st_ino)
    };
    if inode(&own)? == inode(&theirs)? {
        return Err(FurnishError::NoMounts);
    }
    let kind = Some(LinkNameSpaceType::Mount);
    let entered =
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&theirs), kind);
    step(
        "enter the container's mount namespace",
        entered.map_err(io::Error::from),
    )
}

/// Whether a mount made at this place would appear in other namespaces, too (proc_pid_mountinfo(5): the tag `shared`).
fn is_shared(place: &Path) -> io::Result<bool> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let holds = |line: &&str| {
        let point = line.split(' ').nth(4);
        point.is_some_and(|point| place.starts_with(point))
    };
    // The last of the longest lies on top.
    let mount = text
        .lines()
        .filter(holds)
        .max_by_key(|line| line.split(' ').nth(4).map(str::len));
    Ok(mount.is_none_or(|line| {
        line.split(' ')
            .skip(6)
            .take_while(|tag| *tag != "-")
            .any(|tag| tag.starts_with("shared:"))
    }))
}

/// The bundles that the image has, each once.
fn bundles(rootfs: &OwnedFd) -> Vec<OwnedFd> {
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for bundle in SYSTEM_BUNDLES {
        let Ok(file) = find(rootfs, bundle.trim_start_matches('/'), OFlags::PATH) else {
            continue;
        };
        let Ok(facts) = rustix::fs::fstat(&file) else {
            continue;
        };
        if !seen.contains(&(facts.st_dev, facts.st_ino)) {
            seen.push((facts.st_dev, facts.st_ino));
            found.push(file);
        }
    }
    found
}

/// A regular file below the container's root; its links lead nowhere else.
fn find(rootfs: &OwnedFd, path: &str, how: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(rootfs, path, how | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind != rustix::fs::FileType::RegularFile {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    Ok(file)
}

fn create(rootfs: &OwnedFd, path: &str, content: &str) -> io::Result<()> {
    use std::io::Write as _;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let how = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let file = rustix::fs::openat2(rootfs, path, how, mode, resolve)?;
    File::from(file).write_all(content.as_bytes())
}

/// The certificates of a bundle; none if it has none.
fn read(bundle: &OwnedFd) -> io::Result<Option<String>> {
    // By its descriptor, so that it is the file that was found.
    let file = File::open(format!("/proc/self/fd/{}", bundle.as_raw_fd()))?;
    let mut bytes = Vec::new();
    file.take(MAX_BUNDLE).read_to_end(&mut bytes)?;
    Ok(certificates(&String::from_utf8_lossy(&bytes)))
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, how, Mode::empty())?)
}

fn step<T>(what: &'static str, done: io::Result<T>) -> Result<T, FurnishError> {
    done.map_err(|error| FurnishError::Io { what, error })
}
