//! Where the running kernel's structures have their members, by its own description of its types (BTF,
//! Documentation/bpf/btf.rst).

use std::io;

/// What the programs have to know, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offsets {
    /// `sk` in `struct socket`.
    pub(super) socket_sk: u32,
    /// `__sk_common.skc_family` in `struct sock`.
    pub(super) sock_family: u32,
}

/// Why they are not known.
#[derive(Debug, thiserror::Error)]
pub enum NoTypes {
    /// There is no description.
    #[error("the kernel does not describe its types: {PATH}")]
    None(#[source] io::Error),
    /// It is not understood.
    #[error("{PATH} is not understood")]
    Malformed,
    /// A member is not there, or at several places.
    #[error("{PATH} has no struct {structure} with a member {member}, or several")]
    NoMember {
        /// The structure.
        structure: &'static str,
        /// The member.
        member: &'static str,
    },
}

const PATH: &str = "/sys/kernel/btf/vmlinux";

impl Offsets {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// [`NoTypes`].
    pub(super) fn read() -> Result<Self, NoTypes> {
        Self::in_types(&std::fs::read(PATH).map_err(NoTypes::None)?)
    }

    fn in_types(types: &[u8]) -> Result<Self, NoTypes> {
        let wanted = [
            ("socket", "sk"),
            ("sock", "__sk_common"),
            ("sock_common", "skc_family"),
        ];
        let mut found = [Found::Nowhere; 3];
        Types::new(types)
            .and_then(|types| {
                types.visit_structures(|structure, member, bits| {
                    for (wanted, found) in wanted.iter().zip(&mut found) {
                        if structure == wanted.0.as_bytes() && member == wanted.1.as_bytes() {
                            *found = found.and(bits);
                        }
                    }
                })
            })
            .ok_or(NoTypes::Malformed)?;
        let mut offsets = [0; 3];
        for ((found, (structure, member)), offset) in found.into_iter().zip(wanted).zip(&mut offsets) {
            match found {
                Found::At(bits) if bits % 8 == 0 => *offset = bits / 8,
                Found::At(_) | Found::Nowhere | Found::Ambiguous => {
                    return Err(NoTypes::NoMember { structure, member });
                }
            }
        }
        let [socket_sk, common, family] = offsets;
        Ok(Self {
            socket_sk,
            sock_family: common + family,
        })
    }
}

/// Where a member is, in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nowhere,
    At(u32),
    Ambiguous,
}

impl Found {
    fn and(self, bits: u32) -> Self {
        match self {
            Self::Nowhere => Self::At(bits),
            Self::At(before) if before == bits => self,
            Self::At(_) | Self::Ambiguous => Self::Ambiguous,
        }
    }
}

/// The two parts of a description.
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

const KIND_STRUCT: u32 = 4;

impl<'a> Types<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;

        let magic = u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?);
        let header_bytes = place(word(bytes, 4)?)?;
        let part = |at: usize| {
            let begin = header_bytes.checked_add(place(word(bytes, at)?)?)?;
            bytes.get(begin..begin.checked_add(place(word(bytes, at + 4)?)?)?)
        };
        (magic == MAGIC).then_some(())?;
        Some(Self {
            types: part(8)?,
            strings: part(16)?,
        })
    }

    /// Tells of each named member of each structure, and where it is, in bits; `None` where it is not understood.
    fn visit_structures(&self, mut tell: impl FnMut(&[u8], &[u8], u32)) -> Option<()> {
        const TYPE_BYTES: usize = 12;
        const MEMBER_BYTES: usize = 12;

        let mut at = 0;
        while at < self.types.len() {
            let info = word(self.types, at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, place(info & 0xffff)?);
            if kind == KIND_STRUCT {
                // With bit fields, the offset has their width in its upper byte.
                let mask = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
                let name = self.string(word(self.types, at)?)?;
                for member in 0..count {
                    let member = at + TYPE_BYTES + member * MEMBER_BYTES;
                    tell(
                        name,
                        self.string(word(self.types, member)?)?,
                        word(self.types, member + 8)? & mask,
                    );
                }
            }
            at += TYPE_BYTES + bytes_after(kind, count)?;
        }
        Some(())
    }

    fn string(&self, at: u32) -> Option<&'a [u8]> {
        let rest = self.strings.get(place(at)?..)?;
        rest.split(|byte| *byte == 0).next()
    }
}

/// What follows a type's three words.
fn bytes_after(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Integers, variables, declaration tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, sections, enumerations of 64 bits.
        KIND_STRUCT | 5 | 15 | 19 => 12 * count,
        // Enumerations, prototypes.
        6 | 13 => 8 * count,
        // Pointers, forwards, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn place(value: u32) -> Option<usize> {
    usize::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRINGS: &[u8] = b"\0socket\0sk\0sock\0__sk_common\0sock_common\0skc_family\0";

    fn name(of: &str) -> u32 {
        let wanted = [b"\0", of.as_bytes(), b"\0"].concat();
        let at = STRINGS.windows(wanted.len()).position(|bytes| bytes == wanted);
        u32::try_from(at.unwrap() + 1).unwrap()
    }

    /// A structure with one member.
    fn structure(of: &str, member: &str, bits: u32) -> Vec<u32> {
        vec![name(of), 4 << 24 | 1, 8, name(member), 1, bits]
    }

    fn described(types: &[Vec<u32>]) -> Vec<u8> {
        let length = |bytes: usize| u32::try_from(bytes).unwrap();
        let words = types.concat();
        let header = [
            0x0001_eb9f,
            24,
            0,
            length(words.len() * 4),
            length(words.len() * 4),
            length(STRINGS.len()),
        ];
        let mut bytes: Vec<u8> = header
            .iter()
            .chain(&words)
            .flat_map(|word| word.to_le_bytes())
            .collect();
        bytes.extend(STRINGS);
        bytes
    }

    fn all() -> Vec<Vec<u32>> {
        vec![
            // An integer first, whose four bytes more are to be skipped.
            vec![0, 1 << 24, 4, 32],
            structure("sock", "__sk_common", 64),
            structure("socket", "sk", 192),
            structure("sock_common", "skc_family", 128),
        ]
    }

    #[test]
    fn members_are_found_where_they_are() {
        let expected = Offsets {
            socket_sk: 24,
            sock_family: 24,
        };
        assert_eq!(Offsets::in_types(&described(&all())).unwrap(), expected);
        // Once more, and at the same place.
        let twice = [all(), vec![structure("socket", "sk", 192)]].concat();
        assert_eq!(Offsets::in_types(&described(&twice)).unwrap(), expected);
    }

    #[test]
    fn what_is_missing_or_ambiguous_is_named() {
        let without = described(&all()[..3]);
        let error = Offsets::in_types(&without).unwrap_err().to_string();
        assert!(
            error.contains("struct sock_common with a member skc_family"),
            "{error}"
        );
        let elsewhere = [all(), vec![structure("socket", "sk", 256)]].concat();
        let error = Offsets::in_types(&described(&elsewhere)).unwrap_err().to_string();
        assert!(error.contains("struct socket with a member sk"), "{error}");
    }

    #[test]
    fn what_is_cut_off_is_not_understood() {
        let whole = described(&all());
        for end in 0..whole.len() - STRINGS.len() {
            assert!(Offsets::in_types(&whole[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn this_kernels_types_are_understood() {
        match Offsets::read() {
            Ok(offsets) => assert!(offsets.socket_sk > 0 && offsets.sock_family > 0, "{offsets:?}"),
            Err(NoTypes::None(error)) => println!("SKIP: {PATH}: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
}
