//! Picks the command, runs it, prints what went wrong, and gives the exit code.

use std::process::ExitCode;
use std::time::Instant;

use kite::cli::{self, Command};
use kite::heap::Heap;
use kite::{bench, doctor, guest, inspect, log, matrix, run, terminal};

#[global_allocator]
static HEAP: Heap = Heap;

fn main() -> ExitCode {
    let begun = Instant::now();
    if guest::is_init() {
        guest::main();
    }
    terminal::end_on_panic();
    log::start();
    let command = match cli::parse() {
        Ok(command) => command,
        Err(code) => return code,
    };
    let result = match command {
        Command::Run(options) => run::run(&options, begun),
        Command::Matrix(options) => matrix::run(&options),
        Command::Inspect { calls: true, json, .. } => inspect::calls(json),
        Command::Inspect { pid, json, .. } => inspect::run(pid, json),
        Command::Bench(command) => bench::run(&command),
        Command::Doctor { json } => doctor::run(json),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            terminal::restore();
            cli::complain(&format!("{error:#}"));
            ExitCode::from(cli::FAILED)
        }
    }
}
