//! Picks the command, runs it, prints what went wrong, and gives the exit code.

use std::process::ExitCode;
use std::time::Instant;

use kite::cli::{self, Command, pages};
use kite::cmd::bench;
use kite::cmd::doctor;
use kite::cmd::image;
use kite::cmd::inspect;
use kite::cmd::machines;
use kite::cmd::matrix;
use kite::cmd::oci;
use kite::cmd::run;
use kite::guest;
use kite::host::alloc::Heap;
use kite::host::log;
use kite::host::messages;
use kite::host::remedy::Surroundings;
use kite::host::signals;
use kite::host::terminal;
use kite::lifecycle::Ahead;

#[global_allocator]
static HEAP: Heap = Heap;

fn main() -> ExitCode {
    let begun = Instant::now();
    if guest::is_init() {
        guest::main();
    }
    if guest::is_modprobe() {
        return guest::load_module();
    }
    terminal::end_on_panic();
    signals::survive_file_limits();
    log::start();
    let ahead = Ahead::begin();
    let surroundings = Surroundings::now();
    let command = match cli::parse() {
        Ok(command) => command,
        Err(code) => return code,
    };
    let result = match command {
        Command::Run(options) => {
            let spec = options.spec().map_err(anyhow::Error::msg);
            spec.and_then(|spec| run::run(spec, options.print_spec, begun, ahead))
        }
        Command::Matrix(options) => matrix::run(&options, cli::run_spec),
        Command::Inspect { calls: true, json, .. } => inspect::calls(json),
        Command::Inspect { pid, json, .. } => inspect::run(pid, json),
        Command::List { json } => machines::list(json),
        Command::Screenshot { id, file } => machines::screenshot(id.as_ref(), &file),
        Command::Pause { id } => machines::pause(&id, true),
        Command::Resume { id } => machines::pause(&id, false),
        Command::Stop { id, timeout } => machines::stop(&id, timeout),
        Command::Image(command) => image::run(&command),
        Command::Oci(options) => Ok(oci::run(&options)),
        Command::Bench(command) => bench::run(&command),
        Command::Doctor { json } => doctor::run(json),
        Command::Completions { shell } => pages::print_completions(shell),
        Command::Man { command } => pages::print_man(&command),
    };
    let code = result.unwrap_or_else(|error| {
        terminal::restore();
        signals::release();
        cli::complain(&surroundings.with_cure(&format!("{error:#}")));
        cli::FAILED
    });
    log::sum_up();
    messages::flush(|stuck| stuck > messages::PATIENCE);
    let lost = code == cli::DONE && messages::failure().is_some();
    ExitCode::from(if lost { cli::FAILED } else { code })
}
