//! Whole frames on ratatui's test terminal, as text.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;
use ratatui::text::Text;
use serde_json::json;
use wattspan_client::account::Account;

use super::draw::{FrameSize, frame_lines};
use super::meter_feed::MeterUpdate;
use super::palette::Palette;
use super::settings::TopSettings;
use super::test_machine::{account, snapshot};
use super::top_state::TopState;

/// A machine with a lost GPU, two models, and an open span.
fn busy_state() -> TopState {
    let mut settled: Vec<Account> = ["a", "b", "c"]
        .map(|span| {
            account(span, "small-7b", &[("package-0", 1_000_400, 200_000), ("dram-0", 90_000, 9_000)])
        })
        .to_vec();
    settled.push(account("d", "large-70b", &[("package-0", 4_500_000, 300_000)]));
    for account in &mut settled {
        account.attributes.insert("gen_ai.usage.output_tokens".into(), "100".into());
        let opened_ns = account.opened_ns + 50_000_000;
        account.phases = serde_json::from_value(json!([{"name": "decode", "opened_ns": opened_ns}])).unwrap();
    }
    let mut snapshot = snapshot(&[("package-0", 12_345_678, 9_000_000), ("dram-0", 1_000_001, 500_000)]);
    let lost = json!({
        "name": "gpu-0", "kind": "gpu", "source": "nvml", "counted": false, "grade": "integrated",
        "liveness": "lost", "reason": "has fallen off the bus: restart the driver"
    });
    snapshot.domains.push(serde_json::from_value(lost).unwrap());
    snapshot.open = vec![account("open-1", "", &[("package-0", 600_000, 50_000)])];
    let mut state = TopState::new(&TopSettings::default());
    for is_first in [true, false] {
        let settled = if is_first { settled.clone() } else { Vec::new() };
        state.apply(MeterUpdate {
            snapshot: snapshot.clone(),
            settled,
            complete_since_ns: is_first.then_some(0),
        });
    }
    state
}

fn draw(state: &TopState, width: u16, height: u16, colour: bool) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let size = FrameSize { width: width.into(), height: Some(height.into()) };
    let view = state.view().unwrap();
    let lines = frame_lines(state, &view, size, Palette { colour });
    for line in &lines {
        assert!(line.width() <= usize::from(width), "{width} columns: {line}");
    }
    terminal.draw(|frame| frame.render_widget(Text::from(lines), frame.area())).unwrap();
    terminal
}

fn text(state: &TopState, width: u16, height: u16) -> Vec<String> {
    let terminal = draw(state, width, height, false);
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(usize::from(width));
    let row = |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
    rows.map(|cells| row(cells).trim_end().to_owned()).collect()
}

/// The figures of a column of the group table, as printed: those of the rows, and the machine's.
fn printed_column(lines: &[String], title: &str) -> (Vec<u64>, u64) {
    let header = lines.iter().position(|line| line.starts_with("MODEL")).unwrap();
    let end = lines[header].find(title).unwrap() + title.len();
    let figure = |line: &String| -> Option<u64> {
        let cell = line.get(..end)?.rsplit(' ').next()?;
        cell.contains('.').then(|| cell.replace('.', "").parse().unwrap())
    };
    let rows = &lines[header + 1..];
    let machine = rows.iter().position(|line| line.starts_with("machine")).unwrap();
    (rows[..machine].iter().filter_map(figure).collect(), figure(&rows[machine]).unwrap())
}

#[test]
fn a_frame_of_100_columns_is_the_reviewed_text() {
    let lines = text(&busy_state(), 100, 24);
    let expected = include_str!("frame_100_columns.txt");
    assert_eq!(lines.join("\n") + "\n", expected, "\n{}\n", lines.join("\n"));
}

#[test]
fn both_energy_columns_add_up_as_printed_at_every_width_and_height() {
    let mut state = busy_state();
    for width in [60, 80, 100, 120, 200, 300] {
        for height in [22, 24, 60] {
            let lines = text(&state, width, height);
            for title in ["ENERGY J", "ABOVE IDLE"] {
                let (rows, machine) = printed_column(&lines, title);
                assert_eq!(rows.iter().sum::<u64>(), machine, "{title}\n{}", lines.join("\n"));
                assert_eq!(machine, 13_346, "{title}, {width} columns");
            }
            let shown = |name: &str| lines.iter().any(|line| line.trim_start().starts_with(name));
            for row in ["package-0", "gpu-0", "has fallen off the bus", "idle", "unattributed", "machine"] {
                assert!(shown(row), "{row} at {width} x {height}\n{}", lines.join("\n"));
            }
        }
    }
    state.selection.filter = "large".into();
    let (rows, machine) = printed_column(&text(&state, 80, 40), "ENERGY J");
    assert_eq!((rows.iter().sum::<u64>(), machine), (13_346, 13_346));
}

#[test]
fn a_wide_frame_has_every_column_and_a_narrow_one_the_energy() {
    let wide = text(&busy_state(), 200, 40).join("\n");
    for title in ["IDLE PART", "GRADE", "REQ/S", "POWER", "J/REQUEST", "J/TOKEN", "TTFT", "SPAN"] {
        assert!(wide.contains(title), "{title}\n{wide}");
    }
    assert!(wide.contains("0.050") && wide.contains("50.00 ms"), "{wide}");
    let narrow = text(&busy_state(), 60, 40).join("\n");
    assert!(
        narrow.contains("ENERGY J") && narrow.contains("ABOVE IDLE") && !narrow.contains("TTFT"),
        "{narrow}"
    );
}

#[test]
fn without_colour_no_cell_has_one_and_with_it_all_are_of_the_256() {
    let colours = |colour| -> Vec<Color> {
        let terminal = draw(&busy_state(), 100, 30, colour);
        let cells = terminal.backend().buffer().content.iter();
        cells.flat_map(|cell| [cell.fg, cell.bg]).filter(|colour| *colour != Color::Reset).collect()
    };
    assert!(colours(false).is_empty());
    let used = colours(true);
    assert!(!used.is_empty() && used.iter().all(|colour| matches!(colour, Color::Indexed(_))));
}

#[test]
fn an_unreachable_daemon_is_named_and_the_figures_stay() {
    let mut state = busy_state();
    state.set_unreachable("no daemon at /run/w.sock", 1_763_000_000_000_000_000);
    for width in [60, 120] {
        let lines = text(&state, width, 40).join(" ");
        assert!(lines.contains("daemon unreachable since 2025-11-13T02:13:20"), "{lines}");
        assert!(lines.contains("reconnecting") && lines.contains("small-7b"), "{lines}");
    }
}

#[test]
fn each_unit_names_its_column_and_a_fallback_is_named() {
    let mut state = busy_state();
    state.fallback_notice = Some("no daemon at /run/w.sock: measuring in this process".into());
    state.factors.cost_millionths_per_kwh = Some(300_000);
    state.factors.currency = "EUR".into();
    state.factors.co2_ug_per_kwh = Some(350_000_000);
    for title in ["ENERGY J", "ENERGY Wh", "MEAN W", "COST EUR", "g CO2"] {
        for width in [60, 120] {
            let lines = text(&state, width, 40);
            assert!(lines[1].starts_with("no daemon at"), "{}", lines.join("\n"));
            let (rows, machine) = printed_column(&lines, title);
            assert_eq!(rows.iter().sum::<u64>(), machine, "{title}\n{}", lines.join("\n"));
        }
        state.unit = state.unit.next(&state.factors);
    }
}

#[test]
fn names_of_clients_cannot_move_the_cursor() {
    let mut state = busy_state();
    let hostile = account("e\u{1b}[2J", "m\u{1b}[31m\u{202e}x", &[("package-0", 1, 0)]);
    let snapshot = snapshot(&[("package-0", 12_345_678, 9_000_000)]);
    let mut open = hostile.clone();
    open.name = "n\u{7}\r\n".into();
    let snapshot = super::meter_feed::MeterSnapshot { open: vec![open], ..snapshot };
    state.apply(MeterUpdate { snapshot, settled: vec![hostile], complete_since_ns: Some(0) });
    let view = state.view().unwrap();
    let lines = frame_lines(&state, &view, FrameSize { width: 200, height: None }, Palette { colour: true });
    let text: String = lines.iter().map(ToString::to_string).collect();
    assert!(text.contains("\\u{1b}[31m") && text.contains("\\u{202e}"), "{text}");
    assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text}");
}

#[test]
fn groups_that_do_not_fit_share_a_row_and_open_spans_are_cut() {
    let mut state = TopState::new(&TopSettings::default());
    let settled = (0..200).map(|at| account("s", &format!("model {at}"), &[("package-0", 1_700 + at, 3)]));
    let mut snapshot = snapshot(&[("package-0", 900_000, 800_000)]);
    snapshot.open = (0..99).map(|at| account(&format!("o{at}"), "", &[("package-0", 1_000, 1)])).collect();
    state.apply(MeterUpdate { snapshot, settled: settled.collect(), complete_since_ns: Some(0) });
    let lines = text(&state, 100, 30);
    assert!(lines.iter().any(|line| line.contains("more groups)")), "{}", lines.join("\n"));
    let (rows, machine) = printed_column(&lines, "ENERGY J");
    assert_eq!((rows.iter().sum::<u64>(), machine), (900, 900));
    assert!(lines.last().unwrap().starts_with("q quit"), "{}", lines.join("\n"));
    assert!(lines.iter().any(|line| line.starts_with("OPEN SPANS 99")), "{}", lines.join("\n"));
}

#[test]
fn help_describes_every_key_in_60_columns() {
    let mut state = busy_state();
    state.shows_help = true;
    let lines = text(&state, 60, 60).join("\n");
    for key in ["F10", "space", "group", "sort", "filter", "unit"] {
        assert!(lines.contains(key), "{key}\n{lines}");
    }
}
