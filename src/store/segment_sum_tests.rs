//! Tests of the stored sums of segments: a query that uses them has the result of one that reads each account, to the
//! microjoule, over restarts, kills, deletions and damage.

use std::collections::BTreeMap;

use wattspan_client::account::{
    Account, GapReason, INPUT_TOKENS_ATTRIBUTE, MODEL_ATTRIBUTE, OPERATION_ATTRIBUTE,
    OUTPUT_TOKENS_ATTRIBUTE, SpanState,
};

use super::account_index::{Gap, block_key, segment_ids, segment_of};
use super::account_read::Filter;
use super::account_record::{encode_figures, encode_layout};
use super::account_sums::{AccountSums, GroupFields, GroupedSums, SumField};
use super::database::Database;
use super::segment_sums::{SegmentSums, StoredSums, SumGroup};
use super::sum_blocks::FIRST_SUM_BLOCK;
use super::sum_query::SumQuery;
use super::sum_tests::{begin, missing, sum, total};
use super::summed_account::SummedAccount;
use super::tests::{Fixture, START, account_of};
use crate::domain::Grade;

/// Numbers that are the same in each run (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn option(&mut self, end: u64) -> Option<u64> {
        (self.below(8) > 0).then(|| self.below(end))
    }
}

/// Each account follows the one before by this: 34,000 take 9 hours and pass midnight in most time zones of the test.
const INTERVAL_NS: u64 = 1_000_000_000;

fn start_ns() -> u64 {
    START.unix_s.unsigned_abs() * 1_000_000_000
}

/// An account of five users, four models and two operations. Some are open for hours.
fn varied(at: u64, has_own_name: bool, random: &mut Random) -> Account {
    let mut attributes = BTreeMap::new();
    let mut insert = |key: &str, value: String| drop(attributes.insert(key.to_owned(), value));
    match random.below(5) {
        0 => {}
        1 => insert("model", "old".into()),
        model => insert(MODEL_ATTRIBUTE, format!("model-{model}")),
    }
    if random.below(3) > 0 {
        insert(OPERATION_ATTRIBUTE, ["chat", "embeddings"][random.below(2) as usize].into());
    }
    random.option(500).into_iter().for_each(|tokens| insert(INPUT_TOKENS_ATTRIBUTE, tokens.to_string()));
    random.option(90).into_iter().for_each(|tokens| insert(OUTPUT_TOKENS_ATTRIBUTE, tokens.to_string()));
    let opened_ns = 5_000_000_000;
    let duration_ns = if random.below(500) == 0 { 20_000_000_000_000 } else { random.below(9_000_000_000) };
    let share_uj = random.option(9_000_000);
    Account {
        name: if has_own_name { format!("own-{at}") } else { format!("n{}", random.below(3)) },
        state: [SpanState::Settled, SpanState::Settled, SpanState::Abandoned][random.below(3) as usize],
        opened_ns,
        closed_ns: (random.below(50) > 0).then_some(opened_ns + duration_ns),
        opened_unix_ns: start_ns() + at * INTERVAL_NS - duration_ns,
        share_uj,
        idle_uj: random.option(900).filter(|_| share_uj.is_some()),
        error_uj: random.option(5000).filter(|_| share_uj.is_some()),
        grade: [None, Some(Grade::Measured), Some(Grade::Estimated)][random.below(3) as usize],
        simulated: (random.below(9) == 0).then_some(true),
        at_least: (random.below(9) == 0).then_some(true),
        attributes,
        phases: vec![],
        ..account_of([0, 1, 1, 2, 17][random.below(5) as usize], format!("s{at}"))
    }
}

/// The stored accounts with their IDs, as the test has written them.
#[derive(Default)]
pub(super) struct Truth {
    pub(super) accounts: BTreeMap<i64, (Account, Vec<u8>, Vec<u8>)>,
}

impl Truth {
    fn insert(&mut self, id: i64, account: Account) {
        let (mut layout, mut figures) = (Vec::new(), Vec::new());
        encode_layout(&account, &mut layout);
        encode_figures(&account, &mut figures);
        self.accounts.insert(id, (account, layout, figures));
    }

    /// The sums of a query, account by account.
    fn sums(&self, query: &SumQuery) -> GroupedSums {
        let mut sums = AccountSums::new(query.by.clone(), query.utc_offset_s);
        for (account, layout, figures) in self.accounts.values() {
            let filter = &query.filter;
            let matches = query.uid.is_none_or(|uid| uid == account.uid)
                && filter.since_unix_ns.is_none_or(|since| account.opened_unix_ns >= since)
                && query.until_unix_ns.is_none_or(|until| account.opened_unix_ns < until)
                && filter.name.as_ref().is_none_or(|name| *name == account.name)
                && filter.state.is_none_or(|state| state == account.state)
                && filter.attributes.iter().all(|(key, value)| account.attributes.get(key) == Some(value))
                && (query.model.is_none() || query.model.as_deref() == account.model())
                && query.is_visible.is_none_or(|is_visible| is_visible(account));
            if matches {
                let summed = SummedAccount::read(account.uid, &account.name, layout, figures).unwrap();
                sums.add(&summed, &summed.attributes().unwrap());
            }
        }
        sums.finish()
    }
}

/// A query with some of the conditions.
fn random_query(random: &mut Random, accounts: u64) -> SumQuery {
    const BY: [&[SumField]; 5] = [
        &[],
        &[SumField::Model],
        &[SumField::User, SumField::Day],
        &[SumField::Operation, SumField::Name],
        &[SumField::Model, SumField::User, SumField::Day, SumField::Operation],
    ];
    let mut query = SumQuery {
        by: BY[random.below(5) as usize].to_vec(),
        utc_offset_s: [0, 50_400, -25_620, -16_200][random.below(4) as usize],
        uid: [None, None, Some(1), Some(17), Some(5)][random.below(5) as usize],
        ..SumQuery::default()
    };
    let instant_ns = |random: &mut Random| start_ns() + random.below(accounts * INTERVAL_NS);
    match random.below(10) {
        0 => query.model = Some("model-3".into()),
        1 => query.model = Some("old".into()),
        2 => query.filter.since_unix_ns = Some(instant_ns(random)),
        3 => query.until_unix_ns = Some(instant_ns(random)),
        4 => {
            let since_ns = instant_ns(random);
            query.filter.since_unix_ns = Some(since_ns);
            query.until_unix_ns = Some(since_ns + 20_000_000_000_000);
        }
        5 => query.filter.state = Some(SpanState::Abandoned),
        6 => query.filter.name = Some(["n1", "own-20000", "none"][random.below(3) as usize].into()),
        7 => query.filter.attributes = [(OPERATION_ATTRIBUTE.to_owned(), "chat".to_owned())].into(),
        8 => query.is_visible = Some(|account| account.share_uj.is_none_or(|uj| uj.is_multiple_of(2))),
        _ => {}
    }
    query
}

fn check(database: &Database, truth: &Truth, query: &SumQuery) -> u64 {
    let found = sum(database, query.clone());
    let (expected, is_complete) = (truth.sums(query), found.grouped.other.is_none());
    assert_eq!(found.grouped.total, expected.total, "{query:?}");
    if is_complete {
        assert_eq!(found.grouped, expected, "{query:?}");
    } else {
        let sums = || found.grouped.sums.iter().chain(&found.grouped.other);
        assert_eq!(sums().map(|sum| sum.accounts).sum::<u64>(), expected.total.accounts);
        assert_eq!(sums().filter_map(|sum| sum.energy_uj).sum::<u64>(), expected.total.energy_uj.unwrap());
    }
    assert_eq!(found.missing, []);
    found.rows_read
}

/// The database as a process that is killed now leaves it, opened anew.
fn killed(fixture: &Fixture) -> (Fixture, Database) {
    let mut copy = Fixture::new();
    copy.settings.boot_id = fixture.settings.boot_id.clone();
    for file in ["database", "database-wal", "mark"] {
        std::fs::copy(fixture.dir.path().join(file), copy.dir.path().join(file)).unwrap();
    }
    let database = copy.open();
    (copy, database)
}

#[test]
fn sums_are_those_of_the_accounts_over_kills_and_deletions() {
    const ACCOUNTS: u64 = 34_000;
    let (mut random, mut truth) = (Random(0x9e37_79b9_7f4a_7c15), Truth::default());
    let mut fixture = Fixture::new();
    fixture.settings.boot_id = "boot".into();
    let mut database = fixture.open();
    let (mut at, mut elapsed_s) = (0, 0);
    while at < ACCOUNTS {
        let count = (1 + random.below(3000)).min(ACCOUNTS - at);
        let accounts: Vec<Account> =
            (at..at + count).map(|at| varied(at, at > 16_500, &mut random)).collect();
        // An account is stored after its span was opened.
        let passed_s = (count * INTERVAL_NS / 1_000_000_000) as i64 + 1;
        fixture.advance(passed_s);
        elapsed_s += passed_s;
        fixture.write(&mut database, accounts.iter().cloned());
        accounts.into_iter().zip(database.index.last_id + 1 - count as i64..).for_each(|(account, id)| {
            truth.insert(id, account);
        });
        at += count;
        match random.below(4) {
            0 => {
                (fixture, database) = killed(&fixture);
                fixture.advance(elapsed_s);
            }
            1 => {
                drop(database);
                database = fixture.open();
            }
            _ => {}
        }
    }
    assert_eq!((database.index.last_id, segment_of(ACCOUNTS as i64 + 1)), (ACCOUNTS as i64, 2));
    // In the end a part of the first segment has been deleted, and then all of it.
    for first_id in [1, 5000, 20_000] {
        delete_below(&database, first_id);
        database.index.set_first_id(first_id);
        truth.accounts = truth.accounts.split_off(&first_id);
        for _ in 0..12 {
            check(&database, &truth, &random_query(&mut random, ACCOUNTS));
        }
    }
}

/// As retention does.
fn delete_below(database: &Database, first_id: i64) {
    database.connection.execute("DELETE FROM account WHERE id < ?1", [first_id]).unwrap();
    let block = block_key(segment_of(first_id), 0);
    database.connection.execute("DELETE FROM block WHERE id < ?1", [block]).unwrap();
    let retention = super::retention_state::Retention::starting_at(first_id);
    retention.save(&database.connection).unwrap();
}

/// Two full segments and an account, within five minutes.
pub(super) fn two_segments(has_own_name: bool) -> (Fixture, Database, Truth) {
    let count = segment_ids(1).1 + 1;
    let (mut random, mut truth, mut fixture) = (Random(7), Truth::default(), Fixture::new());
    let mut database = fixture.open();
    let accounts: Vec<Account> =
        (0..count.unsigned_abs()).map(|at| varied(at, has_own_name, &mut random)).collect();
    let accounts = accounts.into_iter().zip(0..).map(|(account, at)| {
        let earlier_ns = at * (INTERVAL_NS - 8_000_000);
        Account { opened_unix_ns: account.opened_unix_ns - earlier_ns, ..account }
    });
    let accounts: Vec<Account> = accounts.collect();
    fixture.write(&mut database, accounts.iter().cloned());
    accounts.into_iter().zip(1..).for_each(|(account, id)| truth.insert(id, account));
    (fixture, database, truth)
}

#[test]
fn full_segments_are_summed_without_their_rows_and_damaged_sums_are_not_used() {
    let (fixture, database, truth) = two_segments(false);
    let all = SumQuery { by: vec![SumField::Model, SumField::User, SumField::Name], ..SumQuery::default() };
    let own = SumQuery { uid: Some(17), ..all.clone() };
    let day = SumQuery { by: vec![SumField::Day], utc_offset_s: 3600, ..SumQuery::default() };
    assert_eq!([&all, &day].map(|query| check(&database, &truth, query)), [1, 1]);
    assert!(check(&database, &truth, &own) <= 1);
    let own_rows =
        truth.accounts.range(..segment_ids(0).1 + 1).filter(|(_, (account, ..))| account.uid == 17);
    let own_rows = own_rows.count() as u64;
    // The block of user 17 of the first segment.
    let block = block_key(0, FIRST_SUM_BLOCK + 1);
    let damages = [
        "UPDATE block SET bytes = substr(bytes, 1, 99) || x'00' || substr(bytes, 101) WHERE id = ?1",
        "UPDATE block SET bytes = (SELECT bytes FROM block WHERE id = ?1 + 128) WHERE id = ?1",
        "DELETE FROM block WHERE id = ?1",
    ];
    for damage in damages {
        assert_eq!(database.connection.execute(damage, [block]).unwrap(), 1);
        assert_eq!([&all, &day].map(|query| check(&database, &truth, query)), [16_384; 2], "{damage}");
        assert!((own_rows..=own_rows + 1).contains(&check(&database, &truth, &own)), "{damage}");
    }
    // Those that are missing are built again, as for a database of a version that had none.
    database.connection.execute("DELETE FROM block WHERE id & 127 >= ?1", [FIRST_SUM_BLOCK]).unwrap();
    drop(database);
    let mut database = fixture.open();
    assert_eq!(check(&database, &truth, &all), 32_768);
    while database.build_filters().unwrap() {}
    assert_eq!([&all, &day].map(|query| check(&database, &truth, query)), [1, 1]);
}

#[test]
fn sums_by_names_of_one_account_each_read_few_rows() {
    let (_fixture, database, truth) = two_segments(true);
    for by in [vec![SumField::Name], vec![SumField::User, SumField::Name]] {
        let query = SumQuery { by, ..SumQuery::default() };
        assert_eq!(check(&database, &truth, &query), 16_384);
        // Downwards: the first full segment has room for the groups of this user.
        let own = SumQuery { uid: Some(1), ..query };
        assert!(check(&database, &truth, &own) < 10_000);
    }
    let named = |name: &str| Filter { name: Some(name.into()), ..Filter::default() };
    for (name, rows) in [("own-20000", 16_385), ("none", 1)] {
        let query = SumQuery { filter: named(name), ..SumQuery::default() };
        assert_eq!(check(&database, &truth, &query), rows);
    }
}

#[test]
fn a_segment_with_a_lost_account_is_read_row_by_row() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..9).map(|at| account_of(1, format!("s{at}"))));
    drop(database);
    let mark = super::high_water_mark::HighWaterMark::of_commit(15, START.unix_s, START.unix_s);
    fixture.mark_file().write(&mark).unwrap();
    let mut database = fixture.open();
    let (_, last) = segment_ids(0);
    fixture.write(&mut database, (15..last).map(|at| account_of(1, format!("s{at}"))));
    assert_eq!(database.index.last_id, last);
    let found = sum(&database, SumQuery::default());
    assert_eq!(found.missing, [missing(GapReason::Lost, Some(6))]);
    assert_eq!((total(&found).0, found.rows_read), (last.unsigned_abs() - 6, last.unsigned_abs() - 6));
}

#[test]
fn stored_sums_of_a_segment_with_a_gap_are_not_used() {
    let (_fixture, mut database, _) = two_segments(false);
    let gap = Gap { first: 20_000, last: 20_001, since_s: 0, until_s: 0, running_s: 0 };
    assert_eq!(sum(&database, SumQuery::default()).rows_read, 1);
    database.index.gaps.push(gap);
    assert!(sum(&database, SumQuery::default()).rows_read > 16_000);
}

#[test]
fn a_page_that_cannot_be_read_fails_no_retention_while_sums_are_built() {
    let (fixture, database, _) = two_segments(true);
    database.connection.execute("DELETE FROM block WHERE id & 127 >= ?1", [FIRST_SUM_BLOCK]).unwrap();
    drop(database);
    let file = fixture.dir.path().join("database");
    let mut bytes = std::fs::read(&file).unwrap();
    let name = bytes.windows(8).position(|text| text == b"own-5000").unwrap();
    let page = name - name % 4096;
    // A leaf of the table of accounts.
    assert_eq!(bytes[page], 0x0d);
    bytes[page..page + 4096].fill(0);
    std::fs::write(&file, bytes).unwrap();
    let mut database = fixture.open();
    while database.build_filters().unwrap() {}
    let found = sum(&database, SumQuery::default());
    assert!((16_384..32_768).contains(&total(&found).0), "{:?}", total(&found));
    assert_eq!(found.missing.len(), 1);
}

/// The sums of these accounts as they are stored, and those of all groups together.
fn stored(accounts: impl IntoIterator<Item = Account>, show: impl FnOnce(usize, Option<StoredSums<'_>>)) {
    let mut sums = SegmentSums::default();
    for account in accounts {
        let (mut layout, mut figures) = (Vec::new(), Vec::new());
        encode_layout(&account, &mut layout);
        encode_figures(&account, &mut figures);
        sums.add(account.uid, &account.name, &layout, &figures, (3, 4));
    }
    let parts = sums.encode(1, |_| 0);
    show(parts[0].len(), StoredSums::decode(&parts[0]));
}

#[test]
fn a_segment_has_few_groups_whatever_its_accounts_are() {
    let accounts = |interval_ns: u64, models: u64, own_names: bool| {
        let mut random = Random(3);
        (0..6000).map(move |at| Account {
            opened_unix_ns: start_ns() + at * interval_ns,
            attributes: [(MODEL_ATTRIBUTE.to_owned(), format!("m{}", at % models))].into(),
            ..varied(at, own_names, &mut random)
        })
    };
    const MINUTE_NS: u64 = 60_000_000_000;
    for (interval_ns, models, own_names, has_names) in [
        (0, 2, false, Some(true)),
        (0, 2, true, Some(false)),
        (MINUTE_NS / 12, 2, false, Some(true)),
        (MINUTE_NS / 2, 2, false, Some(false)),
        (MINUTE_NS, 2, false, Some(false)),
        (5 * MINUTE_NS, 2, false, Some(false)),
        (0, 3000, false, None),
        (24 * 60 * MINUTE_NS, 2, false, None),
    ] {
        let case = format!("{interval_ns} {models} {own_names}");
        let all_uj: u64 =
            accounts(interval_ns, models, own_names).filter_map(|account| account.share_uj).sum();
        stored(accounts(interval_ns, models, own_names), |bytes, stored| {
            assert!(bytes < 120_000, "{case}: {bytes} bytes");
            assert_eq!(stored.is_some(), has_names.is_some(), "{case}");
            let Some(stored) = stored else { return };
            assert!(stored.users.iter().all(|user| user.previous == 4) && stored.kept_s == 3);
            let groups: Vec<_> = stored.users.iter().flat_map(|user| &user.groups).collect();
            assert!(groups.len() <= 1024, "{case}: {} groups", groups.len());
            assert_eq!(Some(groups.iter().all(|group| group.name.is_some())), has_names, "{case}");
            let mut sums = AccountSums::new(vec![], 0);
            for SumGroup { uid, model, operation, sum, .. } in groups {
                let (uid, model, operation) = (*uid, *model, *operation);
                sums.add_sum(&GroupFields { uid, name: "", model, operation, closed_unix_ns: 0 }, sum);
            }
            assert_eq!(sums.finish().total.energy_uj, Some(all_uj), "{case}");
        });
    }
}

/// The user of [`beside_long_names`] whose models each have a name of a kilobyte.
const HOSTILE_UID: u32 = 99;

/// Two full segments and an account, of which one of so many is of the hostile user.
fn beside_long_names(interval: u64) -> (Fixture, Database, Truth) {
    let count = segment_ids(1).1 + 1;
    let (mut random, mut truth, mut fixture) = (Random(11), Truth::default(), Fixture::new());
    let mut database = fixture.open();
    let account = |at: u64| {
        let account = varied(at, false, &mut random);
        let opened_unix_ns = account.opened_unix_ns - at * (INTERVAL_NS - 8_000_000);
        if !at.is_multiple_of(interval) {
            return Account { opened_unix_ns, ..account };
        }
        // A few models at a time, as of 32 spans that are open at once.
        let model = format!("{:01024}", at / interval % 200);
        let attributes = [(MODEL_ATTRIBUTE.to_owned(), model)].into();
        Account { opened_unix_ns, attributes, uid: HOSTILE_UID, ..account }
    };
    let accounts: Vec<Account> = (0..count.unsigned_abs()).map(account).collect();
    fixture.write(&mut database, accounts.iter().cloned());
    accounts.into_iter().zip(1..).for_each(|(account, id)| truth.insert(id, account));
    (fixture, database, truth)
}

#[test]
fn of_a_user_with_long_names_only_the_rows_of_this_user_are_read() {
    let (fixture, database, truth) = beside_long_names(64);
    let rows = 1 + 2 * 256;
    for by in [vec![], vec![SumField::User], vec![SumField::Day], vec![SumField::Model, SumField::Name]] {
        let query = SumQuery { by, ..SumQuery::default() };
        assert_eq!(check(&database, &truth, &query), rows, "{query:?}");
        assert!(check(&database, &truth, &SumQuery { uid: Some(17), ..query.clone() }) <= 1);
        assert!(check(&database, &truth, &SumQuery { uid: Some(HOSTILE_UID), ..query }) <= rows);
    }
    let mut random = Random(13);
    for _ in 0..60 {
        check(&database, &truth, &random_query(&mut random, 40_000));
    }
    drop(database);
    let mut database = fixture.open();
    database.connection.execute("DELETE FROM block WHERE id & 127 >= ?1", [FIRST_SUM_BLOCK]).unwrap();
    while database.build_filters().unwrap() {}
    assert_eq!(check(&database, &truth, &SumQuery::default()), rows);
}

#[test]
fn rows_that_are_missing_among_those_of_one_user_are_counted_once() {
    let (_fixture, database, truth) = beside_long_names(64);
    let own: Vec<i64> = truth
        .accounts
        .iter()
        .filter(|(_, (account, ..))| account.uid == HOSTILE_UID)
        .map(|(id, _)| *id)
        .collect();
    let all = truth.sums(&SumQuery::default()).total.accounts;
    // Of the hostile user: two that follow each other, the first and the last one of a segment. Of others: one within the rows that
    // are then searched.
    let segment = own.iter().position(|id| segment_of(*id) == 1).unwrap();
    let damaged = [own[7], own[8], own[0], own[segment - 1], own[9] - 1, own[7] - 5];
    for (at, id) in damaged.into_iter().enumerate() {
        let sql = match at % 2 {
            0 => "UPDATE account SET figures = zeroblob(length(figures)) WHERE id = ?1",
            _ => "DELETE FROM account WHERE id = ?1",
        };
        assert_eq!(database.connection.execute(sql, [id]).unwrap(), 1);
    }
    let found = sum(&database, SumQuery::default());
    assert_eq!((total(&found).0, &found.missing[..]), (all - 4, &[missing(GapReason::Damaged, Some(4))][..]));
    let own_sum = sum(&database, SumQuery { uid: Some(HOSTILE_UID), ..SumQuery::default() });
    assert_eq!(total(&own_sum).0, own.len() as u64 - 4);
}

#[test]
fn rows_of_a_user_that_retention_deletes_between_turns_are_not_missing() {
    let (_fixture, database, truth) = beside_long_names(5);
    let mut scan = begin(&database, SumQuery::default());
    // The sums of the first segment, and 2,048 of the 3,277 rows of the user in it, from the last one on.
    assert!(scan.run_turn(&database.connection).unwrap());
    assert_eq!(scan.rows_read, 2048);
    delete_below(&database, 5000);
    while scan.run_turn(&database.connection).unwrap() {}
    let deleted =
        truth.accounts.range(..5000).filter(|(_, (account, ..))| account.uid == HOSTILE_UID).count();
    let found = scan.finish();
    let all = truth.accounts.len() - deleted;
    assert_eq!((total(&found).0, found.missing), (all as u64, vec![]));
}

/// Adds accounts of users with models to the sums of a segment: user, the number of the model, how often.
fn stored_models(
    accounts: impl IntoIterator<Item = (u32, u64)>,
    show: impl FnOnce(usize, Option<StoredSums<'_>>),
) {
    let account = |(uid, model): (u32, u64)| Account {
        attributes: [(MODEL_ATTRIBUTE.to_owned(), format!("m{model}"))].into(),
        opened_unix_ns: start_ns(),
        ..account_of(uid, "s".into())
    };
    stored(accounts.into_iter().map(account), show);
}

#[test]
fn the_groups_of_a_user_are_not_taken_by_those_with_more() {
    // Users 1 and 2 have few models, before, between and after those of user 7, who has thousands.
    let hostile = (0..3000).map(|at| (7, at));
    let others = |uid: u32| (0..300).map(move |at| (uid, at % 100));
    let accounts = others(1).chain(hostile.clone()).chain(others(2)).chain(hostile);
    stored_models(accounts, |bytes, stored| {
        let users = stored.unwrap().users;
        let groups: Vec<_> = users.iter().map(|user| (user.uid, user.groups.len(), user.rows)).collect();
        let expected = [(1, 100, Some((300, 299))), (2, 100, Some((300, 3599))), (7, 0, Some((6000, 6599)))];
        assert_eq!(groups, expected, "{bytes} bytes");
        assert!(users[0].groups.iter().all(|group| group.name.is_some()));
    });
}

#[test]
fn with_many_users_without_groups_a_segment_has_no_sums() {
    for (users, is_stored) in [(1000, true), (1280, true), (1281, false), (9000, false)] {
        stored_models((0..users).map(|uid| (uid, 0)), |bytes, stored| {
            assert_eq!(stored.is_some(), is_stored, "{users} users");
            assert!(bytes < 120_000, "{bytes} bytes");
            let Some(stored) = stored else { return };
            let grouped = stored.users.iter().filter(|user| !user.groups.is_empty()).count();
            assert_eq!((stored.users.len(), grouped), (users as usize, (users as usize).min(1024)));
        });
    }
}

#[test]
fn sums_of_the_form_before_this_one_are_read() {
    stored_models([(5, 1), (5, 2)], |_, stored| {
        assert_eq!(stored.unwrap().users[0].rows, Some((2, 1)));
    });
    let mut sums = SegmentSums::default();
    let account = varied(1, false, &mut Random(5));
    let (mut layout, mut figures) = (Vec::new(), Vec::new());
    encode_layout(&account, &mut layout);
    encode_figures(&account, &mut figures);
    sums.add(account.uid, &account.name, &layout, &figures, (3, 4));
    let part = sums.encode(1, |_| 0).remove(0);
    let stored = StoredSums::decode(&part).unwrap();
    // Version, time, user and previous account; then the number of accounts and the last one, which version 1 does not have.
    assert_eq!(part[..6], [2, 3, account.uid as u8, 4, 1, 0]);
    let old = [&[1], &part[1..4], &part[6..]].concat();
    let read = StoredSums::decode(&old).unwrap();
    assert_eq!((read.users[0].rows, &read.users[0].groups), (None, &stored.users[0].groups));
    // There a user has groups.
    assert_eq!(StoredSums::decode(&[1, 3, 5, 4, 0]), None);
    assert!(StoredSums::decode(&[3]).is_none() && StoredSums::decode(&[2, 3, 5, 4, 1, 0, 0]).is_some());
}

#[test]
fn damaged_bytes_of_sums_cause_no_panic() {
    let mut random = Random(5);
    let mut sums = SegmentSums::default();
    for at in 0..40 {
        let account = varied(at, false, &mut random);
        let (mut layout, mut figures) = (Vec::new(), Vec::new());
        encode_layout(&account, &mut layout);
        encode_figures(&account, &mut figures);
        sums.add(account.uid, &account.name, &layout, &figures, (3, 4));
    }
    let part = sums.encode(1, |_| 0).remove(0);
    assert!(StoredSums::decode(&part).is_some());
    for (at, change) in (0..part.len()).flat_map(|at| [(at, 0xff), (at, 1)]) {
        let mut damaged = part.clone();
        damaged[at] ^= change;
        let _ = StoredSums::decode(&part[..at]);
        let Some(stored) = StoredSums::decode(&damaged) else { continue };
        let mut sums = AccountSums::new(vec![], 0);
        for SumGroup { uid, sum, .. } in stored.users.iter().flat_map(|user| &user.groups) {
            sums.add_sum(
                &GroupFields { uid: *uid, name: "", model: None, operation: None, closed_unix_ns: 0 },
                sum,
            );
        }
        sums.finish();
    }
}
