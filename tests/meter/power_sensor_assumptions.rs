//! What is assumed about power sensors: the time over which they average, and the part of the time that they observe.

use crate::fake::FakeSysfs;
use crate::fake_nvml::{Knob, Library};
use wattspan::config::Config;
use wattspan::embedded::EmbeddedMeter;
use wattspan_client::protocol::DomainStatus;

const MS: u64 = 1_000_000;

fn statuses(config: &Config) -> Vec<DomainStatus> {
    EmbeddedMeter::start(config).unwrap().connect().unwrap().info().unwrap().domains
}

/// The power meter of a Grace module, with these files for its averaging time.
fn grace_module(interval_ms: Option<&str>, configured_ms: Option<f64>) -> DomainStatus {
    let fake_sysfs = FakeSysfs::new();
    let chip = "class/hwmon/hwmon0";
    fake_sysfs.sys_file(&format!("{chip}/name"), "power_meter\n");
    fake_sysfs.sys_file(&format!("{chip}/power1_oem_info"), "Module Power Socket 0\n");
    fake_sysfs.sys_file(&format!("{chip}/power1_average"), "100000000\n");
    if let Some(interval_ms) = interval_ms {
        fake_sysfs.sys_file(&format!("{chip}/power1_average_interval"), interval_ms);
    }
    let mut config = Config::default();
    (config.source.sysfs_root, config.source.proc_root) = (fake_sysfs.sysfs(), fake_sysfs.proc());
    config.source.enabled = Some(vec!["hwmon".into()]);
    config.averaging_ms.extend(configured_ms.map(|ms| ("module-0".to_owned(), ms)));
    let domains = statuses(&config);
    domains.into_iter().find(|domain| domain.name == "module-0").unwrap()
}

#[test]
fn the_averaging_time_is_that_of_the_driver_or_configured_and_the_lag_is_twice_as_long() {
    for (interval_ms, configured_ms, averaging_ns, origin, lag_ns) in [
        (Some("50\n"), None, Some(50 * MS), Some("driver"), 100 * MS),
        (Some("50\n"), Some(80.0), Some(80 * MS), Some("configured"), 160 * MS),
        (None, Some(80.0), Some(80 * MS), Some("configured"), 160 * MS),
        // Nothing is assumed about the time.
        (None, None, None, None, 0),
        (Some("50\n"), Some(0.0), None, None, 0),
    ] {
        let module = grace_module(interval_ms, configured_ms);
        let shown = (module.averaging_ns, module.averaging_origin.as_deref(), module.lag_ns);
        assert_eq!(shown, (averaging_ns, origin, Some(lag_ns)), "{interval_ms:?} {configured_ms:?}");
        assert_eq!((module.sampled_ppm, module.sampled_origin), (None, None), "no NVIDIA board");
    }
}

#[test]
fn part_time_sampling_is_assumed_for_nvidia_boards_unless_configured() {
    let library = Library::new(2);
    library.set(1, Knob::Counter, 0);
    let mut config = Config::default();
    config.source.nvml_library = Some(library.path());
    config.source.enabled = Some(vec!["nvml".into()]);
    config.sampled_percent.insert("gpu-1".into(), 100.0);
    // An instantaneous sensor has no averaging time to configure.
    config.averaging_ms.insert("gpu-1".into(), 80.0);
    let domains = statuses(&config);
    let sampled = |name: &str| {
        let domain = domains.iter().find(|domain| domain.name == name).unwrap();
        assert_eq!(domain.averaging_ns, None, "{domain:?}");
        (domain.sampled_ppm, domain.sampled_origin.clone().unwrap())
    };
    assert_eq!(sampled("gpu-0"), (Some(250_000), "specification".into()));
    assert_eq!(sampled("gpu-1"), (Some(1_000_000), "configured".into()));
}
