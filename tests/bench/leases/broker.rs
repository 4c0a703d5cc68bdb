//! The broker, as seen from outside: its engine's CPU time, its memory.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::broker::BrokerProcess;
use xsk_client::Broker;

pub(crate) struct Operator {
    broker: Broker,
    pid: u32,
}

impl Operator {
    pub(crate) fn connect(broker: &BrokerProcess<'_>) -> Result<Self> {
        Ok(Self {
            broker: Broker::connect_to(broker.control_socket())?,
            pid: broker.process().pid(),
        })
    }

    /// CPU time of the engine, by its own clock.
    pub(crate) fn engine_cpu(&mut self) -> Result<Duration> {
        Ok(Duration::from_micros(self.broker.get_status()?.engine_cpu_us))
    }

    /// How many leases there are, lingering ones included.
    pub(crate) fn leases(&mut self) -> Result<u64> {
        Ok(self.broker.get_status()?.leases)
    }

    /// `RssAnon`: memory that is the process's alone.
    pub(crate) fn memory_kib(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid);
        let status = fs::read_to_string(&path).context(path)?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|value| value.trim().strip_suffix(" kB"));
        Ok(number.context("no line RssAnon")?.parse()?)
    }
}
