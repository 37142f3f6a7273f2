//! The state of `wattspan top` between frames: figures, settings and keys. Has no terminal and no connection.

use std::ops::ControlFlow;

use clap::ValueEnum;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::account_totals::AccountTotals;
use super::group_table::GroupSelection;
use super::meter_feed::{MeterSnapshot, MeterUpdate};
use super::power_history::{PowerHistory, ZOOM_STEPS};
use super::settings::TopSettings;
use super::top_view::{MACHINE, TopView, live_power_mw, machine_power_mw};
use super::unit::{EnergyUnit, UnitFactors};
use super::values_after::values_after;

/// What the meter reported last, and what the user chose to see of it.
#[derive(Debug)]
pub struct TopState {
    pub selection: GroupSelection,
    pub unit: EnergyUnit,
    pub factors: UnitFactors,
    /// Index into [`ZOOM_STEPS`].
    pub zoom: usize,
    pub shows_help: bool,
    /// The filter is being typed.
    pub edits_filter: bool,
    /// Why the meter is unreachable, and since when (wall time).
    pub unreachable: Option<(String, u64)>,
    /// Why the meter is embedded, if that was not requested.
    pub fallback_notice: Option<String>,
    /// The frame that is shown while the view is paused.
    paused_view: Option<TopView>,
    snapshot: Option<MeterSnapshot>,
    totals: AccountTotals,
    history: PowerHistory,
}

impl TopState {
    pub fn new(settings: &TopSettings) -> Self {
        let factors = settings.unit_factors();
        TopState {
            selection: GroupSelection {
                grouping: settings.group,
                sort: settings.sort,
                ..GroupSelection::default()
            },
            unit: settings.unit,
            factors,
            zoom: 0,
            shows_help: false,
            edits_filter: false,
            unreachable: None,
            fallback_notice: None,
            paused_view: None,
            snapshot: None,
            totals: AccountTotals::default(),
            history: PowerHistory::default(),
        }
    }

    /// Takes the figures of a poll. The first of a connection replaces the totals: the daemon may have restarted.
    pub fn apply(&mut self, update: MeterUpdate) {
        let MeterUpdate { snapshot, settled, complete_since_ns } = update;
        if let Some(complete_since_ns) = complete_since_ns {
            self.totals = AccountTotals::complete_since(complete_since_ns);
        }
        self.unreachable = None;
        let counted = snapshot.counted_domains();
        settled.iter().for_each(|account| self.totals.add(account, &counted));
        let domains = snapshot.domains.iter();
        let mut powers: Vec<(&str, Option<u64>)> =
            domains.map(|domain| (domain.name.as_str(), live_power_mw(domain))).collect();
        powers.push((MACHINE, machine_power_mw(&snapshot.domains)));
        self.history.push(&powers);
        self.snapshot = Some(snapshot);
    }

    /// Records that a poll failed. The last figures stay.
    pub fn set_unreachable(&mut self, reason: &str, now_unix_ns: u64) {
        let since_unix_ns = self.unreachable.as_ref().map_or(now_unix_ns, |(_, since_ns)| *since_ns);
        self.unreachable = Some((reason.to_owned(), since_unix_ns));
        self.history.push(&[]);
    }

    /// What the meter reported last; `None` before the first poll.
    pub fn snapshot(&self) -> Option<&MeterSnapshot> {
        self.snapshot.as_ref()
    }

    pub fn totals(&self) -> &AccountTotals {
        &self.totals
    }

    pub fn is_paused(&self) -> bool {
        self.paused_view.is_some()
    }

    /// The frame to show; `None` before the first poll.
    pub fn view(&self) -> Option<TopView> {
        self.paused_view.clone().or_else(|| self.current_view())
    }

    fn current_view(&self) -> Option<TopView> {
        let snapshot = self.snapshot.as_ref()?;
        let per_dot = ZOOM_STEPS[self.zoom];
        Some(TopView::build(snapshot, &self.totals, &self.history, &self.selection, per_dot))
    }

    /// Handles a key; breaks to quit.
    pub fn handle_key(&mut self, key: KeyEvent) -> ControlFlow<()> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
        }
        if self.edits_filter {
            self.edit_filter(key.code);
            return ControlFlow::Continue(());
        }
        if std::mem::take(&mut self.shows_help) && !matches!(key.code, KeyCode::Char('q') | KeyCode::F(10)) {
            return ControlFlow::Continue(());
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::F(10) => return ControlFlow::Break(()),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.shows_help = true,
            KeyCode::Char('g') => self.selection.grouping = next_value(self.selection.grouping),
            KeyCode::Char('s' | '>') | KeyCode::F(6) => self.selection.sort = next_value(self.selection.sort),
            KeyCode::Char('r' | 'I') => self.selection.reversed = !self.selection.reversed,
            KeyCode::Char('u') => self.unit = self.unit.next(&self.factors),
            KeyCode::Char('/') | KeyCode::F(3 | 4) => self.edits_filter = true,
            KeyCode::Esc => self.selection.filter.clear(),
            KeyCode::Char('+' | '=') => self.zoom = self.zoom.saturating_sub(1),
            KeyCode::Char('-') => self.zoom = (self.zoom + 1).min(ZOOM_STEPS.len() - 1),
            KeyCode::Char(' ' | 'p' | 'Z') => {
                self.paused_view = match self.paused_view {
                    Some(_) => None,
                    None => self.current_view(),
                };
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn edit_filter(&mut self, code: KeyCode) {
        const MAX_FILTER_CHARS: usize = 200;
        match code {
            KeyCode::Enter => self.edits_filter = false,
            KeyCode::Esc => {
                self.edits_filter = false;
                self.selection.filter.clear();
            }
            KeyCode::Backspace => drop(self.selection.filter.pop()),
            KeyCode::Char(c) if self.selection.filter.chars().count() < MAX_FILTER_CHARS => {
                self.selection.filter.push(c);
            }
            _ => {}
        }
    }
}

fn next_value<T: ValueEnum + Copy + PartialEq + 'static>(value: T) -> T {
    values_after(value).next().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::super::group_table::{EnergyRowKind, SortKey};
    use super::super::grouping::Grouping;
    use super::super::test_machine::{account, snapshot};
    use super::*;

    fn state() -> TopState {
        let mut state = TopState::new(&TopSettings::default());
        state.apply(update(10_000, 6_000, true));
        state
    }

    fn update(measured_uj: u64, attributed_uj: u64, is_first: bool) -> MeterUpdate {
        let settled = vec![account("a", "small", &[("package-0", 3_000, 0)])];
        let snapshot = snapshot(&[("package-0", measured_uj, attributed_uj)]);
        MeterUpdate { snapshot, settled, complete_since_ns: is_first.then_some(0) }
    }

    fn press(state: &mut TopState, keys: &str) -> ControlFlow<()> {
        keys.chars().try_for_each(|c| state.handle_key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE)))
    }

    #[test]
    fn keys_change_the_view_and_quit() {
        let mut state = state();
        assert!(press(&mut state, "gsr-u").is_continue());
        assert_eq!(state.selection.grouping, Grouping::Name);
        assert_eq!((state.selection.sort, state.selection.reversed), (SortKey::Requests, true));
        assert_eq!((state.zoom, state.unit), (1, EnergyUnit::WattHours));
        assert!(press(&mut state, "q").is_break());
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(state.handle_key(interrupt).is_break());
    }

    #[test]
    fn a_filter_is_typed_and_escape_removes_it() {
        let mut state = state();
        assert!(press(&mut state, "/qg").is_continue(), "keys are text while the filter is typed");
        assert_eq!(state.selection.filter, "qg");
        let kinds = |state: &TopState| -> Vec<EnergyRowKind> {
            state.view().unwrap().energy.rows.iter().map(|row| row.kind).collect()
        };
        assert!(!kinds(&state).contains(&EnergyRowKind::Group));
        let _ = state.handle_key(KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE));
        assert_eq!((state.selection.filter.as_str(), state.edits_filter), ("", false));
        assert!(kinds(&state).contains(&EnergyRowKind::Group));
    }

    #[test]
    fn a_paused_view_keeps_its_figures_and_loses_none() {
        let mut state = state();
        let _ = press(&mut state, " ");
        let frozen = state.view();
        state.apply(update(20_000, 9_000, false));
        assert_eq!(state.view(), frozen);
        let _ = press(&mut state, " ");
        let energy = state.view().unwrap().energy;
        assert_eq!((energy.machine_uj, energy.rows[0].share_uj), (20_000, 6_000));
    }

    #[test]
    fn a_restarted_daemon_begins_new_totals() {
        let mut state = state();
        state.set_unreachable("gone", 5);
        state.set_unreachable("still gone", 9);
        assert_eq!(state.unreachable, Some(("still gone".into(), 5)));
        assert_eq!(state.view().unwrap().energy.machine_uj, 10_000, "the last figures stay");
        state.apply(update(4_000, 3_500, true));
        assert_eq!(state.unreachable, None);
        let energy = state.view().unwrap().energy;
        assert_eq!((energy.machine_uj, energy.rows[0].share_uj), (4_000, 3_000));
        assert_eq!(state.view().unwrap().history_mw, [Some(100), None, None, Some(40)]);
    }
}
