//! What a bench tells: a table, or the same as JSON; and both to files, where `cargo xtask bench all` asks for that.

#![allow(clippy::print_stdout, reason = "figures are what a bench is for")]

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
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
