//! The end-to-end suite: one file per promise. Needs root; `cargo xtask test` runs it through sudo.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests panic, they do not return errors"
)]

mod audit_log;
mod audit_rotation;
mod bound_holder;
mod bound_lease;
mod bound_scene;
mod bound_sealed;
mod bound_umem;
mod bound_zero_copy;
mod broker_crash;
mod capi;
mod cli_words;
mod client_examples;
mod datapath_calls;
mod datapath_kicks;
mod datapath_options;
mod datapath_packets;
mod datapath_tasks;
mod explain_machine;
mod fd_store;
mod fd_store_kill;
mod fd_store_lsm;
mod fd_store_strange;
mod fd_store_unbound;
mod fixture_leaks;
mod fixture_packets;
mod fixture_users;
mod fixture_world;
mod grant_inherit;
mod grant_path;
mod holder_memlock;
mod holder_name;
mod holder_privileges;
mod hostile;
mod kernel_bind;
mod kernel_in_flight;
mod kernel_lsm;
mod kernel_probe;
mod kernel_slots;
mod kernel_status;
mod lease_activate;
mod lease_denied_busy;
mod lease_device;
mod lease_ends;
mod lease_isolation;
mod lease_links;
mod lease_manager;
mod lease_monitor;
mod lease_not_allowed;
mod lease_revoke;
mod lease_scene;
mod lease_stress;
mod lease_transfer;
mod lock_lsm;
mod lock_lsm_cost;
mod lock_open_files;
mod lock_placeholders;
mod lock_turns;
mod nic_queues;
mod nic_steering;
mod papers_python;
mod policy_start;
mod puppet;
mod puppet_body;
mod qemu_consumer;
mod quota;
mod reload;
mod reload_leases;
mod restart_disk_full;
mod restart_dry_run;
mod restart_edited;
mod restart_fail_points;
mod restart_lost;
mod restart_purge;
mod restart_records;
mod restart_scene;
mod restart_taints;
mod restart_takeover;
mod restart_update;
mod rogue;
mod rogue_bind;
mod rogue_handed_on;
mod rogue_memlock;
mod rogue_mutex;
mod rogue_neighbours;
mod rogue_scene;
mod rogue_user_namespace;
mod scene;
mod service;
mod service_stalled;
mod shared_umem;
mod turns;
mod units;
mod varlink_file;
mod wire_fds;
mod wire_framing;
mod wire_limits;
mod wire_strangers;
mod wire_varlink;
mod wire_wrong;
mod wire_zlink;
mod xskperf;
mod zero_copy;
mod zero_copy_peek;
mod zero_copy_rule;

#[global_allocator]
static ALLOCATOR: e2e::allocations::Counting = e2e::allocations::Counting;

e2e::bodies![
    e2e::connector::connector,
    e2e::service_manager::as_service,
    datapath_calls::filtered,
    datapath_calls::hot_path,
    datapath_options::asks_for,
    datapath_tasks::awaits_packets,
    fixture_users::report_status,
    fixture_users::sleep_long,
    fixture_world::world_with_a_holder,
    kernel_in_flight::send_to_nobody,
    lease_transfer::undumpable,
    wire_fds::receive_both_ways,
    wire_zlink::zlink_client,
    puppet_body::puppet,
    bound_umem::reflect_as_bound,
    qemu_consumer::qemu,
    rogue_user_namespace::keep_umem,
    shared_umem::bridge,
    rogue::race_to_bind,
    rogue_mutex::hold_a_mutex,
    rogue_mutex::serve_unread,
];
