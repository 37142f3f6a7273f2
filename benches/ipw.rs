//! Time and memory of a report over many queries.
//!
//! Targets for 1,000,000 rows, read and with every figure and interval computed: 3 s and 500 MB at most; the time must
//! grow no faster than the number of rows. A plain read of the file (its lines are counted) is timed in the same run.
//! `WATTSPAN_BENCH_ROWS=10000000` adds a report over that many (the file takes 450 bytes per row). The rows are
//! generated: 8 subjects, 3 domains, one failed query in a thousand.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[path = "table/mod.rs"]
mod table;

use wattspan::domain::{DomainKind, Grade};
use wattspan_ipw::metrics::MetricOptions;
use wattspan_ipw::report::{EnergyPrices, Report};
use wattspan_ipw::row::{DomainEnergy, QueryEnergy, QueryRow};
use wattspan_ipw::run_dir::{FORMAT_VERSION, Manifest};
use wattspan_ipw::scope::{IdlePolicy, RunDomain, Scope};
use wattspan_ipw::table::RunTable;

const MILLION: usize = 1_000_000;
const SUBJECTS: [&str; 8] =
    ["algebra", "biology", "chemistry", "economics", "history", "law", "philosophy", "physics"];

fn main() {
    let mut shown = table::Table::new("ipw report");
    let small = measured(MILLION / 10);
    let million = measured(MILLION);
    shown.at_most("1,000,000 rows: read", Some(million.read_s), 3.0, "s");
    shown.at_most("1,000,000 rows: read and report", Some(million.all_s), 3.0, "s");
    shown.note("1,000,000 rows: CPU time of both, over all cores", Some(million.cpu_s), "s");
    shown.note("1,000,000 rows: a plain read of the file", Some(million.plain_s), "s");
    shown.note("  read and report against it", Some(million.all_s / million.plain_s), "times");
    shown.note(
        "  CPU time of the report alone against that of the read",
        Some(million.report_cpu_share),
        "times",
    );
    shown.at_most("1,000,000 rows: peak memory", million.peak_mb, 500.0, "MB");
    // A tenth of the rows draws as many resamples, whose cost does not grow.
    shown.note("  100,000 rows: read and report", Some(small.all_s), "s");
    let more = std::env::var("WATTSPAN_BENCH_ROWS").ok().and_then(|rows| rows.parse::<usize>().ok());
    if let Some(rows) = more.filter(|rows| *rows > MILLION) {
        let large = measured(rows);
        let growth = large.all_s / million.all_s / (rows as f64 / MILLION as f64);
        shown.note(&format!("{rows} rows: read and report"), Some(large.all_s), "s");
        shown.note(&format!("{rows} rows: peak memory"), large.peak_mb, "MB");
        shown.at_most("time for a row, against 1,000,000 rows", Some(growth), 1.2, "times");
    }
}

struct Measured {
    read_s: f64,
    all_s: f64,
    cpu_s: f64,
    /// CPU time of the figures and intervals against that of reading the rows.
    report_cpu_share: f64,
    /// Reading the bytes of the file, and nothing else.
    plain_s: f64,
    peak_mb: Option<f64>,
}

fn measured(rows: usize) -> Measured {
    let run = written(rows);
    let began = Instant::now();
    let bytes = std::io::copy(
        &mut File::open(run.join("rows.jsonl")).expect("it was just written"),
        &mut LineCount(0),
    );
    let plain_s = began.elapsed().as_secs_f64();
    assert!(bytes.is_ok_and(|bytes| bytes > 0));
    forget_peak();
    let (began, used_s) = (Instant::now(), cpu_s());
    let table = RunTable::read(&run).expect("the run was just written");
    let (read_s, read_cpu_s) = (began.elapsed().as_secs_f64(), cpu_s() - used_s);
    assert_eq!(table.columns.len(), rows);
    let terms = MetricOptions { scope: Scope::Host, idle: IdlePolicy::Included };
    let report = Report::new(&table, &terms, EnergyPrices::default());
    let all_s = began.elapsed().as_secs_f64();
    assert_eq!((report.all.asked, report.subjects.len()), (rows, SUBJECTS.len()));
    assert!(report.steady_state.is_some_and(|steady| steady.figures.covered > rows / 2));
    let (cpu_s, peak_mb) = (cpu_s() - used_s, peak_mb());
    std::fs::remove_dir_all(&run).expect("it was just written");
    Measured { read_s, all_s, cpu_s, report_cpu_share: cpu_s / read_cpu_s - 1.0, plain_s, peak_mb }
}

/// Counts the lines that are written to it, so that every byte is looked at.
struct LineCount(usize);

impl Write for LineCount {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.iter().filter(|byte| **byte == b'\n').count();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes a run of `rows` rows, line by line.
fn written(rows: usize) -> PathBuf {
    let run = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ipw-{}-{rows}", std::process::id()));
    std::fs::create_dir_all(&run).expect("the build's folder can be written");
    let meter = |name: &str, kind| RunDomain {
        name: name.into(),
        kind,
        source: "replay".into(),
        device: None,
        parent: None,
        counted: true,
        grade: Grade::Measured,
        update_interval_ns: None,
    };
    let domains = vec![
        meter("package-0", DomainKind::Package),
        meter("dram-0", DomainKind::Dram),
        meter("gpu-0", DomainKind::Gpu),
    ];
    // With more than one query at a time the report has the steady state too.
    let settings = [("at once".to_owned(), "4".to_owned())].into();
    let manifest = Manifest {
        version: FORMAT_VERSION,
        domains,
        count: rows,
        repeats: 1,
        settings,
        ..Manifest::default()
    };
    std::fs::write(run.join("run.json"), serde_json::to_vec(&manifest).expect("plain data"))
        .expect("the build's folder can be written");
    let mut file = BufWriter::new(File::create(run.join("rows.jsonl")).expect("as above"));
    let mut rng = 1_u64;
    for at in 0..rows {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        serde_json::to_writer(&mut file, &row(at, rng >> 33)).expect("plain data");
        file.write_all(b"\n").expect("there is room for the rows");
    }
    file.flush().expect("there is room for the rows");
    run
}

fn row(at: usize, rng: u64) -> QueryRow {
    let tokens_out = 20 + rng % 400;
    let duration_ns = 100_000_000 + tokens_out * 9_000_000;
    let parts: Vec<DomainEnergy> = [4_000, 700, 30_000]
        .iter()
        .map(|milliwatts| DomainEnergy {
            share_uj: Some(milliwatts * tokens_out),
            error_uj: Some(milliwatts * tokens_out / 200),
            idle_uj: Some(milliwatts * tokens_out / 3),
            window_uj: Some(milliwatts * tokens_out * 4),
        })
        .collect();
    let sum = |of: fn(&DomainEnergy) -> Option<u64>| Some(parts.iter().filter_map(of).sum());
    let share_uj = parts.iter().filter_map(|part| part.share_uj).sum::<u64>();
    let energy = QueryEnergy {
        span: format!("ipw-1234-{at}"),
        share_uj: Some(share_uj),
        error_uj: sum(|part| part.error_uj),
        idle_uj: sum(|part| part.idle_uj),
        window_uj: Some(share_uj * 4),
        grade: Some(Grade::Measured),
        span_ns: duration_ns + 20_000,
        at_once: 4,
        prefill_uj: Some(share_uj / 5),
        decode_uj: Some(share_uj - share_uj / 5),
        domains: parts,
        ..QueryEnergy::default()
    };
    QueryRow {
        id: format!("q{at:07}"),
        subject: SUBJECTS[at % SUBJECTS.len()].into(),
        error: (at % 1000 == 999).then(|| "the server closed the connection".into()),
        score: (at % 1000 != 999).then(|| f64::from(u8::from(rng.is_multiple_of(3)))),
        began_ns: at as u64 * 250_000_000,
        duration_ns,
        first_token_ns: Some(90_000_000 + rng % 20_000_000),
        between_tokens_ns: Some((8_900_000, 12_000_000)),
        tokens_in: Some(50 + rng % 300),
        tokens_cached: Some(3),
        tokens_out: Some(tokens_out),
        finish: Some("stop".into()),
        mean_logprob: Some(-0.3 - (rng % 100) as f64 / 1000.0),
        energy: Some(energy),
        ..QueryRow::default()
    }
}

/// CPU time of this process, which distinguishes a slow program from a busy machine.
fn cpu_s() -> f64 {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    at.tv_sec as f64 + at.tv_nsec as f64 / 1e9
}

/// Peak memory since the start or the last [`forget_peak`], in MB; Linux only.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()? / 1024.0)
}

/// Resets the peak, so that it excludes the writing of the rows. Where the kernel does not allow it, the peak is
/// higher.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
