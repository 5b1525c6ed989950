//! A shell inside a workload that a test speaks to line by line, so that one process tree outlives a daemon.
//! Invariant: dropping it ends it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A shell that answers.
pub(crate) struct Shell {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

const END: &str = "--end-of-answer--";

impl Shell {
    /// Starts a command that runs `sh` with standard input and output of its own.
    pub(crate) fn start(command: &mut Command) -> Shell {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Shell {
            stdin: child.stdin.take(),
            child,
            stdout,
        }
    }

    /// What a script printed on either stream.
    pub(crate) fn ask(&mut self, script: &str) -> String {
        let line = format!("{{ {script}\n}} 2>&1; echo; echo {END}\n");
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
        stdin.flush().unwrap();
        let mut said = String::new();
        loop {
            let mut line = String::new();
            let length = self.stdout.read_line(&mut line).unwrap();
            assert!(length > 0, "the shell ended after {said}");
            if line.trim_end() == END {
                return said.trim().to_owned();
            }
            said.push_str(&line);
        }
    }

    /// The status of a call to the vendor, or curl's own words.
    pub(crate) fn call(&mut self, url: &str) -> String {
        self.ask(&format!(
            "curl -sS -o /dev/null --max-time 10 -H 'Authorization: Bearer placeholder' -w '%{{http_code}}' {url}"
        ))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // At the end of its input a shell ends; what does not is killed.
        drop(self.stdin.take());
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
