//! The chips under `class/hwmon`: their names, files and channels.
//!
//! Owns the directory layouts: newer drivers have their files in `hwmonN/`, older ones (and `acpi_power_meter` before Linux
//! 6.13) in `hwmonN/device/` (linux Documentation/hwmon/sysfs-interface.rst). Keeps no file open and never depends on the
//! number in `hwmonN`, which changes between boots and when a driver is loaded again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::sensor_files::{ReadCondition, not_suspended, open_unless_suspended, runtime_status_file};
use super::sysfs_file::{SysfsFile, read_parsed, read_trimmed};

#[derive(Debug, Clone)]
pub struct HwmonChip {
    /// The driver's name: "amdgpu", "xe", "ina3221", "power_meter".
    pub name: String,
    /// The directories of its files.
    dirs: Vec<PathBuf>,
    /// The canonical directory of its device; the chip's own directory if it has none.
    device: PathBuf,
}

/// Lists the chips in the order of their devices, which is stable over reboots.
///
/// # Errors
/// The folder cannot be read.
pub fn list_chips(sysfs_root: &Path) -> io::Result<Vec<HwmonChip>> {
    let mut chips = Vec::new();
    for entry in fs::read_dir(sysfs_root.join("class/hwmon"))? {
        chips.extend(HwmonChip::read(&entry?.path()));
    }
    chips.sort_by(|a, b| (&a.device, &a.name).cmp(&(&b.device, &b.name)));
    Ok(chips)
}

impl HwmonChip {
    /// The chip in `folder`; `None` if there is none.
    pub fn read(folder: &Path) -> Option<HwmonChip> {
        let folders = vec![folder.to_path_buf(), folder.join("device")];
        let name = folders.iter().find_map(|folder| read_trimmed(&folder.join("name")))?;
        let device = [folder.join("device"), folder.to_path_buf()]
            .iter()
            .find_map(|device| fs::canonicalize(device).ok())
            .unwrap_or_else(|| folder.to_path_buf());
        Some(HwmonChip { name, dirs: folders, device })
    }

    /// Opens a file of the chip of `device`, unless the read would wake it: see [`open_unless_suspended`]. After the driver was
    /// loaded again, the file is found by the chip's device and name: another chip may have the number of this one.
    ///
    /// # Errors
    /// The file does not exist, cannot be opened, or contains no number.
    pub fn open_file(&self, name: &str, device: &Path) -> io::Result<SysfsFile> {
        let path = self.find_file(name).ok_or(io::ErrorKind::NotFound)?;
        let (chip, file) = (self.clone(), name.to_owned());
        let locate = move || chip.find_again()?.find_file(&file);
        Ok(open_unless_suspended(path, device)?.relocated_by(locate))
    }

    /// The chip of this name and device under any number.
    fn find_again(&self) -> Option<HwmonChip> {
        let chips = fs::read_dir(self.dirs.first()?.parent()?).ok()?;
        let place = stable_place(&self.device);
        let is_it = |chip: &HwmonChip| chip.name == self.name && stable_place(&chip.device) == place;
        chips.flatten().filter_map(|entry| HwmonChip::read(&entry.path())).find(is_it)
    }

    /// The condition that the chip's device is not suspended, wherever the device is later.
    pub fn not_suspended(&self) -> Option<ReadCondition> {
        let condition = not_suspended(&self.device)?;
        let chip = self.clone();
        let locate = move || Some(runtime_status_file(chip.find_again()?.device()));
        Some(ReadCondition { file: condition.file.relocated_by(locate), ..condition })
    }

    /// The name of the device, which is the same after it was disconnected and connected again at its place.
    pub fn device_name(&self) -> Option<String> {
        let (name, hid) = (self.device.file_name()?.to_string_lossy(), hid_model(&self.device));
        Some(match hid {
            None => name.into_owned(),
            // The interface at a USB port, `1-5:1.0`: two supplies may be of one model.
            Some(model) => match self.device.parent().and_then(Path::file_name) {
                Some(port) => format!("{}/{model}", port.to_string_lossy()),
                None => model.to_owned(),
            },
        })
    }

    /// The path of a file, if it exists.
    pub fn find_file(&self, name: &str) -> Option<PathBuf> {
        self.dirs.iter().map(|folder| folder.join(name)).find(|path| path.exists())
    }

    /// The text of a file.
    pub fn read_text(&self, name: &str) -> Option<String> {
        read_trimmed(&self.find_file(name)?)
    }

    /// The number in a file.
    pub fn read_number(&self, name: &str) -> Option<u64> {
        read_parsed(&self.find_file(name)?)
    }

    /// The PCI address of the device.
    pub fn pci_address(&self) -> Option<String> {
        pci_address(&self.device)
    }

    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The numbers of the channels that have a file `{stem}N_{ending}`, ascending.
    pub fn channel_numbers(&self, stem: &str, ending: &str) -> Vec<u32> {
        let number = |name: &str| -> Option<u32> {
            name.strip_prefix(stem)?.strip_suffix(ending)?.strip_suffix('_')?.parse().ok()
        };
        let mut channels: Vec<u32> = self
            .dirs
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .filter_map(|entry| number(entry.ok()?.file_name().to_str()?))
            .collect();
        channels.sort_unstable();
        channels.dedup();
        channels
    }
}

/// The bus, vendor and product of a HID device at the end of a path: `0003:1B1C:1C07` of `0003:1B1C:1C07.0005`. The number after
/// them grows with each device that is connected (linux drivers/hid/hid-core.c, `hid_add_device`).
fn hid_model(device: &Path) -> Option<&str> {
    let (model, instance) = device.file_name()?.to_str()?.split_once('.')?;
    let is_hex = |part: &str| part.len() >= 4 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    (model.split(':').count() == 3 && model.split(':').all(is_hex) && is_hex(instance)).then_some(model)
}

/// The part of a device's path that stays when it is connected again.
fn stable_place(device: &Path) -> PathBuf {
    hid_model(device).map_or_else(|| device.to_owned(), |model| device.with_file_name(model))
}

/// The address at the end of a device's path, as `0000:03:00.0`.
pub fn pci_address(device: &Path) -> Option<String> {
    let name = device.file_name()?.to_str()?;
    let (bus, function) = name.rsplit_once('.')?;
    let mut parts = bus.split(':');
    let mut hex = |is_length: fn(usize) -> bool| {
        parts.next().is_some_and(|part| is_length(part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let is_byte = |length| length == 2;
    // The domain of a device behind Intel VMD has five digits.
    let sound = hex(|length| length >= 4)
        && hex(is_byte)
        && hex(is_byte)
        && parts.next().is_none()
        && function.parse::<u8>().is_ok();
    sound.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_address_is_distinguished_from_other_names() {
        let address = |path: &str| pci_address(Path::new(path));
        assert_eq!(address("/sys/devices/pci0000:00/0000:03:00.0").as_deref(), Some("0000:03:00.0"));
        assert_eq!(address("/sys/devices/pci0000:00/10000:e1:00.1").as_deref(), Some("10000:e1:00.1"));
        for other in [
            "/sys/devices/platform/ACPI000D:00",
            "/x/1-0040",
            "/x/amdgpu_xcp_1.0",
            "/x/0000:03:00",
            "/x/0003:1B1C:1C07.0005",
        ] {
            assert_eq!(address(other), None, "{other}");
        }
    }

    #[test]
    fn a_hid_device_is_the_same_under_another_instance_number() {
        let place = |path: &str| stable_place(Path::new(path));
        let supply = "/sys/devices/usb1/1-5/1-5:1.0/0003:1B1C:1C07.0005";
        assert_eq!(place(supply), place("/sys/devices/usb1/1-5/1-5:1.0/0003:1B1C:1C07.001A"));
        for other in [
            "/sys/devices/usb1/1-6/1-6:1.0/0003:1B1C:1C07.0005",
            "/sys/devices/usb1/1-5/1-5:1.0/0003:1B1C:1C08.0005",
        ] {
            assert_ne!(place(supply), place(other));
        }
        for kept in ["/sys/devices/pci0000:00/0000:03:00.0", "/sys/devices/platform/coretemp.0", "/x/1-0040"]
        {
            assert_eq!(place(kept), Path::new(kept));
        }
    }

    #[test]
    fn channels_are_found_in_both_layouts_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("device/name", "power_meter\n");
        write("device/power1_average", "5\n");
        write("power10_average", "5\n");
        write("power2_average", "5\n");
        write("power2_average_interval", "5\n");
        let chip = HwmonChip::read(folder.path()).unwrap();
        assert_eq!(
            (chip.name.as_str(), chip.channel_numbers("power", "average")),
            ("power_meter", vec![1, 2, 10])
        );
        assert_eq!(chip.read_number("power1_average"), Some(5));
        assert!(HwmonChip::read(Path::new("/nowhere")).is_none());
    }

    #[test]
    fn a_file_is_found_again_by_device_and_name_when_a_driver_numbers_its_chips_anew() {
        const SECOND: u64 = 1_000_000_000;
        let root = tempfile::tempdir().unwrap();
        let hwmon = root.path().join("class/hwmon");
        let add = |number: u32, device: &str, name: &str, energy: &str| {
            let (chip, device) =
                (hwmon.join(format!("hwmon{number}")), root.path().join("devices").join(device));
            fs::create_dir_all(&device).unwrap();
            fs::create_dir_all(&chip).unwrap();
            std::os::unix::fs::symlink(device, chip.join("device")).unwrap();
            fs::write(chip.join("name"), name).unwrap();
            fs::write(chip.join("energy1_input"), energy).unwrap();
        };
        // A tile and its card have one device.
        add(3, "0000:03:00.0", "i915", "300");
        add(4, "0000:03:00.0", "i915_gt0", "400");
        add(5, "0000:04:00.0", "i915", "500");
        let mut files: Vec<SysfsFile> = list_chips(root.path())
            .unwrap()
            .iter()
            .map(|chip| chip.open_file("energy1_input", chip.device()).unwrap())
            .collect();
        let mut read = |now_ns: u64| -> Vec<Option<u64>> {
            files.iter_mut().map(|file| file.read_number(now_ns)).collect()
        };
        assert_eq!(read(0), [Some(300), Some(400), Some(500)]);
        // A removed file of sysfs can no longer be read; here it becomes empty.
        for number in 3..=5 {
            fs::write(hwmon.join(format!("hwmon{number}/energy1_input")), "").unwrap();
        }
        assert_eq!(read(1), [None; 3]);
        fs::remove_dir_all(&hwmon).unwrap();
        assert_eq!(read(SECOND + 1), [None; 3]);
        add(3, "0000:04:00.0", "i915", "501");
        add(4, "0000:03:00.0", "i915", "301");
        add(9, "0000:03:00.0", "i915_gt0", "401");
        assert_eq!(read(2 * SECOND + 1), [Some(301), Some(401), Some(501)]);
    }
}
