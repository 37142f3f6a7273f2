//! How a run of questions begins, or goes on.
//!
//! Owns what is found out before the first question: the server, the meter, the questions, the directory; and that a run
//! goes on only as it was begun, on the machine on which it was begun. A meter that cannot be had is said at once, and
//! the run goes on without energies only where the user agrees.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::ending::{FAILURE, Trouble};
use super::super::reach::{Reach, may_open_spans, something_to_measure};
use super::super::{Meter, say};
use super::run::Arguments;
use crate::clock::unix_ns;
use crate::domain::Liveness;
use crate::http::Body;
use crate::http::dial::Pool;
use crate::ipw::ask::Asking;
use crate::ipw::question::{self, Question};
use crate::ipw::run::Pace;
use crate::ipw::run_dir::{Manifest, NO_METER, RunDir, VERSION};
use crate::ipw::scope;
use crate::ipw::settings::{Conduct, as_begun, settings};
use crate::protocol::{DomainStatus, Info};

/// A run about to ask.
pub struct Begun {
    /// How the server is asked.
    pub asking: Asking,
    /// Connections to it.
    pub pool: Pool<Body>,
    /// How it goes about its questions.
    pub conduct: Conduct,
    /// The meter, if there is one, and what it said of itself.
    pub metered: Option<(Arc<Reach>, Info)>,
    /// Where rows go.
    pub directory: RunDir,
    /// What the run is.
    pub manifest: Manifest,
    /// What is asked.
    pub questions: Vec<Question>,
}

/// A new run, with its directory.
pub async fn begun(meter: &Meter, asked: &Arguments) -> Result<Begun, Trouble> {
    let (asking, pool) = asked.server.reach().await?;
    let metered = metered(meter, asked)?;
    let pace = asked.rate.map_or(Pace::AtOnce(asked.concurrency as usize), Pace::PerSecond);
    let conduct = Conduct { pace, warm_up: asked.warm_up, retries: asked.retries };
    let questions = questions(asked)?;
    let (domains, not_live) =
        metered.as_ref().map_or_else(Default::default, |(_, info)| scope::domains_of_run(info));
    for (name, reason) in &not_live {
        say(&format!("{name} is not live and is no part of the run: {reason}"));
    }
    let manifest = Manifest {
        version: VERSION,
        label: asked.label.clone().unwrap_or_else(|| asking.model.clone()),
        model: asking.model.clone(),
        server: asking.target.to_string(),
        settings: settings(&asking, conduct),
        questions: asked.questions.as_ref().map_or("built in".into(), |file| file.display().to_string()),
        fingerprint: question::fingerprint(&questions),
        count: questions.len(),
        repeats: asked.repeats,
        machine: machine(),
        meter: metered
            .as_ref()
            .map_or(NO_METER.into(), |(reach, info)| format!("{} {}", reach.named().kind, info.version)),
        idle: "as the meter learnt it or was told".into(),
        domains,
        not_live: Some(not_live),
        began_unix_ns: unix_ns(),
    };
    let path = asked.out.clone().unwrap_or_else(|| usual_place(&manifest));
    let directory = RunDir::begin(&path, &manifest, &questions).map_err(anyhow::Error::from)?;
    Ok(Begun { asking, pool, conduct, metered, directory, manifest, questions })
}

/// A run goes on as it was begun: the same model, asked in the same way at the same pace, and the same machine. The server
/// may have moved.
pub async fn resumed(meter: &Meter, asked: &Arguments, path: &Path) -> Result<Begun, Trouble> {
    let (directory, manifest, questions) = RunDir::resume(path).map_err(anyhow::Error::from)?;
    let mut server = asked.server.clone();
    server.model = Some(manifest.model.clone());
    server.url = server.url.or_else(|| manifest.server.parse().ok());
    let (mut asking, pool) = server.reach().await?;
    let conduct = as_begun(&manifest.settings, &mut asking).ok_or_else(|| {
        let file = path.join("run.json");
        Trouble::new(FAILURE, format!("{}: its settings are not understood", file.display()))
    })?;
    let metered = metered(meter, asked)?;
    if let Some((_, info)) = &metered {
        same_machine(&manifest, info)?;
    }
    Ok(Begun { asking, pool, conduct, metered, directory, manifest, questions })
}

fn metered(meter: &Meter, asked: &Arguments) -> Result<Option<(Arc<Reach>, Info)>, Trouble> {
    let found = Reach::patient(meter).and_then(|(reach, client)| {
        let info = client.info()?;
        may_open_spans(&info)?;
        something_to_measure(&info)?;
        reach.tell();
        Ok((Arc::new(reach), info))
    });
    match found {
        Ok(found) => Ok(Some(found)),
        Err(trouble) if asked.without_meter => {
            say(&format!("{trouble}; going on without energies"));
            Ok(None)
        }
        Err(trouble) => {
            say("without a meter there is no figure per watt; --without-meter asks all the same");
            Err(trouble)
        }
    }
}

fn questions(asked: &Arguments) -> Result<Vec<Question>, Trouble> {
    let mut questions = match &asked.questions {
        None => question::starter(),
        Some(path) => {
            let file = std::fs::File::open(path)
                .map_err(|cause| Trouble::new(FAILURE, format!("{}: {cause}", path.display())))?;
            let name = path.display().to_string();
            question::parse(&name, std::io::BufReader::new(file)).map_err(anyhow::Error::from)?
        }
    };
    questions.truncate(asked.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)));
    Ok(questions)
}

/// A resumed run goes on only on the machine whose domains its rows have. One that is not live by now, or that was not when the
/// run began, is no other machine.
fn same_machine(manifest: &Manifest, info: &Info) -> Result<(), Trouble> {
    let names = |names: Vec<&str>| if names.is_empty() { "none at all".into() } else { names.join(", ") };
    let is_here = |of: &scope::Meter| {
        let same = |it: &&DomainStatus| (&it.name, it.kind, &it.source) == (&of.name, of.kind, &of.source);
        info.domains.iter().any(|domain| same(&domain))
    };
    let was_here = |of: &DomainStatus| {
        let listed = manifest.domains.iter().any(|it| it.name == of.name);
        listed || manifest.not_live.as_ref().is_some_and(|others| others.contains_key(&of.name))
    };
    let live = || info.domains.iter().filter(|domain| domain.liveness == Liveness::Live);
    let wrong = if !manifest.domains.iter().all(is_here) || !live().all(was_here) {
        format!(
            "the run was begun with the domains {}, and here are {}",
            names(manifest.domains.iter().map(|domain| domain.name.as_str()).collect()),
            names(live().map(|domain| domain.name.as_str()).collect())
        )
    } else if hardware(&manifest.machine) != hardware(&machine()) {
        format!("the run was begun on {}, and this is {}", manifest.machine, machine())
    } else {
        return Ok(());
    };
    Err(Trouble::new(FAILURE, format!("{wrong}; begin another run here (-o DIRECTORY)")))
}

/// What does not change with an update of the system.
fn hardware(machine: &str) -> &str {
    machine.split_once(", ").map_or(machine, |(_, hardware)| hardware)
}

fn usual_place(manifest: &Manifest) -> PathBuf {
    let last = manifest.label.rsplit('/').next().unwrap_or_default();
    let word: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    let word = word.trim_start_matches('.').chars().take(60).collect::<String>();
    Path::new("runs").join(format!("{word}-{}", manifest.began_unix_ns / 1_000_000_000))
}

/// The machine in words: system, processor.
fn machine() -> String {
    let name = rustix::system::uname();
    let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or_else(|| part(name.machine()), |(_, model)| model.trim().to_owned());
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{} {}, {model}, {cpus} CPUs", part(name.sysname()), part(name.release()))
}
