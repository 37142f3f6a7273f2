//! Attribution: splits the energy of each domain among the open spans.
//!
//! Owns the spans, the splitting rule and the accounts. Pure: knows no hardware, no clock, no IPC; time comes in as
//! arguments, so that every test can say what time it is. Invariants: for every domain
//! `measured = attributed + unattributed`, exactly; an account depends on the edges it states and not on the order in
//! which their messages came within the horizon; what is settled never changes. An open or a close costs the same
//! however many spans are open.

pub mod account;
pub mod footprint;

mod account_builder;
mod attributor;
mod domain_timeline;
mod edge_commit;
mod edge_pre_pass;
mod edge_queue;
mod error_bounds;
mod idle_power;
mod interpolator;
mod power_shape;
mod process_share;
mod request;
mod span;
mod units;
mod update_detector;
mod usage_history;
mod virtual_energy;
mod weight_history;

pub use account_builder::SettledSpan;
pub use attributor::{Attributor, MAX_DOMAINS};
pub use process_share::CPU_TIME;
pub use request::{
    AttributionError, AttributionSettings, BasisUsageSample, NewSpan, SpanKey, Subject, SubjectUsage,
};
