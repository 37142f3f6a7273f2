//! Provenance of the harness's results.
//!
//! Derives the grade of the energies from the accelerator's vendor, since the harness has one value for the whole
//! machine and no quality information. An unknown vendor has no grade.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use wattspan_client::domain::{DomainKind, Grade};

use super::super::run_dir::{FORMAT_VERSION, Manifest};
use super::super::scope::RunDomain;
use super::findings::ImportFindings;
use super::{GpuInfo, HarnessSummary, WattspanMetadata};

/// Returns the domain that the harness measured, and a description of the mechanism.
pub fn metered_domain(gpu: &GpuInfo) -> Option<(RunDomain, &'static str)> {
    let (kind, grade, description) = match gpu.vendor.to_ascii_lowercase().as_str() {
        "nvidia" => (
            DomainKind::Gpu,
            Grade::Measured,
            "measured (NVML's energy counter, all cards together; no CPU and no memory)",
        ),
        "amd" => (
            DomainKind::Gpu,
            Grade::Integrated,
            "integrated (power readings times time; no CPU and no memory)",
        ),
        "apple" => {
            (DomainKind::Soc, Grade::Integrated, "integrated (powermetrics' modelled power times time)")
        }
        _ => return None,
    };
    let device = Some(gpu.name.clone()).filter(|name| !name.is_empty());
    let name = if kind == DomainKind::Gpu { "gpu-all" } else { "soc" };
    let (name, source) = (name.to_owned(), format!("intelligence-per-watt, {}", gpu.backend));
    let domain = RunDomain {
        name,
        kind,
        source,
        device,
        parent: None,
        counted: true,
        grade,
        update_interval_ns: None,
    };
    Some((domain, description))
}

/// Builds the manifest of an imported run.
pub fn import_manifest(source: &Path, summary: &HarnessSummary, findings: &ImportFindings) -> Manifest {
    let mut settings = BTreeMap::from([
        ("imported from".to_owned(), format!("{} (the public harness)", source.display())),
        ("missing or wrong".to_owned(), findings.sentences().join("; ")),
    ]);
    if let Some(scope) = &summary.energy_scope {
        settings.insert("scope of its energies".into(), scope.clone());
    }
    if !summary.versions.is_empty() {
        let version = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let all = summary.versions.iter().map(|(name, value)| format!("{name} {}", version(value)));
        settings.insert("versions".into(), all.collect::<Vec<_>>().join(", "));
    }
    let system = summary.system_info.clone().unwrap_or_default();
    let card = summary.gpu_info.clone().unwrap_or_default().name;
    let parts = [
        system.os_name,
        system.kernel_version,
        system.cpu_brand,
        card,
        summary.hardware_label.clone().unwrap_or_default(),
    ];
    let parts: Vec<String> =
        parts.into_iter().filter(|word| !word.is_empty() && word != "Unknown CPU").collect();
    Manifest {
        version: FORMAT_VERSION,
        settings,
        questions: summary.dataset_name.clone().or_else(|| summary.dataset.clone()).unwrap_or_default(),
        machine: parts.join(", "),
        meter: "intelligence-per-watt's energy-monitor".into(),
        idle: "unknown".into(),
        began_unix_ns: (summary.generated_at.unwrap_or(0.0) * 1e9) as u64,
        ..Manifest::default()
    }
}

/// Returns the metadata of our own exports, or defaults for other records.
pub fn wattspan_metadata(metadata: &Value) -> WattspanMetadata {
    let parsed = match metadata {
        Value::String(text) => serde_json::from_str::<Value>(text).unwrap_or_default(),
        other => other.clone(),
    };
    let extension = parsed.get("wattspan").cloned().unwrap_or_default();
    serde_json::from_value(extension).unwrap_or_default()
}
