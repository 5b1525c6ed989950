//! `sluice agents`: what agents there are, their kill switch, and the ways in beside `sluice run`.
//! Asks the running daemon; a switch takes effect before the command returns.
//! INVARIANT: switching needs a daemon, since only it can cut what runs.

mod adopt;
mod attach;
mod detach;
mod drop_in;
mod systemd;
mod unit;

use std::process::ExitCode;

use clap::Subcommand;
use policies::AgentId;

pub(super) use attach::{Pinned, failed, require_root};
pub(super) use unit::UnitName;

use super::output::Tone;
use super::{Failure, Global, Output, ask_all};
use crate::control::{AgentReport, Client, Request, SwitchReport};

/// What to do with agents.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Govern what runs already, without the sockets that it has
    Adopt(adopt::Args),
    /// Govern a cgroup that is there already, such as a container's, or each start of a systemd service
    Attach(attach::Args),
    /// Undo `attach`; a live process stays governed
    Detach(detach::Args),
    /// Refuse an agent's new connections and cut its open ones, at once
    Disable {
        /// TENANT/NAME
        agent: AgentId,
    },
    /// Undo `disable`
    Enable {
        /// TENANT/NAME
        agent: AgentId,
    },
    /// List the configured agents
    List,
}

pub(super) fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Adopt(args) => adopt::run(global, args),
        Command::Attach(args) => attach::run(global, args),
        Command::Detach(args) => detach::run(global, args),
        Command::Disable { agent } => set(global, agent, true),
        Command::Enable { agent } => set(global, agent, false),
        Command::List => list(global),
    }
}

fn set(global: &Global, agent: AgentId, disabled: bool) -> Result<ExitCode, Failure> {
    let client = Client::require(&global.paths.control_socket())?;
    let answer: SwitchReport = client.ask_one(&Request::AgentsSet { agent, disabled })?;
    let output = Output::new(global);
    output.object(&answer, |answer| switched(output, answer))?;
    Ok(ExitCode::SUCCESS)
}

fn switched(output: Output, report: &SwitchReport) -> String {
    if !report.disabled {
        let on = output.tone(Tone::Good, "on");
        return format!("{} is switched {on}", report.agent);
    }
    let off = output.tone(Tone::Bad, "off");
    let still = match report.uncut {
        0 => "",
        _ => "; this kernel cuts no sockets, so open ones stand still",
    };
    format!(
        "{} is switched {off}: {} workloads, {} sockets cut{still}",
        report.agent, report.workloads, report.cut
    )
}

fn list(global: &Global) -> Result<ExitCode, Failure> {
    let agents: Vec<AgentReport> = ask_all(global, &Request::AgentsList {})?;
    let header = [
        "AGENT",
        "STAGE",
        "SWITCH",
        "RUNNING",
        "OWNER",
        "CONNECTIONS",
    ];
    Output::new(global).table(
        &agents,
        &header,
        "no agents are configured; see agents.d/*.toml",
        |agent| {
            let switch = if agent.disabled { "off" } else { "on" };
            vec![
                agent.agent.to_string(),
                agent.stage.clone(),
                switch.to_owned(),
                agent.workloads.to_string(),
                agent.owner.clone(),
                agent.connections.join(" "),
            ]
        },
    )?;
    let output = Output::new(global);
    for (agent, workload) in agents
        .iter()
        .flat_map(|agent| agent.running.iter().map(move |workload| (agent, workload)))
        .filter(|_| !output.is_json())
    {
        let pid = workload
            .pid
            .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        output.line(&format!(
            "{} {} by {}, pid {pid}, {}, in {}",
            agent.agent,
            workload.id,
            workload.way,
            workload.exe.as_deref().unwrap_or("-"),
            workload.cgroup
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
