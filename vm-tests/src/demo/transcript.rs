//! The transcript: each line is told first, then checked, then shown with what was seen.
//! Invariant: a line that is not as told makes the whole demonstration fail, and the rest is still shown.

use std::time::Instant;

use anyhow::Result;

/// What was told so far, and how it went.
pub struct Transcript {
    number: u32,
    failed: u32,
    started: Instant,
}

impl Transcript {
    /// An empty transcript.
    #[must_use]
    pub fn new() -> Self {
        Self {
            number: 0,
            failed: 0,
            started: Instant::now(),
        }
    }

    /// Opens a chapter.
    pub fn chapter(&self, title: &str) {
        println!("\n## {title}\n");
    }

    /// A sentence that is not a claim.
    pub fn note(&self, text: &str) {
        for line in text.lines() {
            println!("    {line}");
        }
    }

    /// Tells a line, checks it, and shows the evidence that the check returns. Gives what the check found for later lines.
    pub fn check<T>(
        &mut self,
        told: &str,
        check: impl FnOnce() -> Result<(T, String)>,
    ) -> Option<T> {
        self.number += 1;
        println!("{:>2}. {told}", self.number);
        match check() {
            Ok((found, evidence)) => {
                for line in evidence.lines() {
                    println!("      | {line}");
                }
                println!("      ok");
                Some(found)
            }
            Err(error) => {
                self.failed += 1;
                println!("      NOT AS TOLD: {error:#}");
                None
            }
        }
    }

    /// A check that later lines need nothing from.
    pub fn line(&mut self, told: &str, check: impl FnOnce() -> Result<String>) {
        self.check(told, || check().map(|evidence| ((), evidence)));
    }

    /// The last line, which `cargo xtask test` reads; true if everything was as told.
    #[must_use]
    pub fn end(self) -> bool {
        println!("\n    ({:.0} s)", self.started.elapsed().as_secs_f32());
        println!(
            "demo: {} passed, {} failed",
            self.number - self.failed,
            self.failed
        );
        self.failed == 0
    }
}

impl Default for Transcript {
    fn default() -> Self {
        Self::new()
    }
}
