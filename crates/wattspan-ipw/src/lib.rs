//! Intelligence per watt: accuracy of a model's answers per unit of power and energy.
//!
//! Holds the questions, the rows of a run, scoring, and the figures: IPW = mean accuracy / mean power of the machine
//! while a query was open, IPJ = mean accuracy / mean energy attributed to a query (*Intelligence per Watt*, arXiv
//! 2511.07885). This module is an ordinary client of the daemon. Invariant: a figure always carries its grade, scope,
//! idle policy, coverage and interval; a failed query that reached the server is a wrong answer with all its energy.

#![warn(clippy::unwrap_used)]

mod account_result;
pub mod answer_format;
pub mod bootstrap;
pub mod card;
pub mod columns;
pub mod compare;
pub mod conditions;
pub mod decisions;
pub mod estimates;
pub mod evaluator;
pub mod external_scorer;
pub mod extract;
pub mod harness;
pub mod intervals;
pub mod judge;
pub mod llm_api;
mod meter_error;
pub mod metering_thread;
pub mod metrics;
pub mod paired_intervals;
pub mod power_series;
pub mod query;
pub mod question;
pub mod question_sets;
pub mod report;
pub mod route;
pub mod row;
mod row_sync;
pub mod run;
pub mod run_dir;
pub mod run_settings;
pub mod saving_intervals;
pub mod scope;
pub mod statistics;
pub mod steady_state;
mod student;
pub mod sweep;
pub mod table;
