//! Intelligence per watt: what a model's right answers cost in power and energy.
//!
//! Owns the questions, the rows that answers become, the scores, and the figures over them: IPW = mean accuracy / mean
//! power of the machine while a query was open, IPJ = mean accuracy / mean energy that is attributed to a query
//! (*Intelligence per Watt*, arXiv 2511.07885). An ordinary client of the daemon. Invariant: a figure never goes without its grade, its scope, its idle policy, what it covers
//! and its interval; a query that failed is a row with its error, and never a wrong answer that was cheap.

mod account_result;
pub mod bootstrap;
pub mod chunks;
pub mod columns;
pub mod compare;
pub mod distribution;
pub mod extract;
mod fnv;
pub mod harness;
pub mod judge;
pub mod llm_api;
pub mod metering_thread;
pub mod metrics;
pub mod number;
pub mod power_series;
pub mod query;
pub mod question;
pub mod regression;
pub mod report;
pub mod route;
pub mod row;
pub mod run;
pub mod run_dir;
pub mod run_settings;
pub mod scope;
pub mod table;
