//! From the texts of the settings files to one `Config`: each file parsed strictly, then laid over each other.
//! Pure: texts in, settings or diagnostics out.
//! INVARIANT: two files that set the same key are an error that names both places; no file silently wins.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use audit::Reads;
use policies::{Approver, Diagnostic, Diagnostics, Endpoint, Group, Source};
use serde::Deserialize;
use toml::Spanned;

use super::duration::parse_duration;
use super::limits::{LimitsTable, contradiction};
use super::settings::{Config, UidRange};
use super::snapshot::TextFile;

/// Reads `files` in their order into settings; relative paths in them are relative to `dir`.
pub(super) fn merge(dir: &Path, files: &[TextFile]) -> Result<Config, Diagnostics> {
    let mut merge = Merge {
        dir,
        config: Config::default(),
        set: BTreeMap::new(),
        errors: Vec::new(),
    };
    for file in files {
        let source = file.source();
        match source.toml::<Document>() {
            Ok(document) => merge.lay(&source, document),
            Err(errors) => merge.errors.extend(errors.0),
        }
    }
    merge.consider_limits();
    Diagnostics(merge.errors).or(merge.config)
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    approvals: ApprovalsTable,
    audit: AuditTable,
    control: ControlTable,
    enforcement: EnforcementTable,
    launch: LaunchTable,
    limits: LimitsTable,
    metrics: MetricsTable,
    names: NamesTable,
    proxy: ProxyTable,
    vault: VaultTable,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ApprovalsTable {
    hold: Option<Spanned<String>>,
    groups: BTreeMap<Spanned<String>, Vec<Spanned<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuditTable {
    reads: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ControlTable {
    group: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EnforcementTable {
    reduced: Option<Spanned<bool>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LaunchTable {
    uids: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MetricsTable {
    listen: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NamesTable {
    pool4: Option<Spanned<String>>,
    pool6: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProxyTable {
    connect_to: BTreeMap<Spanned<String>, Spanned<String>>,
    extra_roots: Option<Spanned<Vec<PathBuf>>>,
    nameservers: Option<Spanned<Vec<Spanned<String>>>>,
    outbound: Option<Spanned<String>>,
    user: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct VaultTable {
    key_file: Option<Spanned<PathBuf>>,
}

pub(super) struct Merge<'a> {
    dir: &'a Path,
    pub(super) config: Config,
    /// Which key was set where, as `file:line`.
    set: BTreeMap<String, String>,
    pub(super) errors: Vec<Diagnostic>,
}

impl Merge<'_> {
    fn lay(&mut self, place: &Source, document: Document) {
        self.lay_approvals(place, document.approvals);
        self.lay_proxy(place, document.proxy);
        self.lay_limits(place, document.limits);
        if let Some(reads) = self.parsed(place, "audit.reads", document.audit.reads, reads) {
            self.config.audit.reads = reads;
        }
        if let Some(group) = self.once(place, "control.group", document.control.group) {
            self.config.control.group = Some(group.into_inner());
        }
        if let Some(reduced) = self.once(place, "enforcement.reduced", document.enforcement.reduced)
        {
            self.config.enforcement.reduced = reduced.into_inner();
        }
        if let Some(uids) = self.parsed(place, "launch.uids", document.launch.uids, uids) {
            self.config.launch.uids = uids;
        }
        if let Some(listen) = self.parsed(
            place,
            "metrics.listen",
            document.metrics.listen,
            listen_address,
        ) {
            self.config.metrics.listen = Some(listen);
        }
        if let Some(pool) = self.parsed(place, "names.pool4", document.names.pool4, |text| {
            pool(text, 32)
        }) {
            self.config.names.pool4 = pool;
        }
        if let Some(pool) = self.parsed(place, "names.pool6", document.names.pool6, |text| {
            pool(text, 128)
        }) {
            self.config.names.pool6 = pool;
        }
        if let Some(path) = self.once(place, "vault.key_file", document.vault.key_file) {
            self.config.vault.key_file = Some(self.dir.join(path.into_inner()));
        }
    }

    fn lay_approvals(&mut self, place: &Source, table: ApprovalsTable) {
        if let Some(hold) = self.parsed(place, "approvals.hold", table.hold, |text| {
            parse_duration(text).map_err(|error| error.to_string())
        }) {
            self.config.approvals.hold = hold;
        }
        for (group, members) in table.groups {
            let key = format!("approvals.groups.{}", group.get_ref());
            let Some(group) = self.parsed(place, &key, Some(group), |text| {
                named::<Group>(text, "group")
            }) else {
                continue;
            };
            let mut names = Vec::new();
            for member in members {
                match named::<Approver>(member.get_ref(), "approver") {
                    Ok(name) => names.push(name),
                    Err(message) => self.errors.push(place.diagnostic(member.span(), message)),
                }
            }
            self.config.approvals.groups.insert(group, names);
        }
    }

    fn lay_proxy(&mut self, place: &Source, table: ProxyTable) {
        if let Some(roots) = self.once(place, "proxy.extra_roots", table.extra_roots) {
            self.config.proxy.extra_roots = roots
                .into_inner()
                .into_iter()
                .map(|root| self.dir.join(root))
                .collect();
        }
        if let Some(servers) = self.once(place, "proxy.nameservers", table.nameservers) {
            for server in servers.into_inner() {
                match nameserver(server.get_ref()) {
                    Ok(server) => self.config.proxy.nameservers.push(server),
                    Err(message) => self.errors.push(place.diagnostic(server.span(), message)),
                }
            }
        }
        if let Some(outbound) = self.parsed(place, "proxy.outbound", table.outbound, target) {
            self.config.proxy.outbound = Some(outbound);
        }
        if let Some(user) = self.once(place, "proxy.user", table.user) {
            self.config.proxy.user = user.into_inner();
        }
        for (from, to) in table.connect_to {
            let key = format!("proxy.connect_to.{}", from.get_ref());
            let target =
                target(to.get_ref()).map_err(|message| place.diagnostic(to.span(), message));
            let Some(from) = self.parsed(place, &key, Some(from), endpoint) else {
                continue;
            };
            match target {
                Ok(target) => drop(self.config.proxy.connect_to.insert(from, target)),
                Err(error) => self.errors.push(error),
            }
        }
    }

    /// Limits may stand in several files, so that what they say together is looked at when all are read.
    fn consider_limits(&mut self) {
        let Some((keys, message)) = contradiction(&self.config.limits) else {
            return;
        };
        let set = keys
            .iter()
            .find_map(|key| self.set.get(&format!("limits.{key}")));
        let Some((file, line)) = set.and_then(|place| place.rsplit_once(':')) else {
            return;
        };
        self.errors.push(Diagnostic {
            file: PathBuf::from(file),
            line: line.parse().unwrap_or(1),
            column: 1,
            message,
            hint: Some("raise the one or lower the other".to_owned()),
        });
    }

    /// `value`, unless another place set `key` before; then an error that names it.
    pub(super) fn once<T>(
        &mut self,
        place: &Source,
        key: &str,
        value: Option<Spanned<T>>,
    ) -> Option<Spanned<T>> {
        let value = value?;
        let error = place.diagnostic(value.span(), String::new());
        let here = format!("{}:{}", error.file.display(), error.line);
        if let Some(before) = self.set.get(key) {
            let message = format!("`{key}` is set twice");
            self.errors.push(Diagnostic {
                message,
                hint: Some(format!(
                    "it is already set at {before}; keep one of the two"
                )),
                ..error
            });
            return None;
        }
        self.set.insert(key.to_owned(), here);
        Some(value)
    }

    fn parsed<T>(
        &mut self,
        place: &Source,
        key: &str,
        value: Option<Spanned<String>>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.once(place, key, value)?;
        match parse(value.get_ref()) {
            Ok(parsed) => Some(parsed),
            Err(message) => {
                self.errors.push(place.diagnostic(value.span(), message));
                None
            }
        }
    }
}

fn named<T: FromStr<Err: std::fmt::Display>>(text: &str, what: &str) -> Result<T, String> {
    text.parse()
        .map_err(|error| format!("`{text}` is not a name for an {what}: {error}"))
}

/// An address, of port 53 where none is named. Not a name: who would resolve it?
fn nameserver(text: &str) -> Result<SocketAddr, String> {
    let alone = text.parse().map(|address: IpAddr| (address, 53).into());
    alone
        .or_else(|_| text.parse())
        .map_err(|_| format!("`{text}` is not an address such as 10.0.0.53 or 10.0.0.53:53"))
}

fn reads(text: &str) -> Result<Reads, String> {
    match text {
        "durable" => Ok(Reads::Durable),
        "grouped" => Ok(Reads::Grouped),
        _ => Err(format!("`{text}` is neither \"durable\" nor \"grouped\"")),
    }
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    text.parse().map_err(|error| {
        format!("`{text}` is not a host and port such as api.example.com:443: {error}")
    })
}

/// A dial target: `host:port`, where the host may be a name, an IPv4 address or a bracketed IPv6 address.
fn target(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').and_then(|(host, port)| {
        if host.is_empty() {
            None
        } else {
            port.parse::<u16>().ok()
        }
    });
    match port {
        Some(port) if port != 0 => Ok(text.to_owned()),
        _ => Err(format!(
            "`{text}` is not a host and port such as 127.0.0.1:8443"
        )),
    }
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not an address and port such as 127.0.0.1:9464"))
}

fn uids(text: &str) -> Result<UidRange, String> {
    let parsed = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    let range = parsed.and_then(|(first, last)| UidRange::new(first, last));
    range.ok_or_else(|| {
        format!("`{text}` is not a range of uids such as 70000-79999 (without 0, 65534 and 65535)")
    })
}

fn pool<A: FromStr>(text: &str, widest: u8) -> Result<(A, u8), String> {
    let wrong = || {
        format!("`{text}` is not an address pool such as 198.18.0.0/15 or fd53:6c75:6963:65::/64")
    };
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let address = address.parse().map_err(|_| wrong())?;
    let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
    // Fewer than 2^8 addresses cannot stand for the names of even one agent; a pool of everything is a typing error.
    if prefix < 8 || prefix > widest - 8 {
        return Err(format!(
            "the prefix length {prefix} is not between 8 and {}",
            widest - 8
        ));
    }
    Ok((address, prefix))
}

#[cfg(test)]
mod tests;
