//! The devices that the kernel lists: chips with sensors, graphics cards, and the boards of NVIDIA's driver.
//!
//! Reads names of directories and links only, which wakes no device. Invariant: a device in another place is another entry.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The devices at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceList {
    /// The chips under `class/hwmon` and the cards under `class/drm`, each with its place in the tree of devices.
    pub(super) sensors: BTreeSet<(String, PathBuf)>,
    /// The PCI addresses of the devices that NVIDIA's driver has.
    pub(super) boards: BTreeSet<String>,
}

impl DeviceList {
    /// Reads the list.
    pub fn read(sysfs_root: &Path) -> Self {
        let is_card = |name: &str| {
            name.strip_prefix("card").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        let mut sensors = list_places(&sysfs_root.join("class/hwmon"), |_| true);
        sensors.extend(list_places(&sysfs_root.join("class/drm"), is_card));
        let boards = list_places(&sysfs_root.join("bus/pci/drivers/nvidia"), |name| name.contains(':'));
        Self { sensors, boards: boards.into_iter().map(|(name, _)| name).collect() }
    }
}

/// The entries of a directory, each with the device that it links to.
fn list_places(directory: &Path, is_listed: impl Fn(&str) -> bool) -> BTreeSet<(String, PathBuf)> {
    let place = |entry: &Path| {
        // An entry of a class is a link to its device; in a copy of sysfs its `device` may be one.
        fs::read_link(entry).or_else(|_| fs::canonicalize(entry.join("device"))).unwrap_or_default()
    };
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .filter(|(name, _)| is_listed(name))
        .map(|(name, path)| (name, place(&path)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chip_of_another_device_is_another_entry_and_connectors_are_none() {
        let root = tempfile::tempdir().unwrap();
        let link = |from: &str, to: &str| {
            let path = root.path().join(from);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let _ = fs::remove_file(&path);
            std::os::unix::fs::symlink(to, path).unwrap();
        };
        assert_eq!(DeviceList::read(root.path()), DeviceList::default());
        link("class/hwmon/hwmon3", "../../devices/pci0000:00/0000:03:00.0/hwmon/hwmon3");
        link("class/drm/card1", "../../devices/pci0000:00/0000:03:00.0/drm/card1");
        link("class/drm/card1-HDMI-A-1", "../../devices/pci0000:00/0000:03:00.0/drm/card1/card1-HDMI-A-1");
        link("bus/pci/drivers/nvidia/0000:41:00.0", "../../../../devices/pci0000:40/0000:41:00.0");
        link("bus/pci/drivers/nvidia/module", "../../../../module/nvidia");
        let before = DeviceList::read(root.path());
        assert_eq!((before.sensors.len(), before.boards.len()), (2, 1), "{before:?}");
        link("class/hwmon/hwmon3", "../../devices/pci0000:00/0000:04:00.0/hwmon/hwmon3");
        let after = DeviceList::read(root.path());
        assert_eq!(after.sensors.difference(&before.sensors).count(), 1, "{after:?}");
    }
}
