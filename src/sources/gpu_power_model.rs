//! The power of a GPU by its power limit and the share of time in which it computes, for GPUs without counter and sensor.
//!
//! Linear between the idle power and the limit. The interval of this model is from 0 to the limit: an idle GPU may sleep, and
//! no document gives the power of a load. Owns the files that show limit and utilization; the caller integrates.

use std::path::{Path, PathBuf};

use super::sysfs_file::SysfsFile;

/// The part of its highest power that an idle board draws, in thousandths: 46 of 407 W (A100), 8 of 71 W (T4), 35 of 306 W
/// (V100) in the coefficients of Cloud Carbon Footprint (Apache-2.0), whose highest power is within 2 % of the limit.
const IDLE_PERMILLE: u64 = 113;

/// The power at this limit and this utilization, in milliwatts.
pub fn power_mw(limit_mw: u64, busy_permille: u64) -> u64 {
    limit_mw * (IDLE_PERMILLE * 1_000 + (1_000 - IDLE_PERMILLE) * busy_permille.min(1_000)) / 1_000_000
}

/// The files from which a GPU's power is estimated.
#[derive(Debug)]
pub struct GpuLoad {
    /// The power limit, in microwatts.
    limit: SysfsFile,
    utilization: Utilization,
}

#[derive(Debug)]
enum Utilization {
    /// A file that shows percent: `gpu_busy_percent` (linux Documentation/gpu/amdgpu/thermal.rst).
    Percent(SysfsFile),
    /// For each engine block the time in which it was idle: `idle_residency_ms` of xe, `rc6_residency_ms` of i915.
    IdleTimes(Vec<IdleTime>),
}

/// A counter of idle milliseconds.
#[derive(Debug)]
struct IdleTime {
    file: SysfsFile,
    /// The instant and the value at the start of the current window.
    window: Option<(u64, u64)>,
    /// The busy share of the last complete window.
    busy_permille: Option<u64>,
}

/// Shortest window of an idle time, whose unit is a millisecond.
const MIN_WINDOW_NS: u64 = 50_000_000;

impl IdleTime {
    /// The busy share of the last window; `None` before the end of the first one and while the file is missing.
    fn read_busy_permille(&mut self, now_ns: u64) -> Option<u64> {
        let Some(idle_ms) = self.file.read_number::<u64>(now_ns) else {
            (self.window, self.busy_permille) = (None, None);
            return None;
        };
        let Some((start_ns, start_ms)) = self.window else {
            self.window = Some((now_ns, idle_ms));
            return None;
        };
        let elapsed_ns = now_ns.saturating_sub(start_ns);
        if elapsed_ns >= MIN_WINDOW_NS {
            self.window = Some((now_ns, idle_ms));
            // A smaller value: the counter has restarted.
            self.busy_permille = idle_ms.checked_sub(start_ms).map(|idle_ms| {
                let idle_permille = u128::from(idle_ms) * 1_000_000_000 / u128::from(elapsed_ns);
                1_000 - u64::try_from(idle_permille).unwrap_or(u64::MAX).min(1_000)
            });
        }
        self.busy_permille
    }
}

impl GpuLoad {
    /// A GPU whose driver shows its utilization in percent.
    pub fn by_percent(limit: SysfsFile, percent: SysfsFile) -> Self {
        Self { limit, utilization: Utilization::Percent(percent) }
    }

    /// A GPU whose driver counts the idle time of its engine blocks; `None` if there is none.
    pub fn by_idle_times(limit: SysfsFile, files: Vec<SysfsFile>) -> Option<Self> {
        let idle_times: Vec<IdleTime> =
            files.into_iter().map(|file| IdleTime { file, window: None, busy_permille: None }).collect();
        (!idle_times.is_empty()).then_some(Self { limit, utilization: Utilization::IdleTimes(idle_times) })
    }

    /// Records a gap: the utilization of the next window does not include it.
    pub fn interrupt(&mut self) {
        if let Utilization::IdleTimes(files) = &mut self.utilization {
            files.iter_mut().for_each(|idle| (idle.window, idle.busy_permille) = (None, None));
        }
    }

    /// The power in milliwatts; `None` while a file is missing.
    pub fn read_mw(&mut self, now_ns: u64) -> Option<u64> {
        let limit_uw = self.limit.read_number::<u64>(now_ns).filter(|limit| *limit > 0)?;
        let busy_permille = match &mut self.utilization {
            Utilization::Percent(file) => 10 * file.read_number::<u64>(now_ns)?,
            // The busiest block.
            Utilization::IdleTimes(files) => files
                .iter_mut()
                .map(|idle| idle.read_busy_permille(now_ns))
                .fold(None, |most: Option<u64>, busy| most.max(busy))?,
        };
        Some(power_mw(limit_uw / 1_000, busy_permille))
    }
}

/// The files below `device` that count the idle time of an Intel GPU's engine blocks (linux
/// Documentation/ABI/testing/sysfs-driver-intel-xe-gtidle; i915's are below its card).
pub fn idle_time_files(device: &Path) -> Vec<PathBuf> {
    let children = |folder: PathBuf, prefix: &'static str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        let mut paths: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let xe = children(device.to_owned(), "tile").into_iter().flat_map(|tile| children(tile, "gt"));
    let i915 =
        children(device.join("drm"), "card").into_iter().flat_map(|card| children(card.join("gt"), "gt"));
    let files = xe.map(|gt| gt.join("gtidle/idle_residency_ms"));
    files.chain(i915.map(|gt| gt.join("rc6_residency_ms"))).filter(|path| path.exists()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn power_is_linear_between_the_idle_part_and_the_limit() {
        let powers: Vec<u64> = [0, 500, 1_000, 2_000].iter().map(|busy| power_mw(300_000, *busy)).collect();
        assert_eq!(powers, [33_900, 166_950, 300_000, 300_000]);
    }

    #[test]
    fn the_busiest_block_counts_and_a_restarted_counter_is_no_power() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("power1_max", "100000000\n");
        write("tile0/gt0/gtidle/idle_residency_ms", "1000\n");
        write("tile0/gt1/gtidle/idle_residency_ms", "5000\n");
        write("drm/card0/gt/gt0/rc6_residency_ms", "70\n");
        let files = idle_time_files(root.path());
        assert_eq!(files.len(), 3, "{files:?}");
        let open = |path: &Path| SysfsFile::open(path.to_owned()).unwrap();
        let files = files[..2].iter().map(|path| open(path)).collect();
        let mut load = GpuLoad::by_idle_times(open(&root.path().join("power1_max")), files).unwrap();
        assert_eq!(load.read_mw(0), None, "the first read begins the time");
        write("tile0/gt0/gtidle/idle_residency_ms", "1025\n");
        write("tile0/gt1/gtidle/idle_residency_ms", "5100\n");
        assert_eq!(load.read_mw(100_000_000), Some(power_mw(100_000, 750)));
        assert_eq!(load.read_mw(100_001_000), Some(power_mw(100_000, 750)), "no window of a microsecond");
        write("tile0/gt0/gtidle/idle_residency_ms", "3\n");
        write("tile0/gt1/gtidle/idle_residency_ms", "4\n");
        assert_eq!(load.read_mw(200_000_000), None);
        write("tile0/gt0/gtidle/idle_residency_ms", "103\n");
        write("tile0/gt1/gtidle/idle_residency_ms", "104\n");
        assert_eq!(load.read_mw(300_000_000), Some(power_mw(100_000, 0)));
    }
}
