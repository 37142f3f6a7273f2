//! `wattspan export otlp`: sends stored accounts and the energy of the machine to an OpenTelemetry collector.

use std::env;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use http::header::{self, HeaderName, HeaderValue};
use serde::Serialize;
use wattspan_export::{
    Backoff, CollectorSettings, OtlpError, OtlpExporter, OtlpSettings, OtlpSignal, OtlpSummary,
};
use wattspan_http::BaseUrl;

use super::connect::{MeterConnector, MeterOptions};
use super::exit_status::{CliError, FAILURE, OK, USAGE};
use super::export_options::{machine_name, named_or_default_attributes, parse_interval, to_cli_error};
use super::output;

/// How long an export without `--every` repeats a request.
const RETRY_LIMIT: Duration = Duration::from_secs(60);

/// Headers that the exporter sets itself.
const RESERVED_HEADERS: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    header::TRANSFER_ENCODING,
];

/// Arguments of `wattspan export otlp`.
#[derive(Debug, clap::Args)]
pub struct OtlpArgs {
    /// Collector: http:// or https://; /v1/traces and /v1/metrics are appended
    #[arg(long, value_name = "URL")]
    endpoint: BaseUrl,
    /// Export again after each interval, until interrupted: 10s, 1m
    #[arg(long, value_name = "INTERVAL", value_parser = parse_interval)]
    every: Option<Duration>,
    /// Header of each request, with its value in a file; repeatable
    #[arg(long = "header", value_name = "NAME=FILE", value_parser = parse_header)]
    headers: Vec<HeaderFile>,
    /// Send only this kind of data
    #[arg(long, value_enum, value_name = "KIND")]
    only: Option<SignalName>,
    /// File with the number up to which accounts are sent [default: one for each URL, in $XDG_STATE_HOME/wattspan, else
    /// in ~/.local/state/wattspan]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Host in the resource of the data [default: the machine's name]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Send this attribute of the spans, and only those that are named; wattspan.uid is the owner; repeatable [default:
    /// gen_ai.request.model, gen_ai.response.model, gen_ai.operation.name, gen_ai.usage.input_tokens,
    /// gen_ai.usage.output_tokens]
    #[arg(long = "attribute", short = 'a', value_name = "KEY")]
    attributes: Vec<String>,
    /// Time for a request and its answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum SignalName {
    /// Accounts as spans
    Traces,
    /// Energy and power of domains and host
    Metrics,
}

/// A header whose value is in a file, so that no list of processes shows it.
#[derive(Debug, Clone)]
struct HeaderFile {
    name: HeaderName,
    file: PathBuf,
}

fn parse_header(text: &str) -> Result<HeaderFile, String> {
    let (name, file) = text.split_once('=').ok_or("expected NAME=FILE, with the value in the file")?;
    let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is not the name of a header"))?;
    if RESERVED_HEADERS.contains(&name) {
        return Err(format!("{name} is set by the exporter"));
    }
    Ok(HeaderFile { name, file: file.into() })
}

impl HeaderFile {
    fn read(&self) -> Result<(HeaderName, HeaderValue), CliError> {
        let failed = |reason: String| {
            CliError::new(USAGE, format!("--header {}={}: {reason}", self.name, self.file.display()))
        };
        let text = std::fs::read_to_string(&self.file).map_err(|error| failed(error.to_string()))?;
        let mut value = HeaderValue::from_str(text.trim())
            .map_err(|_| failed("the file has characters that a header cannot have".to_owned()))?;
        value.set_sensitive(true);
        Ok((self.name.clone(), value))
    }
}

/// The result in JSON output.
#[derive(Serialize)]
struct OtlpOutput {
    accounts: u64,
    rejected: u64,
}

/// Runs `wattspan export otlp`.
pub fn export_otlp(options: &MeterOptions, args: &OtlpArgs) -> Result<u8, CliError> {
    let mut exporter = OtlpExporter::open(settings(args)?).map_err(otlp_to_cli_error)?;
    loop {
        let result = run_once(options, &mut exporter);
        let Some(interval) = args.every else {
            print_summary(options, args, &result?)?;
            return Ok(OK);
        };
        match result {
            Ok(summary) if summary.rejected > 0 => {
                output::eprint_message(&format!(
                    "accounts that are rejected so far: {}",
                    exporter.rejected()
                ));
            }
            Ok(_) => {}
            Err(RunError::Final(error)) => return Err(error),
            // The daemon may be restarting, or the disk full.
            Err(RunError::Repeated(error)) => {
                output::eprint_message(&format!("{error}; the export is repeated"));
            }
        }
        thread::sleep(interval);
    }
}

fn settings(args: &OtlpArgs) -> Result<OtlpSettings, CliError> {
    let url = args.endpoint.to_string();
    if url.ends_with("/v1/traces") || url.ends_with("/v1/metrics") {
        return Err(CliError::new(USAGE, format!("--endpoint {url}: leave out /v1/…, which is appended")));
    }
    if !args.endpoint.is_tls() && !args.headers.is_empty() && !args.endpoint.is_loopback() {
        output::eprint_message(&format!("{url} has no TLS: the network can read the headers"));
    }
    let headers = args.headers.iter().map(HeaderFile::read).collect::<Result<_, _>>()?;
    let state = args.state.clone().or_else(|| default_state(&url)).ok_or_else(|| {
        CliError::new(USAGE, "there is no home directory for the state: name a file with --state")
    })?;
    let signals = match args.only {
        Some(SignalName::Traces) => vec![OtlpSignal::Traces],
        Some(SignalName::Metrics) => vec![OtlpSignal::Metrics],
        None => vec![OtlpSignal::Traces, OtlpSignal::Metrics],
    };
    let timeout = Duration::from_secs(args.timeout);
    Ok(OtlpSettings {
        collector: CollectorSettings { endpoint: args.endpoint.clone(), headers, timeout },
        state,
        host: args.host.clone().unwrap_or_else(machine_name),
        attributes: named_or_default_attributes(&args.attributes),
        signals,
        backoff: Backoff::default(),
        retry_limit: args.every.is_none().then_some(RETRY_LIMIT),
    })
}

/// `wattspan/otlp-URL.json` in the user's directory for states.
fn default_state(url: &str) -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let directory = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(directory.join("wattspan").join(state_name(url)))
}

fn state_name(url: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || ".-".contains(character);
    let word: String =
        url.chars().map(|character| if is_plain(character) { character } else { '_' }).collect();
    format!("otlp-{word}.json")
}

/// Why a turn failed.
enum RunError {
    /// The next turn can succeed.
    Repeated(CliError),
    /// It cannot.
    Final(CliError),
}

impl From<RunError> for CliError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Repeated(error) | RunError::Final(error) => error,
        }
    }
}

impl From<OtlpError> for RunError {
    fn from(error: OtlpError) -> Self {
        match error {
            OtlpError::Refused { .. } | OtlpError::Setup(_) => RunError::Final(otlp_to_cli_error(error)),
            OtlpError::Export(_) | OtlpError::Unavailable { .. } => {
                RunError::Repeated(otlp_to_cli_error(error))
            }
        }
    }
}

fn run_once(options: &MeterOptions, exporter: &mut OtlpExporter) -> Result<OtlpSummary, RunError> {
    let client = MeterConnector::connect_daemon(options).map_err(RunError::Repeated)?;
    let mut report = |message: &str| output::eprint_message(message);
    if exporter.sends(OtlpSignal::Metrics) {
        exporter.send_metrics(&client, &mut report)?;
    }
    if !exporter.sends(OtlpSignal::Traces) {
        return Ok(OtlpSummary::default());
    }
    Ok(exporter.send_accounts(&client, &mut report)?)
}

fn print_summary(options: &MeterOptions, args: &OtlpArgs, summary: &OtlpSummary) -> Result<(), CliError> {
    let OtlpSummary { accounts, rejected, .. } = *summary;
    if options.json {
        return output::print_json(&OtlpOutput { accounts, rejected });
    }
    let lost = if rejected > 0 { format!(", {rejected} rejected") } else { String::new() };
    output::print_text(&format!("sent {accounts} accounts to {}{lost}\n", args.endpoint))
}

fn otlp_to_cli_error(error: OtlpError) -> CliError {
    match error {
        OtlpError::Export(error) => to_cli_error(error),
        other => CliError::new(FAILURE, other),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_header_names_a_file_and_not_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key=1");
        std::fs::write(&file, "Bearer x\n").unwrap();
        let header = parse_header(&format!("Authorization={}", file.display())).unwrap();
        let (name, value) = header.read().unwrap();
        assert_eq!((name, value.to_str().unwrap()), (header::AUTHORIZATION, "Bearer x"));
        assert!(value.is_sensitive());
        std::fs::write(&file, "a\nb").unwrap();
        assert!(header.read().is_err());
        for bad in ["authorization", "a b=f", "=f", "Content-Type=f", "host=f"] {
            assert!(parse_header(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_url_has_its_state_in_the_directory() {
        assert_eq!(state_name("http://127.0.0.1:4318"), "otlp-http___127.0.0.1_4318.json");
        assert_ne!(state_name("https://h/a"), state_name("https://h/b"));
        assert_eq!(Path::new(&state_name("https://h/../x")).components().count(), 1);
    }
}
