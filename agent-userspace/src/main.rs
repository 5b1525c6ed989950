//! The `sluice` binary: hands the command line to the library.
//! Everything it does is in `cli`, so that tests can reach it.
//! INVARIANT: no logic here.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// A call makes a hundred or so small allocations on one thread and frees some on another; the C library's allocator spends more
/// on that than the records cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    agent_userspace::cli::main()
}
