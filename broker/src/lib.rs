//! xsk-broker: hands AF_XDP sockets to unprivileged processes, by policy, per queue, over SCM_RIGHTS.
//!
//! One binary is the daemon and its command line; this library is what both, the tests and the fuzzers share.
//! Read [`grant`] first: it is one grant from top to bottom. [`end`] is its counterpart.

pub mod activation;
pub mod adopt;
pub mod agenda;
pub mod ascii;
pub mod audit;
pub mod call;
pub mod charge;
pub mod cli;
pub mod connection;
pub mod device;
pub mod end;
pub mod engine;
pub mod error;
pub mod exclusive;
mod fail_point;
pub mod fd_store;
pub mod grant;
pub mod heritage;
pub mod identity;
pub mod journal;
pub mod kernel;
pub mod lease;
pub mod limit;
pub mod links;
pub mod manager;
pub mod misfit;
pub mod monitor;
pub mod notify;
pub mod numbers;
pub mod objection;
mod outgoing;
pub mod policy;
pub mod privileges;
pub mod quota;
pub mod record;
pub mod reload;
pub mod report;
pub mod revoke;
pub mod run_dir;
pub mod server;
mod service;
mod signals;
pub mod transfer;
pub mod turns;
pub mod unread;
pub mod uplink;
mod watch;
pub mod zero_copy;
