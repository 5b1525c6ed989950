//! Whether each runtime that is installed trusts the tenant's CA, found out by running it as the agent.
//! Each probe is one `sluice run` of the client against the name that the proxy answers itself; nothing leaves.
//! INVARIANT: trusted means that the client finished a verified handshake and said so; whatever else happened is not trust.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use mitm_proxy::PROBE_HOST;
use policies::AgentId;
use serde::Serialize;

use super::super::{Failure, Global};
use crate::daemon::own_binary;

/// How long one client may take, its start included: a JVM on a busy host takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// And how long to end once it is asked to.
const GRACE: Duration = Duration::from_secs(2);
/// Longest answer that is looked at.
const MOST: u64 = 64 * 1024;
/// What our own scripts exit with when verification failed, and when the library is not there.
const UNTRUSTED: i32 = 60;
const NO_LIBRARY: i32 = 61;
/// `sluice run` did not find the command, or did not run it at all.
const NOT_FOUND: i32 = 127;
const NOT_RUN: i32 = 125;

/// How a runtime stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Trust {
    /// It ran, and failed for another reason than trust.
    Failed,
    /// There is no such runtime in what the agent sees.
    NotInstalled,
    /// It refused the tenant's certificate.
    NotTrusted,
    /// It verified the tenant's certificate.
    Trusted,
}

impl Trust {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Trust::Failed => "failed",
            Trust::NotInstalled => "not installed",
            Trust::NotTrusted => "not trusted",
            Trust::Trusted => "trusted",
        }
    }
}

/// What one probe found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ProbeReport {
    /// The runtime, or its library.
    pub(super) client: &'static str,
    /// How it stands.
    pub(super) trust: Trust,
    /// What the client said, where it failed.
    pub(super) said: Option<String>,
    /// What to do, where there is something to do.
    pub(super) advice: Option<&'static str>,
}

/// One client: how it is asked, and how its answer is read.
struct Probe {
    client: &'static str,
    command: &'static [&'static str],
    /// Given on standard input.
    input: &'static str,
    /// Exit codes by which the client itself says that verification failed.
    untrusted: &'static [i32],
    advice: &'static str,
}

const PYTHON: &str = "a bundle of its own, such as certifi's, is overlaid where `sluice run` finds it (virtual environment, interpreters on PATH): \
    name others with `sluice run --trust FILE`; `sluice trust scan DIR` finds them";

/// The command's own words `@URL@`, `@HOST@` and `@PEER@` are replaced.
const PROBES: [Probe; 11] = [
    Probe {
        client: "curl",
        command: &[
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--noproxy",
            "*",
            "--max-time",
            "10",
            "--output",
            "/dev/null",
            "@URL@",
        ],
        input: "",
        untrusted: &[60, 77],
        advice: "it reads CURL_CA_BUNDLE and the system's bundle, which `sluice run` sets: look for a --cacert or a .curlrc of its own",
    },
    Probe {
        client: "git",
        command: &["git", "-c", "http.proxy=", "ls-remote", "@URL@"],
        input: "",
        untrusted: &[],
        advice: "it reads GIT_SSL_CAINFO, which `sluice run` sets: look for http.sslCAInfo in its configuration",
    },
    Probe {
        client: "java",
        command: &[
            "java",
            "-Xshare:auto",
            "-XX:TieredStopAtLevel=1",
            "--source",
            "11",
            "/dev/stdin",
        ],
        input: JAVA,
        untrusted: &[UNTRUSTED],
        advice: "it reads its own `cacerts`, which `sluice run` overlays where JAVA_HOME, PATH, the command or the usual directories lead to it: name another store with `sluice run --trust FILE`",
    },
    Probe {
        client: "node",
        command: &["node", "-"],
        input: NODE,
        untrusted: &[UNTRUSTED],
        advice: "it reads NODE_EXTRA_CA_CERTS, which `sluice run` sets: it is ignored by programs with capabilities or set-uid, and by a `ca` option of the program's own",
    },
    Probe {
        client: "openssl",
        command: &[
            "openssl",
            "s_client",
            "-brief",
            "-verify_return_error",
            "-verify_hostname",
            "@HOST@",
            "-servername",
            "@HOST@",
            "-connect",
            "@PEER@",
        ],
        input: "",
        untrusted: &[],
        advice: "it reads SSL_CERT_FILE, which `sluice run` sets: look for another OPENSSLDIR",
    },
    Probe {
        client: "php",
        command: &["php", "--", "@URL@"],
        input: PHP,
        untrusted: &[UNTRUSTED],
        advice: "it reads openssl.cafile and curl.cainfo of php.ini, and SSL_CERT_FILE: point the settings to the system's bundle",
    },
    Probe {
        client: "python httpx",
        command: &["python3", "-", "@URL@"],
        input: PYTHON_HTTPX,
        untrusted: &[UNTRUSTED],
        advice: PYTHON,
    },
    Probe {
        client: "python requests",
        command: &["python3", "-", "@URL@"],
        input: PYTHON_REQUESTS,
        untrusted: &[UNTRUSTED],
        advice: PYTHON,
    },
    Probe {
        client: "python ssl",
        command: &["python3", "-", "@URL@"],
        input: PYTHON_SSL,
        untrusted: &[UNTRUSTED],
        advice: "it reads SSL_CERT_FILE, which `sluice run` sets, and else the bundle of its OpenSSL: look for a build with another OPENSSLDIR",
    },
    Probe {
        client: "ruby",
        command: &["ruby", "-", "@URL@"],
        input: RUBY,
        untrusted: &[UNTRUSTED],
        advice: "it reads SSL_CERT_FILE, which `sluice run` sets: look for a ca_file of the program's own",
    },
    Probe {
        client: "wget",
        command: &[
            "wget",
            "--quiet",
            "--no-proxy",
            "--tries=1",
            "--timeout=10",
            "--output-document=/dev/null",
            "@URL@",
        ],
        input: "",
        untrusted: &[5],
        advice: "it reads SSL_CERT_FILE or the system's bundle, which is overlaid: look for ca_certificate in a .wgetrc",
    },
];

const PYTHON_SSL: &str = r"
import ssl, sys, urllib.error, urllib.request
try:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=10)
except urllib.error.URLError as error:
    print(error.reason, file=sys.stderr)
    sys.exit(60 if isinstance(error.reason, ssl.SSLCertVerificationError) else 1)
";

const PYTHON_REQUESTS: &str = r"
import sys
try:
    import requests
except ImportError:
    sys.exit(61)
try:
    requests.get(sys.argv[1], timeout=10, proxies={'https': ''}).raise_for_status()
except requests.exceptions.SSLError as error:
    print(error, file=sys.stderr)
    sys.exit(60)
";

const PYTHON_HTTPX: &str = r"
import sys
try:
    import httpx
except ImportError:
    sys.exit(61)
try:
    httpx.get(sys.argv[1], timeout=10).raise_for_status()
except httpx.ConnectError as error:
    print(error, file=sys.stderr)
    sys.exit(60 if 'CERTIFICATE_VERIFY_FAILED' in str(error) else 1)
";

const NODE: &str = r"
require('https').get('@URL@', answer => process.exit(answer.statusCode === 200 ? 0 : 1)).on('error', error => {
    console.error(error.message);
    process.exit(/CERT|ISSUER|SIGNATURE/.test(error.code) ? 60 : 1);
});
";

const JAVA: &str = r#"
public class Probe {
    public static void main(String[] arguments) throws Exception {
        try {
            java.net.URLConnection connection = new java.net.URL("@URL@").openConnection(java.net.Proxy.NO_PROXY);
            connection.setConnectTimeout(10000);
            connection.setReadTimeout(10000);
            connection.getInputStream().close();
        } catch (javax.net.ssl.SSLHandshakeException error) {
            System.err.println(error.getMessage());
            System.exit(60);
        }
    }
}
"#;

const PHP: &str = r"<?php
if (@file_get_contents($argv[1]) === false) {
    $error = error_get_last()['message'] ?? '';
    fwrite(STDERR, $error);
    exit(strpos($error, 'SSL') !== false ? 60 : 1);
}
";

const RUBY: &str = r"
require 'net/http'
begin
  uri = URI(ARGV[0])
  Net::HTTP.start(uri.host, uri.port, nil, use_ssl: true) { |http| http.get('/').value }
rescue OpenSSL::SSL::SSLError => error
  warn error.message
  exit 60
end
";

/// Probes every client as this agent, one after the other.
///
/// # Errors
/// `sluice run` refuses to start anything as this agent.
pub(super) fn all(
    global: &Global,
    agent: &AgentId,
    run: &[String],
) -> Result<Vec<ProbeReport>, Failure> {
    PROBES
        .iter()
        .map(|probe| one(global, agent, run, probe))
        .collect()
}

fn one(
    global: &Global,
    agent: &AgentId,
    run: &[String],
    probe: &Probe,
) -> Result<ProbeReport, Failure> {
    let mut command = own_binary("run");
    let paths = &global.paths;
    command.arg("--config").arg(&paths.config);
    command.arg("--state-dir").arg(&paths.state);
    command.arg("--runtime-dir").arg(&paths.runtime);
    command.arg("--agent").arg(agent.to_string()).args(run);
    command
        .arg("--")
        .args(probe.command.iter().map(|word| own(word)));
    let (code, said) = run_to_end(&mut command, &own(probe.input)).map_err(Failure::Output)?;
    if code == Some(NOT_RUN) && said.contains("sluice") {
        let detail = said.lines().last().unwrap_or_default().to_owned();
        return Err(Failure::Process { detail, code: 1 });
    }
    let trust = judge(probe, code, &said);
    let talks = matches!(trust, Trust::Failed | Trust::NotTrusted);
    let line = said.lines().rev().find(|line| !line.trim().is_empty());
    Ok(ProbeReport {
        client: probe.client,
        trust,
        said: line.filter(|_| talks).map(str::to_owned),
        advice: talks.then_some(probe.advice),
    })
}

/// The command's word or script, with the probe's name in it.
fn own(text: &str) -> String {
    text.replace("@URL@", &format!("https://{PROBE_HOST}/"))
        .replace("@HOST@", PROBE_HOST)
        .replace("@PEER@", &format!("{PROBE_HOST}:443"))
}

fn judge(probe: &Probe, code: Option<i32>, said: &str) -> Trust {
    // A JRE without a compiler, and versions of cargo without the command, cannot be asked.
    let unable = ["Unrecognized option", "no such command", "jdk.compiler"];
    match code {
        Some(0) => Trust::Trusted,
        Some(NOT_FOUND | NO_LIBRARY) => Trust::NotInstalled,
        Some(code) if probe.untrusted.contains(&code) => Trust::NotTrusted,
        _ if unable.iter().any(|word| said.contains(word)) => Trust::NotInstalled,
        _ if said.to_ascii_lowercase().contains("certificate") => Trust::NotTrusted,
        _ => Trust::Failed,
    }
}

/// The exit code (none after a signal or when it took too long) and what was complained.
fn run_to_end(command: &mut Command, input: &str) -> std::io::Result<(Option<i32>, String)> {
    // Files and not pipes: a client that leaves a process behind cannot keep us reading.
    let mut stdin = memory_file()?;
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let mut stderr = memory_file()?;
    command
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(stderr.try_clone()?);
    let status = wait(command.spawn()?)?;
    stderr.rewind()?;
    let mut said = Vec::new();
    stderr.take(MOST).read_to_end(&mut said)?;
    let said = String::from_utf8_lossy(&said);
    let own = |line: &&str| !line.starts_with("sluice: warning:");
    let said: Vec<&str> = said.lines().filter(own).collect();
    Ok((status.and_then(|status| status.code()), said.join("\n")))
}

fn memory_file() -> std::io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(rustix::fs::memfd_create("sluice-probe", flags)?.into())
}

fn wait(mut child: Child) -> std::io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > PATIENCE {
            // Passed on to the workload, which a kill would leave behind.
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        if started.elapsed() > PATIENCE + GRACE {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_clean_end_is_trust() {
        let probe = |client: &str| PROBES.iter().find(|probe| probe.client == client).unwrap();
        for (client, code, said, expected) in [
            ("curl", Some(0), "", Trust::Trusted),
            (
                "curl",
                Some(60),
                "curl: (60) SSL certificate problem",
                Trust::NotTrusted,
            ),
            (
                "curl",
                Some(6),
                "curl: (6) Could not resolve host",
                Trust::Failed,
            ),
            ("curl", Some(127), "", Trust::NotInstalled),
            ("curl", None, "", Trust::Failed),
            (
                "git",
                Some(128),
                "fatal: server certificate verification failed",
                Trust::NotTrusted,
            ),
            (
                "git",
                Some(128),
                "fatal: repository not found",
                Trust::Failed,
            ),
            (
                "java",
                Some(60),
                "PKIX path building failed",
                Trust::NotTrusted,
            ),
            (
                "java",
                Some(1),
                "Unrecognized option: --source",
                Trust::NotInstalled,
            ),
            (
                "openssl",
                Some(1),
                "verify error:num=20:unable to get local issuer certificate",
                Trust::NotTrusted,
            ),
            ("python requests", Some(61), "", Trust::NotInstalled),
            ("wget", Some(5), "", Trust::NotTrusted),
            ("wget", Some(4), "", Trust::Failed),
        ] {
            assert_eq!(
                judge(probe(client), code, said),
                expected,
                "{client} {code:?}"
            );
        }
    }

    #[test]
    fn every_client_is_asked_for_the_probes_name_and_has_advice() {
        for probe in &PROBES {
            let asked = probe.command.join(" ") + probe.input;
            let words = ["@URL@", "@PEER@"];
            assert!(
                words.iter().any(|word| asked.contains(word)),
                "{}",
                probe.client
            );
            assert!(own(&asked).contains(PROBE_HOST));
            assert!(!probe.advice.is_empty());
        }
        let clients: Vec<&str> = PROBES.iter().map(|probe| probe.client).collect();
        assert!(clients.is_sorted());
    }
}
