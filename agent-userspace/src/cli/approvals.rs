//! `sluice approvals`: what waits for a person, and the person's answer.
//! Asks the running daemon, which takes the person's name from the kernel.
//! INVARIANT: what is shown is enough to answer: who, what, how much, why, until when, and how.

use std::process::ExitCode;

use clap::Subcommand;
use policies::{ApprovalId, ApprovalState, Verdict};

use super::approval_text::{card, row};
use super::{Failure, Global, Output};
use crate::control::{ApprovalView, Client, ClientError, Part, Request};

/// What to do with held calls.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Let a held call go, once
    Approve(AnswerArgs),
    /// Refuse a held call
    Deny(AnswerArgs),
    /// List the calls that wait for a person
    List {
        /// Those that are over as well
        #[arg(long)]
        all: bool,
    },
    /// Show one held call with all that is known of it
    Show {
        /// The approval's id, apr_...
        id: ApprovalId,
    },
    /// Print the calls that wait, then every change, until interrupted
    Watch,
}

/// An answer to one held call.
#[derive(Debug, clap::Args)]
pub(super) struct AnswerArgs {
    /// The approval's id, apr_...
    id: ApprovalId,
    /// Why, for the audit log
    #[arg(long)]
    note: Option<String>,
}

pub(super) fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Approve(args) => answer(global, args, Verdict::Approve),
        Command::Deny(args) => answer(global, args, Verdict::Deny),
        Command::List { all } => list(global, all),
        Command::Show { id } => {
            let view = ask(global, &Request::ApprovalsShow { id })?;
            let output = Output::new(global);
            for view in view {
                output.object(&view, |view| card(output, view, &commands(global)))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Watch => watch(global),
    }
}

fn list(global: &Global, all: bool) -> Result<ExitCode, Failure> {
    let views = ask(global, &Request::ApprovalsList { all })?;
    let output = Output::new(global);
    if all || output.is_json() {
        let header = [
            "ID",
            "STATE",
            "AGENT",
            "CAPABILITY",
            "WHAT",
            "GROUPS",
            "EXPIRES",
        ];
        output.table(&views, &header, "no approvals", row)?;
        return Ok(ExitCode::SUCCESS);
    }
    if views.is_empty() {
        output.line("nothing waits for approval")?;
    }
    for (index, view) in views.iter().enumerate() {
        if index > 0 {
            output.line("")?;
        }
        output.line(&card(output, view, &commands(global)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(global: &Global, args: AnswerArgs, verdict: Verdict) -> Result<ExitCode, Failure> {
    let AnswerArgs { id, note } = args;
    let views = ask(global, &Request::ApprovalsAnswer { id, verdict, note })?;
    let output = Output::new(global);
    for view in views {
        output.object(&view, |view| {
            let approval = &view.approval;
            match approval.state {
                ApprovalState::Pending => {
                    let given = approval.answers.iter().filter(|answer| answer.verdict == Verdict::Approve).count();
                    format!("{id}: recorded; {given} approved so far, {} needed of each group, until {}", approval.quorum, approval.expires_at)
                }
                state => format!("{id}: {state}"),
            }
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn watch(global: &Global) -> Result<ExitCode, Failure> {
    let output = Output::new(global);
    let client = Client::require(&global.paths.control_socket())?;
    client.ask(&Request::ApprovalsWatch {}, |part| {
        let Part::Item(value) = part else {
            return Ok(());
        };
        let view = read(value, global)?;
        output.object(&view, |view| match view.approval.state {
            ApprovalState::Pending => format!("{}\n", card(output, view, &commands(global))),
            state => format!("{}: {state}\n", view.approval.id),
        })
    })?;
    Ok(ExitCode::SUCCESS)
}

fn ask(global: &Global, request: &Request) -> Result<Vec<ApprovalView>, Failure> {
    let client = Client::require(&global.paths.control_socket())?;
    let mut views = Vec::new();
    client.ask(request, |part| {
        if let Part::Item(value) = part {
            views.push(read(value, global)?);
        }
        Ok::<(), Failure>(())
    })?;
    Ok(views)
}

fn read(value: serde_json::Value, global: &Global) -> Result<ApprovalView, Failure> {
    let broken = |error: serde_json::Error| ClientError::Broken {
        path: global.paths.control_socket(),
        source: error.into(),
    };
    Ok(ApprovalView::read(value).map_err(broken)?)
}

/// The command line that reaches this instance, for the commands that a person is told to type.
fn commands(global: &Global) -> String {
    let runtime = &global.paths.runtime;
    if runtime == std::path::Path::new("/run/sluice") {
        "sluice".to_owned()
    } else {
        format!("sluice --runtime-dir {}", runtime.display())
    }
}
