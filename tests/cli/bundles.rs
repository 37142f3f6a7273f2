//! `wattspan doctor --bundle` on a tree that shows identifiers wherever a kernel shows them.

use crate::bundle;
use crate::programs;
use crate::support::skip::skip;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What must not be in the bundle, in lower case.
const IDENTIFIERS: &[&str] = &[
    "wonder-land",
    "wonder_land",
    "wonderland",
    "example.org",
    "alice",
    "liddell",
    "mad.hatter",
    "sn-7f3k2",
    "sn7f3k2",
    "brd55182x",
    "chs99123a",
    "asset-4711",
    "bat0815xy",
    "psuser12345",
    "psu77665544",
    "4c4c4544",
    "b04d58393432",
    "123e4567",
    "0123456789abcdef",
    "aa:bb:cc:dd:ee:0f",
    "aa-bb-cc-dd-ee-0f",
    "aabbccddee0f",
    "aa_bb_cc_dd_ee_0f",
    "00-11-22-33-44-55-66-77",
    "feedfacecafe1234",
    "10000000deadbeef",
    "mouse4242ab",
];

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        machine.file("proc/sys/kernel/hostname", "Wonder-Land");
        machine.file("proc/sys/kernel/domainname", "example.org");
        machine.file("proc/sys/kernel/random/boot_id", "123e4567-e89b-12d3-a456-426614174000");
        machine.file("proc/sys/kernel/osrelease", "6.12.1-wonder-land+alice");
        machine.file("proc/version", "Linux (mad.hatter@wonder-land) #1");
        machine.file("proc/cmdline", "root=UUID=123e4567-e89b-12d3-a456-426614174000 user=alice");
        machine.file("proc/device-tree/serial-number", "10000000deadbeef\0");
        machine.file(
            "proc/cpuinfo",
            "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\nmodel name\t: Xeon of alice\n\
             flags\t\t: fpu\nSerial\t\t: 10000000deadbeef\n\nprocessor\t: 1\n",
        );
        machine.add_identification();
        machine.add_rapl();
        machine.add_sensors();
        machine.add_card();
        let config = "[source]\nsysfs_root = \"ROOT/sys\"\nproc_root = \"ROOT/proc\"\n\
                      enabled = [\"powercap\", \"amdgpu\", \"intelgpu\", \"hwmon\", \"battery\"]\n";
        machine.file("config.toml", &config.replace("ROOT", machine.dir.path().to_str().unwrap()));
        machine
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(self.dir.path().join(target), path).unwrap();
    }

    fn add_identification(&self) {
        let dmi = "sys/devices/virtual/dmi/id";
        for (name, text) in [
            ("sys_vendor", "Vendor"),
            ("product_name", "Server 9000 of Wonder-Land"),
            ("product_serial", "SN-7F3K2"),
            ("product_uuid", "4c4c4544-0042-3510-8058-b04d58393432"),
            ("board_serial", "BRD55182X"),
            ("board_name", "Board SN7F3K2"),
            ("chassis_serial", "CHS99123A"),
            ("chassis_asset_tag", "Asset-4711"),
        ] {
            self.file(&format!("{dmi}/{name}"), text);
        }
        self.file("sys/class/net/eth0/address", "aa:bb:cc:dd:ee:0f");
    }

    fn add_rapl(&self) {
        for (id, name) in [("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "dram")] {
            let zone = format!("sys/devices/virtual/powercap/intel-rapl/{id}");
            self.file(&format!("{zone}/name"), name);
            self.file(&format!("{zone}/max_energy_range_uj"), "262143328850");
            self.file(&format!("{zone}/energy_uj"), "12345678");
            self.file(&format!("{zone}/uevent"), "OWNER=alice");
            self.link(&format!("sys/class/powercap/{id}"), &zone);
        }
        // Cannot be read, for root either.
        fs::create_dir_all(
            self.dir.path().join("sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw"),
        )
        .unwrap();
        for cpu in 0..2 {
            self.file(&format!("sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"), "0");
        }
        let pmu = "sys/devices/power";
        self.file(&format!("{pmu}/type"), "24");
        self.file(&format!("{pmu}/cpumask"), "0");
        self.file(&format!("{pmu}/events/energy-pkg"), "event=0x02");
        self.file(&format!("{pmu}/events/energy-pkg.scale"), "2.3283064365386962890625e-10");
        self.file(&format!("{pmu}/events/energy-pkg.unit"), "Joules");
        self.file(&format!("{pmu}/format/event"), "config:0-7");
        self.link("sys/bus/event_source/devices/power", pmu);
        self.file("sys/module/amdgpu/version", "6.8.5");
    }

    fn add_sensors(&self) {
        let board = "sys/devices/platform/AABBCCDDEE0F";
        let chip = format!("{board}/hwmon/hwmon0");
        self.file(&format!("{chip}/name"), "ina3221");
        for (channel, label) in [(1, "VDD_IN Alice Liddell"), (2, "PSU77665544 mad.hatter@example.org")] {
            self.file(&format!("{chip}/in{channel}_label"), label);
            self.file(&format!("{chip}/in{channel}_input"), "12000");
            self.file(&format!("{chip}/curr{channel}_input"), "500");
        }
        self.link(&format!("{chip}/device"), board);
        self.link("sys/class/hwmon/hwmon0", &chip);
        let meter = "sys/class/hwmon/hwmon1/device";
        self.file(&format!("{meter}/name"), "power_meter");
        self.file(&format!("{meter}/power1_average"), "60000000");
        self.file(&format!("{meter}/power1_oem_info"), "Rack 00-11-22-33-44-55-66-77 wonder_land");
        self.file(&format!("{meter}/power1_serial_number"), "PSUSER12345");
        self.file(&format!("{meter}/power1_model_number"), "Model PSUSER12345");
        let battery = "sys/class/power_supply/BAT0";
        for (name, text) in [
            ("type", "Battery"),
            ("status", "Discharging"),
            ("power_now", "9000000"),
            ("serial_number", "BAT0815XY"),
            ("model_name", "Cell BAT0815XY"),
            ("manufacturer", "alice's shop"),
        ] {
            self.file(&format!("{battery}/{name}"), text);
        }
        let mouse = "sys/class/power_supply/hid-MOUSE4242AB-battery";
        self.file(&format!("{mouse}/type"), "Battery");
        self.file(&format!("{mouse}/scope"), "Device");
        self.file(&format!("{mouse}/hwmon2/name"), "hid_MOUSE4242AB_battery");
        self.file(&format!("{mouse}/hwmon2/in1_input"), "4000");
        self.link(&format!("{mouse}/hwmon2/device"), mouse);
        self.link("sys/class/hwmon/hwmon2", &format!("{mouse}/hwmon2"));
        self.file("sys/class/power_supply/hid-aa:bb:cc:dd:ee:0f-battery/type", "Battery");
    }

    fn add_card(&self) {
        let device = "sys/devices/pci0000:00/0000:03:00.0";
        self.file(&format!("{device}/vendor"), "0x1002");
        self.file(&format!("{device}/unique_id"), "feedfacecafe1234");
        self.file(&format!("{device}/serial_number"), "0123456789abcdef");
        self.file(&format!("{device}/gpu_metrics"), "table with PSUSER12345 and alice");
        self.file(&format!("{device}/hwmon/hwmon3/name"), "amdgpu");
        self.file(&format!("{device}/hwmon/hwmon3/power1_average"), "30000000");
        self.file(&format!("{device}/hwmon/hwmon3/power1_label"), "slowPPT feedfacecafe1234");
        self.link(&format!("{device}/hwmon/hwmon3/device"), device);
        self.link("sys/class/hwmon/hwmon3", &format!("{device}/hwmon/hwmon3"));
        self.link("sys/class/drm/card0/device", device);
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("machine.bundle")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(programs::wattspan());
        command.env_remove("WATTSPAN_SOCKET").env("USER", "alice").env("SUDO_USER", "mad.hatter");
        command.env("LOGNAME", "Liddell").stdin(Stdio::null());
        command.arg("--config").arg(self.dir.path().join("config.toml"));
        command.args(["doctor", "--bundle-seconds", "1", "--bundle"]).arg(self.bundle()).args(words);
        command
    }

    fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// The names in the directory of the bundle.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn error_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_anonymous(text: &str) {
    let lower = text.to_lowercase();
    for identifier in IDENTIFIERS {
        let line = lower.lines().find(|line| line.contains(identifier));
        assert!(line.is_none(), "{identifier} is in {line:?}");
    }
}

#[test]
fn a_bundle_reproduces_the_machine_and_does_not_identify_it() {
    let machine = Machine::new();
    let output = machine.output(&["--yes"]);
    assert!(output.status.success(), "{}", error_text(&output));
    let text = fs::read_to_string(machine.bundle()).unwrap();
    assert_anonymous(&text);
    assert_eq!(fs::metadata(machine.bundle()).unwrap().permissions().mode() & 0o777, 0o600);
    let domains = bundle::check(&machine.bundle());
    // The fixture tests/fixtures/machines/made-up.bundle is such a file.
    fs::copy(machine.bundle(), Path::new(env!("CARGO_TARGET_TMPDIR")).join("made-up.bundle")).unwrap();
    for start in ["package-0 package - counted", "dram-0 dram ", "battery-0 battery "] {
        assert!(domains.iter().any(|domain| domain.starts_with(start)), "{start} is not in {domains:?}");
    }
    for line in [
        "sys/devices/virtual/powercap/intel-rapl/intel-rapl:0/energy_uj = 12345678",
        "sys/devices/power/events/energy-pkg.scale = 2.3283064365386962890625e-10",
        "sys/class/power_supply/BAT0/power_now = 9000000",
        "sys/module/amdgpu/version = 6.8.5",
        "sys/devices/pci0000:00/0000:03:00.0/unique_id = serial-",
        "trace {",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line} is not in\n{text}");
    }
    assert!(text.contains("# unreadable") && error_text(&output).contains("recording for 1 s"), "{text}");
    // The same identifier has the same pseudonym: the card's, and that in the label of its sensor.
    let pseudonym = |file: &str| {
        let line = text.lines().find(|line| line.contains(file)).unwrap();
        line.rsplit_once("serial-").unwrap().1.to_owned()
    };
    assert_eq!(pseudonym("/unique_id"), pseudonym("hwmon3/power1_label"));
    assert_ne!(pseudonym("/unique_id"), pseudonym("/power1_model_number"));
}

#[test]
fn nothing_is_written_without_consent() {
    let machine = Machine::new();
    let before = machine.names();
    let output = machine.output(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error_text(&output).contains("add --yes"), "{}", error_text(&output));
    assert_eq!(machine.names(), before);
}

/// The program on a terminal on which `answer` is typed.
fn on_a_terminal(machine: &Machine, answer: &str) -> Output {
    let command = machine.command(&[]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut script = Command::new("script");
    script.args(["-qec", &words.join(" "), "/dev/null"]).env_remove("WATTSPAN_SOCKET");
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn on_a_terminal_the_user_is_asked() {
    if Command::new("script").arg("--version").output().is_err() {
        skip("script", "install util-linux");
        return;
    }
    let machine = Machine::new();
    let before = machine.names();
    let refused = on_a_terminal(&machine, "n\n");
    let shown = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(shown.contains("[y/N]") && shown.contains("not written"), "{shown}");
    assert_eq!((refused.status.code(), machine.names()), (Some(1), before));
    let agreed = on_a_terminal(&machine, "y\n");
    assert!(agreed.status.success(), "{}", String::from_utf8_lossy(&agreed.stdout));
    bundle::check(&machine.bundle());
}

#[test]
fn an_existing_file_or_link_is_kept() {
    let machine = Machine::new();
    fs::write(machine.bundle(), "kept").unwrap();
    let output = machine.output(&["--yes"]);
    assert!(error_text(&output).contains("the file exists"), "{}", error_text(&output));
    assert_eq!(
        (output.status.code(), fs::read_to_string(machine.bundle()).unwrap()),
        (Some(1), "kept".into())
    );
    fs::remove_file(machine.bundle()).unwrap();
    symlink("precious", machine.bundle()).unwrap();
    assert_eq!(machine.output(&["--yes"]).status.code(), Some(1));
    assert!(!machine.dir.path().join("precious").exists());
}

#[test]
fn a_full_disk_leaves_no_part_of_a_bundle() {
    let machine = Machine::new();
    let before = machine.names();
    let command = machine.command(&["--yes"]);
    let mut limited = Command::new("sh");
    // Every file of the tree is small; the bundle is larger than one block.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""]).arg(command.get_program());
    limited.args(command.get_args()).env_remove("WATTSPAN_SOCKET").stdin(Stdio::null());
    let output = limited.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error_text(&output).contains("nothing was written"), "{}", error_text(&output));
    assert_eq!(machine.names(), before);
}

#[test]
fn a_missing_directory_is_named_before_the_recording() {
    let machine = Machine::new();
    let missing = Path::new("/nowhere/machine.bundle");
    let mut command = Command::new(programs::wattspan());
    let output = command.args(["doctor", "--yes", "--bundle"]).arg(missing).output().unwrap();
    let text = error_text(&output);
    assert!(text.contains("directory does not exist") && !text.contains("recording for"), "{text}");
    let replayed = machine.output(&["--yes", "--replay", "/nowhere/machine.toml"]);
    assert_eq!(replayed.status.code(), Some(2));
}
