//! What is asked of the device for a frame to send (`struct xsk_tx_metadata`, include/uapi/linux/if_xdp.h, Linux 6.8).

/// `XDP_TXMD_FLAGS_TIMESTAMP` (Linux 6.8): when the frame leaves, put the time where [`TxMetadata::timestamp`] reads it.
pub const TX_METADATA_TIMESTAMP: u64 = 1 << 0;
/// `XDP_TXMD_FLAGS_CHECKSUM` (Linux 6.8): complete a checksum.
pub const TX_METADATA_CHECKSUM: u64 = 1 << 1;
/// `XDP_TXMD_FLAGS_LAUNCH_TIME`: send it then (Linux 6.14, where the device has it).
pub const TX_METADATA_LAUNCH_TIME: u64 = 1 << 2;

/// What precedes a frame whose descriptor has [`TX_METADATA`](crate::raw::TX_METADATA) among its options, in a umem with
/// [`UmemLayout::tx_metadata_bytes`](crate::sys::UmemLayout::tx_metadata_bytes) of 24.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TxMetadata {
    /// `TX_METADATA_…`, together.
    pub flags: u64,
    /// Where the sum begins, in bytes from the frame's first.
    pub checksum_start: u16,
    /// Where it is to be put, in bytes from `checksum_start`; the bytes there hold the sum of the pseudo header.
    pub checksum_offset: u16,
    /// Zero.
    pub reserved: u32,
    /// When to send it, in nanoseconds of the device's clock; looked at with [`TX_METADATA_LAUNCH_TIME`] only.
    pub launch_time: u64,
}

impl TxMetadata {
    /// Its length in bytes.
    pub const BYTES: usize = size_of::<Self>();

    /// As it is in memory.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[10..12].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes[16..].copy_from_slice(&self.launch_time.to_ne_bytes());
        bytes
    }

    /// When the frame left, in nanoseconds: of the device's clock, or in copy mode of CLOCK_TAI. From what stands there
    /// once the frame is in the completion ring; the kernel writes it over the request.
    pub fn timestamp(bytes: &[u8; Self::BYTES]) -> u64 {
        let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, ..] = *bytes;
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lies_as_the_kernel_reads_it() {
        let metadata = TxMetadata {
            flags: TX_METADATA_CHECKSUM | TX_METADATA_TIMESTAMP,
            checksum_start: 34,
            checksum_offset: 6,
            reserved: 0,
            launch_time: 7,
        };
        let bytes = metadata.to_bytes();
        assert_eq!(TxMetadata::BYTES, 24);
        assert_eq!(u64::from_ne_bytes(*bytes.first_chunk().unwrap()), 3);
        assert_eq!(
            TxMetadata::timestamp(&bytes),
            u64::from(34_u16) | u64::from(6_u16) << 16
        );
    }
}
