//! `wattspan doctor --bundle`: a file from which the developers can reproduce this machine.
//!
//! The only command that reads the files of energy interfaces itself; measuring is left to the meter. Invariant: nothing is
//! written before the user agrees, and the file appears under its name only when it is complete.

mod machine_files;
pub(super) mod pseudonyms;
pub(super) mod rendering;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write, stdin};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use wattspan::embedded;
use wattspan_system::private_file;

use super::connect::{MeterOptions, load_config};
use super::exit_status::{CliError, FAILURE, OK, USAGE};
use super::output;
use pseudonyms::{IdentifierKind, Pseudonyms, TextOrigin};

/// Reads per second of the recording. Samplers read a counter whose updates they locate more often.
const RECORDING_RATE_HZ: f64 = 100.0;

/// The options of bundles.
#[derive(Debug, Args)]
pub struct BundleArgs {
    /// Write a bundle for a bug report to a new file: what is needed to reproduce this machine, with pseudonyms for host
    /// name, users, serial numbers and UUIDs
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
    /// Length of the bundle's recording
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "bundle",
          value_parser = clap::value_parser!(u32).range(1..=600))]
    bundle_seconds: u32,
    /// Write the bundle without asking
    #[arg(long, requires = "bundle")]
    yes: bool,
}

/// What is in a bundle.
#[derive(Debug, Serialize)]
struct BundleSummary<'a> {
    bundle: &'a Path,
    files: usize,
    /// Remarks on files that are not part of it.
    left_out: &'a [String],
    domains: &'a [String],
    readings: usize,
    bytes: usize,
}

/// The trace in memory.
#[derive(Debug, Clone, Default)]
struct TraceBuffer(Arc<Mutex<Vec<u8>>>);

impl TraceBuffer {
    fn into_text(self) -> String {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Write for TraceBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a bundle to `path`.
pub fn write_bundle(options: &MeterOptions, args: &BundleArgs, path: &Path) -> Result<u8, CliError> {
    check_request(options, args, path)?;
    let (mut config, notice) = load_config(options)?;
    if let Some(notice) = notice {
        output::eprint_message(&notice);
    }
    output::eprint_message(&format!("recording for {} s", args.bundle_seconds));
    config.rate_hz = RECORDING_RATE_HZ;
    let files = machine_files::collect(&config.source.sysfs_root, &config.source.proc_root);
    let buffer = TraceBuffer::default();
    let duration = Duration::from_secs(args.bundle_seconds.into());
    let unavailable = embedded::record(&config, buffer.clone(), duration)?;

    let mut pseudonyms = known_identifiers(&files);
    let (entries, mut remarks) = rendering::tree_entries(&files, &mut pseudonyms);
    for absent in &unavailable {
        let remark = format!("unavailable {}: {}", absent.source, absent.reason);
        remarks.push(pseudonyms.replace_in(&remark, TextOrigin::Free));
    }
    let domains = rendering::tree_domains(&entries).context("cannot reproduce the machine")?;
    let trace = rendering::render_trace(&buffer.into_text(), &mut pseudonyms)?;
    let text = render_bundle(&domains, &remarks, &rendering::render_tree(&entries), &trace);
    let readings = trace.lines().count().saturating_sub(1);
    let summary = BundleSummary {
        bundle: path,
        files: entries.len(),
        left_out: &remarks,
        domains: &domains,
        readings,
        bytes: text.len(),
    };
    if !args.yes && !ask(&summary)? {
        return Err(CliError::new(FAILURE, "not written"));
    }
    write_new(path, &text).map_err(|cause| write_error(path, &cause))?;
    if options.json {
        output::print_json(&summary)?;
    } else {
        let description = if args.yes { describe(&summary) } else { String::new() };
        output::print_text(&format!("{description}wrote {}\n", path.display()))?;
    }
    Ok(OK)
}

/// Refuses what could only fail after the recording.
fn check_request(options: &MeterOptions, args: &BundleArgs, path: &Path) -> Result<(), CliError> {
    if options.socket.is_some() || options.replay.is_some() {
        let reason = "a bundle is made in this process from this machine's own files";
        return Err(CliError::new(USAGE, format!("{reason}: remove --socket or --replay")));
    }
    if !args.yes && !output::can_ask() {
        let message = "a bundle is written after a question, which needs a terminal: add --yes";
        return Err(CliError::new(USAGE, message));
    }
    if fs::symlink_metadata(path).is_ok() {
        return Err(write_error(path, &io::ErrorKind::AlreadyExists.into()));
    }
    if !parent_dir(path).is_dir() {
        return Err(write_error(path, &io::ErrorKind::NotFound.into()));
    }
    Ok(())
}

fn parent_dir(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_error(path: &Path, cause: &io::Error) -> CliError {
    let remedy = match cause.kind() {
        io::ErrorKind::AlreadyExists => "the file exists; name another file, or remove this one".to_owned(),
        io::ErrorKind::NotFound => "its directory does not exist; create it".to_owned(),
        _ => format!("{cause}; nothing was written"),
    };
    CliError::new(FAILURE, format!("cannot write the bundle {}: {remedy}", path.display()))
}

/// Writes a file that does not exist yet, whole or not at all, for its owner alone.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".wattspan-bundle-").tempfile_in(parent_dir(path))?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    private_file::sync_directory(parent_dir(path))
}

/// Shows what the bundle contains and asks whether to write it.
fn ask(summary: &BundleSummary<'_>) -> Result<bool, CliError> {
    let question = format!("{}write it to {}? [y/N] ", describe(summary), summary.bundle.display());
    output::eprint_text(&question)?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn describe(summary: &BundleSummary<'_>) -> String {
    let BundleSummary { files, left_out, domains, readings, bytes, .. } = summary;
    let mut text = format!(
        "The bundle contains {files} files of energy interfaces, PMUs and driver versions, which show {} domains, and \
         {readings} recorded reads ({} kB). Host name, user names, serial numbers, UUIDs and MAC addresses are replaced by \
         pseudonyms. It is plain text: read it before you publish it.\n",
        domains.len(),
        bytes.div_ceil(1000),
    );
    for remark in left_out.iter().filter(|remark| !remark.starts_with("unavailable")) {
        let _ = writeln!(text, "  {remark}");
    }
    if left_out.iter().any(|remark| remark.starts_with("unreadable")) {
        text += "Run as root to read more: sudo wattspan doctor --bundle FILE\n";
    }
    text
}

fn render_bundle(domains: &[String], remarks: &[String], tree: &str, trace: &str) -> String {
    let mut text = format!(
        "# wattspan bundle 1\n# Written by `wattspan doctor --bundle`, version {}. docs/bundles.md describes the format.\n",
        env!("CARGO_PKG_VERSION")
    );
    for remark in remarks {
        let _ = writeln!(text, "# {}", remark.replace(|c: char| c.is_control(), " "));
    }
    for domain in domains {
        let _ = writeln!(text, "domain {domain}");
    }
    text + tree + trace
}

/// The identifiers of the machine and of its users.
fn known_identifiers(files: &machine_files::MachineFiles) -> Pseudonyms {
    let mut pseudonyms = Pseudonyms::default();
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hosts = std::iter::once((IdentifierKind::Host, node));
    for (kind, text) in files.identifiers.iter().cloned().chain(hosts) {
        pseudonyms.add_known(kind, &text);
        if let (IdentifierKind::Host, Some((name, domain))) = (kind, text.trim().split_once('.')) {
            pseudonyms.add_known(kind, name);
            pseudonyms.add_known(kind, domain);
        }
    }
    for name in user_names() {
        pseudonyms.add_known(IdentifierKind::User, &name);
    }
    pseudonyms
}

/// Login and full names of this user and of all accounts that people use.
fn user_names() -> Vec<String> {
    /// The range of system accounts ends below, that of users without account begins above (login.defs, UID_MIN).
    const PEOPLE: std::ops::Range<u32> = 1000..65_534;
    let mut names: Vec<String> =
        ["USER", "LOGNAME", "SUDO_USER"].into_iter().filter_map(|name| std::env::var(name).ok()).collect();
    // Names of a directory service: DOMAIN\login, login@domain.
    let parts = names.iter().flat_map(|name| name.split(['\\', '@'])).map(String::from);
    names.extend(parts.collect::<Vec<_>>());
    for line in fs::read_to_string("/etc/passwd").unwrap_or_default().lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [login, _, uid, _, full_name, ..] = fields.as_slice() else { continue };
        if uid.parse::<u32>().is_ok_and(|uid| PEOPLE.contains(&uid)) {
            names.push((*login).to_owned());
            names.extend(full_name.split(',').next().map(String::from));
        }
    }
    let homes = fs::read_dir("/home").into_iter().flatten().flatten();
    names.extend(homes.filter_map(|home| home.file_name().into_string().ok()));
    names
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What an attacker looks for, in lower case. The machine states each, or it has the form of an identifier.
    const SECRETS: [&str; 15] = [
        "quetzal-nine",
        "quetzal_nine",
        "quetzalnine",
        "corp.example",
        "zaphod",
        "beeblebrox",
        "zx81serial7",
        "brd-5518-2x",
        "rack17tag",
        "5a5b5c5d5e5f6061",
        "ca:fe:ba:be:00:17",
        "ca-fe-ba-be-00-17",
        "cafebabe0017",
        "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        "zaphod@corp.example",
    ];

    /// One file of each kind that is collected, with a value of its own.
    const COLLECTED: [(&str, &str); 40] = [
        ("sys/devices/virtual/dmi/id/sys_vendor", "Vendor"),
        ("sys/devices/virtual/dmi/id/product_name", "Server"),
        ("sys/devices/virtual/dmi/id/board_vendor", "Vendor"),
        ("sys/devices/virtual/dmi/id/board_name", "Board"),
        ("sys/devices/virtual/dmi/id/bios_vendor", "Vendor"),
        ("sys/devices/virtual/dmi/id/bios_date", "01/02/2026"),
        ("proc/sys/kernel/osrelease", "6.18.1"),
        ("proc/sys/kernel/perf_event_paranoid", "2"),
        ("sys/devices/system/cpu/online", "0-3"),
        ("sys/devices/system/cpu/cpu0/topology/physical_package_id", "0"),
        ("sys/devices/system/cpu/cpu0/topology/die_id", "0"),
        ("sys/class/powercap/intel-rapl:0/name", "package-0"),
        ("sys/class/powercap/intel-rapl:0/energy_uj", "17"),
        ("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "262143328850"),
        ("sys/class/powercap/intel-rapl:0/enabled", "1"),
        ("sys/class/powercap/intel-rapl:0/constraint_0_name", "long_term"),
        ("sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw", "1"),
        ("sys/class/power_supply/BAT0/type", "Battery"),
        ("sys/class/power_supply/BAT0/scope", "System"),
        ("sys/class/power_supply/BAT0/status", "Full"),
        ("sys/class/power_supply/BAT0/technology", "Li-ion"),
        ("sys/class/power_supply/BAT0/manufacturer", "Cells"),
        ("sys/class/power_supply/BAT0/model_name", "Cell"),
        ("sys/class/power_supply/BAT0/energy_now", "5"),
        ("sys/class/hwmon/hwmon0/name", "chip"),
        ("sys/class/hwmon/hwmon0/update_interval", "5"),
        ("sys/class/hwmon/hwmon0/power1_label", "rail"),
        ("sys/class/hwmon/hwmon0/power1_oem_info", "rail"),
        ("sys/class/hwmon/hwmon0/power1_model_number", "rail"),
        ("sys/class/hwmon/hwmon0/power1_accuracy", "99%"),
        ("sys/class/hwmon/hwmon0/in1_input", "5"),
        ("sys/class/drm/card0/device/vendor", "0x1002"),
        ("sys/class/drm/card0/device/device", "0x744c"),
        ("sys/class/drm/card0/device/revision", "0xc8"),
        ("sys/class/drm/card0/device/subsystem_vendor", "0x1da2"),
        ("sys/bus/event_source/devices/power/type", "24"),
        ("sys/bus/event_source/devices/power/events/energy-pkg", "event=0x02"),
        ("sys/bus/event_source/devices/power/events/energy-pkg.scale", "1e-10"),
        ("sys/bus/event_source/devices/power/format/event", "config:0-7"),
        ("sys/module/nvidia/version", "570.86"),
    ];

    fn write(root: &Path, path: &str, text: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn state_identifiers(root: &Path) {
        for (path, text) in [
            ("proc/sys/kernel/hostname", "Quetzal-Nine"),
            ("proc/sys/kernel/domainname", "corp.example"),
            ("sys/devices/virtual/dmi/id/product_serial", "ZX81SERIAL7"),
            ("sys/devices/virtual/dmi/id/board_serial", "BRD-5518-2X"),
            ("sys/devices/virtual/dmi/id/chassis_asset_tag", "Rack17Tag"),
            ("sys/class/drm/card0/device/unique_id", "5a5b5c5d5e5f6061"),
            ("sys/class/net/eth0/address", "ca:fe:ba:be:00:17"),
        ] {
            write(root, path, text.as_bytes());
        }
    }

    fn bundle_of(root: &Path) -> String {
        let files = machine_files::collect(&root.join("sys"), &root.join("proc"));
        let mut pseudonyms = known_identifiers(&files);
        for name in ["zaphod", "Zaphod Beeblebrox", "Beeblebrox"] {
            pseudonyms.add_known(IdentifierKind::User, name);
        }
        let (entries, remarks) = rendering::tree_entries(&files, &mut pseudonyms);
        remarks.join("\n") + "\n" + &rendering::render_tree(&entries)
    }

    fn leaked(text: &str) -> Vec<&'static str> {
        let lower = text.to_lowercase();
        SECRETS.into_iter().filter(|secret| lower.contains(secret)).collect()
    }

    #[test]
    fn no_identifier_planted_in_any_collected_file_or_directory_is_in_the_bundle() {
        let root = tempfile::tempdir().unwrap();
        state_identifiers(root.path());
        let planted = SECRETS.join(" ") + " (" + &SECRETS.join("),x=").to_uppercase() + ")";
        for (path, text) in COLLECTED {
            write(root.path(), path, format!("{text} {planted}\n").as_bytes());
        }
        let cpuinfo = format!("processor\t: 0\nmodel name\t: Xeon {planted}\nflags\t\t: fpu {planted}\n");
        write(root.path(), "proc/cpuinfo", cpuinfo.as_bytes());
        let chip = "sys/class/hwmon/hwmon7_ZX81SERIAL7_Zaphod";
        write(root.path(), &format!("{chip}/name"), b"chip");
        let text = bundle_of(root.path());
        assert_eq!(leaked(&text), Vec::<&str>::new(), "{text}");
        // Each file is in the bundle, so each was searched.
        let shown: BTreeSet<&str> = text.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
        for (path, _) in COLLECTED.iter().chain([&("proc/cpuinfo", "")]) {
            assert!(shown.contains(path), "{path} is not in {shown:?}");
        }
        // The check itself finds a leak.
        assert_eq!(leaked("label of ZAPHOD"), ["zaphod"]);
    }

    #[test]
    fn a_table_that_contains_an_identifier_in_any_form_is_left_out() {
        let id = 0x5a5b_5c5d_5e5f_6061_u64;
        let forms: [&[u8]; 4] = [b"5A5B5C5D5E5F6061", &id.to_le_bytes(), &id.to_be_bytes(), b"zx81serial7"];
        for form in forms {
            let root = tempfile::tempdir().unwrap();
            state_identifiers(root.path());
            let table = [&[120, 0, 1, 3][..], form, &[0; 8]].concat();
            write(root.path(), "sys/class/drm/card0/device/gpu_metrics", &table);
            let text = bundle_of(root.path());
            assert!(!text.contains("gpu_metrics =hex") && text.contains("left out"), "{form:?}: {text}");
        }
        let root = tempfile::tempdir().unwrap();
        state_identifiers(root.path());
        write(root.path(), "sys/class/drm/card0/device/gpu_metrics", &[120, 0, 1, 3, 5, 6, 7]);
        assert!(bundle_of(root.path()).contains("gpu_metrics =hex 78000103050607"));
    }
}
