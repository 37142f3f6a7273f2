//! `wattspan ipw card`: writes the result card of a run; `wattspan ipw verify`: checks a card against its run.

use std::path::{Path, PathBuf};

use serde_json::Value;
use wattspan_ipw::card::{CARD_FORMAT, CARD_VERSION, CardHeader, CardOptions, ResultCard, verify_card};
use wattspan_ipw::conditions::{Condition, ConditionOrigin, Conditions};
use wattspan_system::private_file;

use super::super::connect::MeterOptions;
use super::super::exit_status::{CliError, FAILURE, OK};
use super::super::output::{self, eprint_message};
use super::super::terminal::printable;
use super::options::{FigureOptions, parse_named_value};

/// The largest card that is read.
const MAX_CARD_BYTES: u64 = 64 << 20;

/// The number of differences that are listed.
const MAX_DIFFERENCES: usize = 20;

/// Arguments of `wattspan ipw card`.
#[derive(Debug, clap::Args)]
pub struct CardArgs {
    /// Run directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    #[command(flatten)]
    figure_options: FigureOptions,
    /// State a condition that the run did not record, e.g. engine_flags="-ngl 99"; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_named_value::<String>)]
    condition: Vec<(String, String)>,
    /// Write the card to FILE [default: standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `wattspan ipw verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// Result card
    #[arg(value_name = "CARD")]
    card: PathBuf,
    /// Run directory from which the card was written
    #[arg(value_name = "RUN")]
    run: PathBuf,
}

/// Runs `wattspan ipw card`.
pub fn card(_: &MeterOptions, args: &CardArgs) -> Result<u8, CliError> {
    let options = CardOptions {
        figures: args.figure_options.terms(),
        allow_partial: args.figure_options.allow_partial,
    };
    let card = ResultCard::of_run(&args.run, options, stated_conditions(&args.condition))
        .map_err(anyhow::Error::from)?;
    for name in args.condition.iter().map(|(name, _)| name) {
        if card.conditions.get(name).is_some_and(|condition| condition.origin != ConditionOrigin::User) {
            eprint_message(&format!("{name}: the run recorded it; the recorded value stays"));
        }
    }
    let text = serde_json::to_string_pretty(&card).expect("a card is plain data") + "\n";
    match &args.out {
        Some(file) => private_file::write(file, text)
            .map_err(|cause| anyhow::anyhow!("{}: {cause}", file.display()))
            .map_err(CliError::from)?,
        None => output::print_bytes(text.as_bytes())?,
    }
    Ok(OK)
}

/// Conditions that the user states.
pub fn stated_conditions(named: &[(String, String)]) -> Conditions {
    let stated = |(name, value): &(String, String)| {
        (name.clone(), Condition { value: value.clone(), origin: ConditionOrigin::User })
    };
    named.iter().map(stated).collect()
}

/// Runs `wattspan ipw verify`.
pub fn verify(options: &MeterOptions, args: &VerifyArgs) -> Result<u8, CliError> {
    let (card, document) = read_card(&args.card)?;
    let differences = verify_card(&card, &document, &args.run).map_err(anyhow::Error::from)?;
    if options.json {
        let all = differences
            .iter()
            .map(|it| serde_json::json!({"place": it.place, "in_card": it.in_card, "in_run": it.in_run}));
        output::print_json_pretty(&serde_json::json!({"differences": all.collect::<Vec<Value>>()}))?;
    }
    if differences.is_empty() {
        if !options.json {
            output::print_text(&format!(
                "every figure of {} follows from {} rows with SHA-256 {}\nThis proves the arithmetic, not the measurement.\n",
                printable(&args.card.display().to_string()),
                document["figures"]["all"]["asked"],
                printable(&card.rows_sha256)
            ))?;
        }
        return Ok(OK);
    }
    let list = differences.iter().take(MAX_DIFFERENCES).map(|it| {
        printable(&format!("  {}: {} in the card, {} from the run", it.place, it.in_card, it.in_run))
    });
    let mut message = format!(
        "{}: {} values differ from those of {}:\n{}",
        args.card.display(),
        differences.len(),
        args.run.display(),
        list.collect::<Vec<String>>().join("\n")
    );
    if differences.len() > MAX_DIFFERENCES {
        message += &format!("\n  and {} more (--json)", differences.len() - MAX_DIFFERENCES);
    }
    let own = format!("wattspan {}", env!("CARGO_PKG_VERSION"));
    if card.written_by != own {
        message += &format!("\nthe card was written by {}, and this is {own}", card.written_by);
    }
    Err(CliError::new(FAILURE, message))
}

fn read_card(path: &Path) -> Result<(CardHeader, Value), CliError> {
    let wrong = |reason: String| CliError::new(FAILURE, format!("{}: {reason}", path.display()));
    let length = std::fs::metadata(path).map_err(|cause| wrong(cause.to_string()))?.len();
    if length > MAX_CARD_BYTES {
        return Err(wrong(format!("{length} bytes are too many for a result card")));
    }
    let bytes = std::fs::read(path).map_err(|cause| wrong(cause.to_string()))?;
    let document: Value =
        serde_json::from_slice(&bytes).map_err(|cause| wrong(format!("it is not JSON: {cause}")))?;
    if document["format"] != CARD_FORMAT {
        return Err(wrong("it is not a result card (wattspan ipw card writes one)".into()));
    }
    if document["version"] != CARD_VERSION {
        return Err(wrong(format!(
            "version {} of the format; this program reads version {CARD_VERSION}",
            document["version"]
        )));
    }
    let card = serde_json::from_value(document.clone())
        .map_err(|cause| wrong(format!("it is not a valid result card: {cause}")))?;
    Ok((card, document))
}
