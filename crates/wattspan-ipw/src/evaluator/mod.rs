//! Results of evaluators as a run: inspect-ai and lm-evaluation-harness score hundreds of question sets.
//!
//! A reader turns an evaluator's files into an [`evaluation::Evaluation`], and [`import`] writes it as a run. Invariants:
//! each score is the evaluator's own, never one of this project's rules; an energy is that of the daemon's accounts; a
//! sample without one of them states why. The files may come from anywhere, so that their sizes are limited.

pub mod account_join;
pub mod evaluation;
pub mod import;
mod inspect_archive;
pub mod inspect_log;
mod inspect_sample;
mod inspect_spec;
pub mod lm_eval_results;
mod score_value;
