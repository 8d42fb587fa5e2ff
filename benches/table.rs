//! Prints the rows that the benchmarks have reported as one table; see [`goals`]. A row that nobody has reported fails it.
//! A missed goal does not.

// Benchmarks fail with a panic and print their figures; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod goals;

use std::process::ExitCode;

use goals::{GOALS, row};

fn main() -> ExitCode {
    let Some(file) = std::env::var_os("BENCH_ROWS") else {
        println!("BENCH_ROWS does not name the file of rows; `make bench` sets it");
        return ExitCode::SUCCESS;
    };
    let text = std::fs::read_to_string(file).expect("the file of rows");
    let rows: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('\t')).collect();
    println!("\n| what | goal | median | range | |\n|---|---|---|---|---|");
    let mut missing = 0;
    for goal in GOALS {
        // The last one counts, if a benchmark was repeated.
        match rows.iter().rev().find(|(name, _)| *name == goal.name) {
            Some((_, values)) => {
                let values: Vec<f64> = values.split(' ').map(|value| value.parse().expect("a number")).collect();
                print!("{}", row(goal, &values));
            }
            None => {
                println!("| {} | | not measured | | |", goal.name);
                missing += 1;
            }
        }
    }
    if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
