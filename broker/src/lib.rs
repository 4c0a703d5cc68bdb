//! The broker as a library, so that its tests and its fuzzing reach the parts: the daemon and the command line
//! are `main.rs`.

pub mod cli;
pub mod identity;
pub mod policy;
