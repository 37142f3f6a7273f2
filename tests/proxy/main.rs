//! `wattspan proxy` between clients and a stub of an inference server.

#[path = "../support/ground_truth.rs"]
mod ground_truth;
#[path = "../http_stub/mod.rs"]
mod http_stub;
#[cfg(target_os = "linux")]
#[path = "../other_user/mod.rs"]
mod other_user;
#[path = "../support/programs.rs"]
mod programs;
#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
mod access;
#[cfg(target_os = "linux")]
mod burst;
mod bytes;
mod connections;
mod fixture;
mod framing;
mod hostile;
mod hostile_mix;
#[cfg(target_os = "linux")]
mod limits;
mod spans;
mod versions;
