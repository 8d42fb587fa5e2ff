//! The program: parses arguments and runs one command.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    apsara_bridge::cli::main()
}
