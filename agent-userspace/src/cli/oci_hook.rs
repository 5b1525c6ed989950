//! `sluice oci-hook`: governs a container between its creation and its program's first instruction.
//! Called by an OCI runtime as a createRuntime hook, with the container's state on standard input.
//! INVARIANT: a failure is a non-zero exit, which keeps the runtime from starting the container: there is no window.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use policies::AgentId;
use serde::Deserialize;

use super::agents::{Pinned, failed, require_root};
use super::enforcer::Enforcer;
use super::{Failure, Global};
use crate::config::ProcessFacts;
use crate::enforce::launch::Furniture;

/// The annotation that names the agent, where the command line does not.
const ANNOTATION: &str = "io.sluice.agent";
/// A state longer than this is none.
const MAX_STATE: u64 = 1024 * 1024;

/// What the hook is told in its configuration
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The agent, as tenant/name; without it, what the annotation io.sluice.agent says
    #[arg(long, value_name = "TENANT/NAME")]
    agent: Option<AgentId>,
    /// Leave the container's CA bundle and resolv.conf as they are
    #[arg(long)]
    bare: bool,
}

/// The state of a container, as far as it matters here (OCI runtime specification, "State").
#[derive(Debug, Deserialize)]
struct State {
    id: String,
    status: String,
    #[serde(default)]
    pid: u32,
    bundle: PathBuf,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The part of a bundle's `config.json` that says where the container's files are.
#[derive(Debug, Deserialize)]
struct Bundle {
    root: Root,
}

#[derive(Debug, Deserialize)]
struct Root {
    path: PathBuf,
}

/// Governs the container.
///
/// # Errors
/// It is not governed; the runtime must not start it.
pub(super) fn run(global: &Global, args: Args) -> Result<ExitCode, Failure> {
    govern(global, &args)
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| {
            failed(format!(
                "the container is not governed and must not start: {error}"
            ))
        })
}

fn govern(global: &Global, args: &Args) -> Result<(), String> {
    require_root()?;
    let state = read_state()?;
    if !matches!(state.status.as_str(), "creating" | "created") {
        return Err(format!(
            "hook_late: container {} is {}; this is a createRuntime hook",
            state.id, state.status
        ));
    }
    let agent = agent(args, &state)?;
    let container = Pinned::new(state.pid)?;
    let own = ProcessFacts::read(std::process::id()).map_err(|error| error.to_string())?;
    if own.cgroup == container.facts.cgroup {
        return Err(format!(
            "cgroup_shared: container {} has no cgroup of its own in the cgroup v2 hierarchy; it is in {}, as its runtime is",
            state.id, own.cgroup
        ));
    }
    let enforcer = Enforcer::connect(global)?;
    let admitted = container.attach(&enforcer, agent)?;
    if args.bare {
        return Ok(());
    }
    let furniture = Furniture {
        root_pem: admitted.root_pem()?,
        nameserver: admitted.nameserver,
        place: global.paths.runtime.clone(),
        rootfs: rootfs(&state)?,
    };
    let furnished = furniture.put_into(container.pid);
    if container.ended() {
        return Err("process_gone: the container's first process ended".to_owned());
    }
    furnished.map_err(|error| error.to_string())
}

fn read_state() -> Result<State, String> {
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_STATE)
        .read_to_string(&mut text)
        .map_err(|error| format!("standard input: {error}"))?;
    serde_json::from_str(&text)
        .map_err(|error| format!("hook_state: standard input is not a container's state: {error}"))
}

/// Whom the container runs as. Two answers are none.
fn agent(args: &Args, state: &State) -> Result<AgentId, String> {
    let annotated = state.annotations.get(ANNOTATION).map(|name| {
        name.parse::<AgentId>()
            .map_err(|error| format!("the annotation {ANNOTATION}: `{name}`: {error}"))
    });
    match (args.agent.clone(), annotated.transpose()?) {
        (Some(given), Some(annotated)) if given != annotated => Err(format!(
            "agent_ambiguous: the hook says {given}, the annotation {ANNOTATION} says {annotated}"
        )),
        (Some(agent), _) | (None, Some(agent)) => Ok(agent),
        (None, None) => Err(format!(
            "agent_missing: give --agent, or the container the annotation {ANNOTATION}"
        )),
    }
}

fn rootfs(state: &State) -> Result<PathBuf, String> {
    let path = state.bundle.join("config.json");
    let failed = |error: String| format!("{}: {error}", path.display());
    let text = crate::config::read_text(&path).map_err(|error| failed(error.to_string()))?;
    let bundle: Bundle = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
    // An absolute path replaces the bundle's.
    Ok(state.bundle.join(bundle.root.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(annotations: &[(&str, &str)]) -> State {
        State {
            id: "one".to_owned(),
            status: "creating".to_owned(),
            pid: 1,
            bundle: "/b".into(),
            annotations: annotations
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn the_agent_is_named_once_or_twice_the_same() {
        let given = |name: Option<&str>| Args {
            agent: name.map(|name| name.parse().unwrap()),
            bare: false,
        };
        let annotated = state(&[(ANNOTATION, "acme/support")]);
        for args in [given(None), given(Some("acme/support"))] {
            assert_eq!(
                agent(&args, &annotated).unwrap().to_string(),
                "acme/support"
            );
        }
        let refused = agent(&given(Some("acme/other")), &annotated).unwrap_err();
        assert!(refused.starts_with("agent_ambiguous"), "{refused}");
        let refused = agent(&given(None), &state(&[])).unwrap_err();
        assert!(refused.starts_with("agent_missing"), "{refused}");
        let refused = agent(&given(None), &state(&[(ANNOTATION, "../x")])).unwrap_err();
        assert!(refused.contains(ANNOTATION), "{refused}");
    }

    #[test]
    fn a_runtimes_state_is_understood_with_what_else_it_says() {
        let text = r#"{"ociVersion":"1.0.2-dev","id":"c","status":"creating","pid":42,"bundle":"/b","annotations":{"a":"b"}}"#;
        let state: State = serde_json::from_str(text).unwrap();
        assert_eq!((state.pid, state.status.as_str()), (42, "creating"));
    }
}
