//! The end-to-end suite: one file per promise. Needs root; `cargo xtask test` runs it through sudo.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests panic, they do not return errors"
)]

mod fixture_leaks;
mod fixture_packets;
mod fixture_users;
mod fixture_world;
mod grant_path;
mod kernel_bind;
mod kernel_probe;
mod kernel_slots;
mod papers_python;
mod scene;
mod varlink_file;
mod wire_fds;
mod wire_framing;
mod wire_limits;
mod wire_strangers;
mod wire_varlink;
mod wire_wrong;
mod wire_zlink;

e2e::bodies![
    fixture_users::report_status,
    fixture_users::sleep_long,
    fixture_world::world_with_a_holder,
    wire_fds::receive_both_ways,
    wire_zlink::zlink_client,
];
