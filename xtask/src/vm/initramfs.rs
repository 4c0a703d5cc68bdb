//! An initial file system for Linux, in the cpio format "newc" (Documentation/driver-api/early-userspace/
//! buffer-format.rst): everything is root's, and of the modes that are told here.

use std::path::Path;

use anyhow::{Context as _, Result};

/// A file's kind and permissions, as in stat(2).
#[derive(Debug, Clone, Copy)]
pub(super) enum Mode {
    Program = 0o100_755,
    Text = 0o100_644,
    Folder = 0o040_755,
    CharacterDevice = 0o020_600,
}

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
}

impl Initramfs {
    /// Adds an empty folder. A folder must be added before what is in it.
    pub(super) fn folder(&mut self, path: &str) -> Result<()> {
        self.entry(path, Mode::Folder, [0, 0], &[])
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: &str, mode: Mode, content: &[u8]) -> Result<()> {
        self.entry(path, mode, [0, 0], content)
    }

    /// Adds a copy of a file.
    pub(super) fn copy(&mut self, path: &str, mode: Mode, from: &Path) -> Result<()> {
        let content = std::fs::read(from).with_context(|| from.display().to_string())?;
        self.file(path, mode, &content)
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &str, number: [u32; 2]) -> Result<()> {
        self.entry(path, Mode::CharacterDevice, number, &[])
    }

    /// The archive.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", Mode::Text, [0, 0], &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &str, mode: Mode, device: [u32; 2], content: &[u8]) -> Result<()> {
        self.entries += 1;
        let (uid, gid, links, modified) = (0, 0, 1, 0);
        let fields = [
            self.entries,
            mode as u32,
            uid,
            gid,
            links,
            modified,
            u32::try_from(content.len()).context("a file above 4 GiB")?,
            // The device that the file is on, and the device that it is.
            0,
            0,
            device[0],
            device[1],
            u32::try_from(path.len() + 1)?,
            // A checksum, which this format does not have.
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_newc() {
        let mut archive = Initramfs::default();
        archive.folder("dev").unwrap();
        archive.device("dev/console", [5, 1]).unwrap();
        archive.file("a", Mode::Text, b"12345").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(
            text.starts_with("07070100000001000041ED0000000000000000"),
            "{text}"
        );
        let device = "0000000500000001".to_owned() + "0000000C00000000" + "dev/console\0";
        assert!(text.contains(&device), "{text}");
        // 110 bytes of header and 2 of name fill up to four; the content fills up by itself.
        assert!(text.contains("a\x0012345\x00\x00\x00070701"), "{text}");
        assert_eq!(bytes.len() % 4, 0);
    }
}
