//! `sluice audit`: list, show, export and verify the tamper-evident logs.
//! Through the running daemon; without one, in place. `verify FILE --key KEY` needs neither.
//! INVARIANT: exit code 0 of `verify` says that every record is as it was written.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use audit::{Kind, Record, Verified, VerifierKey, verify};
use clap::Subcommand;
use policies::{AgentId, Tenant};
use serde_json::{Value, json};

use super::audit_source::Source;
use super::audit_text::{details, row};
use super::failure::ArgumentError;
use super::output::Tone;
use super::{Failure, Global, Output};
use crate::config::read_one;
use crate::control::{AuditFilter, ClientError};

/// What to do with the logs.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print a freshly signed checkpoint of a log
    Checkpoint {
        /// Whose log; without it the host's own
        #[arg(long)]
        tenant: Option<Tenant>,
    },
    /// Print a whole log: its signed checkpoint, then every record
    Export {
        /// Whose log; without it the host's own
        #[arg(long)]
        tenant: Option<Tenant>,
        /// Where to; without it standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Print the public key that exports and checkpoints are verified with
    Key,
    /// List records, oldest first
    List(ListArgs),
    /// Show one record with everything it says
    Show {
        /// Whose log; without it the host's own
        #[arg(long)]
        tenant: Option<Tenant>,
        /// The record's index
        index: u64,
    },
    /// Verify an exported log, or all logs of this host
    Verify {
        /// A file made by `sluice audit export`
        file: Option<PathBuf>,
        /// The public key, or a file with it; without it the key of this host
        #[arg(long, requires = "file")]
        key: Option<String>,
    },
}

/// Which records to list.
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Only this tenant's log
    #[arg(long)]
    tenant: Option<Tenant>,
    /// Only records of this agent
    #[arg(long)]
    agent: Option<AgentId>,
    /// Only records of this kind: approval, event, intent, outcome, refusal
    #[arg(long)]
    kind: Option<Kind>,
    /// Only records with this index or a later one
    #[arg(long)]
    from: Option<u64>,
    /// At most so many: the last ones, or with --from the first ones
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

pub(super) fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    let output = Output::new(global);
    match command {
        Command::Checkpoint { tenant } => {
            let text = Source::open(global)?.checkpoint(tenant)?;
            output.object(&json!({ "checkpoint": text }), |_| {
                text.trim_end().to_owned()
            })?;
        }
        Command::Export {
            tenant,
            output: None,
        } => {
            let mut out = io::stdout().lock();
            Source::open(global)?.export(tenant, &mut out)?;
            out.flush().map_err(Failure::Output)?;
        }
        Command::Export {
            tenant,
            output: Some(path),
        } => export_to(global, tenant, &path)?,
        Command::Key => {
            let key = Source::open(global)?.key()?;
            output.object(&json!({ "key": key.trim_end() }), |_| {
                key.trim_end().to_owned()
            })?;
        }
        Command::List(args) => list(global, args)?,
        Command::Show { tenant, index } => {
            let entry = Source::open(global)?.show(tenant, index)?;
            output.object(&entry, |entry| details(output, entry))?;
        }
        Command::Verify {
            file: Some(file),
            key,
        } => return verify_file(global, &file, key),
        Command::Verify { file: None, .. } => return verify_all(global),
    }
    Ok(ExitCode::SUCCESS)
}

fn list(global: &Global, args: ListArgs) -> Result<(), Failure> {
    let ListArgs {
        tenant,
        agent,
        kind,
        from,
        limit,
    } = args;
    let filter = AuditFilter {
        tenant,
        agent,
        kind,
        since: None,
        from,
        limit: Some(limit),
    };
    let mut source = Source::open(global)?;
    if let Some(tenant) = &filter.tenant {
        known(global, &mut source, tenant)?;
    }
    let entries = source.list(filter)?;
    let output = Output::new(global);
    if output.is_json() {
        return output.table(&entries, &[], "", |_| Vec::new());
    }
    let records: Result<Vec<Record>, _> = entries.into_iter().map(serde_json::from_value).collect();
    let records = records.map_err(|error| Failure::Output(error.into()))?;
    let header = [
        "LOG", "INDEX", "TIME", "KIND", "AGENT", "WHAT", "RESULT", "WHY",
    ];
    output.table(&records, &header, "no records", row)
}

/// A misspelt tenant has no records, and that must not look like a quiet one.
fn known(global: &Global, source: &mut Source, tenant: &Tenant) -> Result<(), Failure> {
    let known = source.tenants()?;
    let configured = || {
        super::check::load(global).is_ok_and(|(_, bundle)| {
            let mut agents = bundle.agents();
            agents.any(|agent| agent.id().tenant == *tenant)
        })
    };
    if known.contains(tenant) || configured() {
        return Ok(());
    }
    Err(Failure::NoLog {
        tenant: tenant.clone(),
        known,
    })
}

fn export_to(global: &Global, tenant: Option<Tenant>, path: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = io::BufWriter::new(File::create(path).map_err(failed)?);
    Source::open(global)?.export(tenant, &mut file)?;
    file.into_inner()
        .map_err(|error| failed(error.into_error()))?
        .sync_all()
        .map_err(failed)
}

fn verify_file(global: &Global, file: &Path, key: Option<String>) -> Result<ExitCode, Failure> {
    let key = match key {
        Some(given) => parse_key(&given)?,
        None => match Source::open(global) {
            Ok(mut source) => parse_key(&source.key()?)?,
            Err(Failure::Client(ClientError::NoDaemon { .. })) => {
                return Err(ArgumentError::NoVerifierKey.into());
            }
            Err(failure) => return Err(failure),
        },
    };
    let open = File::open(file).map_err(|source| Failure::Io {
        path: file.to_owned(),
        source,
    })?;
    let verified = verify(&mut BufReader::new(open), &key);
    report(global, &file.display().to_string(), verified)
}

/// Verifies every log of this host: what an export of this moment would say, against the host's own key.
fn verify_all(global: &Global) -> Result<ExitCode, Failure> {
    let mut source = Source::open(global)?;
    let key = parse_key(&source.key()?)?;
    let mut worst = ExitCode::SUCCESS;
    for tenant in source.tenants()? {
        let (reader, mut writer) = io::pipe().map_err(Failure::Output)?;
        let verified = std::thread::scope(|scope| {
            let key = &key;
            let verifying = scope.spawn(move || verify(&mut BufReader::new(reader), key));
            let exported = source.export(Some(tenant.clone()), &mut writer);
            drop(writer);
            // A verifier that has seen enough hangs up, which the exporter then reports: the verdict comes first.
            match verifying.join() {
                Ok(Err(error)) => Ok(Err(error)),
                Ok(verified) => exported.map(|()| verified),
                Err(_) => exported.map(|()| {
                    Err(audit::VerifyError::Io {
                        line: 0,
                        source: io::Error::other("the verifier ended"),
                    })
                }),
            }
        })?;
        if report(global, tenant.as_str(), verified)? != ExitCode::SUCCESS {
            worst = ExitCode::from(1);
        }
    }
    Ok(worst)
}

fn report(
    global: &Global,
    what: &str,
    verified: Result<Verified, audit::VerifyError>,
) -> Result<ExitCode, Failure> {
    let output = Output::new(global);
    match verified {
        Ok(Verified {
            origin,
            tenant,
            size,
            root,
        }) => {
            let answer = json!({ "log": what, "ok": true, "origin": origin, "tenant": tenant, "size": size, "root": root });
            output.object(&answer, |_| {
                format!(
                    "{what}: {}, {size} {} of {origin}",
                    output.tone(Tone::Good, "ok"),
                    if size == 1 { "record" } else { "records" }
                )
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let answer: Value = json!({ "log": what, "ok": false, "error": error.to_string() });
            output.object(&answer, |_| {
                format!(
                    "{what}: {}: {error}",
                    output.tone(Tone::Bad, "does not verify")
                )
            })?;
            Ok(ExitCode::from(1))
        }
    }
}

/// A key given as itself or as a file that holds it.
fn parse_key(given: &str) -> Result<VerifierKey, Failure> {
    if let Ok(key) = given.trim().parse() {
        return Ok(key);
    }
    let path = Path::new(given);
    if !path.is_file() {
        return Err(ArgumentError::VerifierKey.into());
    }
    read_one(path)?
        .text
        .trim()
        .parse()
        .map_err(|_| ArgumentError::VerifierKey.into())
}
