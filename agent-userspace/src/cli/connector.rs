//! `sluice connector`: what the shipped connectors and the operator's own say, and whether their examples hold.
//! Loads the configuration as the daemon would.
//! INVARIANT: examples run through the code that maps calls.

use std::process::ExitCode;

use clap::Subcommand;
use policies::{Bundle, Capability, Connector, ConnectorId, Risk};
use serde_json::{Value, json};

use super::check::load;
use super::failure::ArgumentError;
use super::output::{Tone, clean_line};
use super::{Failure, Global, Output};

/// What to do with connectors.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the connectors
    List,
    /// Print the JSON Schema of connector files
    Schema,
    /// Show a connector's hosts and capabilities
    Show {
        /// The connector's id
        connector: ConnectorId,
    },
    /// Run the examples of a connector, or of all
    Test {
        /// The connector's id
        connector: Option<ConnectorId>,
    },
}

pub(super) fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    let output = Output::new(global);
    if matches!(command, Command::Schema) {
        output.raw(Connector::schema())?;
        return Ok(ExitCode::SUCCESS);
    }
    let (_, bundle) = load(global)?;
    match command {
        Command::Schema => {}
        Command::List => {
            let connectors: Vec<Value> = bundle.connectors().map(summary).collect();
            let text = |value: &Value, name: &str| match value.get(name) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Array(items)) => items
                    .iter()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join(" "),
                Some(other) => other.to_string(),
                None => String::new(),
            };
            output.table(
                &connectors,
                &["CONNECTOR", "CAPABILITIES", "HOSTS", "DOCS"],
                "no connectors",
                |connector| {
                    ["id", "capabilities", "hosts", "docs"]
                        .into_iter()
                        .map(|name| text(connector, name))
                        .collect()
                },
            )?;
        }
        Command::Show { connector } => show(output, find(&bundle, &connector)?)?,
        Command::Test {
            connector: Some(id),
        } => return test(output, &[find(&bundle, &id)?]),
        Command::Test { connector: None } => {
            return test(output, &bundle.connectors().collect::<Vec<_>>());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn find<'a>(bundle: &'a Bundle, id: &ConnectorId) -> Result<&'a Connector, Failure> {
    let known = || {
        bundle
            .connectors()
            .map(|connector| connector.id().as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let unknown = || ArgumentError::Unknown {
        what: "connector",
        name: id.to_string(),
        hint: Some(format!("there are {}", known())),
    };
    bundle.connector(id).ok_or_else(|| unknown().into())
}

fn summary(connector: &Connector) -> Value {
    let hosts: Vec<String> = connector.hosts().iter().map(ToString::to_string).collect();
    json!({ "id": connector.id(), "capabilities": connector.capabilities().len(), "hosts": hosts, "docs": connector.docs() })
}

fn show(output: Output, connector: &Connector) -> Result<(), Failure> {
    if output.is_json() {
        let capabilities: Vec<Value> = connector.capabilities().iter().map(capability).collect();
        let mut shown = summary(connector);
        if let Some(fields) = shown.as_object_mut() {
            fields.insert("capabilities".to_owned(), Value::Array(capabilities));
        }
        return output.object(&shown, |_| String::new());
    }
    let hosts: Vec<String> = connector.hosts().iter().map(ToString::to_string).collect();
    output.line(&format!(
        "{}  {}  {}",
        output.tone(Tone::Strong, connector.id().as_str()),
        hosts.join(" "),
        clean_line(connector.docs())
    ))?;
    let rows: Vec<Vec<String>> = connector
        .capabilities()
        .iter()
        .map(|capability| {
            vec![
                capability.id().to_string(),
                risks(capability),
                params(capability),
            ]
        })
        .collect();
    output.line(&output.align(&["CAPABILITY", "RISK", "PARAMS"], &rows))
}

fn capability(capability: &Capability) -> Value {
    let params: Vec<&String> = capability.params().keys().collect();
    json!({ "id": capability.id(), "risks": capability.risks(), "params": params })
}

fn risks(capability: &Capability) -> String {
    capability
        .risks()
        .iter()
        .map(|risk: &Risk| risk.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

fn params(capability: &Capability) -> String {
    capability
        .params()
        .keys()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}

fn test(output: Output, connectors: &[&Connector]) -> Result<ExitCode, Failure> {
    let (mut passed, mut failed) = (0_usize, 0_usize);
    for result in connectors.iter().flat_map(|connector| connector.test()) {
        if result.failure.is_none() {
            passed += 1;
        } else {
            failed += 1;
        }
        // Hundreds of lines that say ok would hide the one that does not.
        if output.is_json() || result.failure.is_some() {
            output.object(&result, |result| {
                let kind = if result.hit { "must be" } else { "must not be" };
                let failure = result.failure.as_deref().unwrap_or_default();
                format!(
                    "{} {} {kind} {}: {}",
                    output.tone(Tone::Bad, "failed"),
                    clean_line(&result.request),
                    result.capability,
                    clean_line(failure)
                )
            })?;
        }
    }
    if !output.is_json() {
        output.line(&format!("{passed} passed, {failed} failed"))?;
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
