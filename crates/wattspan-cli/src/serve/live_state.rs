//! What the live page shows: the figures of `wattspan top`, the history of 24 hours and the latest requests.

use super::health::health_lines;
use super::live_history::{HistoryRange, HistorySlot, LiveHistory};
use super::live_pictures::{LivePicture, history_pictures, requests_picture};
use super::page_message::{FiguresMessage, MessageContext, PageMessage, UnreachableMessage};
use super::request_log::{RequestLog, RequestRow};
use crate::top::meter_feed::MeterUpdate;
use crate::top::settings::TopSettings;
use crate::top::top_state::TopState;

/// The state of the page, for all viewers.
#[derive(Debug)]
pub struct LiveState {
    top: TopState,
    history: LiveHistory,
    requests: RequestLog,
    meter: &'static str,
    notice: Option<String>,
    /// Requests that settled since the last messages.
    new_requests: Vec<RequestRow>,
    /// The totals begin anew: the next messages replace all.
    begins_anew: bool,
    /// The last second whose pictures were sent.
    pictured_s: u64,
}

impl LiveState {
    pub fn new(meter: &'static str, notice: Option<String>) -> Self {
        LiveState {
            top: TopState::new(&TopSettings::default()),
            history: LiveHistory::new(),
            requests: RequestLog::default(),
            meter,
            notice,
            new_requests: Vec::new(),
            begins_anew: true,
            pictured_s: 0,
        }
    }

    /// Takes the figures of a poll.
    pub fn apply(&mut self, update: MeterUpdate, now_unix_ns: u64) {
        let is_new_connection = update.complete_since_ns.is_some();
        if is_new_connection {
            self.requests.clear();
            self.new_requests.clear();
            self.begins_anew = true;
        }
        let settled = update.settled.clone();
        self.new_requests.extend(self.requests.add(&settled));
        self.top.apply(update);
        if let Some(snapshot) = self.top.snapshot() {
            self.history.update(snapshot, self.top.totals(), &settled, is_new_connection, now_unix_ns);
        }
    }

    /// Records that a poll failed. The last figures stay.
    pub fn set_unreachable(&mut self, reason: &str, now_unix_ns: u64) {
        self.top.set_unreachable(reason, now_unix_ns);
    }

    fn figures(&self, now_unix_ns: u64) -> Option<FiguresMessage> {
        let snapshot = self.top.snapshot()?;
        let view = self.top.view()?;
        let unreachable = self.top.unreachable.as_ref();
        let mut sum = HistorySlot::default();
        self.history.slots(HistoryRange::TenMinutes).iter().for_each(|slot| sum.add(slot));
        let (token_uj, tokens) = sum.token_sums();
        let context = MessageContext {
            unix_ms: now_unix_ns / 1_000_000,
            meter: self.meter,
            notice: self.notice.clone(),
            unreachable: unreachable.map(|(reason, since_unix_ns)| UnreachableMessage {
                reason: crate::terminal::printable(reason),
                since_unix_ms: since_unix_ns / 1_000_000,
            }),
            health: health_lines(snapshot, unreachable.map(|(reason, _)| reason.as_str())),
            token_uj,
            tokens,
        };
        Some(FiguresMessage::new(&view, context))
    }

    fn requests_picture(&self, now_unix_ns: u64) -> LivePicture {
        let open = self.top.snapshot().map_or(&[][..], |snapshot| &snapshot.open);
        // Of an unreachable meter, it is unknown which spans are still open.
        let open = if self.top.unreachable.is_some() { &[] } else { open };
        requests_picture(self.requests.rows().iter(), open, now_unix_ns)
    }

    /// A message that replaces all that a page has, as an event of the stream.
    pub fn full_event(&self, range: HistoryRange, now_unix_ns: u64) -> Vec<u8> {
        let Some(figures) = self.figures(now_unix_ns) else { return Vec::new() };
        let mut pictures = history_pictures(&self.history, range, now_unix_ns);
        pictures.push(self.requests_picture(now_unix_ns));
        let requests: Vec<RequestRow> = self.requests.rows().iter().cloned().collect();
        encode_event(&PageMessage {
            full: true,
            range: range.name(),
            figures: &figures,
            pictures: &pictures,
            requests: &requests,
        })
    }

    /// The events since the last call, for the ranges that have viewers.
    pub fn next_events(
        &mut self,
        ranges: impl Iterator<Item = HistoryRange>,
        now_unix_ns: u64,
    ) -> Vec<(HistoryRange, Vec<u8>)> {
        let requests = std::mem::take(&mut self.new_requests);
        let last_s = std::mem::replace(&mut self.pictured_s, now_unix_ns / 1_000_000_000);
        let now_s = self.pictured_s;
        if std::mem::take(&mut self.begins_anew) {
            return ranges.map(|range| (range, self.full_event(range, now_unix_ns))).collect();
        }
        let Some(figures) = self.figures(now_unix_ns) else { return Vec::new() };
        let of_second: Vec<LivePicture> =
            (now_s != last_s).then(|| self.requests_picture(now_unix_ns)).into_iter().collect();
        let event = |range: HistoryRange| {
            let mut pictures = of_second.clone();
            if now_s / range.slot_s() != last_s / range.slot_s() {
                pictures.extend(history_pictures(&self.history, range, now_unix_ns));
            }
            let (range_name, figures) = (range.name(), &figures);
            let message = PageMessage {
                full: false,
                range: range_name,
                figures,
                pictures: &pictures,
                requests: &requests,
            };
            (range, encode_event(&message))
        };
        ranges.map(event).collect()
    }
}

/// A server-sent event: JSON has no line break, since serde_json escapes those in strings.
fn encode_event(message: &PageMessage) -> Vec<u8> {
    let mut event = b"data: ".to_vec();
    // A struct of texts and numbers always serializes.
    if serde_json::to_writer(&mut event, message).is_err() {
        return Vec::new();
    }
    event.extend_from_slice(b"\n\n");
    event
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use wattspan_client::account::Account;

    use super::*;
    use crate::top::group_table::EnergyRowKind;
    use crate::top::row_figures::TableFigures;
    use crate::top::test_machine::{account, snapshot};
    use crate::top::unit::{ColumnScale, EnergyUnit, UnitFactors};

    const START_UNIX_NS: u64 = 1_700_000_000_000_000_000;

    fn update(second: u64, settled: Vec<Account>, is_first: bool) -> MeterUpdate {
        let mut snapshot = snapshot(&[
            ("package-0", 60_000_123 * (second + 1), 50_000_077 * (second + 1)),
            ("dram-0", 20_000_005 * (second + 1), 0),
        ]);
        snapshot.now_ns += second * 1_000_000_000;
        MeterUpdate { snapshot, settled, complete_since_ns: is_first.then_some(0) }
    }

    fn parse(event: &[u8]) -> Value {
        let text = std::str::from_utf8(event).unwrap();
        let body = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!body.contains('\n'));
        serde_json::from_str(body).unwrap()
    }

    fn state(seconds: u64) -> LiveState {
        let mut state = LiveState::new("daemon", None);
        for second in 0..seconds {
            let request = account("s", "small", &[("package-0", 7_654_321, 1_234_567)]);
            let now_unix_ns = START_UNIX_NS + second * 1_000_000_000;
            state.apply(update(second, vec![request], second == 0), now_unix_ns);
        }
        state
    }

    #[test]
    fn the_energies_have_the_digits_of_top_and_add_up() {
        let state = state(5);
        let page = parse(&state.full_event(HistoryRange::TenMinutes, START_UNIX_NS));
        let view = state.top.view().unwrap();
        let scale = ColumnScale::choose(
            EnergyUnit::Joules,
            &UnitFactors::default(),
            view.energy.machine_uj,
            view.uptime_ns,
        );
        let figures = TableFigures::new(&view.energy.rows, view.energy.machine_uj, &scale);
        assert_eq!(page["energy"]["machine"], figures.machine_share);
        let rows = page["energy"]["rows"].as_array().unwrap();
        for ((row, figures), shown) in view.energy.rows.iter().zip(&figures.rows).zip(rows) {
            assert_eq!(shown["name"], row.name);
            assert_eq!(shown["cells"][0], figures.share.clone().unwrap_or_default());
            assert_eq!(shown["cells"][2], figures.above_idle);
        }
        let digits = |text: &Value| text.as_str().unwrap().replace('.', "").parse::<u64>().unwrap_or(0);
        for (column, machine) in [(0, "machine"), (2, "machine_above_idle")] {
            let sum: u64 = rows.iter().map(|row| digits(&row["cells"][column])).sum();
            assert_eq!(sum, digits(&page["energy"][machine]));
        }
        let group = rows.iter().find(|row| row["kind"] == "group").unwrap();
        assert_eq!(group["cells"][0], "38.272");
        assert_eq!(view.energy.rows[0].kind, EnergyRowKind::Group);
    }

    #[test]
    fn events_add_what_is_new_and_a_new_connection_replaces_all() {
        let mut state = state(3);
        let all = || HistoryRange::ALL.into_iter();
        let first = state.next_events(all(), START_UNIX_NS + 2_000_000_000);
        assert!(first.len() == 3 && first.iter().all(|(_, event)| parse(event)["full"] == true));
        let request = account("next", "small", &[("package-0", 1, 0)]);
        state.apply(update(3, vec![request], false), START_UNIX_NS + 3_000_000_000);
        let events = state.next_events(all(), START_UNIX_NS + 3_000_000_000);
        let ids = |event: &[u8]| -> Vec<String> {
            let pictures = parse(event)["pictures"].as_array().unwrap().clone();
            pictures.iter().map(|picture| picture["id"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(ids(&events[0].1), ["requests", "domains", "uses", "models", "tokens"]);
        assert_eq!(ids(&events[1].1), ["requests"], "the slots of an hour last 10 s");
        let page = parse(&events[0].1);
        assert_eq!((&page["full"], page["requests"].as_array().unwrap().len()), (&Value::Bool(false), 1));
        assert_eq!(page["requests"][0]["span"], "next");
        let events = state.next_events(all(), START_UNIX_NS + 3_500_000_000);
        assert!(
            ids(&events[0].1).is_empty() && parse(&events[0].1)["requests"].as_array().unwrap().is_empty()
        );
        state.set_unreachable("gone", START_UNIX_NS + 4_000_000_000);
        let page = parse(&state.next_events(all(), START_UNIX_NS + 4_000_000_000)[0].1);
        assert_eq!((&page["unreachable"]["reason"], &page["full"]), (&"gone".into(), &false.into()));
        state.apply(update(0, vec![], true), START_UNIX_NS + 5_000_000_000);
        let page = parse(&state.next_events(all(), START_UNIX_NS + 5_000_000_000)[0].1);
        assert_eq!((&page["unreachable"], &page["full"]), (&Value::Null, &true.into()));
        assert_eq!(page["requests"].as_array().unwrap().len(), 0);
    }

    #[test]
    fn a_full_message_is_below_a_megabyte_whatever_the_names_and_the_history() {
        let mut state = LiveState::new("daemon", None);
        let names: Vec<String> =
            (0..40).map(|number| format!("{number}-{}", "\u{202e}<€".repeat(100))).collect();
        for second in 0..700_u64 {
            let domains: Vec<(&str, u64, u64)> = names
                .iter()
                .map(|name| {
                    (name.as_str(), 977_777_777 * second * second % 99_999_999 + 99_999_999 * second, 0)
                })
                .collect();
            let mut snapshot = snapshot(&domains);
            snapshot.now_ns += second * 1_000_000_000;
            for balance in &mut snapshot.balance {
                balance.attributed_uj = balance.measured_uj / 7 * 6;
                balance.unattributed_uj = balance.measured_uj - balance.attributed_uj;
            }
            let name = &names[(second % 40) as usize];
            let mut request = account(name, name, &[(&names[0], 7_654_321 + second, 1_234_567)]);
            request.name.clone_from(name);
            request.opened_unix_ns = START_UNIX_NS + second * 1_000_000_000;
            request.attributes.insert("gen_ai.usage.output_tokens".into(), format!("{}", 10 + second));
            let update = MeterUpdate {
                snapshot,
                settled: vec![request],
                complete_since_ns: (second == 0).then_some(0),
            };
            state.apply(update, START_UNIX_NS + second * 1_000_000_000);
        }
        let (long, fresh) = (&state.history, LiveHistory::new());
        assert!(
            HistoryRange::ALL
                .iter()
                .all(|range| long.slots(*range).capacity() == fresh.slots(*range).capacity())
        );
        for range in HistoryRange::ALL {
            let event = state.full_event(range, START_UNIX_NS + 700_000_000_000);
            assert!(event.len() < 900_000, "{range:?}: {}", event.len());
            assert!(!String::from_utf8(event).unwrap().contains('\u{202e}'));
        }
    }
}
