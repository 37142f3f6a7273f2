//! Tests of lists after a number: each stored account once, each missing number in a gap with its reason.

use serde_json::Value;
use wattspan_client::account::{Account, Gap, GapReason};
use wattspan_client::protocol::{IncomingReply, MESSAGE_TERMINATOR, SpanAccounts, WatchedSpan};

use super::account_read::{Filter, MAX_ROWS_READ, ReadError};
use super::account_record::tests::account;
use super::database::Database;
use super::forward_scan::{ForwardQuery, ForwardReply, ForwardScan, ReplyForm};
use super::high_water_mark::HighWaterMark;
use super::query::{self, StoreQuery};
use super::tests::{Fixture, START, account_of};

fn forward(uid: Option<u32>, after: u64) -> ForwardQuery {
    ForwardQuery {
        uid,
        filter: Filter::default(),
        limit: 4096,
        after,
        database: None,
        form: ReplyForm::List,
        gaps: Vec::new(),
    }
}

fn run(database: &Database, query: ForwardQuery) -> Result<ForwardReply, ReadError> {
    let result = query::tests::run(database, &StoreQuery::Forward(Box::new(query)))?;
    Ok(result.forward.expect("the result of a forward query"))
}

/// One reply to ListSpans, as a client reads it.
fn list(database: &Database, query: ForwardQuery) -> SpanAccounts {
    let reply = run(database, query).unwrap();
    let message = reply.messages.strip_suffix(&[MESSAGE_TERMINATOR]).expect("one whole message");
    let listed: SpanAccounts = IncomingReply::parse(message).unwrap().into_result().unwrap().unwrap();
    assert_eq!((listed.after, listed.at_end), (Some(reply.after), Some(reply.at_end)));
    assert_eq!(listed.database, Some(database.identity.id.to_string()));
    listed
}

/// All replies from a position on: the accounts, the gaps, and the last position.
fn list_all(database: &Database, mut query: ForwardQuery) -> (Vec<Account>, Vec<Gap>, u64) {
    let (mut accounts, mut gaps) = (Vec::new(), Vec::new());
    loop {
        let page = list(database, query.clone());
        accounts.extend(page.accounts);
        gaps.extend(page.gaps.unwrap_or_default());
        query.after = page.after.unwrap();
        if page.at_end == Some(true) {
            return (accounts, gaps, query.after);
        }
    }
}

fn numbers(accounts: &[Account]) -> Vec<u64> {
    accounts.iter().map(|account| account.number.expect("a number")).collect()
}

fn spans(accounts: &[Account]) -> Vec<&str> {
    accounts.iter().map(|account| account.span.as_str()).collect()
}

fn gap(first: u64, last: u64, reason: GapReason) -> Gap {
    Gap { first: Some(first), last: Some(last), reason }
}

fn unnumbered(reason: GapReason) -> Gap {
    Gap { first: None, last: None, reason }
}

#[test]
fn each_account_is_listed_once_with_the_next_number_and_as_it_was_stored() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..20_000).map(|at| account_of(at % 3, format!("s{at}"))));
    for limit in [1000, 4096] {
        let (accounts, gaps, after) = list_all(&database, ForwardQuery { limit, ..forward(None, 0) });
        assert_eq!(numbers(&accounts), (1..=20_000).collect::<Vec<_>>());
        assert_eq!((gaps, after), (vec![], 20_000));
        assert_eq!(accounts[17], Account { number: Some(18), ..account_of(17 % 3, "s17".into()) });
    }
    assert_eq!(list(&database, forward(None, 20_000)).accounts, []);
    fixture.write(&mut database, [account_of(1, "later".into())]);
    let page = list(&database, forward(None, 20_000));
    assert_eq!((spans(&page.accounts), numbers(&page.accounts)), (vec!["later"], vec![20_001]));
}

#[test]
fn a_reply_has_at_most_a_megabyte_and_the_next_one_continues() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    let long = |at: u32| Account {
        attributes: [("text".into(), "x".repeat(3000))].into(),
        ..account_of(1, format!("s{at}"))
    };
    fixture.write(&mut database, (0..1000).map(long));
    let reply = run(&database, forward(None, 0)).unwrap();
    assert!((900_000..1_001_000).contains(&reply.messages.len()), "{}", reply.messages.len());
    assert_eq!(numbers(&list_all(&database, forward(None, 0)).0), (1..=1000).collect::<Vec<_>>());
}

#[test]
fn one_user_gets_own_accounts_without_numbers_and_positions_that_hide_the_others() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..20_000).map(|at| account_of(u32::from(at % 5 > 0), format!("s{at}"))));
    let (accounts, gaps, after) = list_all(&database, forward(Some(0), 0));
    assert_eq!(accounts.len(), 4000);
    assert!(accounts.iter().all(|account| account.uid == 0 && account.number.is_none()));
    let opened = (0..4000).map(|at| format!("s{}", at * 5)).collect::<Vec<_>>();
    assert_eq!((spans(&accounts), gaps), (opened.iter().map(String::as_str).collect(), vec![]));
    // Accounts of others do not move the position.
    fixture.write(&mut database, (0..100).map(|at| account_of(1, format!("other{at}"))));
    let page = list(&database, forward(Some(0), after));
    assert_eq!((page.accounts, page.after, page.at_end), (vec![], Some(after), Some(true)));
    fixture.write(&mut database, [account_of(0, "own".into())]);
    let page = list(&database, forward(Some(0), after));
    assert_eq!(spans(&page.accounts), ["own"]);
    assert_ne!(page.after, Some(after));
    // A user without accounts sees none; a position of another user or another database is refused.
    assert_eq!(list_all(&database, forward(Some(77), 0)), (vec![], vec![], 0));
    for (uid, after) in [(1, after), (0, 20_000), (0, after ^ 1)] {
        let refused = run(&database, forward(Some(uid), after)).unwrap_err();
        assert!(matches!(refused, ReadError::Invalid { field: "after", .. }), "{refused}");
    }
}

#[test]
fn a_position_survives_a_restart_and_a_foreign_one_is_refused() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..10).map(|at| account_of(1, format!("s{at}"))));
    let (_, _, own) = list_all(&database, ForwardQuery { limit: 3, ..forward(Some(1), 0) });
    let id = database.identity.id;
    drop(database);
    let database = fixture.open();
    let named = ForwardQuery { database: Some(id), ..forward(Some(1), own) };
    assert_eq!(list(&database, named).accounts, []);
    let beyond = run(&database, forward(None, 11)).unwrap_err().to_string();
    assert!(beyond.contains("greater than 10"), "{beyond}");
    let other = Fixture::new().open().identity.id;
    let refused = run(&database, ForwardQuery { database: Some(other), ..forward(None, 3) }).unwrap_err();
    assert!(matches!(refused, ReadError::Invalid { field: "database", .. }), "{refused}");
}

#[test]
fn deleted_accounts_are_a_gap_of_exactly_their_numbers() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..20_000).map(|at| account_of(at % 2, format!("s{at}"))));
    let positions: Vec<u64> = [0, 1]
        .map(|uid| list(&database, ForwardQuery { limit: 50, ..forward(Some(uid), 0) }).after.unwrap())
        .to_vec();
    fixture.advance(40 * 86_400);
    fixture.write(&mut database, (0..100).map(|at| account_of(1, format!("new{at}"))));
    assert_eq!(fixture.apply_retention(&mut database).0, 100);
    let (accounts, gaps, _) = list_all(&database, forward(None, 300));
    assert_eq!(numbers(&accounts), (20_001..=20_100).collect::<Vec<_>>());
    assert_eq!(gaps, [gap(301, 20_000, GapReason::Deleted)]);
    assert_eq!(list_all(&database, forward(None, 20_050)).1, [], "nothing after it was deleted");
    // A user learns of a gap once, and only where own accounts were deleted.
    let (accounts, gaps, after) = list_all(&database, forward(Some(1), positions[1]));
    assert_eq!((accounts.len(), gaps), (100, vec![unnumbered(GapReason::Deleted)]));
    assert_eq!(list_all(&database, forward(Some(1), after)).1, []);
    let (accounts, gaps, after) = list_all(&database, forward(Some(0), positions[0]));
    assert_eq!((accounts.len(), gaps), (0, vec![unnumbered(GapReason::Deleted)]));
    assert_eq!(list_all(&database, forward(Some(0), after)).1, []);
}

#[test]
fn an_idle_user_whose_accounts_were_read_before_their_deletion_gets_no_gap() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..50).map(|at| account_of(5, format!("s{at}"))));
    let (_, _, after) = list_all(&database, forward(Some(5), 0));
    fixture.advance(40 * 86_400);
    fixture.write(&mut database, (0..100).map(|at| account_of(1, format!("new{at}"))));
    fixture.apply_retention(&mut database);
    assert_eq!(list_all(&database, forward(Some(5), after)), (vec![], vec![], after));
    fixture.write(&mut database, [account_of(5, "again".into())]);
    let (accounts, gaps, _) = list_all(&database, forward(Some(5), after));
    assert_eq!((spans(&accounts), gaps), (vec!["again"], vec![]));
}

#[test]
fn an_unread_account_is_a_gap_also_where_the_index_has_forgotten_its_user() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    let old = [(5, "read"), (5, "unread"), (6, "read")];
    fixture.write(&mut database, old.map(|(uid, span)| account_of(uid, span.into())));
    let first = list(&database, ForwardQuery { limit: 1, ..forward(Some(5), 0) });
    assert_eq!((spans(&first.accounts), first.gaps), (vec!["read"], None));
    let (_, _, latest) = list_all(&database, forward(Some(6), 0));
    fixture.advance(40 * 86_400);
    fixture.write(&mut database, [account_of(1, "new".into())]);
    fixture.apply_retention(&mut database);
    assert_eq!(database.index.first_id, 4);
    // The end of a segment: the index drops the users whose accounts were all deleted.
    fixture.write(&mut database, (0..17_000).map(|at| account_of(1, format!("s{at}"))));
    assert!(!database.index.heads.contains_key(&5));
    fixture.write(&mut database, [5, 6, 7].map(|uid| account_of(uid, "again".into())));
    let (accounts, gaps, after) = list_all(&database, forward(Some(5), first.after.unwrap()));
    assert_eq!((spans(&accounts), gaps), (vec!["again"], vec![unnumbered(GapReason::Deleted)]));
    assert_eq!(list_all(&database, forward(Some(5), after)), (vec![], vec![], after));
    // Nothing was deleted after this position. A new user begins before the deletion, which is one gap.
    let (accounts, gaps, _) = list_all(&database, forward(Some(6), latest));
    assert_eq!((spans(&accounts), gaps), (vec!["again"], vec![]));
    let (accounts, gaps, after) = list_all(&database, forward(Some(7), 0));
    assert_eq!((spans(&accounts), gaps), (vec!["again"], vec![unnumbered(GapReason::Deleted)]));
    assert_eq!(list_all(&database, forward(Some(7), after)).1, []);
}

#[test]
fn an_unread_account_is_a_gap_also_where_the_filter_skips_the_next_one() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    let named = |span: &str, name: &str| Account { name: name.into(), ..account_of(5, span.into()) };
    fixture.write(&mut database, [named("read", "rare"), named("unread", "rare")]);
    let filter = Filter { name: Some("rare".into()), ..Filter::default() };
    let query = ForwardQuery { filter, ..forward(Some(5), 0) };
    let first = list(&database, ForwardQuery { limit: 1, ..query.clone() });
    fixture.write(&mut database, (0..17_000).map(|at| account_of(1, format!("old{at}"))));
    fixture.advance(40 * 86_400);
    fixture.write(&mut database, [named("other", "often")]);
    fixture.apply_retention(&mut database);
    assert_eq!(database.index.first_id, 17_003);
    fixture.write(&mut database, (0..17_000).map(|at| account_of(1, format!("new{at}"))));
    fixture.write(&mut database, [named("again", "rare")]);
    let (accounts, gaps, _) = list_all(&database, ForwardQuery { after: first.after.unwrap(), ..query });
    assert_eq!((spans(&accounts), gaps), (vec!["again"], vec![unnumbered(GapReason::Deleted)]));
}

#[test]
fn lost_and_damaged_accounts_are_gaps_with_their_reasons() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..20_000).map(|at| account_of(at % 2, format!("s{at}"))));
    drop(database);
    let outside = rusqlite::Connection::open(fixture.dir.path().join("database")).unwrap();
    outside.execute("UPDATE account SET uid = 5 WHERE id = 7", []).unwrap();
    outside.execute("DELETE FROM account WHERE id BETWEEN 10001 AND 10100", []).unwrap();
    drop(outside);
    let mark = HighWaterMark::of_commit(60_000, START.unix_s + 9, START.unix_s);
    fixture.mark_file().write(&mark).unwrap();
    let mut database = fixture.open();
    fixture.write(&mut database, [account_of(1, "next".into())]);
    let (accounts, gaps, after) = list_all(&database, forward(None, 0));
    let expected = [
        gap(7, 7, GapReason::Damaged),
        gap(10_001, 10_100, GapReason::Damaged),
        gap(20_001, 60_000, GapReason::Lost),
    ];
    assert_eq!((&gaps[..], after), (&expected[..], 60_001));
    let listed = (1..=20_000).filter(|number| *number != 7 && !(10_001..=10_100).contains(number));
    assert_eq!(numbers(&accounts), listed.chain([60_001]).collect::<Vec<_>>());
    let (accounts, gaps, after) = list_all(&database, forward(Some(1), 0));
    assert_eq!((accounts.len(), spans(&accounts)[9949]), (10_000 - 50 + 1, "s19999"));
    assert_eq!(gaps.last(), Some(&unnumbered(GapReason::Lost)));
    assert!(gaps[..gaps.len() - 1].iter().all(|gap| *gap == unnumbered(GapReason::Damaged)), "{gaps:?}");
    assert_eq!(list_all(&database, forward(Some(1), after)).1, [], "each gap is reported once");
}

#[test]
fn without_the_index_a_user_still_gets_every_account_once() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..20_000).map(|at| account_of(at % 100, format!("s{at}"))));
    database
        .connection
        .execute("UPDATE block SET bytes = zeroblob(length(bytes)) WHERE id < 1000", [])
        .unwrap();
    let (accounts, gaps, _) = list_all(&database, forward(Some(3), 0));
    let expected: Vec<String> = (0..200).map(|at| format!("s{}", at * 100 + 3)).collect();
    assert_eq!((spans(&accounts), gaps), (expected.iter().map(String::as_str).collect(), vec![]));
}

/// The number of turns of a query, and its result.
fn turns(database: &Database, query: ForwardQuery) -> (usize, ForwardReply) {
    let view = query::tests::view(database);
    let mut scan = ForwardScan::begin(query, &view).unwrap();
    for turn in 1.. {
        if let Some(reply) = scan.run_turn(&view).unwrap() {
            return (turn, reply);
        }
    }
    unreachable!("the loop has no end")
}

#[test]
fn an_idle_user_costs_no_look_up_and_a_page_not_the_whole_chain() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..16_383).map(|at| account_of(1, format!("s{at}"))));
    fixture.write(&mut database, (0..40_000).map(|at| account_of(2, format!("other{at}"))));
    let mut after = 0;
    let mut read = 0;
    for page in 0.. {
        let (turns, reply) = turns(&database, ForwardQuery { limit: 1000, ..forward(Some(1), after) });
        // A turn is 256 steps: some for the look-up, one for each account.
        assert!(turns <= 6, "page {page} took {turns} turns");
        read += reply.messages.split(|byte| *byte == b'{').count();
        after = reply.after;
        if reply.at_end {
            break;
        }
    }
    assert!(read > 16_383);
    // Neither blocks nor rows are read where the user has no later account.
    database.connection.execute_batch("DELETE FROM block; DELETE FROM account").unwrap();
    for uid in [1, 77] {
        let after = if uid == 1 { after } else { 0 };
        let (turns, reply) = turns(&database, forward(Some(uid), after));
        assert_eq!((turns, reply.after, reply.at_end), (1, after, true), "{uid}");
    }
}

#[test]
fn a_filter_leaves_out_accounts_and_keeps_the_gaps() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    let named = |at: u32, name: &str| Account { name: name.into(), ..account_of(1, format!("s{at}")) };
    fixture
        .write(&mut database, (0..20_000).map(|at| named(at, if at % 1000 == 7 { "rare" } else { "often" })));
    database.connection.execute("DELETE FROM account WHERE id = 19990", []).unwrap();
    let filter = Filter { name: Some("rare".into()), ..Filter::default() };
    for uid in [None, Some(1)] {
        let query = ForwardQuery { filter: filter.clone(), ..forward(uid, 0) };
        let (accounts, _, after) = list_all(&database, query.clone());
        let expected: Vec<String> = (0..20).map(|at| format!("s{}", at * 1000 + 7)).collect();
        assert_eq!(spans(&accounts), expected.iter().map(String::as_str).collect::<Vec<_>>(), "{uid:?}");
        assert_eq!(list(&database, ForwardQuery { after, ..query }).accounts, []);
    }
    let query = ForwardQuery { filter: filter.clone(), ..forward(None, 19_980) };
    assert_eq!(list(&database, query).gaps, Some(vec![gap(19_990, 19_990, GapReason::Damaged)]));
    // An absent name reads no row of a full segment.
    let absent = Filter { name: Some("absent".into()), ..Filter::default() };
    let page = list(&database, ForwardQuery { filter: absent, ..forward(None, 0) });
    assert_eq!((page.accounts, page.after, page.at_end), (vec![], Some(20_000), Some(true)));
    // One call reads a bounded number of rows, and its position shows how far it came.
    let other = Filter { attributes: [("key".into(), "absent".into())].into(), ..Filter::default() };
    let page = list(&database, ForwardQuery { filter: other, ..forward(None, 0) });
    assert_eq!((page.accounts, page.after, page.at_end), (vec![], Some(MAX_ROWS_READ as u64), Some(false)));
}

#[test]
fn a_stream_reports_the_gaps_before_its_next_item_also_in_a_later_page() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..300).map(|at| account_of(1, format!("s{at}"))));
    database.connection.execute("DELETE FROM account WHERE id BETWEEN 100 AND 110 OR id > 290", []).unwrap();
    let mut query = ForwardQuery { form: ReplyForm::Stream, limit: usize::MAX, ..forward(None, 0) };
    let mut items = Vec::new();
    let mut pages = 0;
    loop {
        let reply = run(&database, query.clone()).unwrap();
        for message in reply.messages.split_inclusive(|byte| *byte == MESSAGE_TERMINATOR) {
            let message = &message[..message.len() - 1];
            assert_eq!(serde_json::from_slice::<Value>(message).unwrap()["continues"], true);
            let item: WatchedSpan = IncomingReply::parse(message).unwrap().into_result().unwrap().unwrap();
            assert_eq!((item.after, item.database.is_some()), (item.account.number, true));
            items.push(item);
        }
        pages += 1;
        (query.after, query.gaps) = (reply.after, reply.gaps);
        if reply.at_end {
            break;
        }
    }
    assert!(pages > 1, "a page is short");
    let expected = (1..100).chain(111..=290).collect::<Vec<u64>>();
    assert_eq!(items.iter().filter_map(|item| item.account.number).collect::<Vec<_>>(), expected);
    let gaps: Vec<&Gap> = items.iter().flat_map(|item| item.gaps.iter().flatten()).collect();
    assert_eq!(gaps, [&gap(100, 110, GapReason::Damaged)]);
    assert_eq!((query.after, &query.gaps[..]), (300, &[gap(291, 300, GapReason::Damaged)][..]));
    fixture.write(&mut database, [account("next")]);
    let reply = run(&database, query).unwrap();
    let item: WatchedSpan = IncomingReply::parse(&reply.messages[..reply.messages.len() - 1])
        .unwrap()
        .into_result()
        .unwrap()
        .unwrap();
    assert_eq!(item.gaps, Some(vec![gap(291, 300, GapReason::Damaged)]));
}
