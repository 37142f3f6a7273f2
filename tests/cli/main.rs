//! The program `wattspan`: its commands, output and exit statuses, and the files that both programs write.

#[path = "../support/programs.rs"]
mod programs;
#[path = "../support/mod.rs"]
mod support;

mod commands;
mod private_files;
mod top;
