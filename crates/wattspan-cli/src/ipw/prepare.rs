//! Prepares a new or resumed run: server, meter, questions, directory.
//!
//! A run is resumed only with its original settings and on its original machine. Without a meter it starts only with
//! `--without-meter`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wattspan_client::clock::unix_ns;
use wattspan_client::domain::Liveness;
use wattspan_client::protocol::{Access, DaemonInfo, DomainStatus};
use wattspan_http::BoxBody;
use wattspan_http::connection_pool::ConnectionPool;
use wattspan_ipw::conditions::{self, Conditions};
use wattspan_ipw::llm_api::RequestSettings;
use wattspan_ipw::question::{self, Question};
use wattspan_ipw::run::Workload;
use wattspan_ipw::run_dir::{FORMAT_VERSION, Manifest, NO_METER, RunDir};
use wattspan_ipw::run_settings::{RunSettings, decode_settings, encode_settings};
use wattspan_ipw::scope;

use super::super::connect::{MeterConnector, MeterOptions, ensure_access, ensure_measurable};
use super::super::exit_status::{CliError, FAILURE};
use super::super::output::eprint_message;
use super::card::stated_conditions;
use super::run_options::IpwRunArgs;
use super::server_options::engine_conditions;

/// Settings that describe the questions of a run.
const QUESTION_SET: &str = "question set";
const PROMPT_HASH: &str = "hash of the prompts";

/// A run that is ready to start.
pub struct PreparedRun {
    pub request_settings: RequestSettings,
    pub pool: ConnectionPool<BoxBody>,
    pub run_settings: RunSettings,
    /// `None` with `--without-meter`.
    pub meter: Option<(Arc<MeterConnector>, DaemonInfo)>,
    pub directory: RunDir,
    pub manifest: Manifest,
    pub questions: Vec<Question>,
}

/// Prepares a new run and creates its directory.
pub async fn prepare_new(options: &MeterOptions, args: &IpwRunArgs) -> Result<PreparedRun, CliError> {
    let (request_settings, pool) = args.server.connect().await?;
    let meter = connect_meter(options, args)?;
    let run_settings = requested_settings(args);
    let questions = load_questions(args)?;
    let (domains, not_live) =
        meter.as_ref().map_or_else(Default::default, |(_, info)| scope::live_domains(info));
    for (name, reason) in &not_live {
        eprint_message(&format!("{name} is not live and is excluded from the run: {reason}"));
    }
    let settings = all_settings(args, &request_settings, run_settings, &questions);
    let conditions = find_conditions(args, &request_settings, &pool).await?;
    let manifest = Manifest {
        version: FORMAT_VERSION,
        label: args.label.clone().unwrap_or_else(|| request_settings.model.clone()),
        model: request_settings.model.clone(),
        server: request_settings.base_url.to_string(),
        settings,
        questions: args.questions.as_ref().map_or("built in".into(), |file| file.display().to_string()),
        fingerprint: question::fingerprint(&questions),
        count: questions.len(),
        repeats: args.repeats,
        machine: describe_machine(),
        meter: meter.as_ref().map_or(NO_METER.into(), |(connector, info)| {
            format!("{} {}", connector.description().kind, info.version)
        }),
        idle: "learned by the daemon, or configured".into(),
        domains,
        not_live: Some(not_live),
        began_unix_ns: unix_ns(),
        conditions,
        assumptions: meter.as_ref().map(|(_, info)| domain_assumptions(info)),
    };
    let path = args.out.clone().unwrap_or_else(|| default_run_dir(&manifest));
    let directory = RunDir::create(&path, &manifest, &questions).map_err(anyhow::Error::from)?;
    Ok(PreparedRun { request_settings, pool, run_settings, meter, directory, manifest, questions })
}

/// The settings of a run as its manifest has them.
fn all_settings(
    args: &IpwRunArgs,
    request_settings: &RequestSettings,
    run_settings: RunSettings,
    questions: &[Question],
) -> BTreeMap<String, String> {
    let mut settings = encode_settings(request_settings, run_settings);
    settings.extend(args.question_set.map(|set| (QUESTION_SET.to_owned(), set.name().to_owned())));
    let prompts = question::prompt_hash(request_settings.system_prompt.as_deref(), questions);
    settings.insert(PROMPT_HASH.to_owned(), prompts);
    settings
}

/// Returns in which settings a stored run differs from what these options ask for; empty if in none.
pub async fn changed_settings(args: &IpwRunArgs, manifest: &Manifest) -> Result<Vec<String>, CliError> {
    let (request_settings, _) = args.server.connect().await?;
    let run_settings = requested_settings(args);
    let questions = load_questions(args)?;
    let asked = all_settings(args, &request_settings, run_settings, &questions);
    let names: BTreeSet<&String> = asked.keys().chain(manifest.settings.keys()).collect();
    let value = |of: &BTreeMap<String, String>, name: &str| of.get(name).cloned().unwrap_or("none".into());
    let mut changed: Vec<String> = names
        .into_iter()
        .filter(|name| asked.get(*name) != manifest.settings.get(*name))
        .map(|name| format!("{name}: {}, now {}", value(&manifest.settings, name), value(&asked, name)))
        .collect();
    if question::fingerprint(&questions) != manifest.fingerprint {
        changed.push("other questions".into());
    }
    if args.repeats != manifest.repeats {
        changed.push(format!("times asked: {}, now {}", manifest.repeats, args.repeats));
    }
    Ok(changed)
}

fn requested_settings(args: &IpwRunArgs) -> RunSettings {
    let workload = args.rate.map_or(Workload::ClosedLoop(args.concurrency as usize), Workload::OpenLoop);
    RunSettings { workload, warm_up: args.warm_up, retries: args.retries }
}

/// Resumes a run with its original model, request settings, workload and machine. The server's URL may differ.
pub async fn prepare_resumed(
    options: &MeterOptions,
    args: &IpwRunArgs,
    path: &Path,
) -> Result<PreparedRun, CliError> {
    let (directory, manifest, questions) = RunDir::resume(path).map_err(anyhow::Error::from)?;
    let mut server = args.server.clone();
    server.model = Some(manifest.model.clone());
    server.url = server.url.or_else(|| manifest.server.parse().ok());
    let (mut request_settings, pool) = server.connect().await?;
    let run_settings = decode_settings(&manifest.settings, &mut request_settings).ok_or_else(|| {
        let file = path.join("run.json");
        CliError::new(FAILURE, format!("{}: its settings are not understood", file.display()))
    })?;
    let meter = connect_meter(options, args)?;
    if let Some((_, info)) = &meter {
        ensure_same_machine(&manifest, info)?;
    }
    Ok(PreparedRun { request_settings, pool, run_settings, meter, directory, manifest, questions })
}

fn connect_meter(
    options: &MeterOptions,
    args: &IpwRunArgs,
) -> Result<Option<(Arc<MeterConnector>, DaemonInfo)>, CliError> {
    let found = MeterConnector::open_with_long_horizon(options).and_then(|(connector, client)| {
        let info = client.info()?;
        ensure_access(&info, Access::Coarse)?;
        ensure_measurable(&info)?;
        connector.print_fallback_notice();
        Ok((Arc::new(connector), info))
    });
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if args.without_meter => {
            eprint_message(&format!("{error}; continuing without energy"));
            Ok(None)
        }
        Err(error) => {
            eprint_message("per-watt figures need a meter; --without-meter runs the questions without one");
            Err(error)
        }
    }
}

/// The conditions of the run: what the user states, and what the system, the server and the model's file show, which
/// counts for more.
async fn find_conditions(
    args: &IpwRunArgs,
    request_settings: &RequestSettings,
    pool: &ConnectionPool<BoxBody>,
) -> Result<Conditions, CliError> {
    let mut found = stated_conditions(&args.condition);
    found.extend(conditions::read_system(Path::new("/")));
    found.extend(engine_conditions(request_settings, pool).await);
    if let Some(file) = &args.model_file {
        let of_file = conditions::read_model_file(file)
            .map_err(|cause| CliError::new(FAILURE, format!("--model-file: {}: {cause}", file.display())))?;
        found.extend(of_file);
    }
    Ok(found)
}

/// What the guarantee assumes of each live domain, without its readings.
pub fn domain_assumptions(info: &DaemonInfo) -> Vec<DomainStatus> {
    let without_readings =
        |domain: &DomainStatus| DomainStatus { energy_uj: None, power_mw: None, ..domain.clone() };
    info.domains.iter().filter(|domain| domain.liveness == Liveness::Live).map(without_readings).collect()
}

pub fn load_questions(args: &IpwRunArgs) -> Result<Vec<Question>, CliError> {
    let mut questions = match &args.questions {
        None => question::built_in(),
        Some(path) => {
            if let Some(set) = args.question_set {
                set.read(path).map_err(anyhow::Error::from)?
            } else {
                let file = std::fs::File::open(path)
                    .map_err(|cause| CliError::new(FAILURE, format!("{}: {cause}", path.display())))?;
                let name = path.display().to_string();
                question::parse(&name, std::io::BufReader::new(file)).map_err(anyhow::Error::from)?
            }
        }
    };
    question::complete_prompts(&mut questions);
    questions.truncate(args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)));
    Ok(questions)
}

/// Fails if this is not the machine on which the run began. A domain that is not live now, or was not live when the run
/// began, does not make it another machine.
fn ensure_same_machine(manifest: &Manifest, info: &DaemonInfo) -> Result<(), CliError> {
    let names = |names: Vec<&str>| if names.is_empty() { "none at all".into() } else { names.join(", ") };
    let is_here = |expected: &scope::RunDomain| {
        let same = |domain: &&DomainStatus| {
            (&domain.name, domain.kind, &domain.source) == (&expected.name, expected.kind, &expected.source)
        };
        info.domains.iter().any(|domain| same(&domain))
    };
    let was_here = |domain: &DomainStatus| {
        let listed = manifest.domains.iter().any(|it| it.name == domain.name);
        listed || manifest.not_live.as_ref().is_some_and(|others| others.contains_key(&domain.name))
    };
    let live = || info.domains.iter().filter(|domain| domain.liveness == Liveness::Live);
    let mismatch = if !manifest.domains.iter().all(is_here) || !live().all(was_here) {
        format!(
            "the run was begun with the domains {}, and here are {}",
            names(manifest.domains.iter().map(|domain| domain.name.as_str()).collect()),
            names(live().map(|domain| domain.name.as_str()).collect())
        )
    } else if without_system_release(&manifest.machine) != without_system_release(&describe_machine()) {
        format!("the run was begun on {}, and this is {}", manifest.machine, describe_machine())
    } else {
        return Ok(());
    };
    Err(CliError::new(FAILURE, format!("{mismatch}; begin another run here (-o DIRECTORY)")))
}

/// The machine description without the system release, which an update changes.
fn without_system_release(machine: &str) -> &str {
    machine.split_once(", ").map_or(machine, |(_, hardware)| hardware)
}

fn default_run_dir(manifest: &Manifest) -> PathBuf {
    let last = manifest.label.rsplit('/').next().unwrap_or_default();
    let name: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    let name = name.trim_start_matches('.').chars().take(60).collect::<String>();
    Path::new("runs").join(format!("{name}-{}", manifest.began_unix_ns / 1_000_000_000))
}

/// A description of the machine: system, release, processor, number of CPUs.
fn describe_machine() -> String {
    let name = rustix::system::uname();
    let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or_else(|| part(name.machine()), |(_, model)| model.trim().to_owned());
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{} {}, {model}, {cpus} CPUs", part(name.sysname()), part(name.release()))
}
