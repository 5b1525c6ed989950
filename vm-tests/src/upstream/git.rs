//! github.com as a git server: smart HTTP through git's own `http-backend`, over CGI (RFC 3875).
//! Invariant: the backend sees the request's own headers, so a push or fetch works only with what Sluice lets through.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Answer, Seen};

/// Runs the backend for one request.
pub(crate) async fn answer(seen: &Seen, repositories: &Path) -> Answer {
    // Private repositories: without the credential there is nothing here.
    if !seen.header("authorization").starts_with("Basic ") {
        let mut answer = Answer::json(401, &json!({ "message": "Requires authentication" }));
        answer
            .headers
            .push(("www-authenticate".into(), "Basic realm=\"GitHub\"".into()));
        return answer;
    }
    match backend(seen, repositories).await {
        Ok(answer) => answer,
        Err(error) => Answer::json(500, &json!({ "message": format!("{error:#}") })),
    }
}

async fn backend(seen: &Seen, repositories: &Path) -> Result<Answer> {
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", repositories)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_PROTOCOL", seen.header("git-protocol"))
        .env("REQUEST_METHOD", &seen.method)
        .env("PATH_INFO", &seen.path)
        .env("QUERY_STRING", &seen.query)
        .env("CONTENT_TYPE", seen.header("content-type"))
        .env("CONTENT_LENGTH", seen.body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", seen.header("content-encoding"))
        .env("REMOTE_USER", "agent")
        .env("REMOTE_ADDR", "127.0.0.1")
        // The repositories belong to whoever started the test.
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("git http-backend")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let body = seen.body.clone();
    // Written beside the reading: the backend may answer before it has read everything.
    let writer = tokio::spawn(async move { stdin.write_all(&body).await });
    let output = child.wait_with_output().await?;
    drop(writer.await);
    parse(&output.stdout)
}

/// CGI: header lines, an empty line, the body; the status is a header.
fn parse(output: &[u8]) -> Result<Answer> {
    let end = output
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .context("no CGI header")?;
    let (head, rest) = output.split_at(end);
    let mut answer = Answer {
        status: 200,
        headers: Vec::new(),
        body: Bytes::copy_from_slice(rest.get(4..).unwrap_or_default()),
    };
    for line in String::from_utf8_lossy(head).lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if name.eq_ignore_ascii_case("status") {
            let code = value.split_whitespace().next().unwrap_or_default();
            answer.status = code.parse().context("the CGI status")?;
        } else {
            answer
                .headers
                .push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgi_answer_is_parsed() {
        let answer = parse(b"Status: 404 Not Found\r\nContent-Type: text/plain\r\n\r\nno").unwrap();
        assert_eq!(answer.status, 404);
        assert_eq!(
            answer.headers,
            [("content-type".to_owned(), "text/plain".to_owned())]
        );
        assert_eq!(&answer.body[..], b"no");
    }
}
