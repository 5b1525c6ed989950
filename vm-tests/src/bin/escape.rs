//! The escape suite as a program: what `cargo xtask escape` starts here and in the test machines.
//! Here is only the choice of output; the work is in the library.
//! Invariant: exits with 0 only if nothing leaked; 2 says that the daemon refuses this kernel, by name.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use vm_tests::escape::report::{self, Row};
use vm_tests::escape::suite::{self, Told, Wanted};

/// The daemon refuses this kernel.
const REFUSED: u8 = 2;

#[derive(Parser)]
#[command(name = "escape")]
struct Cli {
    /// Only cases whose number, name or class contains this
    #[arg(long)]
    filter: Option<String>,
    /// What to print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
enum Format {
    /// A table for people
    Table,
    /// One JSON object per line
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let wanted = Wanted { filter: cli.filter };
    let each = |row: &Row| match cli.format {
        // Unbroken lines, so that a serial console can carry them.
        Format::Json => println!("{}", json(row)),
        Format::Table => eprintln!(
            "{} {:?} {:?} {}",
            row.case, row.walls, row.governed, row.detail
        ),
    };
    match suite::run(&wanted, each) {
        Ok(Told::Rows(rows)) => {
            if cli.format == Format::Table {
                print!("{}", report::table(&rows));
            }
            if report::well(&rows) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Ok(Told::Refused(refused)) => {
            println!("{}", json(&refused));
            ExitCode::from(REFUSED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
