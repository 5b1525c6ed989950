//! Fourth chapter: the daemon is killed while an agent works and a call is held; then the next daemon takes over.
//! Invariant: the agent of this chapter is one process from before the kill to after the restart.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::refund::{self, REFUND, sent};
use super::{Stage, Transcript, wants};
use crate::instance::PATIENCE;
use crate::output;

/// An agent that waits for files to appear, and after each tries to reach Stripe by the address it resolved at its start.
const SURVIVOR: &str = "import http.client, os, socket, ssl, sys, time
home = os.getcwd()
address = socket.getaddrinfo('api.stripe.com', 443, socket.AF_INET)[0][4]
def wait(name):
    while not os.path.exists(os.path.join(home, name)):
        time.sleep(0.02)
def attempt():
    began = time.monotonic()
    try:
        raw = socket.create_connection(address, timeout=10)
        tls = ssl.create_default_context().wrap_socket(raw, server_hostname='api.stripe.com')
        connection = http.client.HTTPSConnection('api.stripe.com')
        connection.sock = tls
        connection.request('GET', '/v1/balance')
        said = str(connection.getresponse().status)
    except OSError as error:
        said = type(error).__name__
    return said + ' after %d ms' % ((time.monotonic() - began) * 1000)
def report(name, text):
    with open(os.path.join(home, name + '.new'), 'w') as out:
        out.write(text)
    os.rename(os.path.join(home, name + '.new'), os.path.join(home, name))
report('before', attempt())
wait('killed')
report('during', attempt())
wait('restarted')
report('after', attempt())
";

/// Tells the chapter.
pub(super) fn run(stage: &mut Stage, told: &mut Transcript, venv: &Path) {
    let home = stage.instance.root().join("home");
    let started = told.check("an agent is at work, and a second refund is held", || {
        let agent = output::start(&mut stage.python(venv, SURVIVOR))?;
        let said = wait_for(&home, "before")?;
        if !said.starts_with("200") {
            bail!("the agent was told {said}");
        }
        let (client, held) = refund::leave_held(stage, venv)?;
        Ok(((agent, client, held.clone()), format!("{said}\n{held}")))
    });
    let Some((agent, client, held)) = started else {
        return;
    };

    told.line(
        "kill -9 of the daemon: the agent's next connect is refused at once, by the kernel",
        || {
            let followed = stage.instance.kill()?;
            fs::write(home.join("killed"), "")?;
            let said = wait_for(&home, "during")?;
            let refused =
                said.starts_with("ConnectionRefusedError") || said.starts_with("PermissionError");
            let took: u64 = said
                .split(' ')
                .nth(2)
                .and_then(|ms| ms.parse().ok())
                .context("no time")?;
            if !refused || took > 500 {
                bail!("the agent was told {said}");
            }
            Ok(format!(
                "{said}; the proxy process had followed the daemon within {} ms",
                followed.as_millis()
            ))
        },
    );
    told.line(
        "the client of the held call was cut off, and nothing was sent",
        || {
            let output = client.wait(PATIENCE)?;
            if output.text().contains("refunded") {
                bail!("{output}");
            }
            sent(stage, 1)?;
            Ok(output.text().lines().last().unwrap_or_default().to_owned())
        },
    );
    told.line("everybody else on this machine notices nothing", || {
        let address = stage.upstream.address();
        std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        Ok(format!("a connect from outside to {address} works"))
    });
    told.line(
        "the next daemon adopts the running agent: the same process is served again",
        || {
            stage.instance.start()?;
            fs::write(home.join("restarted"), "")?;
            let said = wait_for(&home, "after")?;
            if !said.starts_with("200") {
                bail!("the agent was told {said}");
            }
            agent.wait(PATIENCE)?;
            Ok(said)
        },
    );
    told.line(
        "the held approval is still there; approved now, the agent's re-send goes through, once",
        || {
            let open = stage.approvals()?;
            if !open
                .iter()
                .any(|one| refund::id(one).is_ok_and(|id| id == held))
            {
                bail!("{held} is not among {open:?}");
            }
            stage.instance.ask(&["approvals", "approve", &held])?.ok()?;
            sent(stage, 1)?;
            let output = wants(
                stage
                    .run_python(venv, &REFUND.replace("ch_1", "ch_2"))?
                    .ok()?,
                "refunded re_2",
            )?;
            sent(stage, 2)?;
            Ok(output.stdout)
        },
    );
}

fn wait_for(home: &Path, name: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(text) = fs::read_to_string(home.join(name)) {
            return Ok(text);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("the agent did not report {name:?}")
}
