//! The `sluice` binary: hands the command line to the library.
//! Everything it does is in `cli`, so that tests can reach it.
//! INVARIANT: no logic here.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    agent_userspace::cli::main()
}
