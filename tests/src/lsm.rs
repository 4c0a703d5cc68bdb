//! A BPF LSM program of a few lines on `socket_bind`, which refuses the binds of one thread: whether such a program is in
//! force shows by what it refuses, and by nothing else. Where `lsm=` on the kernel's command line leaves bpf out, it loads
//! and attaches all the same, and nobody asks it.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use crate::bpf;
use crate::instructions::{Assembler, R0, call, exit, mov_value};
use crate::skip::Skip;

/// The kernel's own types.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// What the program is attached to (include/linux/lsm_hook_defs.h, with the prefix of kernel/bpf/bpf_lsm.c).
const HOOK: &str = "bpf_lsm_socket_bind";

/// The attached program, until it is dropped.
#[derive(Debug)]
pub struct RefusesBinds {
    _link: OwnedFd,
}

impl RefusesBinds {
    /// Loads it and attaches it, for the calling thread alone.
    pub fn of_this_thread() -> Result<Self> {
        const BPF_GET_CURRENT_PID_TGID: i32 = 14;
        const EPERM: i32 = 1;

        let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let mut program = Assembler::default();
        let allow = program.label();
        program.push([call(BPF_GET_CURRENT_PID_TGID)]);
        program.jump_unless_equal(R0, thread, allow);
        program.push([mov_value(R0, -EPERM), exit()]);
        program.place(allow);
        program.push([mov_value(R0, 0), exit()]);
        let program = program.finish().context("a jump to nowhere")?;

        let types = fs::read(BTF).context(BTF)?;
        let hook = function_id(&types, HOOK).with_context(|| format!("{BTF} has no function {HOOK}"))?;
        let program = bpf::load_lsm("refuses_binds", &program, hook)?;
        let link = bpf::attach_lsm(&program).context("attaching the LSM program")?;
        Ok(Self { _link: link })
    }
}

/// Whether the kernel asks such programs, shown by one that refuses; why not, where it does not.
pub fn is_in_force() -> Result<(), Skip> {
    let lacks = |answer: String| Skip::KernelLacks {
        probe: format!("a BPF LSM program that refuses a bind: {answer}"),
    };
    let _program = RefusesBinds::of_this_thread().map_err(|error| lacks(format!("{error:#}")))?;
    match UdpSocket::bind("127.0.0.1:0") {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => Err(lacks(format!("{other:?}"))),
    }
}

/// The id of a function in BTF (Documentation/bpf/btf.rst).
fn function_id(btf: &[u8], name: &str) -> Option<u32> {
    const HEADER: usize = 24;
    const FUNCTION: u32 = 12;

    let word = |at: usize| Some(u32::from_le_bytes(btf.get(at..at + 4)?.try_into().ok()?));
    let place = |at: usize| Some(HEADER + usize::try_from(word(at)?).ok()?);
    let (types, strings) = (place(8)?, place(16)?);
    let end = types + usize::try_from(word(12)?).ok()?;
    let mut at = types;
    for id in 1.. {
        if at >= end {
            break;
        }
        let info = word(at + 4)?;
        let (kind, members) = (info >> 24 & 0x1f, usize::try_from(info & 0xffff).ok()?);
        if kind == FUNCTION {
            let text = btf.get(strings + usize::try_from(word(at)?).ok()?..)?;
            if text
                .strip_prefix(name.as_bytes())
                .is_some_and(|rest| rest.first() == Some(&0))
            {
                return Some(id);
            }
        }
        at += 12 + bytes_after(kind, members)?;
    }
    None
}

/// What follows a type's three words.
fn bytes_after(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // Integers, variables, declaration tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, sections, enumerations of 64 bits.
        4 | 5 | 15 | 19 => 12 * members,
        // Enumerations, prototypes.
        6 | 13 => 8 * members,
        // Pointers, forwards, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_found_by_its_whole_name() {
        let mut btf = Vec::new();
        let words = |words: &[u32]| {
            words
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let strings = b"\0abc\0ab\0";
        let types = words(&[
            // An integer, then functions abc and ab.
            0,
            1 << 24,
            4,
            0,
            1,
            12 << 24,
            1,
            5,
            12 << 24,
            1,
        ]);
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        btf.extend(words(&[
            0x0001_eb9f,
            24,
            0,
            length(&types),
            length(&types),
            length(strings),
        ]));
        btf.extend(types);
        btf.extend(strings);
        assert_eq!(function_id(&btf, "abc"), Some(2));
        assert_eq!(function_id(&btf, "ab"), Some(3));
        assert_eq!(function_id(&btf, "b"), None);
        assert_eq!(function_id(&btf[..30], "ab"), None);
    }
}
