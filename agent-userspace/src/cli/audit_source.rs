//! Where `sluice audit` reads the logs: the running daemon, else the files of the state directory.
//! One type for both, so that the commands do not care.
//! INVARIANT: both give the same records in the same shape.

use std::io::Write;
use std::path::PathBuf;

use audit::Ledger;
use policies::Tenant;
use serde_json::Value;

use super::{Failure, Global, offline};
use crate::control::{
    AuditFilter, Client, ClientError, ErrorCode, ErrorReply, Part, Request, entries, export,
    log_tenant, show,
};

/// The logs of this instance.
pub(super) enum Source {
    /// Asked from the daemon on this socket; one connection per question.
    Daemon(PathBuf),
    /// Opened in place.
    Files(Ledger),
}

impl Source {
    pub(super) fn open(global: &Global) -> Result<Source, Failure> {
        let socket = global.paths.control_socket();
        match Client::connect(&socket)? {
            // The connection was a probe; the daemon sees it close without a request.
            Some(_) => Ok(Source::Daemon(socket)),
            None if global.paths.audit_dir().is_dir() => {
                Ok(Source::Files(offline::ledger(global)?))
            }
            // Opening would make an empty log; somebody who only looks should not.
            None => Err(ClientError::NoDaemon { path: socket }.into()),
        }
    }

    pub(super) fn list(&mut self, filter: AuditFilter) -> Result<Vec<Value>, Failure> {
        match self {
            Source::Daemon(_) => self.items(&Request::AuditList { filter }),
            Source::Files(ledger) => entries(ledger, filter)?.iter().map(value).collect(),
        }
    }

    pub(super) fn show(&mut self, tenant: Option<Tenant>, index: u64) -> Result<Value, Failure> {
        match self {
            Source::Daemon(_) => {
                let none =
                    || ErrorReply::new(ErrorCode::AuditUnavailable, "the daemon sent no record");
                self.items(&Request::AuditShow { tenant, index })?
                    .pop()
                    .ok_or_else(|| none().into())
            }
            Source::Files(ledger) => value(&show(ledger, tenant, index)?),
        }
    }

    pub(super) fn export(
        &mut self,
        tenant: Option<Tenant>,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        match self {
            Source::Daemon(socket) => {
                Client::require(socket)?.ask(&Request::AuditExport { tenant }, |part| match part {
                    Part::Chunk(text) => out.write_all(text.as_bytes()).map_err(Failure::Output),
                    Part::Item(_) => Ok(()),
                })
            }
            Source::Files(ledger) => Ok(export(ledger, tenant, out).map(drop)?),
        }
    }

    pub(super) fn key(&mut self) -> Result<String, Failure> {
        match self {
            Source::Daemon(_) => self.text(&Request::AuditKey {}),
            Source::Files(ledger) => Ok(ledger.public_key()),
        }
    }

    pub(super) fn checkpoint(&mut self, tenant: Option<Tenant>) -> Result<String, Failure> {
        match self {
            Source::Daemon(_) => self.text(&Request::AuditCheckpoint { tenant }),
            Source::Files(ledger) => Ok(ledger.checkpoint(&log_tenant(tenant))?),
        }
    }

    /// Whose logs there are, the host's among them.
    pub(super) fn tenants(&mut self) -> Result<Vec<Tenant>, Failure> {
        let broken = |error: serde_json::Error| Failure::Output(error.into());
        match self {
            Source::Daemon(_) => {
                let names = self.items(&Request::AuditTenants {})?;
                names
                    .into_iter()
                    .map(|name| serde_json::from_value(name).map_err(broken))
                    .collect()
            }
            Source::Files(ledger) => Ok(ledger.tenants()),
        }
    }

    fn items(&self, request: &Request) -> Result<Vec<Value>, Failure> {
        let mut found = Vec::new();
        self.ask(request, |part| {
            if let Part::Item(value) = part {
                found.push(value);
            }
        })?;
        Ok(found)
    }

    fn text(&self, request: &Request) -> Result<String, Failure> {
        let mut found = String::new();
        self.ask(request, |part| {
            if let Part::Chunk(text) = part {
                found.push_str(&text);
            }
        })?;
        Ok(found)
    }

    fn ask(&self, request: &Request, mut each: impl FnMut(Part)) -> Result<(), Failure> {
        let Source::Daemon(socket) = self else {
            return Ok(());
        };
        Client::require(socket)?.ask(request, |part| {
            each(part);
            Ok(())
        })
    }
}

fn value(entry: &audit::Entry) -> Result<Value, Failure> {
    serde_json::to_value(entry).map_err(|error| Failure::Output(error.into()))
}
