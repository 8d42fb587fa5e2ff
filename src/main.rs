//! The program: parses arguments and runs one command.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Also for the C libraries, whose `malloc` it replaces. It was chosen because it gives memory back after a burst, and
/// costs less CPU than the system's; `.cargo/config.toml` has its settings.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    apsara_bridge::cli::main()
}
