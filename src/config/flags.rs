//! The command line of `wattspand`.
//!
//! Help, completions and the man page are generated from [`Flags`]; its doc comments are their texts. A flag
//! overrides the configuration files.

use std::path::PathBuf;

/// What the command line says.
#[derive(Debug, Clone, Default, clap::Parser)]
#[command(
    name = "wattspand",
    version,
    about = "Measures this machine's energy and accounts for it, span by span"
)]
pub struct Flags {
    /// Read this file instead of /etc/wattspan/wattspan.toml and wattspan.toml.d/*.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Listen here
    #[arg(long, value_name = "PATH", env = "WATTSPAN_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Keep what must last here
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where the kernel's /sys is
    #[arg(long, value_name = "DIR")]
    pub sysfs_root: Option<PathBuf>,
    /// Where the kernel's /proc is
    #[arg(long, value_name = "DIR")]
    pub proc_root: Option<PathBuf>,
    /// Load this instead of the system's NVML library
    #[arg(long, value_name = "FILE")]
    pub nvml_library: Option<PathBuf>,
    /// Readings a second while spans are open
    #[arg(long, value_name = "HZ")]
    pub rate_hz: Option<f64>,
    /// Readings a second otherwise
    #[arg(long, value_name = "HZ")]
    pub idle_rate_hz: Option<f64>,
    /// Write what the sources say to this file, to be replayed later
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Measure this trace or scripted machine instead of the real one
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// Check the configuration, print what it comes to, and stop
    #[arg(long)]
    pub check: bool,
}
