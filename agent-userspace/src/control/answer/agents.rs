//! Status, doctor, the agents and their kill switch.
//! Answers of the running daemon about itself.
//! INVARIANT: the kill switch is stored, and in force in the kernel, before it is confirmed; recorded with the name of who pulled it.

use std::sync::Arc;

use audit::HostEvent;
use mitm_proxy::Workload;
use policies::{Agent, AgentId};

use crate::app::Shared;
use crate::control::peer::Peer;
use crate::control::protocol::{ErrorCode, ErrorReply};
use crate::control::report::{
    AgentReport, DoctorReport, StatusReport, SwitchReport, WorkloadReport,
};
use crate::control::server::Replies;

pub(super) async fn status(shared: &Arc<Shared>, replies: &mut Replies) -> Result<(), ErrorReply> {
    let bundle = shared.proxy.bundle();
    let (layers, reload) = shared.read(|live| (live.layers.clone(), live.reload.clone()));
    let report = StatusReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: shared.started_at,
        policy_version: bundle.version().to_string(),
        agents: bundle.agents().count(),
        connectors: bundle.connectors().count(),
        workloads: shared.workloads.list().iter().map(workload).collect(),
        approvals_pending: shared.proxy.approvals().pending(),
        metrics: shared
            .config()
            .metrics
            .listen
            .map(|address| address.to_string()),
        reload,
        panic: shared.read(|live| live.panic.clone()),
        faults: shared.read(|live| live.faults.clone()),
        layers,
    };
    replies.item(&report).await
}

fn workload(workload: &Workload) -> WorkloadReport {
    WorkloadReport {
        id: workload.id.0,
        agent: workload.agent.clone(),
        pid: workload.pid,
        exe: workload.exe.clone(),
        cgroup: workload.cgroup.clone(),
        way: workload.way.as_str().to_owned(),
    }
}

pub(super) async fn doctor(shared: &Arc<Shared>, replies: &mut Replies) -> Result<(), ErrorReply> {
    let layers = shared.read(|live| live.layers.clone());
    let reload = shared.read(|live| live.reload.clone());
    let mut advice = Vec::new();
    if let Some(panic) = shared.read(|live| live.panic.clone()) {
        advice.push(format!(
            "every agent is stopped ({panic}); `sluice panic --lift` ends it"
        ));
    }
    let faults = shared.read(|live| live.faults.clone());
    if let Some(last) = &faults.last {
        advice.push(format!(
            "somebody changed the kernel side behind the daemon's back, {} times; the last: {last}",
            faults.found
        ));
    }
    if faults.broken {
        advice.push("the kernel side could not be put back: no workload may start; stop the daemon, see what its log says, and start it again".to_owned());
    }
    if !reload.ok {
        advice.push(format!("the configuration of {} was refused and the one before is in force; run `sluice check`", reload.at));
    }
    for agent in shared.read(|live| live.disabled.clone()) {
        advice.push(format!(
            "{agent} is switched off; `sluice agents enable {agent}` switches it on"
        ));
    }
    advice.extend(missing_credentials(shared).await?);
    replies
        .item(&DoctorReport {
            daemon: true,
            layers,
            advice,
        })
        .await
}

/// Connections whose credential the vault does not have: their calls are refused.
async fn missing_credentials(shared: &Arc<Shared>) -> Result<Vec<String>, ErrorReply> {
    let vault = Arc::clone(&shared.vault);
    let known = super::blocking(move || vault.list().map_err(super::secrets::failed)).await?;
    let bundle = shared.proxy.bundle();
    let mut advice = Vec::new();
    for agent in bundle.agents() {
        for connection in agent.connections() {
            let Some(name) = connection.credential() else {
                continue;
            };
            let id = policies::CredentialId {
                tenant: agent.id().tenant.clone(),
                name: name.clone(),
            };
            if !known
                .iter()
                .any(|listing| listing.credential == id && listing.revoked_at.is_none())
            {
                let line = format!(
                    "{}: connection {} has no usable credential {id}; `sluice vault put {id}` adds it",
                    agent.id(),
                    connection.name()
                );
                advice.push(line);
            }
        }
    }
    Ok(advice)
}

pub(super) async fn list(shared: &Arc<Shared>, replies: &mut Replies) -> Result<(), ErrorReply> {
    let workloads = shared.workloads.list();
    let disabled = shared.read(|live| live.disabled.clone());
    let report = |agent: &Agent| AgentReport {
        agent: agent.id().clone(),
        owner: agent.owner().to_string(),
        stage: agent.stage().as_str().to_owned(),
        connections: agent
            .connections()
            .iter()
            .map(|connection| connection.name().to_string())
            .collect(),
        disabled: disabled.contains(agent.id()),
        workloads: workloads
            .iter()
            .filter(|workload| workload.agent == *agent.id())
            .count(),
        running: workloads
            .iter()
            .filter(|found| found.agent == *agent.id())
            .map(workload)
            .collect(),
    };
    let reports: Vec<AgentReport> = shared.proxy.bundle().agents().map(report).collect();
    for report in reports {
        replies.item(&report).await?;
    }
    Ok(())
}

pub(super) async fn set(
    peer: &Peer,
    agent: &AgentId,
    disabled: bool,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    // An agent that left the configuration may still run, so one that is unknown is switched off all the same
    // when it has workloads or when its switch is being undone.
    let known = shared.proxy.bundle().agent(agent).is_some()
        || shared
            .workloads
            .list()
            .iter()
            .any(|workload| workload.agent == *agent)
        || shared.read(|live| live.disabled.contains(agent));
    if !known {
        return Err(ErrorReply::new(
            ErrorCode::AgentUnknown,
            format!("there is no agent {agent}"),
        ));
    }
    let switched = shared.set_disabled(agent, disabled).await;
    let by = peer.user.to_string();
    let event = if disabled {
        HostEvent::AgentDisabled {
            agent: agent.clone(),
            by,
        }
    } else {
        HostEvent::AgentEnabled {
            agent: agent.clone(),
            by,
        }
    };
    shared.record(Some(&agent.tenant), event).await;
    let switched =
        switched.map_err(|error| ErrorReply::new(ErrorCode::NoEnforcer, error.to_string()))?;
    let report = SwitchReport {
        agent: agent.clone(),
        disabled,
        workloads: switched.workloads,
        cut: switched.sockets,
        uncut: switched.uncut,
    };
    replies.item(&report).await
}
