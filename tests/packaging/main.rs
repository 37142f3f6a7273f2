//! What is installed: documented commands, the default configuration, the service on macOS.

mod default_configuration;
mod documented_commands;
mod documented_tests;
mod help_texts;
#[cfg(target_os = "linux")]
mod launchd;
mod public_items;
mod service_units;
mod toolchain;
