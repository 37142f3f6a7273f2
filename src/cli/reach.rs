//! Which meter answers: the daemon, or one in this process.
//!
//! Owns the choice and the one line that tells of it. A daemon that was named and does not answer is trouble, never
//! a reason to measure here: the caller would take our figures for its.

use serde::Serialize;

use super::Meter;
use super::ending::{NO_COUNTER, Trouble, USAGE};
use super::say;
use super::terminal::printable;
use crate::client::{Client, Failure, Place};
use crate::config::{AcceptedOwner, Config, Flags, Source};
use crate::domain::Liveness;
use crate::embedded::Embedded;
use crate::protocol::{Access, Info, Refusal};

/// How late a message may come where nobody waits for accounts.
const PATIENT_HORIZON_MS: f64 = 250.0;

/// A meter that answers.
pub struct Reach {
    meter: Which,
    /// Said once, where a person reads it.
    remark: Option<String>,
}

enum Which {
    Daemon(Place),
    Embedded(Box<Embedded>),
}

/// How the meter is named in JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Named {
    /// "daemon" or "embedded".
    pub kind: &'static str,
    /// Where the daemon was, or would have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Why it is embedded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}

impl Reach {
    /// The meter that `asked` means, and a first connection to it.
    pub fn of(asked: &Meter) -> Result<(Self, Client), Trouble> {
        Self::choose(asked, 0.0)
    }

    fn choose(asked: &Meter, horizon_ms: f64) -> Result<(Self, Client), Trouble> {
        let place = asked.socket.clone().map_or_else(Place::usual, Place::Named);
        if asked.replay.is_some() || asked.config.is_some() {
            return Self::embed(asked, None, horizon_ms);
        }
        match (Client::connect(&place), &place) {
            (Ok(client), _) => Ok((Reach { meter: Which::Daemon(place), remark: None }, client)),
            (Err(failure), Place::Named(_)) => Err(failure.into()),
            (Err(failure), Place::Usual(_)) => Self::embed(asked, Some(why_here(&failure)), horizon_ms),
        }
    }

    /// The meter that `asked` means, for a run in which nobody waits for accounts: one in this process takes messages that
    /// come late, as they do on a busy machine, and settles later for it.
    pub fn patient(asked: &Meter) -> Result<(Self, Client), Trouble> {
        Self::choose(asked, PATIENT_HORIZON_MS)
    }

    /// A daemon, for questions after what other programs did; a meter in this process has no answer to them.
    pub fn daemon(asked: &Meter) -> Result<Client, Trouble> {
        let here = [("--replay", asked.replay.is_some()), ("--config", asked.config.is_some())];
        if let Some((flag, _)) = here.into_iter().find(|(_, given)| *given) {
            let reason =
                "this command asks a daemon, since a meter in this process knows of no other program's spans";
            let remedy = "start one: wattspand --socket PATH";
            return Err(Trouble::new(
                USAGE,
                format!(
                    "{flag} has no effect here: {reason}; leave it out, or {remedy} {flag} FILE, and give --socket PATH"
                ),
            ));
        }
        let place = asked.socket.clone().map_or_else(Place::usual, Place::Named);
        Ok(Client::connect(&place)?)
    }

    fn embed(asked: &Meter, remark: Option<String>, horizon_ms: f64) -> Result<(Self, Client), Trouble> {
        let (mut config, doubt) = settings(asked)?;
        config.horizon_ms = config.horizon_ms.max(horizon_ms);
        let remark = [remark, doubt].into_iter().flatten().reduce(|one, other| format!("{one}; {other}"));
        let embedded = Embedded::start(&config).map_err(anyhow::Error::from)?;
        let client = embedded.connect()?;
        Ok((Reach { meter: Which::Embedded(Box::new(embedded)), remark }, client))
    }

    /// Another connection to the same meter.
    pub fn again(&self) -> Result<Client, Failure> {
        match &self.meter {
            Which::Daemon(place) => Client::connect(place),
            Which::Embedded(embedded) => embedded.connect(),
        }
    }

    /// Says in one line that the meter is embedded, where it is so by default.
    pub fn tell(&self) {
        if let Some(remark) = &self.remark {
            say(remark);
        }
    }

    /// How the meter is named in JSON.
    pub fn named(&self) -> Named {
        match &self.meter {
            Which::Daemon(place) => {
                Named { kind: "daemon", socket: Some(place.path().display().to_string()), remark: None }
            }
            Which::Embedded(_) => Named { kind: "embedded", socket: None, remark: self.remark.clone() },
        }
    }
}

/// The settings for measuring here, and what is to be said of them. A simulated machine is measured with the same
/// settings everywhere, else a report made with it could not be repeated. The administrator's files may be closed to
/// this user or wrong, which is no reason to measure nothing: the default settings hold then.
fn settings(asked: &Meter) -> Result<(Config, Option<String>), Trouble> {
    let flags = Flags { config: asked.config.clone(), replay: asked.replay.clone(), ..Flags::default() };
    if asked.config.is_none() && asked.replay.is_some() {
        let source = Source { replay: flags.replay, ..Source::default() };
        return Ok((Config { source, ..Config::default() }, None));
    }
    match Config::load(&flags, AcceptedOwner::of_this_process()) {
        Ok(config) => Ok((config, None)),
        Err(wrong) if asked.config.is_none() => {
            Ok((Config::default(), Some(format!("{wrong}\nmeasuring with the default settings"))))
        }
        Err(wrong) => Err(anyhow::Error::from(wrong).into()),
    }
}

fn why_here(failure: &Failure) -> String {
    match failure {
        Failure::Unreachable { path, .. } => format!(
            "no daemon at {}: measuring in this process (start wattspand for a meter that every user shares)",
            path.display()
        ),
        other => format!("{other}: measuring in this process"),
    }
}

/// Trouble, if nothing of this machine can be measured or estimated.
pub fn something_to_measure(info: &Info) -> Result<(), Trouble> {
    let any = info.domains.iter().any(|domain| domain.counted && domain.liveness == Liveness::Live);
    // Without any access the domains are not told, and whoever asks on is told so.
    if any || (info.domains.is_empty() && info.access < Access::Coarse) {
        return Ok(());
    }
    let told = info.absent.iter().map(|absent| (&absent.source, &absent.reason));
    let stuck = info.domains.iter().filter_map(|domain| Some((&domain.name, domain.reason.as_ref()?)));
    let reasons: String =
        told.chain(stuck).map(|(what, why)| format!("\n{}: {}", printable(what), printable(why))).collect();
    Err(Trouble::new(NO_COUNTER, format!("there is nothing to measure here:{reasons}")))
}

/// Trouble, if this user may open no spans, as the meter itself would say at the first one.
pub fn may_open_spans(info: &Info) -> Result<(), Trouble> {
    if info.access < Access::Coarse {
        let needs = Access::Coarse.word().to_owned();
        return Err(Failure::Refused(Refusal::AccessDenied { needs }).into());
    }
    Ok(())
}
