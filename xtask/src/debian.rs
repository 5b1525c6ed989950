//! Where Debian's archive is, as this machine knows it: kernels for the tests come from there, and the library's source for the eBPF build.
//! No host is written down here, so that mirrors and air-gapped copies work without a change.
//! Invariant: what is fetched is judged by digest or by the archive's signature, never by where it came from.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// Names a mirror, for example one of an air-gapped site; `debian` and `debian-security` lie below it.
const MIRROR: &str = "SLUICE_DEBIAN_MIRROR";
/// Where Ubuntu keeps what it knows of Debian.
const TEMPLATE: &str = "/usr/share/python-apt/templates/Debian.info";

/// The address of an archive, `debian` or `debian-security`, without a slash at its end.
pub(crate) fn archive(name: &str) -> Result<String> {
    if let Ok(mirror) = std::env::var(MIRROR) {
        return Ok(format!("{}/{name}", mirror.trim_end_matches('/')));
    }
    let apt =
        shell::capture(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))
            .unwrap_or_default();
    let template = fs::read_to_string(TEMPLATE).unwrap_or_default();
    let known = apt.lines().chain(
        template
            .lines()
            .filter_map(|line| line.strip_prefix("BaseURI: ")),
    );
    choose(name, known).with_context(|| {
        format!("no Debian archive is configured here; name a mirror in {MIRROR}, the part before /{name}")
    })
}

/// The archive itself where it is known, else its place beside the main one.
fn choose<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.map(|uri| uri.trim().trim_end_matches('/')).collect();
    let exact = known
        .iter()
        .find(|uri| uri.rsplit('/').next() == Some(name));
    if let Some(uri) = exact {
        return Some((*uri).to_owned());
    }
    let base = known.iter().find_map(|uri| uri.strip_suffix("/debian"))?;
    Some(format!("{base}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_that_is_known_is_chosen_else_its_place_beside_the_main_one() {
        let both = [
            "http://a.example/debian-security/",
            "http://b.example/debian/",
        ];
        let chosen = |name, known: &[&'static str]| choose(name, known.iter().copied());
        assert_eq!(
            chosen("debian-security", &both).as_deref(),
            Some("http://a.example/debian-security")
        );
        assert_eq!(
            chosen("debian-security", &both[1..]).as_deref(),
            Some("http://b.example/debian-security")
        );
        assert_eq!(chosen("debian", &["http://c.example/ubuntu/"]), None);
    }
}
