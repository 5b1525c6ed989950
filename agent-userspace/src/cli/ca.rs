//! `sluice ca`: the roots that a tenant's workloads trust: shown, as a bundle with the system's, and rotated.
//! From the running daemon, else from the file it left in the runtime directory; a rotation needs the daemon.
//! INVARIANT: only certificates are shown; the keys never leave the vault.

use std::process::ExitCode;

use clap::Subcommand;
use policies::Tenant;
use serde_json::json;

use super::output::counted;
use super::{Failure, Global, Output};
use crate::config::read_one;
use crate::control::{CaRoot, CaStep, Client, Part, Request};
use crate::enforce::launch::combined_bundle;

/// What to show or do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the system's roots and a tenant's as PEM: what its workloads trust
    Bundle {
        /// The tenant
        tenant: Tenant,
    },
    /// Give a tenant a new root beside the one it has; `--finish` ends the time of that one
    ///
    /// Workloads that run go on with leaves of the root that they know; those that start from now on trust both, and are shown
    /// leaves of the new one.
    Rotate {
        /// The tenant
        tenant: Tenant,
        /// Let the former root go, once no workload lives that trusts nothing else
        #[arg(long)]
        finish: bool,
        /// Even if one lives: its calls fail from then on, as `tls_refused_by_client`
        #[arg(long, requires = "finish")]
        force: bool,
    },
    /// Print a tenant's root certificate as PEM: both, the current one last, while a rotation is not finished
    Show {
        /// The tenant
        tenant: Tenant,
    },
}

pub(super) fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Bundle { tenant } => bundle(global, &tenant)?,
        Command::Rotate {
            tenant,
            finish,
            force,
        } => {
            let step = match (finish, force) {
                (false, _) => CaStep::Begin,
                (true, false) => CaStep::Finish,
                (true, true) => CaStep::ForceFinish,
            };
            rotate(global, &tenant, step)?;
        }
        Command::Show { tenant } => show(global, &tenant)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(global: &Global, tenant: &Tenant) -> Result<(), Failure> {
    let roots = roots(global, tenant)?;
    let pem = match &roots {
        Some(roots) => roots.iter().map(|root| root.pem.as_str()).collect(),
        None => read_one(&global.paths.ca_pem(tenant))?.text,
    };
    let answer = json!({ "tenant": tenant, "pem": pem, "roots": roots });
    Output::new(global).object(&answer, |_| pem.trim_end().to_owned())
}

fn bundle(global: &Global, tenant: &Tenant) -> Result<(), Failure> {
    let pem = match roots(global, tenant)? {
        Some(roots) => roots.iter().map(|root| root.pem.as_str()).collect(),
        None => read_one(&global.paths.ca_pem(tenant))?.text,
    };
    let bundle = combined_bundle(&pem).map_err(|error| Failure::Process {
        detail: error.to_string(),
        code: 1,
    })?;
    let pem = String::from_utf8_lossy(&bundle);
    let answer = json!({ "tenant": tenant, "pem": pem });
    Output::new(global).object(&answer, |_| pem.trim_end().to_owned())
}

/// What the running daemon says; none if there is none.
fn roots(global: &Global, tenant: &Tenant) -> Result<Option<Vec<CaRoot>>, Failure> {
    let Some(client) = Client::connect(&global.paths.control_socket())? else {
        return Ok(None);
    };
    let tenant = tenant.clone();
    ask(client, &Request::CaShow { tenant }).map(Some)
}

fn rotate(global: &Global, tenant: &Tenant, step: CaStep) -> Result<(), Failure> {
    let client = Client::require(&global.paths.control_socket())?;
    let request = Request::CaRotate {
        tenant: tenant.clone(),
        step,
    };
    let roots = ask(client, &request)?;
    let alone: usize = roots.iter().map(|root| root.alone.len()).sum();
    let current = roots.iter().find(|root| root.current);
    let current = current.map(|root| format!("root {} ({})", root.generation, root.fingerprint));
    let current = current.unwrap_or_default();
    let answer = json!({ "tenant": tenant, "roots": roots });
    Output::new(global).object(&answer, |_| match step {
        CaStep::Begin => format!(
            "{tenant}: {current} signs for workloads that start from now on; {} of the former go on with that.\n\
             When they have ended: sluice ca rotate {tenant} --finish",
            counted(alone, "workload")
        ),
        CaStep::Finish | CaStep::ForceFinish => {
            format!("{tenant}: {current} is the only one; the former root's key is gone")
        }
    })
}

fn ask(client: Client, request: &Request) -> Result<Vec<CaRoot>, Failure> {
    let mut roots = Vec::new();
    client.ask(request, |part| {
        if let Part::Item(root) = part {
            let root = serde_json::from_value(root);
            roots.push(root.map_err(|error| Failure::Output(error.into()))?);
        }
        Ok::<(), Failure>(())
    })?;
    Ok(roots)
}
