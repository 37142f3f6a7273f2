//! A run's settings by name, as its manifest keeps them, and the way back.
//!
//! Owns the names. Invariant: what is written here is what a run that goes on is made with, so that its rows are of one
//! kind. A setting that older runs did not keep is optional; one that makes no sense is refused, never guessed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ask::{Api, Asking, LONGEST_ANSWER_S};
use super::run::{MOST_A_SECOND, Pace};

const AT_ONCE: &str = "at once";
const PER_SECOND: &str = "per second";
const WARM_UP: &str = "warm-up";
const RETRIES: &str = "retries";
const INTERFACE: &str = "interface";
const TEMPERATURE: &str = "temperature";
const MOST_TOKENS: &str = "most tokens";
const MOST_SECONDS: &str = "most seconds";
const STREAMED: &str = "streamed";
const LOG_PROBABILITIES: &str = "log-probabilities";
const SEED: &str = "seed";
const SYSTEM: &str = "system prompt";

/// How a run goes about its questions, whoever is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conduct {
    /// How queries follow each other.
    pub pace: Pace,
    /// Questions that are asked first and not counted.
    pub warm_up: u32,
    /// Further tries after a failure.
    pub retries: u32,
}

/// The settings of a run by name.
pub fn settings(asking: &Asking, conduct: Conduct) -> BTreeMap<String, String> {
    let pace = match conduct.pace {
        Pace::AtOnce(width) => (AT_ONCE, width.to_string()),
        Pace::PerSecond(rate) => (PER_SECOND, rate.to_string()),
    };
    let yes_or_no = |flag| if flag { "yes" } else { "no" }.to_owned();
    let mut settings = BTreeMap::from([
        (INTERFACE, asking.api.name().to_owned()),
        (TEMPERATURE, asking.temperature.to_string()),
        (MOST_TOKENS, asking.max_tokens.to_string()),
        (MOST_SECONDS, asking.timeout.as_secs().to_string()),
        (STREAMED, yes_or_no(asking.stream)),
        (LOG_PROBABILITIES, yes_or_no(asking.logprobs)),
        (WARM_UP, conduct.warm_up.to_string()),
        (RETRIES, conduct.retries.to_string()),
        pace,
    ]);
    settings.extend(asking.seed.map(|seed| (SEED, seed.to_string())));
    settings.extend(asking.system.clone().map(|system| (SYSTEM, system)));
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// How queries followed each other, in words, where the settings hold it.
pub fn pace(settings: &BTreeMap<String, String>) -> Option<String> {
    let at_once = settings.get(AT_ONCE).map(|width| match width.as_str() {
        "1" => "one query at a time".to_owned(),
        width => format!("{width} queries at once"),
    });
    at_once.or_else(|| settings.get(PER_SECOND).map(|rate| format!("{rate} queries a second")))
}

/// Asks as a run was begun with these settings, and goes about it as it did; `None`: they are not understood.
pub fn as_begun(settings: &BTreeMap<String, String>, asking: &mut Asking) -> Option<Conduct> {
    let said = |name: &str| settings.get(name).map(String::as_str);
    asking.api = Api::named(said(INTERFACE)?)?;
    asking.temperature = said(TEMPERATURE)?.parse().ok()?;
    asking.max_tokens = said(MOST_TOKENS)?.parse().ok()?;
    asking.stream = said(STREAMED)? == "yes";
    asking.logprobs = said(LOG_PROBABILITIES) == Some("yes");
    asking.seed = said(SEED).map(str::parse).transpose().ok()?;
    asking.system = said(SYSTEM).map(str::to_owned);
    if let Some(seconds) = said(MOST_SECONDS) {
        let seconds = seconds.parse().ok().filter(|seconds| (1..=LONGEST_ANSWER_S).contains(seconds))?;
        asking.timeout = Duration::from_secs(seconds);
    }
    let pace = match (said(AT_ONCE), said(PER_SECOND)) {
        (Some(width), None) => width.parse().map(Pace::AtOnce).ok(),
        (None, Some(rate)) => {
            rate.parse().ok().filter(|rate| *rate > 0.0 && *rate <= MOST_A_SECOND).map(Pace::PerSecond)
        }
        _ => None,
    };
    Some(Conduct {
        pace: pace?,
        warm_up: said(WARM_UP)?.parse().ok()?,
        retries: said(RETRIES)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::ask::tests::asking;
    use super::*;

    #[test]
    fn a_run_goes_on_with_the_settings_that_it_was_begun_with() {
        let mut begun = asking(Api::Ollama);
        (begun.seed, begun.system, begun.temperature) = (None, Some("Be short.".into()), 0.7);
        (begun.stream, begun.logprobs, begun.max_tokens) = (false, true, 7);
        begun.timeout = Duration::from_secs(77);
        for pace in [Pace::AtOnce(17), Pace::PerSecond(0.25)] {
            let conduct = Conduct { pace, warm_up: 4, retries: 5 };
            let settings = settings(&begun, conduct);
            let mut resumed = asking(Api::Chat);
            assert_eq!(as_begun(&settings, &mut resumed), Some(conduct));
            assert_eq!(format!("{resumed:?}"), format!("{begun:?}"));
        }
        assert_eq!(as_begun(&BTreeMap::new(), &mut begun), None);
    }

    #[test]
    fn a_run_that_did_not_keep_its_longest_answer_goes_on_with_the_one_of_this_call() {
        let conduct = Conduct { pace: Pace::AtOnce(1), warm_up: 0, retries: 0 };
        let mut kept = settings(&asking(Api::Chat), conduct);
        kept.remove(MOST_SECONDS);
        let mut resumed = asking(Api::Chat);
        resumed.timeout = Duration::from_secs(9);
        assert_eq!(as_begun(&kept, &mut resumed), Some(conduct));
        assert_eq!(resumed.timeout, Duration::from_secs(9));
    }

    #[test]
    fn settings_that_nobody_could_have_begun_with_are_not_understood() {
        let conduct = Conduct { pace: Pace::PerSecond(1.0), warm_up: 0, retries: 0 };
        let kept = settings(&asking(Api::Chat), conduct);
        for (name, nonsense) in [
            (MOST_SECONDS, "0"),
            (MOST_SECONDS, "18446744073709551615"),
            (MOST_SECONDS, "soon"),
            (PER_SECOND, "inf"),
            (PER_SECOND, "NaN"),
            (PER_SECOND, "0"),
            (RETRIES, "-1"),
        ] {
            let mut edited = kept.clone();
            edited.insert(name.into(), nonsense.into());
            assert_eq!(as_begun(&edited, &mut asking(Api::Chat)), None, "{name}: {nonsense}");
        }
    }
}
