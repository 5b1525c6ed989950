//! The names of things: every id the rest of Sluice passes around, each its own type.
//! Parsed once where text enters (files, command line, sockets, the log); afterwards a value of the type cannot be wrong.
//! INVARIANT: a tenant, agent, connection, connector or credential name holds no `/` and no `.`, so joined ids split one way only.

mod digest;
mod host;
mod time;

pub use digest::{ApprovalId, Digest, PolicyVersion, WorkloadId};
pub use host::{Endpoint, Host, HostPattern};
pub use time::Timestamp;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Text that is not what its type needs: what was wanted, what was given, and the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a valid {kind}: {rule}")]
pub struct NameError {
    /// What the text should have been, in words ("agent name").
    pub kind: &'static str,
    /// The text, shortened to 80 characters and with control characters escaped.
    pub given: String,
    /// The rule of the type, in words.
    pub rule: &'static str,
}

impl NameError {
    pub(crate) fn new(kind: &'static str, given: &str, rule: &'static str) -> NameError {
        let given = given
            .chars()
            .take(80)
            .flat_map(char::escape_debug)
            .collect();
        NameError { kind, given, rule }
    }
}

/// Serde as the type's own text form, in both directions.
macro_rules! serde_as_text {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        $crate::names::deserialize_from_text!($name);
    };
}
pub(crate) use serde_as_text;

macro_rules! deserialize_from_text {
    ($name:ident) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text =
                    <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use deserialize_from_text;

/// A newtype over checked text: `as_str`, FromStr, Display, Debug, serde.
macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:expr, $valid:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if $valid(text) { Ok($name(Arc::from(text))) } else { Err(NameError::new($kind, text, $rule)) }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &*self.0)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        $crate::names::deserialize_from_text!($name);
    };
}

const NAME_RULE: &str = "1 to 63 of a-z, 0-9, `_` and `-`, the first a letter or digit";
const TEXT_RULE: &str = "1 to 128 characters, no control characters, no space at either end";
const CAPABILITY_RULE: &str = "words of A-Z, a-z, 0-9 and `_` joined by `.`, at most 64 characters";

text_newtype!(
    /// A business unit: agents, connections, secrets, approvals and log of one tenant are kept apart from every other's.
    Tenant, "tenant name", NAME_RULE, is_name
);
text_newtype!(
    /// An agent's name within its tenant.
    AgentName, "agent name", NAME_RULE, is_name
);
text_newtype!(
    /// A connection's name within its agent.
    ConnectionName, "connection name", NAME_RULE, is_name
);
text_newtype!(
    /// A connector's id, `stripe`.
    ConnectorId, "connector id", NAME_RULE, is_name
);
text_newtype!(
    /// A credential's name within its tenant.
    CredentialName, "credential name", NAME_RULE, is_name
);
text_newtype!(
    /// A group of approvers, `finance`.
    Group, "group name", NAME_RULE, is_name
);
text_newtype!(
    /// The `@id` of a Cedar policy: 1 to 128 characters, no control characters.
    PolicyId, "policy id", TEXT_RULE, is_free_text
);
text_newtype!(
    /// Who answers for an agent: free text, 1 to 128 characters.
    Owner, "owner", TEXT_RULE, is_free_text
);
text_newtype!(
    /// A person who answers held calls, by local user name: free text, 1 to 128 characters.
    Approver, "approver", TEXT_RULE, is_free_text
);
text_newtype!(
    /// A capability's name within its connector, `refunds.create`.
    CapabilityName, "capability name", CAPABILITY_RULE, is_capability_name
);

fn is_name(text: &str) -> bool {
    let first = text
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    first
        && text.len() <= 63
        && text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

fn is_free_text(text: &str) -> bool {
    (1..=128).contains(&text.chars().count())
        && text.trim() == text
        && !text.chars().any(char::is_control)
}

fn is_capability_name(text: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    text.len() <= 64 && text.split('.').all(word)
}

/// A pair of names written `left/right`.
macro_rules! pair {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $left:ident: $left_type:ident, $right:ident: $right_type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            #[allow(missing_docs)]
            pub $left: $left_type,
            #[allow(missing_docs)]
            pub $right: $right_type,
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let (left, right) = text.split_once('/').ok_or_else(|| NameError::new($kind, text, $rule))?;
                Ok($name { $left: left.parse()?, $right: right.parse()? })
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.$left, self.$right)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
        serde_as_text!($name);
    };
}

pair!(
    /// An agent, written `acme/support`.
    AgentId, "agent", "written TENANT/NAME", tenant: Tenant, name: AgentName
);
pair!(
    /// A stored credential, written `acme/stripe-live`.
    CredentialId, "credential", "written TENANT/NAME", tenant: Tenant, name: CredentialName
);
pair!(
    /// A named operation of a connector, written `stripe/refunds.create`.
    CapabilityId, "capability", "written CONNECTOR/NAME", connector: ConnectorId, name: CapabilityName
);

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: FromStr + fmt::Display>(text: &str, valid: bool) {
        match text.parse::<T>() {
            Ok(value) => assert!(
                valid && value.to_string() == text,
                "{text:?} was accepted as {value}"
            ),
            Err(_) => assert!(!valid, "{text:?} was refused"),
        }
    }

    #[test]
    fn names_have_one_strict_grammar() {
        for good in ["a", "0", "acme", "stripe-live", "a_b", &"a".repeat(63)] {
            check::<Tenant>(good, true);
        }
        for bad in [
            "",
            "-a",
            "_a",
            "A",
            "a.b",
            "a/b",
            "a b",
            "ä",
            "a\n",
            &"a".repeat(64),
        ] {
            check::<Tenant>(bad, false);
        }
    }

    #[test]
    fn ids_are_two_names_and_one_slash() {
        check::<AgentId>("acme/support", true);
        check::<CapabilityId>("slack/chat.postMessage", true);
        for bad in [
            "acme",
            "acme/",
            "/support",
            "acme/a/b",
            "acme/../x",
            "ACME/support",
        ] {
            check::<AgentId>(bad, false);
        }
        for bad in [
            "stripe/",
            "stripe/.a",
            "stripe/a..b",
            "stripe/a.",
            "stripe/a-b",
            "stripe/a b",
        ] {
            check::<CapabilityId>(bad, false);
        }
    }

    #[test]
    fn free_text_has_bounds_and_no_control_characters() {
        check::<Owner>("Support, tier 2 <support@example.com>", true);
        for bad in ["", " a", "a ", "a\u{7}b", "a\nb", &"x".repeat(129)] {
            check::<Owner>(bad, false);
        }
    }

    #[test]
    fn serde_is_the_text_form() {
        let id: AgentId = serde_json::from_str("\"acme/support\"").unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"acme/support\"");
        assert!(serde_json::from_str::<AgentId>("\"acme\"").is_err());
    }
}
