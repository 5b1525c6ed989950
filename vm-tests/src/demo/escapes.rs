//! Third chapter: what policy refuses, and the ways around the proxy that are tried and fail.
//! Invariant: each way out is first shown to work without Sluice, so that a refusal is not an accident.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Stage, Transcript, wants};
use crate::instance::PATIENCE;
use crate::output::{self, Output};

/// Tells the chapter.
pub(super) fn run(stage: &Stage, told: &mut Transcript, venv: &Path) {
    told.line(
        "deleting a customer is destructive: denied by policy, and nothing left",
        || {
            let output =
                stage.curl(&["-X", "DELETE", "https://api.stripe.com/v1/customers/cus_1"])?;
            nothing_arrived(stage, "DELETE", "/v1/customers/cus_1")?;
            refused(output, "policy_denied")
        },
    );
    told.line(
        "a path that no capability maps is refused, even on an allowed host",
        || {
            let output = stage.curl(&["https://api.stripe.com/v1/no_such_thing"])?;
            nothing_arrived(stage, "GET", "/v1/no_such_thing")?;
            refused(output, "unmapped")
        },
    );
    told.line("a name that no connection allows does not resolve", || {
        let output = stage.curl(&["https://example.com/"])?;
        // curl's code for "could not resolve host".
        if output.status.code() != Some(6) {
            bail!("{output}");
        }
        Ok(output.text().lines().last().unwrap_or_default().to_owned())
    });
    told.line(
        "a different name inside the connection (domain fronting) is refused",
        || {
            let output =
                stage.curl(&["-H", "Host: slack.com", "https://api.stripe.com/v1/balance"])?;
            refused(output, "authority_mismatch")
        },
    );
    told.line(
        "a UDP datagram leaves without Sluice, and not as an agent",
        || datagram(stage, venv),
    );
    told.line("a raw socket can be opened without Sluice, and not as an agent", || {
        let program = "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)\nprint('opened')";
        wants(plain(venv, program)?, "opened")?;
        denied(&stage.run_python(venv, program)?)
    });
    told.line("an IPv6 connect to an address of its own choosing works without Sluice, and not as an agent", || {
        let listener = TcpListener::bind("[::1]:0").context("this machine has no ::1")?;
        connect(stage, venv, "AF_INET6", "::1", &listener)
    });
    told.line("and so does an IPv4 one", || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        connect(stage, venv, "AF_INET", "127.0.0.1", &listener)
    });
}

/// The client got a problem document of this name; its status is curl's last line.
fn refused(output: Output, reason: &str) -> Result<String> {
    let body = output.stdout.rsplit_once('\n').map_or("", |(body, _)| body);
    let problem: Value =
        serde_json::from_str(body).with_context(|| format!("no problem document: {output}"))?;
    if problem.pointer("/reason").and_then(Value::as_str) != Some(reason) {
        bail!("not {reason}: {problem}");
    }
    Ok(output.stdout)
}

fn nothing_arrived(stage: &Stage, method: &str, path: &str) -> Result<()> {
    match stage.upstream.received(method, path).len() {
        0 => Ok(()),
        count => bail!("{count} such requests reached the vendor"),
    }
}

/// A program outside of every agent: the positive control.
fn plain(venv: &Path, program: &str) -> Result<Output> {
    output::run(
        Command::new(venv.join("bin/python")).args(["-c", program]),
        PATIENCE,
    )
}

/// The agent's system call was refused by the kernel.
fn denied(output: &Output) -> Result<String> {
    let text = output.text();
    let last = text.lines().last().unwrap_or_default().to_owned();
    let refusals = [
        "PermissionError",
        "ConnectionRefusedError",
        "Operation not permitted",
    ];
    if output.status.success() || !refusals.iter().any(|refusal| last.contains(refusal)) {
        bail!("{output}");
    }
    Ok(last)
}

fn datagram(stage: &Stage, venv: &Path) -> Result<String> {
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    let port = receiver.local_addr()?.port();
    let program = format!(
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(b'secret', ('127.0.0.1', {port}))\nprint('sent')"
    );
    let mut buffer = [0_u8; 64];
    wants(plain(venv, &program)?, "sent")?;
    receiver
        .recv(&mut buffer)
        .context("the control datagram did not arrive")?;
    let evidence = denied(&stage.run_python(venv, &program)?)?;
    if receiver.recv(&mut buffer).is_ok() {
        bail!("the datagram arrived");
    }
    Ok(evidence)
}

fn connect(
    stage: &Stage,
    venv: &Path,
    family: &str,
    host: &str,
    listener: &TcpListener,
) -> Result<String> {
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let program = format!(
        "import socket\ns = socket.socket(socket.{family}, socket.SOCK_STREAM)\ns.settimeout(5)\ns.connect(('{host}', {port}))\nprint('connected')"
    );
    wants(plain(venv, &program)?, "connected")?;
    listener
        .accept()
        .context("the control connection did not arrive")?;
    let evidence = denied(&stage.run_python(venv, &program)?)?;
    if listener.accept().is_ok() {
        bail!("the connection arrived");
    }
    Ok(evidence)
}
