//! The stand-ins and the tools of measurement, tested without Sluice: what they show must be theirs and not its.
//! Invariant: a check that fails here makes every end-to-end result worthless, so these run first in one's mind.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]

use std::process::Command;

use vm_tests::bench::load::{Load, Mode, measure};
use vm_tests::output::{self, Output};
use vm_tests::pki::Authority;
use vm_tests::upstream::{NAMES, Options, Upstream};

struct Vendors {
    upstream: Upstream,
    dir: tempfile::TempDir,
}

fn vendors() -> Vendors {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    vm_tests::demo::stage::make_repository(&dir.path().join("repositories")).unwrap();
    let upstream = Upstream::start(
        authority
            .leaf(NAMES)
            .unwrap()
            .server(&["h2", "http/1.1"])
            .unwrap(),
        Options {
            repositories: Some(dir.path().join("repositories")),
        },
    )
    .unwrap();
    Vendors { upstream, dir }
}

impl Vendors {
    fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("GIT_CONFIG_NOSYSTEM", "1");
        output::run(&mut command, vm_tests::instance::PATIENCE)
            .unwrap()
            .ok()
            .unwrap()
    }
}

#[test]
fn a_vendor_remembers_what_reached_it() {
    let vendors = vendors();
    let connect = format!("api.stripe.com:443:{}", vendors.upstream.address());
    let url = "https://api.stripe.com/v1/refunds?a=1";
    let body = "charge=ch_1&amount=12000";
    let output = vendors.run(
        "curl",
        &[
            "-sS",
            "--cacert",
            "ca.pem",
            "--connect-to",
            &connect,
            "-u",
            "sk_x:",
            "-d",
            body,
            url,
        ],
    );
    assert_eq!(output.json().unwrap()["amount"], 12_000);
    let seen = vendors.upstream.received("POST", "/v1/refunds");
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].host.as_str(), seen[0].query.as_str()),
        ("api.stripe.com", "a=1")
    );
    assert_eq!(seen[0].header("authorization"), "Basic c2tfeDo=");
    assert_eq!(&seen[0].body[..], body.as_bytes());
}

#[test]
fn git_clones_from_the_vendor_with_a_credential_and_not_without() {
    let vendors = vendors();
    let port = vendors.upstream.address().port();
    let resolve = format!("http.curloptResolve=github.com:{port}:127.0.0.1");
    let config = ["-c", &resolve, "-c", "credential.helper="];
    let clone = |url: String, to: &str| {
        let mut command = Command::new("git");
        command
            .args(config)
            .args(["clone", "-q", &url, to])
            .current_dir(vendors.dir.path());
        command
            .env("GIT_SSL_CAINFO", vendors.dir.path().join("ca.pem"))
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "");
        output::run(&mut command, vm_tests::instance::PATIENCE).unwrap()
    };
    let anonymous = clone(
        format!("https://github.com:{port}/acme/site.git"),
        "anonymous",
    );
    assert!(!anonymous.status.success(), "{anonymous}");
    clone(
        format!("https://x:token@github.com:{port}/acme/site.git"),
        "site",
    )
    .ok()
    .unwrap();
    assert!(vendors.dir.path().join("site/index.html").is_file());
}

#[test]
fn the_load_generator_counts_what_the_vendor_answered() {
    let vendors = vendors();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for mode in [Mode::Connections, Mode::Requests] {
        let load = Load {
            tunnel: None,
            mode,
            name: "api.stripe.com".into(),
            address: Some(vendors.upstream.address()),
            path: None,
            roots: vendors.dir.path().join("ca.pem"),
            loops: Some(4),
            milliseconds: 300,
        };
        let before = vendors.upstream.seen().len();
        let measured = runtime.block_on(measure(&load)).unwrap();
        let arrived = vendors.upstream.seen().len() - before;
        assert_eq!((measured.errors, measured.first_error), (0, None));
        assert!(measured.requests > 0 && measured.requests as usize <= arrived);
        assert!(measured.p50_us > 0 && measured.p50_us <= measured.p99_us);
    }
}

#[test]
fn the_load_generator_does_not_count_a_refusal() {
    let vendors = vendors();
    let load = Load {
        tunnel: None,
        mode: Mode::Requests,
        name: "api.stripe.com".into(),
        address: Some(vendors.upstream.address()),
        path: Some("/v1/no_such_thing".into()),
        roots: vendors.dir.path().join("ca.pem"),
        loops: Some(1),
        milliseconds: 50,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let measured = runtime.block_on(measure(&load)).unwrap();
    assert_eq!(measured.requests, 0);
    assert!(measured.first_error.unwrap().contains("404"));
}
