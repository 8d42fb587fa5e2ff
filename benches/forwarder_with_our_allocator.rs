//! The forwarder of [`end_to_end`](../end_to_end.rs) with the allocator of the bridge. That benchmark starts it.

// Benchmarks fail with a panic and print their figures; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod broker;
mod forwarder;
#[path = "../tests/support/mod.rs"]
mod support;

use broker::Bus;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == forwarder::ARGUMENT => forwarder::run(rest),
        _ => println!("`cargo bench --bench end_to_end` starts this"),
    }
}
