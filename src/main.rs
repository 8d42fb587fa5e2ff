//! The program: parses arguments and runs one command.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A callback is a few dozen small allocations made on one thread and freed on another: that is where the system's
/// allocator is slow.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    apsara_bridge::cli::main()
}
