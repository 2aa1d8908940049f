//! `bellwether`: the command line. Everything behind it is in [`bellwether::app`].

use std::process::ExitCode;

fn main() -> ExitCode {
    bellwether::app::main()
}
