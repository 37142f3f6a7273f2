//! Metrics for Prometheus: totals of domains, and of accounts by model, over HTTP.
//!
//! ```text
//! daemon ─► at each grid instant: GetInfo, GetBalance, ListSpans after N ─► totals ─► state file (fsync) ─► snapshot ─► HTTP
//! ```
//!
//! Invariants: what is shown is on disk before, so that no counter goes back over a kill of this program or of the daemon;
//! the totals and the number of the last account in them are one file, so that no account counts twice; a snapshot changes
//! at grid instants only, however often it is read, because a stream of energy readings is a side channel; no label names a
//! user, a process or a span.

mod http_access;
mod http_server;
mod machine_totals;
mod metric_families;
mod metrics_text;
mod model_histogram;
mod model_labels;
mod model_totals;
mod snapshot;
mod span_group;
mod tls_settings;
pub(crate) mod totals_state;
mod updater;

pub use http_access::{HttpAccess, MetricsAddress, ParseMetricsAddressError, Token};
pub use http_server::MetricsServer;
pub use model_labels::{MAX_MODELS, ModelLabels};
pub use span_group::SpanGroup;
pub use tls_settings::TlsSettings;
pub use updater::{MetricsUpdater, PrometheusError, UpdaterSettings};
