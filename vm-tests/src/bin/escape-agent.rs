//! The program that tries to escape. A plain one: what it does is told on its command line, how far it came on its standard output.
//! Here is only the start; the attempts are in the library, beside the cases that they belong to.
//! Invariant: links nothing of Sluice's.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    vm_tests::escape::agent::main()
}
