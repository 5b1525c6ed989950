//! What Sluice is compared with: a TCP relay of our own, nginx and haproxy as TLS-to-TLS reverse proxies, and squid, which intercepts TLS.
//! All but the relay verify upstream's certificate, add a header as Sluice adds a credential, and keep connections upstream where they can.
//! Invariant: each runs in a directory of its own and ends with its value; what is not installed is left out and said.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::report::System;
use super::{PLAIN, VENDOR, intercepting, relay};
use crate::instance::{PATIENCE, free_port};
use crate::pki::Authority;

/// A running proxy.
pub(super) struct Peer {
    running: Running,
    pub(super) address: SocketAddr,
    h2: bool,
    /// Where it is asked to connect to, by those that intercept.
    tunnel: Option<u16>,
}

enum Running {
    Relay(relay::Running),
    Server(Child),
}

/// Starts one in front of this upstream; `None` where it is not installed.
pub(super) type Start = fn(&Path, &Authority, SocketAddr) -> Result<Option<Peer>>;

/// Every peer, by its name in the table.
pub(super) const ALL: [(System, Start); 4] = [
    (System::Relay, start_relay),
    (System::Nginx, start_nginx),
    (System::Haproxy, start_haproxy),
    (System::Squid, intercepting::start_squid),
];

impl Peer {
    pub(super) fn pid(&self) -> u32 {
        match &self.running {
            Running::Relay(relay) => relay.pid(),
            Running::Server(child) => child.id(),
        }
    }

    /// It intercepts what it is asked to connect to at this port, and speaks HTTP/1.1 alone.
    pub(super) fn intercepting(mut self, port: u16) -> Self {
        self.h2 = false;
        self.tunnel = Some(port);
        self
    }

    /// The port that it is asked to connect to, where it is asked.
    pub(super) fn tunnel(&self) -> Option<u16> {
        self.tunnel
    }

    /// Whether its clients can speak HTTP/2 to it.
    pub(super) fn speaks_h2(&self) -> bool {
        self.h2
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let Running::Server(child) = &mut self.running else {
            return;
        };
        // SIGTERM lets the first process end the others; a kill would orphan them.
        if let Some(pid) = i32::try_from(child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        drop(child.wait());
    }
}

fn start_relay(_: &Path, _: &Authority, upstream: SocketAddr) -> Result<Option<Peer>> {
    let running = relay::Running::start(upstream)?;
    Ok(Some(Peer {
        address: running.address,
        running: Running::Relay(running),
        h2: false,
        tunnel: None,
    }))
}

fn start_nginx(dir: &Path, authority: &Authority, upstream: SocketAddr) -> Result<Option<Peer>> {
    let Some(program) = installed("nginx") else {
        return Ok(None);
    };
    let address = prepare(dir, authority)?;
    fs::write(
        dir.join("nginx.conf"),
        nginx_configuration(dir, address.port(), upstream),
    )?;
    let mut command = Command::new(program);
    command.arg("-p").arg(dir).arg("-c");
    command.arg(dir.join("nginx.conf"));
    serve(command, dir, address).map(Some)
}

fn start_haproxy(dir: &Path, authority: &Authority, upstream: SocketAddr) -> Result<Option<Peer>> {
    let Some(program) = installed("haproxy") else {
        return Ok(None);
    };
    let address = prepare(dir, authority)?;
    let both = [
        fs::read_to_string(dir.join("leaf.pem"))?,
        fs::read_to_string(dir.join("leaf.key"))?,
    ];
    fs::write(dir.join("both.pem"), both.concat())?;
    fs::write(
        dir.join("haproxy.cfg"),
        haproxy_configuration(dir, address.port(), upstream),
    )?;
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(dir.join("haproxy.cfg"));
    serve(command, dir, address).map(Some)
}

/// The directory with a leaf and the root, and a free port.
pub(super) fn prepare(dir: &Path, authority: &Authority) -> Result<SocketAddr> {
    fs::create_dir_all(dir)?;
    let leaf = authority.leaf(&[VENDOR, PLAIN, super::H2])?;
    fs::write(dir.join("leaf.pem"), &leaf.certificate)?;
    fs::write(dir.join("leaf.key"), &leaf.key)?;
    fs::write(dir.join("roots.pem"), authority.pem())?;
    fs::write(dir.join("roots.key"), authority.key())?;
    Ok(SocketAddr::from(([127, 0, 0, 1], free_port()?)))
}

/// Starts the server and waits until it answers.
pub(super) fn serve(mut command: Command, dir: &Path, address: SocketAddr) -> Result<Peer> {
    let log = dir.join("start.log");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?)
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let mut peer = Peer {
        running: Running::Server(child),
        address,
        h2: true,
        tunnel: None,
    };
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(address).is_err() {
        let Running::Server(child) = &mut peer.running else {
            break;
        };
        if child.try_wait()?.is_some() || Instant::now() > deadline {
            let said = |file: &Path| fs::read_to_string(file).unwrap_or_default();
            bail!(
                "{command:?} did not start\n{}{}",
                said(&log),
                said(&dir.join("error.log"))
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(peer)
}

pub(super) fn installed(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/local/sbin", "/usr/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
}

fn nginx_configuration(dir: &Path, port: u16, upstream: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "daemon off;
worker_processes 1;
user root;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
worker_rlimit_nofile 65536;
events {{ worker_connections 40960; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  keepalive_requests 1000000;
  client_max_body_size 0;
  ssl_session_cache off;
  ssl_session_tickets off;
  upstream vendor {{ server {upstream}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} ssl http2 backlog=4096;
    ssl_certificate {dir}/leaf.pem;
    ssl_certificate_key {dir}/leaf.key;
    ssl_protocols TLSv1.3;
    location / {{
      proxy_pass https://vendor;
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_set_header Connection \"\";
      proxy_set_header Host $host;
      proxy_set_header Authorization \"Bearer nginx-has-no-vault\";
      proxy_ssl_server_name on;
      proxy_ssl_name {VENDOR};
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {dir}/roots.pem;
      proxy_ssl_protocols TLSv1.3;
    }}
  }}
}}
"
    )
}

fn haproxy_configuration(dir: &Path, port: u16, upstream: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "global
  nbthread 1
  maxconn 40960
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  tune.ssl.cachesize 0
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option http-keep-alive
  http-reuse always
frontend near
  bind 127.0.0.1:{port} ssl crt {dir}/both.pem alpn h2,http/1.1 backlog 4096
  default_backend vendor
backend vendor
  http-request set-header Authorization \"Bearer haproxy-has-no-vault\"
  server one {upstream} ssl verify required ca-file {dir}/roots.pem verifyhost {VENDOR} sni str({VENDOR}) alpn http/1.1 ssl-min-ver TLSv1.3
"
    )
}
