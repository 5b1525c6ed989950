//! First chapter: five clients as they come from their vendors, each allowed, each with the real credential upstream.
//! Invariant: the credential is looked for at the vendor *and* in everything that the agent could see.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::stage::{GIT_AUTHORIZATION, GITHUB_TOKEN, PLACEHOLDER, SLACK_TOKEN, STRIPE_KEY};
use super::{Stage, Transcript, wants};
use crate::instance::PATIENCE;
use crate::output::{self, Output};

/// Tells the chapter.
pub(super) fn run(stage: &Stage, told: &mut Transcript, venv: &Path) {
    told.line(
        "curl reads the balance; Stripe saw the real key, curl only held a placeholder",
        || {
            let output = stage.curl(&["https://api.stripe.com/v1/balance"])?.ok()?;
            let output = wants(output, "420000")?;
            arrived_with(stage, "GET", "/v1/balance", &format!("Bearer {STRIPE_KEY}"))?;
            Ok(format!(
                "{}\nat Stripe: authorization: Bearer {}...",
                first_line(&output),
                start_of(STRIPE_KEY)
            ))
        },
    );
    told.line("Python requests reads a charge, verifying TLS as always", || {
        let program = format!(
            "import requests\nr = requests.get('https://api.stripe.com/v1/charges/ch_1', headers={{'Authorization': 'Bearer {PLACEHOLDER}'}}, timeout=20)\nprint(r.status_code, r.json()['amount'])"
        );
        let output = wants(stage.run_python(venv, &program)?.ok()?, "200 12000")?;
        arrived_with(stage, "GET", "/v1/charges/ch_1", &format!("Bearer {STRIPE_KEY}"))?;
        Ok(output.stdout)
    });
    told.line("the official stripe SDK, with the certificate bundle it brings along, reads a customer", || {
        let program = "import os, stripe\nstripe.api_key = os.environ['STRIPE_API_KEY']\nprint(stripe.VERSION, stripe.Customer.retrieve('cus_1').id)";
        let output = wants(stage.run_python(venv, program)?.ok()?, "cus_1")?;
        arrived_with(stage, "GET", "/v1/customers/cus_1", &format!("Bearer {STRIPE_KEY}"))?;
        Ok(output.stdout)
    });
    told.line(
        "a vendor that echoes the key in its answer does not give it to the agent",
        || {
            let output = stage
                .curl(&["https://api.stripe.com/v1/customers/cus_2"])?
                .ok()?;
            arrived_with(
                stage,
                "GET",
                "/v1/customers/cus_2",
                &format!("Bearer {STRIPE_KEY}"),
            )?;
            let output = wants(output, "****")?;
            without_secrets(&output)?;
            Ok(first_line(&output))
        },
    );
    told.line("Node fetch posts a message to Slack", || {
        let program = format!(
            "fetch('https://slack.com/api/chat.postMessage', {{ method: 'POST', headers: {{ 'content-type': 'application/json; charset=utf-8', authorization: 'Bearer {PLACEHOLDER}' }}, body: JSON.stringify({{ channel: 'C123', text: 'Hello from the agent' }}) }}).then(async r => console.log(r.status, await r.text()), e => {{ console.log(e.message, e.cause); process.exit(1) }})"
        );
        let output = wants(stage.run(&["node", "-e", &program])?.ok()?, "\"ok\":true")?;
        arrived_with(stage, "POST", "/api/chat.postMessage", &format!("Bearer {SLACK_TOKEN}"))?;
        Ok(output.stdout)
    });
    told.line("git clones a private repository over smart HTTP", || {
        let clone = "cd \"$HOME\" && rm -rf site && git clone -q https://github.com/acme/site.git && cat site/index.html";
        let output = wants(stage.run(&["sh", "-c", clone])?.ok()?, "<h1>Acme</h1>")?;
        arrived_with(stage, "POST", "/acme/site.git/git-upload-pack", GIT_AUTHORIZATION)?;
        Ok(output.stdout)
    });
    told.line(
        "HTTP/2 from end to end: curl negotiates it, and so does the vendor",
        || {
            let output = stage.run(&[
                "curl",
                "-sS",
                "--max-time",
                "20",
                "--http2",
                "-o",
                "/dev/null",
                "-w",
                "HTTP/%{http_version} %{http_code}",
                "-H",
                &format!("Authorization: Bearer {PLACEHOLDER}"),
                "https://api.github.com/repos/acme/site",
            ])?;
            let output = wants(output.ok()?, "HTTP/2 200")?;
            arrived_with(
                stage,
                "GET",
                "/repos/acme/site",
                &format!("Bearer {GITHUB_TOKEN}"),
            )?;
            let seen = stage.upstream.received("GET", "/repos/acme/site");
            if seen
                .last()
                .is_none_or(|seen| seen.version != http::Version::HTTP_2)
            {
                bail!(
                    "the vendor was asked in {:?}",
                    seen.last().map(|seen| seen.version)
                );
            }
            Ok(output.stdout)
        },
    );
    told.line("nothing that the agent can read has a real credential: environment, files, memory maps' names", || {
        let output = stage.run(&["sh", "-c", "env; cat /proc/self/environ; cat /etc/resolv.conf; grep -r . \"$HOME\" 2>/dev/null | head -c 100000"])?;
        without_secrets(&output)?;
        Ok(String::new())
    });
    told.line(
        "the same works for an agent that runs as another user",
        || {
            let url = "https://api.stripe.com/v1/balance";
            let args = [
                "run",
                "--agent",
                super::stage::AGENT,
                "--user",
                "65534",
                "--",
                "curl",
                "-sS",
                "--max-time",
                "20",
                url,
            ];
            let output = output::run(&mut stage.instance.sluice(&args), PATIENCE)?;
            Ok(first_line(&wants(output.ok()?, "420000")?))
        },
    );
}

/// The last such request carried this, and nothing of the placeholder.
pub(super) fn arrived_with(
    stage: &Stage,
    method: &str,
    path: &str,
    authorization: &str,
) -> Result<()> {
    let seen = stage.upstream.received(method, path);
    let last = seen
        .last()
        .with_context(|| format!("no {method} {path} arrived"))?;
    if last.header("authorization") != authorization {
        bail!(
            "{method} {path} arrived with {:?}",
            last.header("authorization")
        );
    }
    if last
        .headers
        .values()
        .any(|value| value.contains(PLACEHOLDER))
    {
        bail!("the placeholder went out with {method} {path}");
    }
    Ok(())
}

fn without_secrets(output: &Output) -> Result<()> {
    for secret in [STRIPE_KEY, SLACK_TOKEN, GITHUB_TOKEN] {
        if output.text().contains(secret) {
            bail!("the agent saw {}...", start_of(secret));
        }
    }
    Ok(())
}

fn first_line(output: &Output) -> String {
    output.stdout.lines().next().unwrap_or_default().to_owned()
}

fn start_of(secret: &str) -> &str {
    secret.get(..12).unwrap_or(secret)
}
