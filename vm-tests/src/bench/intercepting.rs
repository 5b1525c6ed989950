//! The peer that intercepts TLS as Sluice does, with leaves of its own making: squid's ssl-bump.
//! It is asked by CONNECT, and goes to the far end whatever the name.
//! Invariant: it verifies upstream, adds a header, caches nothing, and passes bodies on as they come.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::VENDOR;
use super::peers::{Peer, installed, prepare, serve};
use crate::output;
use crate::pki::Authority;

/// Where Debian's squid-openssl keeps what makes its leaves.
const CERTGEN: &str = "/usr/lib/squid/security_file_certgen";

pub(super) fn start_squid(
    dir: &Path,
    authority: &Authority,
    upstream: SocketAddr,
) -> Result<Option<Peer>> {
    let Some(program) = installed("squid").filter(|_| Path::new(CERTGEN).is_file()) else {
        return Ok(None);
    };
    let address = prepare(dir, authority)?;
    let mut database = Command::new(CERTGEN);
    database
        .args(["-c", "-s"])
        .arg(dir.join("leaves"))
        .args(["-M", "4MB"]);
    output::run(&mut database, crate::instance::PATIENCE)?.ok()?;
    fs::write(
        dir.join("squid.conf"),
        squid_configuration(dir, address.port(), upstream.port()),
    )?;
    // It will not run as root; Debian's package made the user.
    let mut owner = Command::new("chown");
    owner.args(["-R", "proxy:proxy"]).arg(dir);
    output::run(&mut owner, crate::instance::PATIENCE)?.ok()?;
    let mut command = Command::new(program);
    // Its shared memory goes by this name.
    let name = format!("bench{}", std::process::id());
    command
        .args(["-n", &name, "-N", "-f"])
        .arg(dir.join("squid.conf"));
    let peer = serve(command, dir, address)?;
    Ok(Some(peer.intercepting(upstream.port())))
}

fn squid_configuration(dir: &Path, port: u16, upstream: u16) -> String {
    let dir = dir.display();
    format!(
        "http_port 127.0.0.1:{port} ssl-bump generate-host-certificates=on dynamic_cert_mem_cache_size=4MB tls-cert={dir}/roots.pem tls-key={dir}/roots.key
sslcrtd_program {CERTGEN} -s {dir}/leaves -M 4MB
sslcrtd_children 1 startup=1
ssl_bump bump all
cache_peer 127.0.0.1 parent {upstream} 0 no-query no-digest originserver tls tls-cafile={dir}/roots.pem ssldomain={VENDOR} name=far
never_direct allow all
nonhierarchical_direct off
http_access allow all
request_header_access Authorization deny all
request_header_add Authorization \"Bearer squid-has-no-vault\" all
cache deny all
cache_mem 8 MB
access_log none
cache_log {dir}/error.log
pid_filename {dir}/squid.pid
coredump_dir {dir}
cache_effective_user proxy
shutdown_lifetime 1 seconds
visible_hostname bench
"
    )
}
