//! Which receive queue a packet arrives on.
//!
//! A veth delivers on the queue with the number of its sender's transmit queue, so the choice is the sender's. A
//! classifier on the sender's egress makes it: it writes `queue_mapping` (as queue + 1, the way in which the stack
//! records a receive queue), and `skb_tx_hash` (net/core/dev.c) takes the transmit queue from there. This works for
//! ordinary sockets of the kernel's stack, for `AF_PACKET`, and on every kernel from 5.1.
//!
//! First match wins, in this order: the sender's `SO_MARK` (queue + 1), the rules for UDP ports, the rules for
//! addresses, queue 0. The rules hold for native XDP and for the driver's counters; _generic_ XDP on a veth sees each
//! queue's number less one, since there `queue_mapping` is read as a recorded receive queue. A _connected_ UDP socket caches its queue (`sk_tx_queue_set`): steer before it sends.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

use crate::bpf::{self, ProgramType};
use crate::instructions::{
    Assembler, Instruction, R0, R2, R6, R7, and_value, exit, load_word, mov, mov_value, packet_byte,
    packet_half, packet_half_at, packet_word, shift_left, store_word,
};
use crate::netlink::Netlink;

/// Sends packets that match to a queue of the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steer {
    /// Which packets.
    pub matches: Match,
    /// To which queue.
    pub queue: u32,
}

/// Which packets a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// UDP over IPv4 to this port.
    UdpTo(u16),
    /// UDP over IPv4 from this port.
    UdpFrom(u16),
    /// IPv4 to this address, and ARP requests for it.
    Address(Ipv4Addr),
}

impl Steer {
    /// UDP to this port goes to that queue.
    pub fn udp_to(port: u16, queue: u32) -> Self {
        Self {
            matches: Match::UdpTo(port),
            queue,
        }
    }

    /// UDP from this port goes to that queue.
    pub fn udp_from(port: u16, queue: u32) -> Self {
        Self {
            matches: Match::UdpFrom(port),
            queue,
        }
    }

    /// Everything to this address, ARP included, goes to that queue.
    pub fn address(address: Ipv4Addr, queue: u32) -> Self {
        Self {
            matches: Match::Address(address),
            queue,
        }
    }
}

/// Makes a device ready for [`replace`]: gives it the hook for classifiers.
pub(crate) fn prepare(netlink: &Netlink, index: u32) -> Result<()> {
    let mut message = TcMessage::with_index(i32::try_from(index)?);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    netlink
        .change(
            RouteNetlinkMessage::NewQueueDiscipline(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .context("adding the qdisc clsact")
}

/// Replaces the rules of a device's egress.
pub(crate) fn replace(netlink: &Netlink, index: u32, rules: &[Steer]) -> Result<()> {
    const PRIORITY: u32 = 1;
    let program = bpf::load(ProgramType::SchedCls, "steer", &program(rules)?)?;
    let mut message = TcMessage::with_index(i32::try_from(index)?);
    message.header.parent = TcHandle {
        major: u16::MAX,
        minor: TcHandle::MIN_EGRESS,
    };
    message.header.handle = TcHandle { major: 0, minor: 1 };
    // TC_H_MAKE(priority << 16, htons(ETH_P_ALL))
    message.header.info = PRIORITY << 16 | u32::from(crate::sys::ETH_P_ALL.to_be());
    message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
        TcOption::Bpf(TcFilterBpfOption::ProgName("steer".to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    netlink
        .change(
            RouteNetlinkMessage::NewTrafficFilter(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .context("replacing the steering rules")
}

/// `__sk_buff.mark`
const MARK: i16 = 8;
/// `__sk_buff.queue_mapping`
const QUEUE_MAPPING: i16 = 12;

fn program(rules: &[Steer]) -> Result<Vec<Instruction>> {
    let mut code = Assembler::default();
    let (chosen, arp, addresses, done) = (code.label(), code.label(), code.label(), code.label());

    // The packet loads want the context in r6. r2 is queue + 1.
    code.push([mov(R6, crate::instructions::R1), load_word(R2, R6, MARK)]);
    code.jump_unless_equal(R2, 0, chosen);
    // A short packet ends the program at the load that fails: its queue is written beforehand.
    code.push([mov_value(R2, 1), store_word(R6, QUEUE_MAPPING, R2)]);
    code.push([packet_half(12)]);
    code.jump_if_equal(R0, 0x0806, arp);
    code.jump_unless_equal(R0, 0x0800, done);

    code.push([packet_byte(23)]);
    code.jump_unless_equal(R0, 17, addresses);
    // Later fragments have no ports.
    code.push([packet_half(20), and_value(R0, 0x1fff)]);
    code.jump_unless_equal(R0, 0, addresses);
    code.push([
        packet_byte(14),
        and_value(R0, 0x0f),
        shift_left(R0, 2),
        mov(R7, R0),
    ]);
    code.push([packet_half_at(R7, 16)]);
    choose(&mut code, rules, chosen, |rule| match rule {
        Match::UdpTo(port) => Some(u32::from(port)),
        _ => None,
    })?;
    code.push([packet_half_at(R7, 14)]);
    choose(&mut code, rules, chosen, |rule| match rule {
        Match::UdpFrom(port) => Some(u32::from(port)),
        _ => None,
    })?;

    let address = |rule| match rule {
        Match::Address(address) => Some(u32::from(address)),
        _ => None,
    };
    code.place(addresses);
    code.push([packet_word(30)]);
    choose(&mut code, rules, chosen, address)?;
    code.push([mov_value(R0, 0), exit()]);

    code.place(arp);
    code.push([packet_word(38)]);
    choose(&mut code, rules, chosen, address)?;
    code.push([mov_value(R0, 0), exit()]);

    code.place(chosen);
    code.push([store_word(R6, QUEUE_MAPPING, R2)]);
    code.place(done);
    code.push([mov_value(R0, 0), exit()]);
    code.finish()
        .context("a jump of the steering program leads nowhere")
}

/// For each rule that `value` picks: r0 is it, then its queue is chosen.
fn choose(
    code: &mut Assembler,
    rules: &[Steer],
    chosen: crate::instructions::Label,
    value: impl Fn(Match) -> Option<u32>,
) -> Result<()> {
    for rule in rules {
        if let Some(wanted) = value(rule.matches) {
            code.push([mov_value(R2, i32::try_from(rule.queue)? + 1)]);
            code.jump_if_equal(R0, wanted, chosen);
        }
    }
    Ok(())
}
