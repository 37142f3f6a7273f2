//! The configuration of the daemon, and the directories of the system.

mod config_error;
mod daemon_config;
mod flags;
mod getgrnam_ffi;
mod group_membership;
mod section;
mod system_dirs;
mod trusted_path;

pub use config_error::ConfigError;
pub use daemon_config::{Config, ConfigChange};
pub use flags::Flags;
pub use getgrnam_ffi::gid_by_name;
pub use group_membership::{group_exists, join_commands, missing_group_warnings};
pub use section::{AccessGroups, DbusConfig, Limits, SourceConfig, StoreConfig, SyncConfig};
pub use system_dirs::{default_state_dir, is_system_daemon, listen_paths};
pub use trusted_path::{AcceptedOwner, UntrustedPathError};
