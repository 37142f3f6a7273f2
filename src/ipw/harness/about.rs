//! What results of the harness were made with.
//!
//! Owns the grade that an energy of the harness deserves, by the vendor it names: it has one scalar for the whole machine,
//! and says nothing of how far it can be trusted. An unknown vendor has no grade.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::super::run_dir::{Manifest, VERSION};
use super::super::scope::Meter;
use super::findings::Findings;
use super::{Gpu, Kept, Summary};
use crate::domain::{Grade, Kind};

/// What the harness metered there, and how: it has one scalar for the whole machine.
pub fn meter_of(gpu: &Gpu) -> Option<(Meter, &'static str)> {
    let (kind, grade, words) = match gpu.vendor.to_ascii_lowercase().as_str() {
        "nvidia" => (
            Kind::Gpu,
            Grade::Measured,
            "measured (NVML's energy counter, all cards together; no CPU and no memory)",
        ),
        "amd" => {
            (Kind::Gpu, Grade::Integrated, "integrated (power readings times time; no CPU and no memory)")
        }
        "apple" => (Kind::Soc, Grade::Integrated, "integrated (powermetrics' modelled power times time)"),
        _ => return None,
    };
    let device = Some(gpu.name.clone()).filter(|name| !name.is_empty());
    let name = if kind == Kind::Gpu { "gpu-all" } else { "soc" };
    let (name, source) = (name.to_owned(), format!("intelligence-per-watt, {}", gpu.backend));
    let meter =
        Meter { name, kind, source, device, parent: None, counted: true, grade, update_interval_ns: None };
    Some((meter, words))
}

/// What the run was, as far as the harness tells.
pub fn manifest(source: &Path, summary: &Summary, findings: &Findings) -> Manifest {
    let mut settings = BTreeMap::from([
        ("imported from".to_owned(), format!("{} (the public harness)", source.display())),
        ("missing or wrong".to_owned(), findings.sentences().join("; ")),
    ]);
    if let Some(scope) = &summary.energy_scope {
        settings.insert("scope of its energies".into(), scope.clone());
    }
    let system = summary.system_info.clone().unwrap_or_default();
    let card = summary.gpu_info.clone().unwrap_or_default().name;
    let words = [
        system.os_name,
        system.kernel_version,
        system.cpu_brand,
        card,
        summary.hardware_label.clone().unwrap_or_default(),
    ];
    let words: Vec<String> =
        words.into_iter().filter(|word| !word.is_empty() && word != "Unknown CPU").collect();
    Manifest {
        version: VERSION,
        settings,
        questions: summary.dataset_name.clone().or_else(|| summary.dataset.clone()).unwrap_or_default(),
        machine: words.join(", "),
        meter: "intelligence-per-watt's energy-monitor".into(),
        idle: "unknown".into(),
        began_unix_ns: (summary.generated_at.unwrap_or(0.0) * 1e9) as u64,
        ..Manifest::default()
    }
}

/// What we kept in the metadata, if the records are ours.
pub fn kept(metadata: &Value) -> Kept {
    let parsed = match metadata {
        Value::String(text) => serde_json::from_str::<Value>(text).unwrap_or_default(),
        other => other.clone(),
    };
    let ours = parsed.get("wattspan").cloned().unwrap_or_default();
    serde_json::from_value(ours).unwrap_or_default()
}
