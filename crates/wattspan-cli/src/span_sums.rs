//! `wattspan spans --sum`: the sums of stored accounts in groups, as a table, CSV or JSON.
//!
//! Invariant: the rows add up to the last one, in whole microjoules, also as they are printed.

use std::io::stdout;

use wattspan_client::Client;
use wattspan_client::account::GapReason;
use wattspan_client::protocol::{SpanSum, SpanSums, SumSpans};

use super::account_report::grade_label;
use super::connect::MeterOptions;
use super::csv::{escape_cell, format_millionths};
use super::exit_status::{CliError, OK, USAGE};
use super::output;
use super::table::{TableColumn, TextTable, number_column, text_column};
use super::terminal::Terminal;

/// A field by which spans are grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum GroupField {
    Model,
    Name,
    User,
    Operation,
    Day,
}

impl GroupField {
    /// The field's name in the contract.
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Name => "name",
            Self::User => "user",
            Self::Operation => "operation",
            Self::Day => "day",
        }
    }

    fn header(self) -> &'static str {
        match self {
            Self::Model => "MODEL",
            Self::Name => "NAME",
            Self::User => "USER",
            Self::Operation => "OPERATION",
            Self::Day => "DAY",
        }
    }

    /// The value in a sum; empty where the spans have none.
    fn value(self, sum: &SpanSum) -> String {
        let value = match self {
            Self::Model => sum.model.clone(),
            Self::Name => sum.name.clone(),
            Self::User => sum.uid.map(|uid| uid.to_string()),
            Self::Operation => sum.operation.clone(),
            Self::Day => sum.day.clone(),
        };
        value.unwrap_or_default()
    }
}

/// The options of `wattspan spans --sum`.
#[derive(Debug, clap::Args)]
pub struct SumArgs {
    /// Show sums of the matching spans instead of a list
    #[arg(long, conflicts_with_all = ["span", "watch", "count", "open"])]
    pub sum: bool,
    /// With --sum: one row for each of these values: model, name, user, operation, day
    #[arg(
        long,
        value_name = "FIELDS",
        value_enum,
        value_delimiter = ',',
        requires = "sum",
        hide_possible_values = true
    )]
    by: Vec<GroupField>,
    /// With --sum: only spans opened before WHEN, in the forms of --since
    #[arg(long, value_name = "WHEN", value_parser = super::utc_time::parse_since, requires = "sum")]
    until: Option<u64>,
    /// With --sum: only spans with this requested model
    #[arg(long, value_name = "MODEL", requires = "sum")]
    model: Option<String>,
    /// With --sum: only spans of the user with this ID
    #[arg(long, value_name = "UID", requires = "sum")]
    uid: Option<u32>,
    /// With --sum: the time zone of the days, such as +01:00 [default: UTC]
    #[arg(long, value_name = "OFFSET", value_parser = parse_utc_offset, allow_hyphen_values = true, requires = "sum")]
    utc_offset: Option<i64>,
    /// With --sum: print comma-separated values, energies in microjoules
    #[arg(long, requires = "sum")]
    csv: bool,
}

/// Parses `+01:00` as minutes.
fn parse_utc_offset(text: &str) -> Result<i64, String> {
    let parse = || {
        let (sign, rest) = match text.split_at_checked(1)? {
            ("+", rest) => (1, rest),
            ("-", rest) => (-1, rest),
            _ => return None,
        };
        let (hours, minutes) = rest.split_once(':')?;
        let number = |digits: &str, below: i64| {
            let is_short = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_digit());
            digits.parse::<i64>().ok().filter(|number| is_short && *number < below)
        };
        Some(sign * (number(hours, 24)? * 60 + number(minutes, 60)?))
    };
    if text == "Z" { Ok(0) } else { parse().ok_or_else(|| "expected +HH:MM, -HH:MM or Z".to_owned()) }
}

/// Prints the sums of the spans that match `filters`, whose other fields are those of `args`.
pub fn print_sums(
    options: &MeterOptions,
    client: &Client,
    args: &SumArgs,
    filters: SumSpans,
) -> Result<u8, CliError> {
    if options.json && args.csv {
        return Err(CliError::new(USAGE, "--json and --csv are mutually exclusive: remove one of them"));
    }
    let by_day = args.by.contains(&GroupField::Day);
    let request = SumSpans {
        by: (!args.by.is_empty()).then(|| args.by.iter().map(|field| field.name().to_owned()).collect()),
        utc_offset_min: by_day.then(|| args.utc_offset.unwrap_or(0)),
        until_unix_ns: args.until.map(|ns| i64::try_from(ns).unwrap_or(i64::MAX)),
        model: args.model.clone(),
        uid: args.uid.map(i64::from),
        ..filters
    };
    // A large store takes longer than another call.
    client.set_timeout(None)?;
    let sums = client.sum_spans(request)?;
    if options.json {
        output::print_json(&sums)?;
    } else if args.csv {
        output::print_bytes(render_csv(&args.by, &sums).as_bytes())?;
    } else {
        output::print_text(&render_table(&args.by, &sums, Terminal::of(&stdout())))?;
    }
    for missing in sums.missing.iter().flatten() {
        let accounts =
            missing.accounts.map_or_else(|| "accounts".to_owned(), |count| format!("{count} accounts"));
        let reason = match missing.reason {
            GapReason::Lost => "lost",
            GapReason::Damaged => "damaged",
            GapReason::Deleted => "deleted",
        };
        output::eprint_message(&format!("{accounts} are missing from these sums: {reason}"));
    }
    Ok(OK)
}

/// The rows of the output: the groups, those beyond the maximum, and the total.
fn rows(sums: &SpanSums) -> impl Iterator<Item = (&'static str, &SpanSum)> {
    let groups = sums.sums.iter().map(|sum| ("group", sum));
    groups.chain(sums.other.iter().map(|sum| ("other", sum))).chain([("total", &sums.total)])
}

/// A quotient in whole units, rounded; `None` without a divisor.
fn divide(sum: Option<u64>, count: u64) -> Option<u64> {
    let rounded = (u128::from(sum?) + u128::from(count) / 2).checked_div(u128::from(count))?;
    u64::try_from(rounded).ok()
}

fn uj_per_request(sum: &SpanSum) -> Option<u64> {
    divide(sum.energy_uj, sum.accounts.saturating_sub(sum.without_energy))
}

fn uj_per_output_token(sum: &SpanSum) -> Option<u64> {
    divide(sum.token_energy_uj, sum.output_tokens?)
}

fn render_table(by: &[GroupField], sums: &SpanSums, terminal: Terminal) -> String {
    const FIGURES: [TableColumn; 8] = [
        number_column("SPANS"),
        number_column("ENERGY J"),
        number_column("± J"),
        number_column("J/SPAN"),
        number_column("J/TOKEN"),
        number_column("TOKENS IN"),
        number_column("TOKENS OUT"),
        text_column("GRADE"),
    ];
    let keys = by.iter().map(|field| text_column(field.header()));
    let first = by.is_empty().then_some(text_column(""));
    let mut table = TextTable::new(first.into_iter().chain(keys).chain(FIGURES).collect::<Vec<_>>());
    for (kind, sum) in rows(sums) {
        let mut cells: Vec<String> = by.iter().map(|field| field.value(sum)).collect();
        match (kind, cells.first_mut()) {
            ("group", _) => {}
            (_, Some(first)) => kind.clone_into(first),
            (_, None) => cells.push(kind.to_owned()),
        }
        let joules = |uj: Option<u64>| uj.map_or_else(|| "unknown".to_owned(), format_millionths);
        let count = |count: Option<u64>| count.map_or_else(String::new, |count| count.to_string());
        let per_token = uj_per_output_token(sum).map_or_else(String::new, format_millionths);
        let grade =
            sum.grade.map_or_else(String::new, |grade| grade_label(grade, sum.simulated == Some(true)));
        cells.extend([
            sum.accounts.to_string(),
            joules(sum.energy_uj),
            joules(sum.error_uj),
            joules(uj_per_request(sum)),
            per_token,
            count(sum.input_tokens),
            count(sum.output_tokens),
            grade,
        ]);
        table.add_row_with_note(cells, note(sum));
    }
    let open = match sums.open {
        0 => String::new(),
        count => format!("  {count} open spans are not included\n"),
    };
    table.render(terminal) + &open
}

/// What the figures of a row leave out.
fn note(sum: &SpanSum) -> String {
    let mut notes = Vec::new();
    if sum.without_energy > 0 {
        notes.push(format!("{} without energy are not in the sums", sum.without_energy));
    }
    if sum.at_least == Some(true) {
        notes.push("a lower bound: a domain may be missing".to_owned());
    }
    notes.join("; ")
}

fn render_csv(by: &[GroupField], sums: &SpanSums) -> String {
    const FIGURES: &str = "accounts,without_energy,energy_uj,error_uj,idle_uj,input_tokens,output_tokens,token_energy_uj,\
                           uj_per_request,uj_per_output_token,duration_ns,first_closed_unix_ns,last_closed_unix_ns,\
                           grade,simulated,at_least";
    let keys: String = by.iter().map(|field| format!("{},", field.name())).collect();
    let mut out = format!("row,{keys}{FIGURES}\n");
    for (kind, sum) in rows(sums) {
        let count = |count: Option<u64>| count.map_or_else(String::new, |count| count.to_string());
        let flag = |flag: Option<bool>| flag.unwrap_or(false).to_string();
        let keys = by.iter().map(|field| escape_cell(&field.value(sum)));
        let figures = [
            sum.accounts.to_string(),
            sum.without_energy.to_string(),
            count(sum.energy_uj),
            count(sum.error_uj),
            count(sum.idle_uj),
            count(sum.input_tokens),
            count(sum.output_tokens),
            count(sum.token_energy_uj),
            count(uj_per_request(sum)),
            count(uj_per_output_token(sum)),
            sum.duration_ns.to_string(),
            count(sum.first_closed_unix_ns),
            count(sum.last_closed_unix_ns),
            sum.grade.map_or_else(String::new, |grade| grade.as_str().to_owned()),
            flag(sum.simulated),
            flag(sum.at_least),
        ];
        let cells: Vec<String> = [kind.to_owned()].into_iter().chain(keys).chain(figures).collect();
        out += &(cells.join(",") + "\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(model: &str, uj: u64) -> SpanSum {
        SpanSum {
            model: Some(model.into()),
            accounts: 2,
            energy_uj: Some(uj),
            error_uj: Some(7),
            output_tokens: Some(10),
            token_energy_uj: Some(uj),
            ..SpanSum::default()
        }
    }

    fn sums() -> SpanSums {
        SpanSums {
            sums: vec![sum("a,b", 1_000_001), sum("=c\u{202e}", 2)],
            other: None,
            total: SpanSum { model: None, accounts: 5, without_energy: 1, ..sum("", 1_000_003) },
            open: 3,
            last: Some(5),
            missing: None,
            database: String::new(),
        }
    }

    #[test]
    fn rows_add_up_to_the_total_as_they_are_printed() {
        let table = render_table(&[GroupField::Model], &sums(), Terminal::PLAIN);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[1].contains("a,b") && lines[1].contains("1.000001"), "{table}");
        assert!(lines[2].contains("0.000002"), "{table}");
        assert!(lines[3].contains("total") && lines[3].contains("1.000003"), "{table}");
        assert!(lines[4].contains("1 without energy"), "{table}");
        assert_eq!(lines[5], "  3 open spans are not included");
        // Of the four accounts with energy, and of the tokens.
        assert!(lines[3].contains("0.250001") && lines[3].contains("0.100000"), "{table}");
    }

    #[test]
    fn csv_has_a_header_and_no_formula() {
        let csv = render_csv(&[GroupField::Model, GroupField::Day], &sums());
        let lines: Vec<&str> = csv.lines().collect();
        assert!(lines[0].starts_with("row,model,day,accounts,"), "{csv}");
        assert!(lines[1].starts_with("group,\"a,b\",,2,0,1000001,7,,,10,1000001,500001,100000,"), "{csv}");
        assert!(lines[2].starts_with("group,'=c\\u{202e},,2,"), "{csv}");
        assert!(lines[3].starts_with("total,,,5,1,1000003,"), "{csv}");
        assert_eq!(lines[0].split(',').count(), lines[3].split(',').count());
    }

    #[test]
    fn without_groups_there_is_only_the_total() {
        let only = SpanSums { sums: Vec::new(), open: 0, ..sums() };
        let table = render_table(&[], &only, Terminal::PLAIN);
        assert_eq!(table.lines().filter(|line| line.contains("total")).count(), 1, "{table}");
    }

    #[test]
    fn an_offset_has_a_sign_hours_and_minutes() {
        let offsets =
            ["+01:00", "-05:30", "Z", "+00:00", "+14:00"].map(|text| parse_utc_offset(text).unwrap());
        assert_eq!(offsets, [60, -330, 0, 0, 840]);
        for text in ["", "1", "01:00", "+1:00", "+24:00", "+01:60", "+0100", "CET", "+-1:00", "é"] {
            assert!(parse_utc_offset(text).is_err(), "{text}");
        }
    }
}
