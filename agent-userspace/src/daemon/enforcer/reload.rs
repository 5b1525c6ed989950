//! A new configuration on its way from the files to the proxy process and the kernel side.
//! Beside the path: SIGHUP starts it, the proxy process's answer ends it.
//! INVARIANT: the enforcer keeps the configuration that the proxy process took, and no other.

use super::{Enforcer, RELOAD_FAILED, notify};
use crate::config::Snapshot;
use crate::daemon::protocol::{BundleFacts, Ticket, ToWorker};
use crate::daemon::supervise::document;

impl Enforcer {
    /// SIGHUP: reads the configuration and hands it to the proxy process, which takes it whole or not at all.
    pub(super) async fn reload(&mut self) {
        use std::os::fd::AsFd as _;
        let mut state = vec![sd_notify::NotifyState::Reloading];
        state.extend(sd_notify::NotifyState::monotonic_usec_now());
        notify(&state);
        // What is wrong with it travels along: the proxy process refuses it, and writes that into the audit log.
        let snapshot = Snapshot::gather(&self.given.paths);
        match document(&snapshot) {
            Ok(file) => {
                let ticket = self.book.ticket();
                self.tell(&ToWorker::Reload { ticket }, Some(file.as_fd()))
                    .await;
                self.reloading.insert(ticket, snapshot);
            }
            Err(error) => {
                tracing::error!(%error, "the new configuration cannot be handed over; the old one stays");
                notify(&[
                    sd_notify::NotifyState::Ready,
                    sd_notify::NotifyState::Status(RELOAD_FAILED),
                ]);
            }
        }
    }

    pub(super) fn reloaded(&mut self, ticket: Ticket, bundle: Option<BundleFacts>, detail: &str) {
        let pending = self.reloading.remove(&ticket);
        let status = match (bundle, pending) {
            (Some(bundle), Some(snapshot)) => {
                self.take_or_log(&bundle);
                if let Ok(config) = snapshot.config()
                    && (config.names != self.given.config.names
                        || config.proxy.user != self.given.config.proxy.user)
                {
                    tracing::warn!(
                        "[names] and [proxy] user take effect at the next start of the daemon"
                    );
                }
                if let Ok(config) = snapshot.config() {
                    self.given.config.launch = config.launch;
                }
                self.given.snapshot = snapshot;
                tracing::info!(version = %bundle.version, "reloaded");
                "serving"
            }
            (Some(_), None) => "serving",
            (None, _) => {
                tracing::error!("the new configuration is refused; the old one stays:\n{detail}");
                RELOAD_FAILED
            }
        };
        notify(&[
            sd_notify::NotifyState::Ready,
            sd_notify::NotifyState::Status(status),
        ]);
    }
}
