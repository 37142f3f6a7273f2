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
    Ok(())
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
