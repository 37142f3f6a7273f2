//! The command line of `wattspand`.
//!
//! Help, completions and the man page are generated from [`Flags`]; its doc comments are their texts. A flag
//! overrides the configuration files.

use std::path::PathBuf;

/// The options of the command line.
#[derive(Debug, Clone, Default, clap::Parser)]
#[command(name = "wattspand", version, about = "Measure this machine's energy and attribute it to spans")]
pub struct Flags {
    /// Read this file instead of /etc/wattspan/wattspan.toml and wattspan.toml.d/*.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Listen on this Unix socket
    #[arg(long, value_name = "PATH", env = "WATTSPAN_SOCKET", hide_env_values = true)]
    pub socket: Option<PathBuf>,
    /// Store accounts and other persistent data in this directory
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Read this directory instead of /sys
    #[arg(long, value_name = "DIR")]
    pub sysfs_root: Option<PathBuf>,
    /// Read this directory instead of /proc
    #[arg(long, value_name = "DIR")]
    pub proc_root: Option<PathBuf>,
    /// Load this file instead of the system's NVML library
    #[arg(long, value_name = "FILE")]
    pub nvml_library: Option<PathBuf>,
    /// Readings per second while spans are open
    #[arg(long, value_name = "HZ")]
    pub rate_hz: Option<f64>,
    /// Readings per second while no span is open
    #[arg(long, value_name = "HZ")]
    pub idle_rate_hz: Option<f64>,
    /// Record all readings to this file, for --replay
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Measure this trace or scripted machine instead of the real one
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// Check the configuration, print the resulting settings, and exit
    #[arg(long)]
    pub check: bool,
}
