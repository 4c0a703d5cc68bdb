//! What a bench tells: a table, or the same as JSON; and both to files, where `cargo xtask bench all` asks for that.

#![allow(clippy::print_stdout, reason = "figures are what a bench is for")]

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

/// The variable that names the folder for `NAME.txt` and `NAME.json`.
const FOLDER: &str = "XSK_BENCH_FOLDER";

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Form {
    /// As the command line has it.
    pub fn of(json: bool) -> Self {
        if json { Self::Json } else { Self::Table }
    }
}

/// Of many times.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Times {
    /// Half of them are below, in microseconds.
    pub median_us: f64,
    /// 99 of 100 are below.
    pub p99_us: f64,
}

impl Times {
    /// NaN where there are none.
    pub fn of(samples: impl Iterator<Item = Duration>) -> Self {
        let mut samples: Vec<Duration> = samples.collect();
        samples.sort_unstable();
        let at = |percent: usize| {
            let index = (samples.len() * percent / 100).min(samples.len().saturating_sub(1));
            samples.get(index).map_or(f64::NAN, |it| it.as_secs_f64() * 1e6)
        };
        Self {
            median_us: at(50),
            p99_us: at(99),
        }
    }
}

/// How a bench ends; what went wrong is printed.
pub fn ended(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one of the two, and keeps both.
///
/// # Errors
///
/// The files cannot be written.
pub fn tell(bench: &str, form: Form, table: &str, json: &Value) -> Result<()> {
    let json = serde_json::to_string_pretty(json)?;
    if let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) {
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        for (ending, text) in [("txt", table), ("json", &json)] {
            let file = folder.join(bench).with_extension(ending);
            fs::write(&file, format!("{text}\n")).with_context(|| file.display().to_string())?;
        }
    }
    match form {
        Form::Table => println!("{table}"),
        Form::Json => println!("{json}"),
    }
    Ok(())
}
