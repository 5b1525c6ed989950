//! nginx as a TLS-to-TLS reverse proxy: what Sluice is compared with. It verifies upstream's certificate and keeps connections, as Sluice does.
//! Invariant: runs in a directory of its own and ends with its value.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::instance::{PATIENCE, free_port};
use crate::pki::Authority;

/// A running nginx.
pub(super) struct Nginx {
    child: Child,
    pub(super) address: SocketAddr,
}

impl Nginx {
    /// Starts nginx in front of this upstream.
    pub(super) fn start(
        dir: &Path,
        authority: &Authority,
        name: &str,
        upstream: SocketAddr,
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let leaf = authority.leaf(&[name])?;
        fs::write(dir.join("leaf.pem"), &leaf.certificate)?;
        fs::write(dir.join("leaf.key"), &leaf.key)?;
        fs::write(dir.join("roots.pem"), authority.pem())?;
        let port = free_port()?;
        fs::write(
            dir.join("nginx.conf"),
            configuration(dir, name, port, upstream),
        )?;
        let program = ["/usr/sbin/nginx", "/usr/local/sbin/nginx"]
            .into_iter()
            .find(|path| Path::new(path).is_file())
            .unwrap_or("nginx");
        let child = Command::new(program)
            .arg("-p")
            .arg(dir)
            .arg("-c")
            .arg(dir.join("nginx.conf"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(dir.join("start.log"))?)
            .spawn()
            .context("cannot start nginx")?;
        let mut nginx = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        };
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(nginx.address).is_err() {
            if nginx.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!(
                    "nginx did not start\n{}",
                    fs::read_to_string(dir.join("error.log")).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(nginx)
    }

    /// Its first process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM lets the master end its workers; a kill would orphan them.
        if let Some(pid) = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        drop(self.child.wait());
    }
}

fn configuration(dir: &Path, name: &str, port: u16, upstream: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "daemon off;
worker_processes 1;
user root;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
worker_rlimit_nofile 65536;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  keepalive_requests 1000000;
  ssl_session_cache off;
  ssl_session_tickets off;
  upstream vendor {{ server {upstream}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096;
    server_name {name};
    ssl_certificate {dir}/leaf.pem;
    ssl_certificate_key {dir}/leaf.key;
    ssl_protocols TLSv1.3;
    location / {{
      proxy_pass https://vendor;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host {name};
      proxy_set_header Authorization \"Bearer nginx-has-no-vault\";
      proxy_ssl_server_name on;
      proxy_ssl_name {name};
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {dir}/roots.pem;
      proxy_ssl_protocols TLSv1.3;
    }}
  }}
}}
"
    )
}
