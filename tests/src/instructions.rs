//! A few eBPF instructions, and labels to jump to: enough to write the fixture's two programs without a compiler.
//! Opcodes are those of the kernel's `Documentation/bpf/standardization/instruction-set.rst`.

use std::os::fd::{AsRawFd, OwnedFd};

/// One instruction, or one half of a 16-byte one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct R(pub u8);

/// The result, and what the packet loads return.
pub const R0: R = R(0);
/// The context at entry; the first argument of a call.
pub const R1: R = R(1);
/// The second argument.
pub const R2: R = R(2);
/// The third argument.
pub const R3: R = R(3);
/// Kept over calls; the context of packet loads.
pub const R6: R = R(6);
/// Kept over calls.
pub const R7: R = R(7);
/// The stack's end.
pub const R10: R = R(10);

impl Instruction {
    /// As the kernel reads it, on a little-endian machine.
    pub fn encode(self) -> u64 {
        u64::from(self.code)
            | u64::from(self.registers) << 8
            | u64::from(self.offset.cast_unsigned()) << 16
            | u64::from(self.immediate.cast_unsigned()) << 32
    }
}

fn with(code: u8, destination: R, source: R, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: destination.0 | source.0 << 4,
        offset,
        immediate,
    }
}

/// `to = from`
pub fn mov(to: R, from: R) -> Instruction {
    with(0xbf, to, from, 0, 0)
}

/// `to = value`
pub fn mov_value(to: R, value: i32) -> Instruction {
    with(0xb7, to, R0, 0, value)
}

/// `to += value`
pub fn add_value(to: R, value: i32) -> Instruction {
    with(0x07, to, R0, 0, value)
}

/// `to &= value`
pub fn and_value(to: R, value: i32) -> Instruction {
    with(0x57, to, R0, 0, value)
}

/// `to <<= bits`
pub fn shift_left(to: R, bits: i32) -> Instruction {
    with(0x67, to, R0, 0, bits)
}

/// `to = *(u32 *)(from + offset)`
pub fn load_word(to: R, from: R, offset: i16) -> Instruction {
    with(0x61, to, from, offset, 0)
}

/// `*(u32 *)(to + offset) = from`
pub fn store_word(to: R, offset: i16, from: R) -> Instruction {
    with(0x63, to, from, offset, 0)
}

/// `*(u64 *)(to + offset) += from`, atomically.
pub fn atomic_add(to: R, offset: i16, from: R) -> Instruction {
    with(0xdb, to, from, offset, 0)
}

/// `r0 =` the packet's byte there, in host order; a short packet ends the program with 0.
pub fn packet_byte(offset: i32) -> Instruction {
    with(0x30, R0, R0, 0, offset)
}

/// `r0 =` the packet's two bytes there.
pub fn packet_half(offset: i32) -> Instruction {
    with(0x28, R0, R0, 0, offset)
}

/// `r0 =` the packet's two bytes at `base + offset`.
pub fn packet_half_at(base: R, offset: i32) -> Instruction {
    with(0x48, R0, base, 0, offset)
}

/// `r0 =` the packet's four bytes there.
pub fn packet_word(offset: i32) -> Instruction {
    with(0x20, R0, R0, 0, offset)
}

/// Calls a helper by its number.
pub fn call(helper: i32) -> Instruction {
    with(0x85, R0, R0, 0, helper)
}

/// Ends the program with `r0`.
pub fn exit() -> Instruction {
    with(0x95, R0, R0, 0, 0)
}

/// A place to jump to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// A program being written.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// Appends instructions.
    pub fn push(&mut self, instructions: impl IntoIterator<Item = Instruction>) {
        self.code.extend(instructions);
    }

    /// `to =` the map.
    pub fn load_map(&mut self, to: R, map: &OwnedFd) {
        const BPF_PSEUDO_MAP_FD: R = R(1);
        self.push([
            with(0x18, to, BPF_PSEUDO_MAP_FD, 0, map.as_raw_fd()),
            with(0, R0, R0, 0, 0),
        ]);
    }

    /// A label, to be placed later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// Jumps if the lower 32 bits of the register are that value.
    pub fn jump_if_equal(&mut self, register: R, value: u32, to: Label) {
        self.jump(with(0x16, register, R0, 0, value.cast_signed()), to);
    }

    /// Jumps if the lower 32 bits of the register are another value.
    pub fn jump_unless_equal(&mut self, register: R, value: u32, to: Label) {
        self.jump(with(0x56, register, R0, 0, value.cast_signed()), to);
    }

    /// Jumps if the whole register is 0, as the verifier wants pointers compared.
    pub fn jump_if_null(&mut self, register: R, to: Label) {
        self.jump(with(0x15, register, R0, 0, 0), to);
    }

    fn jump(&mut self, instruction: Instruction, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.code.push(instruction);
    }

    /// The program, with all jumps resolved.
    pub fn finish(mut self) -> Option<Vec<Instruction>> {
        for (from, to) in self.jumps {
            let target = self.labels[to.0]?;
            self.code[from].offset = i16::try_from(target.checked_sub(from + 1)?).ok()?;
        }
        Some(self.code)
    }
}
