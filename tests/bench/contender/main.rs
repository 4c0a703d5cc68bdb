//! Three contenders of `cargo xtask bench datapath`: `raw` and `frames` are the two layers of xsk-client, each as a user of
//! it would write the four loops; `floor` is rings written by hand, without a single check: what nobody can beat.
//!
//! See `harness.rs` for how they are called. All three take a socket that was handed over, as an unprivileged holder does.

#![allow(clippy::print_stdout, reason = "it answers its bench on standard output")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "batches and addresses in a umem of some MiB; as the floor pays for no check, the others pay for none"
)]

mod floor;
mod frames;
mod handed_over;
mod harness;
mod memory;
mod raw;

use std::process::ExitCode;

use harness::Place;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((contender, place)) = words
        .split_first()
        .and_then(|(contender, place)| Some((contender, Place::read(place)?)))
    else {
        eprintln!("this is run by `cargo xtask bench datapath`");
        return ExitCode::from(2);
    };
    let outcome = match contender.as_str() {
        "floor" => floor::Floor::new(&place).map(|mut it| harness::serve(&place.mode, &mut it)),
        "raw" => raw::Raw::new(&place).map(|mut it| harness::serve(&place.mode, &mut it)),
        "frames" => frames::Frames::new(&place).map(|mut it| harness::serve(&place.mode, &mut it)),
        other => Err(anyhow::anyhow!("there is no contender {other}")),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{contender}: {error:#}");
        ExitCode::FAILURE
    })
}
