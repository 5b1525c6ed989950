//! `sluice policy`: check, test and explain what policies decide, without a daemon and without a call.
//! Loads the configuration as the daemon would.
//! INVARIANT: an explanation comes from the code that decides; nothing here decides by itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use policies::{
    AgentId, Bundle, Diagnostic, Diagnostics, Endpoint, Facts, Host, RequestView, run_case,
};
use serde_json::json;

use super::check::load;
use super::failure::ArgumentError;
use super::output::{Tone, clean};
use super::{Failure, Global, Output};
use crate::config::{read_one, read_toml_files};

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check the policies, and what they refer to
    Check,
    /// Say how a request would be decided, why, and what it would take
    Explain(ExplainArgs),
    /// Print the Cedar schema that policies are validated against
    Schema,
    /// Run decision cases: files that say what a request must be decided as
    Test {
        /// Case files or directories of them; without one `cases` of the configuration directory
        paths: Vec<PathBuf>,
    },
}

/// A request to explain, written as for curl.
#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// The agent that would ask, TENANT/NAME
    #[arg(long)]
    agent: AgentId,
    /// The method; POST where there is data, else GET
    #[arg(long, short = 'X')]
    method: Option<String>,
    /// A header, `name: value`; may be repeated
    #[arg(long = "header", short = 'H', value_name = "HEADER")]
    headers: Vec<String>,
    /// The body; form-encoded unless a content-type header says otherwise. Several are joined by `&`
    #[arg(long, short = 'd')]
    data: Vec<String>,
    /// The URL, https://host/path?query
    url: String,
}

pub(super) fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    let output = Output::new(global);
    match command {
        Command::Check => super::check::run(global, super::check::Args {}),
        Command::Explain(args) => explain(global, args),
        Command::Schema => {
            let (_, bundle) = load(global)?;
            output.object(&json!({ "schema": bundle.schema_text() }), |_| {
                bundle.schema_text().trim_end().to_owned()
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Test { paths } => test(global, &paths),
    }
}

fn explain(global: &Global, args: ExplainArgs) -> Result<ExitCode, Failure> {
    let (_, bundle) = load(global)?;
    let ExplainArgs {
        agent,
        method,
        headers,
        data,
        url,
    } = args;
    if bundle.agent(&agent).is_none() {
        return Err(unknown_agent(&bundle, &agent).into());
    }
    let (endpoint, path, query) = split_url(&url)?;
    let data = (!data.is_empty()).then(|| data.join("&"));
    let method = method.unwrap_or_else(|| if data.is_some() { "POST" } else { "GET" }.to_owned());
    let headers = headers_of(&headers, data.is_some())?;
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let body = data.as_deref().map(str::as_bytes).or(Some(b"".as_slice()));
    let view = RequestView {
        method: &method,
        path,
        query,
        headers: &headers,
        body,
    };
    let output = Output::new(global);
    match bundle.call(&agent, &endpoint, &view) {
        Ok(call) => {
            let facts = Facts {
                now: crate::app::now(),
                disabled: false,
            };
            let explanation = bundle.explain(&call, &facts);
            output.object(&explanation, |explanation| clean(&explanation.to_string()))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(refused) => {
            let answer = json!({ "agent": agent, "decision": "deny", "reason": refused.reason, "detail": refused.detail });
            output.object(&answer, |_| {
                format!("deny: {}: {}", refused.reason, clean(&refused.detail))
            })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn unknown_agent(bundle: &Bundle, agent: &AgentId) -> ArgumentError {
    let known: Vec<String> = bundle
        .agents()
        .map(|agent| agent.id().to_string())
        .collect();
    let hint = if known.is_empty() {
        None
    } else {
        Some(format!("there are {}", known.join(", ")))
    };
    ArgumentError::Unknown {
        what: "agent",
        name: agent.to_string(),
        hint,
    }
}

/// `https://host[:port]/path[?query]` in its parts, as raw as a client would send them.
fn split_url(url: &str) -> Result<(Endpoint, &str, Option<&str>), ArgumentError> {
    let wrong = || ArgumentError::Url {
        url: url.to_owned(),
    };
    let rest = url.strip_prefix("https://").ok_or_else(wrong)?;
    let rest = rest.split('#').next().unwrap_or(rest);
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at_checked(end).ok_or_else(wrong)?;
    let endpoint = match authority.parse::<Endpoint>() {
        Ok(endpoint) => endpoint,
        Err(_) => Endpoint {
            host: Host::parse(authority.trim_matches(['[', ']'])).map_err(|_| wrong())?,
            port: 443,
        },
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    Ok((endpoint, if path.is_empty() { "/" } else { path }, query))
}

fn headers_of(given: &[String], data: bool) -> Result<Vec<(String, String)>, ArgumentError> {
    let mut headers = Vec::new();
    for header in given {
        let (name, value) = header
            .split_once(':')
            .ok_or_else(|| ArgumentError::Header {
                header: header.clone(),
            })?;
        headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
    if data && !headers.iter().any(|(name, _)| name == "content-type") {
        headers.push((
            "content-type".to_owned(),
            "application/x-www-form-urlencoded".to_owned(),
        ));
    }
    Ok(headers)
}

/// There is nothing to run unless a path is given.
fn no_cases(dir: &Path) -> Diagnostics {
    Diagnostics(vec![Diagnostic {
        file: dir.to_owned(),
        line: 1,
        column: 1,
        message: "there is no directory of decision cases here".to_owned(),
        hint: Some("make it, or name case files: `sluice policy test PATH`".to_owned()),
    }])
}

fn test(global: &Global, paths: &[PathBuf]) -> Result<ExitCode, Failure> {
    let (_, bundle) = load(global)?;
    let default = [global.paths.config.join("cases")];
    let paths = if paths.is_empty() {
        let [cases] = &default;
        if !cases.is_dir() {
            return Err(no_cases(cases).into());
        }
        &default
    } else {
        paths
    };
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(read_toml_files(path)?);
        } else {
            files.push(read_one(path)?);
        }
    }
    let output = Output::new(global);
    let mut problems = Diagnostics::default();
    let (mut passed, mut failed) = (0_usize, 0_usize);
    for file in &files {
        let Some(report) = problems.keep(run_case(&bundle, &file.source())) else {
            continue;
        };
        if report.passed() {
            passed += 1;
        } else {
            failed += 1;
        }
        output.object(&report, |report| {
            let word = if report.passed() {
                output.tone(Tone::Good, "ok    ")
            } else {
                output.tone(Tone::Bad, "failed")
            };
            format!("{word} {}", clean(&report.to_string()))
        })?;
    }
    if !output.is_json() {
        output.line(&format!("{passed} passed, {failed} failed"))?;
    }
    problems.or(())?;
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
