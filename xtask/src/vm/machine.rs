//! The machines: which kernel boots with which devices and options, and what runs on it.

use anyhow::{Context as _, Result};

use super::kernel::{CLOUD_6_1, CLOUD_6_12, CLOUD_7, GENERIC_7, Series};

/// A machine to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    /// What `--kernel` takes.
    pub(super) name: &'static str,
    pub(super) series: Series,
    pub(super) nic: Nic,
    /// For the kernel's command line.
    pub(super) options: &'static str,
    /// What runs if nobody says what: tests whose names contain one of these; all for none.
    pub(super) tests: &'static [&'static str],
    /// What runs in the short form; nothing, if the machine is not part of it.
    pub(super) short: &'static [&'static str],
}

/// The device that the guest has two of, joined by a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nic {
    VirtioNet,
    Igb,
}

/// All of them. The first three run the whole suite: the oldest kernel that is supported, the one in between, the newest
/// that there is. The others run what is about what they alone have.
pub(super) const MACHINES: [Machine; 5] = [
    Machine {
        name: "6.1",
        series: CLOUD_6_1,
        nic: Nic::VirtioNet,
        options: "",
        tests: &[],
        short: &["grant_path", "kernel_status", "lease_activate", "wire_strangers"],
    },
    Machine {
        name: "6.12",
        series: CLOUD_6_12,
        nic: Nic::VirtioNet,
        options: "",
        tests: &[],
        short: &[],
    },
    Machine {
        name: "7",
        series: CLOUD_7,
        nic: Nic::VirtioNet,
        options: "",
        tests: &[],
        short: &["grant_path", "kernel_status", "zero_copy"],
    },
    Machine {
        name: "7-igb",
        series: GENERIC_7,
        nic: Nic::Igb,
        options: "",
        tests: &["nic_", "zero_copy", "kernel_status"],
        short: &[],
    },
    Machine {
        name: "7-no-bpf-lsm",
        series: CLOUD_7,
        nic: Nic::VirtioNet,
        // Debian's own list without bpf: such a program loads and attaches, and nobody asks it.
        options: "lsm=landlock,lockdown,yama,loadpin,safesetid,integrity",
        tests: &["lsm", "kernel_status"],
        short: &[],
    },
];

impl Machine {
    /// Those that `--kernel` names; all for none.
    pub(super) fn chosen(wanted: &[String]) -> Result<Vec<Self>> {
        if wanted.is_empty() {
            return Ok(MACHINES.to_vec());
        }
        let find = |wanted: &String| {
            let machine = MACHINES.into_iter().find(|machine| wanted == machine.name);
            machine.with_context(|| {
                let names = MACHINES.map(|machine| machine.name).join(", ");
                format!("there is no kernel {wanted}: choose among {names}")
            })
        };
        wanted.iter().map(find).collect()
    }

    /// Those of the short form.
    pub(super) fn short() -> Vec<Self> {
        let short = MACHINES.into_iter().filter(|machine| !machine.short.is_empty());
        short.collect()
    }

    /// Whether everything runs on it, so that its numbers stand for its kernel.
    pub(super) fn is_whole(&self) -> bool {
        self.tests.is_empty()
    }
}

impl Nic {
    /// The driver in the guest.
    pub(super) fn driver(self) -> &'static str {
        match self {
            Self::VirtioNet => "virtio_net",
            Self::Igb => "igb",
        }
    }

    /// As QEMU's `-device` takes it; `iommu_platform` is what makes virtio-net use the DMA interface, without which it has no
    /// zero-copy.
    pub(super) fn device(self) -> &'static str {
        match self {
            Self::VirtioNet => "virtio-net-pci,iommu_platform=on",
            Self::Igb => "igb",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_chosen_by_its_name() {
        assert_eq!(Machine::chosen(&[]).unwrap(), MACHINES);
        assert_eq!(Machine::chosen(&["6.12".to_owned()]).unwrap(), [MACHINES[1]]);
        assert!(Machine::chosen(&["5.4".to_owned()]).is_err());
    }

    #[test]
    fn the_short_form_has_an_old_kernel_and_a_new_one() {
        let names: Vec<_> = Machine::short().iter().map(|machine| machine.name).collect();
        assert_eq!(names, ["6.1", "7"]);
    }
}
