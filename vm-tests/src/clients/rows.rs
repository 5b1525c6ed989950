//! The rows of the matrix: each client, how it is started, and what of it cannot be tried at all.
//! Place: data; the programs themselves lie in `vm-tests/clients`, one a client, written as its users write.
//! Invariant: a cell that is not tried says why; a failure that is known has its explanation here, and any other is a failure.

use std::path::Path;

use super::Case;
use super::judge::Cell;

/// Where a client comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kit {
    Crewai,
    Dotnet,
    Go,
    GoGrpc,
    Java,
    Node,
    Php,
    Python,
    Ruby,
    Rust,
    System,
}

impl Kit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kit::Crewai => "crewai",
            Kit::Dotnet => "dotnet",
            Kit::Go => "go",
            Kit::GoGrpc => "go-grpc",
            Kit::Java => "java",
            Kit::Node => "node",
            Kit::Php => "php",
            Kit::Python => "python",
            Kit::Ruby => "ruby",
            Kit::Rust => "rust",
            Kit::System => "system",
        }
    }

    /// Why it is not there, if it is not: what `cargo xtask clients` left in its place.
    pub(super) fn missing(self, kits: &Path) -> Option<String> {
        let place = kits.join(self.name());
        if place.join("ready").is_file() {
            return None;
        }
        let reason = std::fs::read_to_string(place.join("failed"));
        Some(reason.map_or_else(
            |_| "it is not installed".to_owned(),
            |reason| reason.trim().to_owned(),
        ))
    }
}

/// What its write is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// A call of its own.
    Plain,
    /// A tool that a model has it call: the model's calls are let through, the tool's are what is held or refused.
    Tools,
}

/// One client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) kit: Kit,
    pub(super) kind: Kind,
    /// `@/` is where the kits are; the case is its last argument.
    pub(super) command: &'static [&'static str],
    pub(super) version: &'static [&'static str],
    /// What it says after a read and a write, where that is not the far side's answer.
    pub(super) read: Option<&'static str>,
    pub(super) written: Option<&'static str>,
    /// Cases that it has not, and why.
    without: &'static [(Case, &'static str)],
    /// Cases that fail, and why that is known.
    explained: &'static [(Case, &'static str)],
}

impl Row {
    /// Whether it is asked for.
    pub(super) fn is(&self, only: &[String]) -> bool {
        let name = self.name.to_lowercase();
        only.is_empty() || only.iter().any(|only| name.contains(&only.to_lowercase()))
    }

    pub(super) fn without(&self, case: Case) -> Option<&'static str> {
        lookup(self.without, case)
    }

    /// A known failure is told as what it is; one that is no more is told as ok.
    pub(super) fn explained(&self, case: Case, cell: Cell) -> Cell {
        match (cell, lookup(self.explained, case)) {
            (Cell::Failed(seen), Some(why)) => Cell::Explained(format!("{why} (seen: {seen})")),
            (cell, _) => cell,
        }
    }
}

fn lookup(list: &[(Case, &'static str)], case: Case) -> Option<&'static str> {
    list.iter()
        .find(|(of, _)| *of == case)
        .map(|(_, reason)| *reason)
}

/// A word of a command, with `@/` replaced.
pub(super) fn word(text: &str, kits: &Path) -> String {
    match text.strip_prefix("@/") {
        Some(rest) => kits.join(rest).to_string_lossy().into_owned(),
        None => text.to_owned(),
    }
}

const SYSTEM: Row = Row {
    name: "",
    kit: Kit::System,
    kind: Kind::Plain,
    command: &[],
    version: &[],
    read: None,
    written: None,
    without: &[],
    explained: &[],
};
const PYTHON: Row = Row {
    kit: Kit::Python,
    ..SYSTEM
};
const NODE: Row = Row {
    kit: Kit::Node,
    ..SYSTEM
};

const NO_STREAM: &[(Case, &str)] = &[(Case::Stream, "it has no streamed call")];
const UNSIGNED: &str = "AWS refuses the signature: it was made with the placeholder, and signing anew (SigV4) is not built";

const PY: &str = "@/python/bin/python";

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "curl, HTTP/1.1",
        command: &["sh", "@/system/curl.sh", "--http1.1"],
        version: &["curl", "--version"],
        ..SYSTEM
    },
    Row {
        name: "curl, HTTP/2",
        command: &["sh", "@/system/curl.sh", "--http2"],
        version: &["curl", "--version"],
        ..SYSTEM
    },
    Row {
        name: "wget",
        command: &["sh", "@/system/wget.sh"],
        version: &["wget", "--version"],
        ..SYSTEM
    },
    Row {
        name: "git: clone and fetch, push",
        command: &["sh", "@/system/git.sh"],
        version: &["git", "--version"],
        read: Some("fetched"),
        written: Some("pushed"),
        without: NO_STREAM,
        ..SYSTEM
    },
    Row {
        name: "Python urllib",
        command: &[PY, "@/python/use_urllib.py"],
        version: &[PY, "--version"],
        ..PYTHON
    },
    Row {
        name: "Python requests",
        command: &[PY, "@/python/use_requests.py"],
        version: &[PY, "@/python/version.py", "requests"],
        ..PYTHON
    },
    Row {
        name: "Python httpx, HTTP/1.1",
        command: &[PY, "@/python/use_httpx.py", "1"],
        version: &[PY, "@/python/version.py", "httpx"],
        ..PYTHON
    },
    Row {
        name: "Python httpx, HTTP/2",
        command: &[PY, "@/python/use_httpx.py", "2"],
        version: &[PY, "@/python/version.py", "httpx"],
        ..PYTHON
    },
    Row {
        name: "Python aiohttp",
        command: &[PY, "@/python/use_aiohttp.py"],
        version: &[PY, "@/python/version.py", "aiohttp"],
        ..PYTHON
    },
    Row {
        name: "Python websockets",
        command: &[PY, "@/python/use_websockets.py"],
        version: &[PY, "@/python/version.py", "websockets"],
        ..PYTHON
    },
    Row {
        name: "Python grpcio",
        command: &[PY, "@/python/use_grpc.py"],
        version: &[PY, "@/python/version.py", "grpcio"],
        ..PYTHON
    },
    Row {
        name: "Node.js fetch",
        command: &["node", "@/node/fetch.mjs"],
        version: &["node", "--version"],
        ..NODE
    },
    Row {
        name: "Node.js axios",
        command: &["node", "@/node/axios.mjs"],
        version: &["node", "@/node/version.mjs", "axios"],
        ..NODE
    },
    Row {
        name: "Node.js undici, HTTP/2",
        command: &["node", "@/node/undici.mjs"],
        version: &["node", "@/node/version.mjs", "undici"],
        ..NODE
    },
    Row {
        name: "Node.js ws",
        command: &["node", "@/node/ws.mjs"],
        version: &["node", "@/node/version.mjs", "ws"],
        ..NODE
    },
    Row {
        name: "Node.js @grpc/grpc-js",
        command: &["node", "@/node/grpc.mjs"],
        version: &["node", "@/node/version.mjs", "@grpc/grpc-js"],
        ..NODE
    },
    Row {
        name: "Bun fetch",
        command: &["@/node/node_modules/.bin/bun", "@/node/fetch.mjs"],
        version: &["@/node/node_modules/.bin/bun", "--version"],
        ..NODE
    },
    Row {
        name: "Deno fetch",
        command: &[
            "@/node/node_modules/.bin/deno",
            "run",
            "--allow-net",
            "@/node/fetch.mjs",
        ],
        version: &["@/node/node_modules/.bin/deno", "--version"],
        ..NODE
    },
    Row {
        name: "Go net/http",
        kit: Kit::Go,
        command: &["@/go/client"],
        version: &["@/go/venv/bin/go", "version"],
        ..SYSTEM
    },
    Row {
        name: "Go grpc-go",
        kit: Kit::GoGrpc,
        command: &["@/go-grpc/client"],
        version: &[],
        ..SYSTEM
    },
    Row {
        name: "Java HttpClient",
        kit: Kit::Java,
        command: &["java", "-cp", "@/java", "Client"],
        version: &["java", "--version"],
        ..SYSTEM
    },
    Row {
        name: "Rust reqwest, rustls-native-certs",
        kit: Kit::Rust,
        command: &["@/rust/client"],
        version: &["@/rust/client", "--version"],
        ..SYSTEM
    },
    Row {
        name: "Ruby Net::HTTP",
        kit: Kit::Ruby,
        command: &["ruby", "@/ruby/client.rb"],
        version: &["ruby", "--version"],
        ..SYSTEM
    },
    Row {
        name: "PHP curl",
        kit: Kit::Php,
        command: &["php", "@/php/client.php"],
        version: &["php", "--version"],
        ..SYSTEM
    },
    Row {
        name: ".NET HttpClient",
        kit: Kit::Dotnet,
        ..SYSTEM
    },
    Row {
        name: "OpenAI SDK, Python",
        command: &[PY, "@/python/use_openai.py"],
        version: &[PY, "@/python/version.py", "openai"],
        ..PYTHON
    },
    Row {
        name: "Anthropic SDK, Python",
        command: &[PY, "@/python/use_anthropic.py"],
        version: &[PY, "@/python/version.py", "anthropic"],
        ..PYTHON
    },
    Row {
        name: "Stripe SDK, Python",
        command: &[PY, "@/python/use_stripe.py"],
        version: &[PY, "@/python/version.py", "stripe"],
        without: NO_STREAM,
        ..PYTHON
    },
    Row {
        name: "Slack SDK, Python",
        command: &[PY, "@/python/use_slack.py"],
        version: &[PY, "@/python/version.py", "slack_sdk"],
        without: NO_STREAM,
        ..PYTHON
    },
    Row {
        name: "PyGithub",
        command: &[PY, "@/python/use_github.py"],
        version: &[PY, "@/python/version.py", "PyGithub"],
        without: NO_STREAM,
        ..PYTHON
    },
    Row {
        name: "@octokit/rest",
        command: &["node", "@/node/octokit.mjs"],
        version: &["node", "@/node/version.mjs", "@octokit/rest"],
        without: NO_STREAM,
        ..NODE
    },
    Row {
        name: "AWS SDK, Python (boto3)",
        command: &[PY, "@/python/use_boto3.py"],
        version: &[PY, "@/python/version.py", "boto3"],
        without: NO_STREAM,
        explained: &[
            (Case::Read, UNSIGNED),
            (Case::Write, UNSIGNED),
            (Case::Held, UNSIGNED),
        ],
        ..PYTHON
    },
    Row {
        name: "Google API client, Python",
        command: &[PY, "@/python/use_google.py"],
        version: &[PY, "@/python/version.py", "google-api-python-client"],
        without: NO_STREAM,
        ..PYTHON
    },
    Row {
        name: "LangChain, tool call",
        kind: Kind::Tools,
        command: &[PY, "@/python/use_langchain.py"],
        version: &[PY, "@/python/version.py", "langchain"],
        ..PYTHON
    },
    Row {
        name: "CrewAI, tool call",
        kit: Kit::Crewai,
        kind: Kind::Tools,
        command: &["@/crewai/bin/python", "@/crewai/use_crewai.py"],
        version: &["@/crewai/bin/python", "@/crewai/version.py", "crewai"],
        without: NO_STREAM,
        ..SYSTEM
    },
    Row {
        name: "AutoGen, tool call",
        kind: Kind::Tools,
        command: &[PY, "@/python/use_autogen.py"],
        version: &[PY, "@/python/version.py", "autogen-agentchat"],
        ..PYTHON
    },
    Row {
        name: "MCP client, streamable HTTP",
        command: &[PY, "@/python/use_mcp.py"],
        version: &[PY, "@/python/version.py", "mcp"],
        ..PYTHON
    },
];
