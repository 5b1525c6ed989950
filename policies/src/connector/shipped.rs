//! The connectors that come with Sluice, compiled in: files of `policies/connectors`.
//! An operator's file of the same id replaces one.
//! INVARIANT: every file of that directory is listed here, and every one of them loads with all its examples as told; tests hold both.

use crate::Source;

/// The JSON Schema of connector files.
pub(super) const SCHEMA: &str = include_str!("../../connectors/schema.json");

macro_rules! shipped {
    ($($file:literal),* $(,)?) => {
        /// The shipped files, by name.
        pub(super) fn sources() -> Vec<Source> {
            vec![$(Source {
                path: concat!("connectors/", $file).into(),
                text: include_str!(concat!("../../connectors/", $file)).to_owned(),
            },)*]
        }
    };
}

shipped!(
    "anthropic.toml",
    "generic-http.toml",
    "github.toml",
    "jira.toml",
    "opaque.toml",
    "openai.toml",
    "slack.toml",
    "stripe.toml"
);
