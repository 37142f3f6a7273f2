//! Attribution: splits the energy of each domain among the open spans.
//!
//! Pure: no hardware, no clock, no IPC; times are arguments. Invariants: for every domain `measured = attributed +
//! unattributed`, exactly; an account depends on its edges, not on the order of their messages within the horizon; a
//! settled account never changes. The cost of an opening or a closing does not depend on the number of open spans.

mod account_builder;
mod attributor;
mod domain_timeline;
mod edge_commit;
mod edge_queue;
mod error_bounds;
pub(crate) mod footprint;
mod idle_power;
mod power_shape;
mod process_history;
mod process_share;
mod request;
mod span;
mod update_detector;
mod virtual_energy;

pub use account_builder::SettledSpan;
pub(crate) use account_builder::{ShareBasis, extend_account};
pub use attributor::{Attributor, DomainInputs, MAX_DOMAINS};
pub use process_share::CPU_TIME;
pub use request::{
    AttributionError, AttributionSettings, BasisUsageSample, NewSpan, SpanKey, Subject, SubjectUsage,
};
pub use update_detector::ExpectedUpdates;
pub(crate) use virtual_energy::DomainClock;
