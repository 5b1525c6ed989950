//! Tells the main loop that a directory appeared where a rule looks for cgroups.
//! inotify(7) on directories of the hierarchy: one end is watched by the loop, the other told what to watch.
//! INVARIANT: it only wakes; what is there is looked up by whoever was woken, and the clock does the same where there is no inotify.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// The end that is told what to watch.
#[derive(Debug, Default)]
pub(super) struct Appearing {
    inotify: Option<OwnedFd>,
    watched: BTreeSet<PathBuf>,
    woken: Arc<Notify>,
}

/// The end that is waited for.
#[derive(Debug)]
pub(super) struct Appeared {
    inotify: Option<AsyncFd<OwnedFd>>,
    woken: Arc<Notify>,
}

impl Appearing {
    /// Both ends. Where the system has no inotify left, the clock alone wakes.
    pub(super) fn new() -> (Appearing, Appeared) {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        let twin = inotify
            .as_ref()
            .and_then(|inotify| inotify.try_clone().ok());
        let woken = Arc::new(Notify::new());
        #[expect(
            deprecated,
            reason = "its unsafe successor asks for a descriptor that stays open, as an OwnedFd that nobody takes out does"
        )]
        let appeared = Appeared {
            inotify: twin.and_then(|twin| AsyncFd::new(twin).ok()),
            woken: Arc::clone(&woken),
        };
        let appearing = Appearing {
            inotify,
            watched: BTreeSet::new(),
            woken,
        };
        (appearing, appeared)
    }

    /// Watches these directories, too; true if one of them was not watched before. Those that are gone are forgotten.
    pub(super) fn watch(&mut self, directories: &[PathBuf]) -> bool {
        self.watched.retain(|path| path.is_dir());
        let mut is_new = false;
        for directory in directories {
            let Some(inotify) = &self.inotify else { break };
            // Asked again, the kernel keeps the watch that it has: a directory that was made anew gets one of its own.
            let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
            if add_watch(inotify, directory, flags).is_ok() {
                is_new |= self.watched.insert(directory.clone());
            }
        }
        is_new
    }

    /// As if something had appeared.
    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }
}

impl Appeared {
    /// Returns when something appeared.
    pub(super) async fn wait(&self) {
        let Some(inotify) = &self.inotify else {
            return self.woken.notified().await;
        };
        tokio::select! {
            () = self.woken.notified() => {}
            ready = inotify.readable() => {
                let mut events = [0_u8; 4096];
                while rustix::io::read(inotify.get_ref(), &mut events[..]).is_ok_and(|length| length > 0) {}
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
            }
        }
    }
}
