//! Tests of the store through its public functions.

use std::path::PathBuf;

use bytes::Bytes;

use super::database::{Access, Database};
use super::*;

fn settings(folder: &Path) -> StoreSettings {
    StoreSettings {
        path: folder.to_owned(),
        bounds: StoreBounds {
            spool_max_bytes: 1 << 20,
            lane_max_bytes: 1 << 20,
            dead_letters_max_bytes: 1 << 20,
            not_a_callback_max_bytes: 1 << 20,
            dead_letters_max_age: None,
        },
    }
}

/// The settings with other bounds.
fn bounded(folder: &Path, change: impl Fn(&mut StoreBounds)) -> StoreSettings {
    let mut settings = settings(folder);
    change(&mut settings.bounds);
    settings
}

fn open(folder: &Path) -> Store {
    Store::open(settings(folder), None, &Metrics::new().expect("a valid table")).expect("it opens")
}

fn record(output: &str, topic: &str, spooled_at: i64) -> SpoolRecord {
    SpoolRecord {
        output: output.to_owned(),
        route: "all".to_owned(),
        topic: topic.to_owned(),
        key: None,
        mode: Some(crate::event::Mode::Binary),
        attempts: 1,
        spooled_at,
        envelope: "{}".into(),
        body: "{}".into(),
    }
}

fn topics(store: &Store, output: &str) -> Vec<String> {
    let read = store.reader().read(output, None, 0, 100, 1 << 20).expect("readable");
    assert!(read.iter().all(|spooled| spooled.is_sound));
    read.into_iter().map(|spooled| spooled.record.topic).collect()
}

/// The order is that of arrival, even if the clock goes back, and an age is never negative.
#[tokio::test]
async fn a_clock_that_goes_back_does_not_change_the_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let hour = 3_600_000;
    for (topic, at) in [("first", now() + hour), ("second", now() - hour), ("third", now())] {
        store.keep(vec![record("kafka", topic, at)], Vec::new()).await.expect("kept");
    }
    assert_eq!(topics(&store, "kafka"), ["first", "second", "third"]);
    store.observe();
    assert_eq!(store.shared.metrics.spool_oldest_seconds.get(), 0.0);
    store.close().await;
    assert_eq!(topics_in(folder.path(), "kafka").await, ["first", "second", "third"]);
}

#[tokio::test]
async fn a_position_is_not_used_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let mut last = 0;
    for round in 0..3 {
        store.keep(vec![record("kafka", &format!("round-{round}"), now())], Vec::new()).await.expect("kept");
        let read = store.reader().read("kafka", None, last, 10, 1 << 20).expect("readable");
        assert_eq!(read.len(), 1);
        last = read[0].seq;
        store.settle(vec![Settled { seq: last, letter: None }]).await.expect("settled");
        assert!(!store.lanes("kafka").has_backlog(&format!("round-{round}")));
    }
}

#[tokio::test]
async fn a_job_is_kept_completely_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let letter = |body: usize| DeadLetter {
        reason: "unrouted".to_owned(),
        body: vec![b'x'; body].into(),
        ..DeadLetter::default()
    };
    let kept = store.keep(vec![record("kafka", "a", now())], vec![letter(10), letter(2 << 20)]).await;
    assert_eq!(kept.expect_err("no room").kind, FailureKind::DeadLettersFull);
    assert!(topics(&store, "kafka").is_empty());
    assert_eq!(store.shared.metrics.dead_letters_stored.get(), 0);
    store.keep(vec![record("kafka", "a", now())], vec![letter(10)]).await.expect("kept");
    assert_eq!((topics(&store, "kafka").len(), store.shared.metrics.dead_letters_stored.get()), (1, 1));
}

fn letter(body: &str) -> DeadLetter {
    DeadLetter {
        reason: "unrouted".to_owned(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        at: now(),
        ..DeadLetter::default()
    }
}

fn dead_letters(folder: &Path) -> Vec<DeadLetterRow> {
    let database = Database::open(folder, Access::Read).expect("readable");
    database.dead_letters(&DeadLetterFilter::default(), i64::MIN, 1000, true).expect("readable")
}

/// The topics that a store finds when it opens a folder. It is closed, because a dropped store ends a moment later.
async fn topics_in(folder: &Path, output: &str) -> Vec<String> {
    let store = open(folder);
    let topics = topics(&store, output);
    store.close().await;
    topics
}

/// Changes the bytes of a text in the database's file.
fn change(folder: &Path, text: &str, to: impl AsRef<[u8]>) {
    let to = to.as_ref();
    let file = file(folder);
    let mut bytes = std::fs::read(&file).expect("readable");
    let mut changed = 0;
    while let Some(at) = bytes.windows(text.len()).position(|window| window == text.as_bytes()) {
        bytes[at..at + to.len()].copy_from_slice(to);
        changed += 1;
    }
    assert!(changed > 0, "{text} is in the file");
    std::fs::write(&file, bytes).expect("written");
}

/// A repeat of a dead letter replaces content that was damaged.
#[tokio::test]
async fn a_repeat_replaces_the_damaged_content_of_a_dead_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = DeadLetter { event: Some(("id".to_owned(), "type".to_owned(), None)), ..letter("the-body") };
    let store = open(folder.path());
    store.keep(Vec::new(), vec![first.clone()]).await.expect("kept");
    store.close().await;
    change(folder.path(), "the-body", "xxx-xxxx");
    assert!(!dead_letters(folder.path())[0].is_sound);
    let store = open(folder.path());
    store.keep(Vec::new(), vec![first]).await.expect("kept");
    let rows = dead_letters(folder.path());
    assert_eq!((rows.len(), rows[0].count, rows[0].is_sound), (1, 2, true));
    assert_eq!(rows[0].letter.body, "the-body");
}

/// A failed constraint means that the totals were wrong, not that the file is damaged.
#[tokio::test]
async fn a_failed_constraint_is_not_damage() {
    let folder = tempfile::tempdir().expect("a folder");
    open(folder.path()).close().await;
    let mut database = Database::open(folder.path(), Access::Owner).expect("it opens");
    let writing = database.begin().expect("begun");
    writing.append(1, &record("kafka", "a", 1)).expect("appended");
    let error = writing.append(1, &record("kafka", "b", 1)).expect_err("the position is taken");
    assert_ne!(error.kind, FailureKind::Damaged, "{error}");
}

#[tokio::test]
async fn dead_letters_that_are_too_old_are_deleted_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let metrics = Metrics::new().expect("a valid table");
    let hour = Duration::from_secs(3600);
    let settings = bounded(folder.path(), |bounds| bounds.dead_letters_max_age = Some(hour));
    let store = Store::open(settings, None, &metrics).expect("it opens");
    let at = |milliseconds| now() - milliseconds;
    let hour = 3_600_000;
    let old = DeadLetter { at: at(hour * 2), ..letter("old") };
    let young = DeadLetter { at: at(hour / 2), ..letter("young") };
    store.keep(Vec::new(), vec![old, young]).await.expect("kept");
    let start = Instant::now();
    while metrics.dead_letters_expired_total.get() == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "it is deleted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left = dead_letters(folder.path());
    assert_eq!((left.len(), &left[0].letter.body[..]), (1, &b"young"[..]));
    assert_eq!(metrics.dead_letters_stored.get(), 1);
}

/// Damage of the structure that SQLite reports: everything that can be read is there afterwards.
#[tokio::test]
async fn a_damaged_index_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    for number in 0..500 {
        let record = record("kafka", &format!("t{number}"), now());
        store.keep(vec![record], Vec::new()).await.expect("kept");
    }
    store.keep(Vec::new(), vec![letter("kept")]).await.expect("kept");
    store.close().await;
    spoil_page(folder.path(), "spool_by_output");
    let store = open(folder.path());
    assert_eq!(topics(&store, "kafka").len(), 100, "a batch of them can be read");
    assert_eq!(store.shared.metrics.spool_events.get(), 500);
    assert_eq!(dead_letters(folder.path()).len(), 1);
    assert!(set_aside(folder.path()).is_empty(), "everything was copied");
}

/// Fills the root page of a table or an index with junk.
fn spoil_page(folder: &Path, name: &str) {
    let connection = rusqlite::Connection::open(file(folder)).expect("it opens");
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
    let page: u32 = connection.query_row(sql, [name], |row| row.get(0)).expect("it is there");
    drop(connection);
    let file = std::fs::File::options().write(true).open(file(folder)).expect("it opens");
    let bytes = u64::from(database::PAGE_BYTES);
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xA5; 1 << 14], u64::from(page - 1) * bytes).expect("written");
}

/// The index still knows what the table has lost.
#[tokio::test]
async fn rows_of_an_unreadable_table_are_counted_and_the_file_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    for number in 0..50 {
        store.keep(vec![record("kafka", &format!("t{number}"), now())], Vec::new()).await.expect("kept");
    }
    store.close().await;
    spoil_page(folder.path(), "spool");
    let copied = recover::rebuild(folder.path(), &recover::Cause::Damaged(writer::closed()), 0).expect("it is copied");
    assert_eq!((copied.records, copied.loss), (0, Some(salvage::Loss { rows: 50, is_open: false })));
    let kept = set_aside(folder.path());
    assert_eq!(kept.len(), 1, "{kept:?}");
    let store = open(folder.path());
    assert!(topics(&store, "kafka").is_empty());
    store.keep(vec![record("kafka", "new", now())], Vec::new()).await.expect("kept");
    store.close().await;
    // A later copy of which everything was read keeps the older file.
    spoil_page(folder.path(), "spool_by_output");
    assert_eq!(topics_in(folder.path(), "kafka").await, ["new"]);
    assert_eq!(set_aside(folder.path()), kept);
}

#[tokio::test]
async fn a_folder_with_only_an_old_database_is_not_empty() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.keep(vec![record("kafka", "a", now())], vec![letter("b")]).await.expect("kept");
    store.close().await;
    std::fs::rename(file(folder.path()), folder.path().join("spool.db.damaged-20260101T000000")).expect("renamed");
    let store = open(folder.path());
    assert_eq!(topics(&store, "kafka"), ["a"]);
    assert_eq!(dead_letters(folder.path()).len(), 1);
}

#[tokio::test]
async fn a_swap_that_was_interrupted_is_continued() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let keep_one = async |topic: &str| {
        let store = open(folder.path());
        store.keep(vec![record("kafka", topic, now())], Vec::new()).await.expect("kept");
        store.close().await;
    };
    keep_one("a").await;
    // The new one is complete, but the old one is still in its place and was used since: the old one stays.
    std::fs::copy(file(folder.path()), at("spool.db.ready")).expect("copied");
    keep_one("b").await;
    assert_eq!(topics_in(folder.path(), "kafka").await, ["a", "b"]);
    assert!(!at("spool.db.ready").exists());
    // The old one was moved, but its log was not.
    std::fs::rename(file(folder.path()), at("spool.db.ready-in-part")).expect("renamed");
    std::fs::write(at("spool.db.damaged-20260101T000000"), "an old database").expect("written");
    std::fs::write(at("spool.db-wal"), "its log").expect("written");
    assert_eq!(topics_in(folder.path(), "kafka").await, ["a", "b"]);
    assert_eq!(std::fs::read(at("spool.db.damaged-20260101T000000-wal")).expect("there"), b"its log");
}

#[tokio::test]
async fn a_log_without_its_database_is_not_deleted() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("spool.db-wal"), "a log").expect("written");
    let error =
        Store::open(settings(folder.path()), None, &Metrics::new().expect("a valid table")).expect_err("rejected");
    assert!(error.to_string().contains("spool.db is missing, but its log spool.db-wal is there"), "{error}");
}

/// After a failed fsync the next start must not trust the file, even if it can be read.
#[tokio::test]
async fn a_file_whose_fsync_failed_is_copied_at_the_next_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.keep(vec![record("kafka", "a", now())], Vec::new()).await.expect("kept");
    store.close().await;
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(file(folder.path())).expect("there"));
    let before = inode();
    files::mark_unsynced(folder.path());
    let store = open(folder.path());
    assert_eq!(topics(&store, "kafka"), ["a"]);
    assert_ne!(inode(), before);
    store.close().await;
    let after = inode();
    topics_in(folder.path(), "kafka").await;
    assert_eq!(inode(), after, "once is enough");
}

#[tokio::test]
async fn import_adds_what_is_new_and_counts_what_is_not() {
    let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    for (folder, topics) in [(&folder, ["a", "b"]), (&other, ["b", "c"])] {
        let store = open(folder.path());
        for topic in topics {
            store.keep(vec![record("kafka", topic, now())], vec![letter(topic)]).await.expect("kept");
        }
        store.close().await;
    }
    let mut offline = Offline::open(settings(folder.path()), None).expect("it opens");
    let imported = offline.import(&file(other.path())).expect("imported");
    let expected = Imported { records: 1, dead_letters: 1, repeats: 2, ..Imported::default() };
    assert_eq!(imported, expected);
    assert_eq!(offline.import(&file(other.path())).expect("imported"), Imported { repeats: 4, ..Imported::default() });
    assert_eq!(offline.move_records("kafka", "nats", Some("moved")).expect("moved"), 3);
    drop(offline);
    assert_eq!(topics_in(folder.path(), "nats").await, ["moved", "moved", "moved"]);
    let junk = other.path().join("junk");
    std::fs::write(&junk, "no database at all, but long enough to look at").expect("written");
    let error = Offline::open(settings(other.path()), None).expect("it opens").import(&junk).expect_err("rejected");
    assert!(error.to_string().contains("cannot be read as a spool of apsara-bridge"), "{error}");
}

/// If the totals are wrong, for example after a commit that was reported as failed but was written, the next record gets a
/// position that another record has. The store then counts the rows again.
#[tokio::test]
async fn a_position_that_is_taken_is_not_damage_and_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.keep(vec![record("kafka", "first", now())], Vec::new()).await.expect("kept");
    let mut other = Database::open(folder.path(), Access::Shared).expect("it opens");
    let writing = other.begin().expect("begun");
    writing.append(2, &record("kafka", "second", now())).expect("appended");
    writing.commit().expect("written");
    drop(other);
    store.keep(vec![record("kafka", "third", now())], Vec::new()).await.expect_err("its position is taken");
    let start = Instant::now();
    while store.keep(vec![record("kafka", "fourth", now())], Vec::new()).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "it is found out");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(topics(&store, "kafka"), ["first", "second", "fourth"]);
    assert_eq!(store.shared.metrics.spool_events.get(), 3);
    assert!(set_aside(folder.path()).is_empty());
    assert_eq!(store.shared.metrics.spool_failures_total.with_label_values(&["damaged"]).get(), 0);
}

/// Bytes are changed at random: the store opens in bounded time, and everything that it finds was written, or is a dead
/// letter that says that it was changed.
#[tokio::test]
async fn random_damage_invents_nothing() {
    let whole = tempfile::tempdir().expect("a folder");
    let store = open(whole.path());
    let topic = |number: usize| format!("topic-{number:04}-{}", "x".repeat(number * 7 % 900));
    for chunk in (0..300).collect::<Vec<_>>().chunks(50) {
        let records = chunk.iter().map(|number| record("kafka", &topic(*number), now())).collect();
        store.keep(records, vec![letter(&topic(chunk[0]))]).await.expect("kept");
    }
    // Some pages were freed and are used again.
    let settled = (1..100).map(|seq| Settled { seq, letter: None }).collect();
    store.settle(settled).await.expect("settled");
    store.close().await;
    let bytes = std::fs::read(file(whole.path())).expect("readable");
    let mut random = 1_u64;
    let mut next = |below: usize| {
        // splitmix64
        random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % below as u64).expect("below a usize")
    };
    for seed in 0..200 {
        let folder = tempfile::tempdir().expect("a folder");
        let mut bytes = bytes.clone();
        let (start, count) = (next(bytes.len()), [1, 1, 2, 8, 64, 4096][next(6)]);
        for step in 0..count {
            // Next to each other like a bad sector, or apart.
            let at = if seed % 2 == 0 { (start + step) % bytes.len() } else { next(bytes.len()) };
            bytes[at] = u8::try_from(next(256)).expect("a byte");
        }
        std::fs::write(file(folder.path()), bytes).expect("written");
        let start = Instant::now();
        let store = open(folder.path());
        let mut found = 0;
        let mut after = 0;
        loop {
            let read = match store.reader().read("kafka", None, after, 1000, 1 << 30) {
                Ok(read) => read,
                // The writer repairs it.
                Err(error) => {
                    assert!(start.elapsed() < Duration::from_secs(60), "seed {seed}: {error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let Some(last) = read.last() else { break };
            assert!(last.seq > after, "seed {seed}: in order");
            after = last.seq;
            for spooled in read.iter().filter(|spooled| spooled.is_sound) {
                let number = usize::try_from(spooled.seq - 1).expect("a number");
                assert_eq!(spooled.record.topic, topic(number), "seed {seed}");
                found += 1;
            }
        }
        assert!(found <= 300, "seed {seed}: {found}");
        store.keep(vec![record("kafka", "after", now())], Vec::new()).await.expect("it continues");
        store.close().await;
        assert!(start.elapsed() < Duration::from_secs(60), "seed {seed}: {:?}", start.elapsed());
        for row in dead_letters(folder.path()) {
            let is_known = (0..300).any(|number| row.letter.body == topic(number).as_bytes());
            assert!(is_known || !row.is_sound || row.letter.reason == DAMAGED, "seed {seed}: {row:?}");
        }
    }
}

/// A closed store with a number of records of a kilobyte.
async fn filled(folder: &Path, records: usize) {
    let store = open(folder);
    for number in 0..records {
        let record = SpoolRecord { body: vec![b'x'; 1000].into(), ..record("kafka", &format!("t{number}"), now()) };
        store.keep(vec![record], Vec::new()).await.expect("kept");
    }
    store.close().await;
}

/// Makes the writer copy the database into a new file.
async fn repair(store: &Store) -> Result<Retained, StoreError> {
    let (done, answer) = oneshot::channel();
    let damage = StoreError::new(FailureKind::Damaged, "a reader met damage");
    store.jobs.send(Job::Work(Work::Repair(0, damage), done)).expect("the writer runs");
    answer.await.expect("answered")
}

fn inode(folder: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(file(folder)).expect("there"))
}

/// A folder in place of the new file: nothing can be built while it exists.
fn obstruct(folder: &Path) {
    std::fs::create_dir_all(folder.join("spool.db.building/in the way")).expect("made");
}

#[tokio::test]
async fn a_damaged_record_does_not_get_the_number_of_a_dead_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let records = vec![record("kafka", "topic-a", now()), record("kafka", "ok", now())];
    store.keep(records, vec![letter("precious")]).await.expect("kept");
    store.close().await;
    change(folder.path(), "topic-a", "topic-b");
    files::mark_unsynced(folder.path());
    assert_eq!(topics_in(folder.path(), "kafka").await, ["ok"]);
    let rows = dead_letters(folder.path());
    assert_eq!((rows[0].id, &rows[0].letter.body[..]), (1, &b"precious"[..]));
    assert_eq!((rows.len(), rows[1].letter.reason.as_str()), (2, DAMAGED));
}

/// SQLite checks neither the encoding of texts nor, in a large file, all of the index.
#[tokio::test]
async fn a_topic_that_is_not_utf8_does_not_prevent_a_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.keep(vec![record("kafka", "topic-a", now()), record("kafka", "ok", now())], Vec::new()).await.expect("kept");
    store.close().await;
    change(folder.path(), "topic-a", b"topic-\xFF");
    assert_eq!(topics_in(folder.path(), "kafka").await, ["ok"]);
    assert_eq!(dead_letters(folder.path())[0].letter.reason, DAMAGED);
}

/// If it is not known how much is lost, the old file is kept.
#[tokio::test]
async fn a_file_with_an_unknown_loss_is_kept() {
    for roots in [&["spool", "spool_by_output"][..], &["dead_letters"]] {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(folder.path());
        for number in 0..50 {
            let letter = letter(&format!("{number}-{}", "y".repeat(3000)));
            store.keep(vec![record("kafka", "t", now())], vec![letter]).await.expect("kept");
        }
        store.close().await;
        for root in roots {
            spoil_page(folder.path(), root);
        }
        open(folder.path()).close().await;
        assert_eq!(set_aside(folder.path()).len(), 1, "{roots:?}");
    }
}

#[tokio::test]
async fn nothing_is_kept_in_a_file_that_must_be_copied_and_cannot_be() {
    for is_damaged in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        filled(folder.path(), 20).await;
        let store = open(folder.path());
        let before = inode(folder.path());
        obstruct(folder.path());
        if is_damaged {
            repair(&store).await.expect_err("it cannot be copied");
        } else {
            // The state after an fsync failed in another process.
            files::mark_unsynced(folder.path());
        }
        for _ in 0..3 {
            store.keep(vec![record("kafka", "new", now())], Vec::new()).await.expect_err("rejected");
        }
        assert!(!store.has_room());
        assert_eq!(topics(&store, "kafka").len(), 20, "what is there can be read");
        std::fs::remove_dir_all(folder.path().join("spool.db.building")).expect("removed");
        let start = Instant::now();
        while store.keep(vec![record("kafka", "new", now())], Vec::new()).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "it is copied when it can be");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_ne!(inode(folder.path()), before);
        assert_eq!(topics(&store, "kafka").len(), 21);
        store.close().await;
    }
}

#[tokio::test]
async fn an_old_database_is_copied_with_its_log() {
    let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let store = open(folder.path());
    store.keep(vec![record("kafka", "in the log", now())], Vec::new()).await.expect("kept");
    // The state after an earlier program was killed between the two renames.
    let aside = other.path().join("spool.db.damaged-20260101T000000");
    std::fs::copy(file(folder.path()), aside).expect("copied");
    std::fs::copy(folder.path().join("spool.db-wal"), other.path().join("spool.db-wal")).expect("copied");
    assert_eq!(topics_in(other.path(), "kafka").await, ["in the log"]);
    store.close().await;
}

#[tokio::test]
async fn the_newest_old_database_is_kept_even_if_the_clock_goes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    filled(folder.path(), 50).await;
    let ahead = folder.path().join("spool.db.damaged-20990101T000000");
    std::fs::write(&ahead, "older, by a clock that was ahead").expect("written");
    spoil_page(folder.path(), "spool");
    open(folder.path()).close().await;
    let kept = set_aside(folder.path());
    assert_eq!(kept, [with_suffix(&ahead, "-1")]);
    // An empty file is not a database, and replaces none.
    std::fs::remove_file(file(folder.path())).expect("removed");
    std::fs::write(file(folder.path()), "").expect("written");
    open(folder.path()).close().await;
    assert_eq!(set_aside(folder.path()), kept);
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

#[tokio::test]
async fn unusable_files_are_rejected_with_the_reason() {
    let refused = |folder: &Path| {
        Store::open(settings(folder), None, &Metrics::new().expect("a valid table")).expect_err("rejected")
    };
    let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    filled(other.path(), 1).await;
    std::os::unix::fs::symlink(file(other.path()), file(folder.path())).expect("linked");
    assert!(refused(folder.path()).to_string().contains("is a symbolic link"));
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(file(folder.path()), "").expect("written");
    std::fs::write(folder.path().join("spool.db-wal"), "a log").expect("written");
    assert!(refused(folder.path()).to_string().contains("but its log spool.db-wal is there"));
    let folder = tempfile::tempdir().expect("a folder");
    let foreign = rusqlite::Connection::open(file(folder.path())).expect("it opens");
    foreign.execute_batch("PRAGMA application_id = 7").expect("written");
    drop(foreign);
    assert!(refused(folder.path()).to_string().contains("is not a spool of apsara-bridge"));
}

/// A caller that no longer waits has got another answer.
#[tokio::test]
async fn a_job_without_a_waiting_caller_is_not_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let mut other = Database::open(folder.path(), Access::Shared).expect("it opens");
    let writing = other.begin().expect("begun");
    let given_up = async |topic: &str| {
        let kept = store.keep(vec![record("kafka", topic, now())], Vec::new());
        tokio::time::timeout(Duration::from_millis(50), kept).await.expect_err("the database is held");
    };
    // The first job is being written, the others wait.
    for topic in ["first", "second", "third"] {
        given_up(topic).await;
    }
    drop(writing);
    store.keep(vec![record("kafka", "last", now())], Vec::new()).await.expect("kept");
    assert_eq!(topics(&store, "kafka"), ["first", "last"]);
    store.close().await;
}

#[tokio::test]
async fn settling_again_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.keep(vec![record("kafka", "a", now())], Vec::new()).await.expect("kept");
    let announcement = Some(record("letters", "announced", now()));
    let became = Box::new(SettledLetter { letter: letter("l"), announcement });
    let settled = vec![Settled { seq: 1, letter: Some(became) }];
    for _ in 0..2 {
        assert!(store.settle(settled.clone()).await.expect("settled").is_empty());
    }
    assert_eq!(topics(&store, "letters"), ["announced"]);
    assert_eq!(dead_letters(folder.path())[0].count, 1);
    store.close().await;
}

/// A command that opened the file before it was replaced must not report success.
#[tokio::test]
async fn a_command_does_not_write_into_a_file_that_was_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.keep(Vec::new(), vec![letter("a")]).await.expect("kept");
    let mut command = Database::open(folder.path(), Access::Shared).expect("it opens");
    repair(&store).await.expect("copied");
    let writing = command.begin().expect("begun");
    writing.remove_dead_letter(1).expect("removed there");
    let error = writing.commit().expect_err("it was replaced");
    assert!(error.to_string().contains("run the command again"), "{error}");
    assert_eq!(dead_letters(folder.path()).len(), 1);
    store.close().await;
}

/// Repeats need no room.
#[tokio::test]
async fn repeats_are_imported_into_full_dead_letters() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.keep(Vec::new(), vec![letter("a")]).await.expect("kept");
    store.close().await;
    let full = bounded(folder.path(), |bounds| bounds.dead_letters_max_bytes = 300);
    let imported = Offline::open(full, None).expect("it opens").import(&file(folder.path())).expect("imported");
    assert_eq!(imported, Imported { repeats: 1, ..Imported::default() });
}

/// A file that is too short: the rest of it is read.
#[tokio::test]
async fn the_rest_of_a_truncated_file_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    filled(folder.path(), 300).await;
    let bytes = std::fs::metadata(file(folder.path())).expect("there").len();
    let half = bytes / 2 / u64::from(database::PAGE_BYTES) * u64::from(database::PAGE_BYTES);
    let cut = std::fs::File::options().write(true).open(file(folder.path())).expect("it opens");
    cut.set_len(half).expect("cut");
    drop(cut);
    let found = topics_in(folder.path(), "kafka").await;
    assert!(found.len() >= 50, "{}", found.len());
    assert_eq!(set_aside(folder.path()).len(), 1, "the rest is lost, and the file kept");
}

/// A running bridge knows how many records there were: fewer records mean a loss, even if every page can be read.
#[tokio::test]
async fn a_loss_that_the_pages_do_not_show_is_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    filled(folder.path(), 20).await;
    let damage = || recover::Cause::Damaged(writer::closed());
    let copied = recover::rebuild(folder.path(), &damage(), 25).expect("copied");
    assert_eq!(copied.loss.map(|loss| loss.rows), Some(5));
    assert_eq!(set_aside(folder.path()).len(), 1);
}

/// An old file of which everything was read is removed, also after an interruption.
#[tokio::test]
async fn a_superseded_file_is_removed_by_the_next_start() {
    let folder = tempfile::tempdir().expect("a folder");
    filled(folder.path(), 3).await;
    let at = |name: &str| folder.path().join(name);
    std::fs::rename(file(folder.path()), at("spool.db.ready")).expect("renamed");
    std::fs::write(at("spool.db.superseded"), "an old database").expect("written");
    std::fs::write(at("spool.db-wal"), "its log").expect("written");
    assert_eq!(topics_in(folder.path(), "kafka").await.len(), 3);
    assert!(!at("spool.db.superseded").exists() && !at("spool.db.superseded-wal").exists());
    assert!(set_aside(folder.path()).is_empty());
}

/// If the file of a running bridge is removed, the log says so, and nothing more is acknowledged.
#[tokio::test]
async fn a_removed_file_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.keep(vec![record("kafka", "a", now())], Vec::new()).await.expect("kept");
    std::fs::rename(file(folder.path()), folder.path().join("elsewhere")).expect("renamed");
    let start = Instant::now();
    while store.keep(vec![record("kafka", "b", now())], Vec::new()).await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(60), "it is found out");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!store.has_room() && store.condition() == Condition::Failing);
    store.close().await;
}

#[tokio::test]
async fn a_topic_has_its_share_only_while_its_output_is_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let three = 3 * record("kafka", "sick", 0).bytes();
    let settings = bounded(folder.path(), |bounds| bounds.lane_max_bytes = three);
    let store = Store::open(settings, None, &Metrics::new().expect("a valid table")).expect("it opens");
    let sick = || vec![record("kafka", "sick", now())];
    let is_up = |output: &str| output == "kafka";
    for _ in 0..3 {
        store.keep_within(sick(), Vec::new(), is_up).await.expect("room");
    }
    let full = store.keep_within(sick(), Vec::new(), is_up).await.expect_err("full");
    assert_eq!(full.kind, FailureKind::LaneFull);
    assert_eq!(store.shared.metrics.spool_failures_total.with_label_values(&["lane_full"]).get(), 1);
    let both = vec![record("kafka", "healthy", now()), record("kafka", "sick", now())];
    store.keep_within(both, Vec::new(), is_up).await.expect_err("all or nothing");
    assert!(!store.lanes("kafka").has_backlog("healthy"), "nothing is pending any more");
    store.keep_within(vec![record("kafka", "healthy", now())], Vec::new(), is_up).await.expect("another topic");
    store.keep_within(sick(), Vec::new(), |_| false).await.expect("the output is down");
    assert_eq!(store.lanes("kafka").records(), 5);
    let settled = [1, 2].map(|seq| Settled { seq, letter: None }).to_vec();
    store.settle(settled).await.expect("settled");
    store.keep_within(sick(), Vec::new(), is_up).await.expect("room again");
}

/// Ten thousand topics that were drained leave nothing behind.
#[tokio::test]
async fn a_lane_is_in_memory_only_while_it_has_records() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = bounded(folder.path(), |bounds| bounds.spool_max_bytes = 1 << 30);
    let store = Store::open(settings.clone(), None, &Metrics::new().expect("a valid table")).expect("it opens");
    let topic = |number: i64| format!("topic-{number}");
    for chunk in (1..=10_000).collect::<Vec<i64>>().chunks(1000) {
        let records = chunk.iter().map(|number| record("kafka", &topic(*number), now())).collect();
        store.keep(records, Vec::new()).await.expect("kept");
    }
    assert_eq!((store.filled().await.len(), store.lanes("kafka").states()), (10_000, (10_000, 0)));
    store.close().await;
    let store = Store::open(settings, None, &Metrics::new().expect("a valid table")).expect("it opens");
    assert_eq!((store.filled().await.len(), store.lanes("kafka").records()), (10_000, 10_000));
    store.settle((1..=10_000).map(|seq| Settled { seq, letter: None }).collect()).await.expect("settled");
    assert_eq!(store.lanes("kafka").states(), (0, 0));
    assert!(!store.lanes("kafka").has_backlog(&topic(1)));
    assert_eq!(store.shared.metrics.spool_events.get(), 0);
}

/// In files of earlier versions the index has no topics.
#[tokio::test]
async fn an_index_without_topics_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.keep(vec![record("kafka", "a", now()), record("kafka", "b", now())], Vec::new()).await.expect("kept");
    store.close().await;
    let columns = || {
        let file = rusqlite::Connection::open(file(folder.path())).expect("it opens");
        let mut columns = file.prepare("SELECT name FROM pragma_index_info('spool_by_output')").expect("valid");
        let names = columns.query_map([], |row| row.get::<_, String>(0)).expect("an answer");
        names.collect::<Result<Vec<_>, _>>().expect("texts")
    };
    let file = rusqlite::Connection::open(file(folder.path())).expect("it opens");
    file.execute_batch("DROP INDEX spool_by_output; CREATE INDEX spool_by_output ON spool (output, seq, bytes)")
        .expect("as it was");
    drop(file);
    assert_eq!(columns(), ["output", "seq", "bytes"]);
    let store = open(folder.path());
    assert_eq!(columns(), ["output", "topic", "seq", "bytes"]);
    assert_eq!(store.reader().read("kafka", Some("b"), 0, 10, 1 << 20).expect("readable").len(), 1);
    store.close().await;
}

/// Mode bits of other users, by the names of the files in a folder that have some.
fn open_to_others(folder: &Path) -> Vec<(String, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    let modes = entries.map(|entry| {
        (entry.file_name().into_string().expect("text"), entry.metadata().expect("it exists").mode() & 0o077)
    });
    modes.filter(|(_, mode)| *mode != 0).collect()
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
}

#[tokio::test]
async fn other_users_cannot_read_the_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("new/spool");
    let store = open(&path);
    store.keep(vec![record("kafka", "a", now())], vec![letter("l")]).await.expect("kept");
    let lane = FailingLane {
        output: "kafka".to_owned(),
        topic: "a".to_owned(),
        records: 1,
        since: 0,
        attempts: 1,
        reason: "unauthorized".to_owned(),
        error: String::new(),
        remedy: String::new(),
    };
    FailingLanes { lanes: vec![lane], not_named: 0 }.write(&path).expect("written");
    space::Reserve::new(&path).take(&Volume { total: 16 << 20, free: 4 << 20, network: None }).expect("taken");
    let present = |names: &[&str]| names.iter().all(|name| path.join(name).exists());
    assert!(present(&["lock", "spool.db", "spool.db-wal", "spool.db-shm", "failing-lanes.json", "spool.reserve"]));
    assert_eq!(open_to_others(&path), []);
    assert_eq!((open_to_others(folder.path()), open_to_others(path.parent().expect("new"))), (vec![], vec![]));
    store.close().await;

    // A copy, which replaces the database.
    let inode_before = inode(&path);
    files::mark_unsynced(&path);
    assert_eq!(open_to_others(&path), []);
    let store = open(&path);
    assert_ne!(inode(&path), inode_before);
    assert_eq!(open_to_others(&path), []);
    store.close().await;

    // Files of an earlier version.
    let widen =
        || std::fs::read_dir(&path).expect("a folder").for_each(|file| set_mode(&file.expect("a file").path(), 0o644));
    widen();
    let store = open(&path);
    assert_eq!(open_to_others(&path), []);
    store.close().await;
    widen();
    assert_eq!(dead_letters(&path).len(), 1, "a command reads it");
    assert!(!open_to_others(&path).iter().any(|(name, _)| name.starts_with("spool.db")), "{:?}", open_to_others(&path));
}

#[tokio::test]
async fn symbolic_links_in_the_folder_are_refused_and_not_followed() {
    let other = tempfile::tempdir().expect("a folder");
    let target = other.path().join("target");
    std::fs::write(&target, "something else").expect("written");
    let names = [
        "lock",
        "spool.db",
        "spool.db-wal",
        "spool.db-shm",
        "spool.db.building",
        "spool.db.ready",
        "spool.db.ready-in-part",
        "spool.db.superseded",
        "spool.db.unsynced",
        "spool.db.damaged-20260101T000000",
        "spool.reserve",
        "failing-lanes.json",
    ];
    for name in names {
        let folder = tempfile::tempdir().expect("a folder");
        filled(folder.path(), 1).await;
        let link = folder.path().join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&target, &link).expect("linked");
        let refused = Store::open(settings(folder.path()), None, &Metrics::new().expect("a valid table"));
        let error = refused.expect_err("refused").to_string();
        assert!(error.contains(&link.display().to_string()) && error.contains("is a symbolic link"), "{name}: {error}");
        if ["spool.db", "spool.db-wal", "spool.db-shm"].contains(&name) {
            Database::open(folder.path(), Access::Read).expect_err("refused");
        }
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&target).expect("readable"), "something else", "{name}");
    }
    // The path of the folder is the operator's.
    let folder = tempfile::tempdir().expect("a folder");
    filled(folder.path(), 1).await;
    let link = other.path().join("spool");
    std::os::unix::fs::symlink(folder.path(), &link).expect("linked");
    assert_eq!(topics_in(&link, "kafka").await.len(), 1);
}

#[test]
fn a_lock_file_is_never_truncated() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("lock");
    let contents = || std::fs::read_to_string(&file).expect("readable");
    let owned = format!("process {:<20}\n", std::process::id());
    for earlier in ["", "process 1\n", "process 4194304             \n", "\0\0\0\0"] {
        std::fs::write(&file, earlier).expect("written");
        let held = lock::lock(folder.path(), None).expect("free");
        assert_eq!(contents(), owned);
        let error = lock::lock(folder.path(), None).expect_err("in use").to_string();
        assert!(error.ends_with(&format!("that is running (process {})", std::process::id())), "{error}");
        drop(held);
    }
    for foreign in ["something else", &"a process".repeat(100)] {
        std::fs::write(&file, foreign).expect("written");
        let _held = lock::lock(folder.path(), None).expect("free");
        assert_eq!(contents(), foreign);
    }
}

#[test]
fn a_folder_that_other_users_can_enter_causes_a_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    let warned = |mode: u32| {
        set_mode(folder.path(), mode);
        let small = bounded(folder.path(), |bounds| bounds.spool_max_bytes = 1);
        small.warnings().into_iter().filter(|warning| warning.contains("other users")).collect::<Vec<_>>()
    };
    assert_eq!(warned(0o700), Vec::<String>::new());
    let shown = folder.path().display();
    assert_eq!(
        warned(0o2770),
        [format!(
            "spool.path: other users can enter {shown} (mode 770): run `chmod 700 {shown}`, or, if fsGroup of Kubernetes \
             sets the mode, mount the volume only into the container of the bridge"
        )]
    );
    assert_eq!(
        bounded(&folder.path().join("new"), |_| ()).warnings().iter().filter(|w| w.contains("other")).count(),
        0
    );
}
