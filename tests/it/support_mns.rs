//! Tests of the server that simulates MNS. Here: the protocol, timing, faults and counters.
//!
//! Other modules compare it with the real service: [`sdks`] with Alibaba's own clients, [`published`] with published
//! signatures and captured documents.

mod published;
mod sdks;
mod wire;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use time::OffsetDateTime;

use self::wire::{
    ask, ask_as, change_target, connect, encoded, exchange, receive, received_handle, signed, unsigned, write,
};
use crate::support::mns::queue::{Counts, Put, QueueAttributes, Standing, md5};
use crate::support::mns::sdk::Sdk;
use crate::support::mns::signature::{Key, Signable, SignatureVersion, http_date, parse_date};
use crate::support::mns::xml::Element;
use crate::support::mns::{Fault, Mns, MnsOptions, Operation};
use crate::support::wait::SOON;
use crate::support::wait_for;

fn default_key() -> Key {
    Key::new(Mns::KEY_ID, Mns::KEY_SECRET)
}

fn start(queue: &str) -> Mns {
    let mns = Mns::start(MnsOptions::default());
    mns.create_queue(queue, QueueAttributes::default());
    mns
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string"))
}

#[test]
fn handles_are_accepted_bare_and_encoded() {
    let mns = start("handles");
    for version in [SignatureVersion::V1, SignatureVersion::V4] {
        for encode in [encoded, str::to_owned] {
            for name in ["ReceiptHandle", "receiptHandle", "receipthandle"] {
                mns.put("handles", "x");
                let handle = received_handle(&mns, "handles");
                assert!(handle.contains("++//") && handle.ends_with('='), "{handle}");
                let target = format!("/queues/handles/messages?{name}={}", encode(&handle));
                assert_eq!(ask_as(&mns, version, "DELETE", &target, "").status, 204);
                assert_eq!(mns.requests().last().map(|request| request.target.clone()), Some(target));
            }
        }
    }
    assert_eq!(mns.deleted("handles").len(), 12);
    // A handle of another queue is not valid in this one.
    mns.create_queue("handles-2", QueueAttributes::default());
    mns.put("handles-2", "x");
    let target = change_target("handles", &received_handle(&mns, "handles-2"), 1);
    assert_eq!(ask(&mns, "PUT", &target, "").code(), (400, "ReceiptHandleError".to_owned()));
}

#[test]
fn invalid_requests_are_refused() {
    let mns = start("wrong");
    let code = |request: &Signable, body: &str| exchange(&mns, request, body).expect("an answer").code();
    let (without, with) = (
        |name: &str| {
            let mut request = unsigned(&mns, "GET", "/queues/wrong");
            request.headers.retain(|(header, _)| header != name);
            request
        },
        |name: &str, value: &str| {
            let mut request = unsigned(&mns, "GET", "/queues/wrong");
            request.headers.retain(|(header, _)| header != name);
            request.headers.push((name.to_owned(), value.to_owned()));
            request
        },
    );
    let v1 = |request| signed(request, &mns, SignatureVersion::V1);
    let bad = |code: &str| (400, code.to_owned());
    assert_eq!(code(&without("none"), ""), bad("MissingAuthorizationHeader"));
    assert_eq!(code(&with("Authorization", "Basic x"), ""), bad("InvalidAuthorizationHeader"));
    assert_eq!(code(&v1(without("x-mns-version")), ""), bad("MissingVersionHeader"));
    assert_eq!(code(&v1(without("Date")), ""), bad("MissingDateHeader"));
    assert_eq!(code(&v1(with("Date", "2025-06-03T11:23:48Z")), ""), bad("InvalidDateHeader"));
    assert_eq!(code(&v1(with("Content-MD5", "AAAA")), ""), bad("InvalidDegist"));
    // Either date is sufficient. If both are given, the service's own header counts.
    let date = http_date(OffsetDateTime::now_utc());
    let mut request = without("Date");
    request.headers.push(("x-mns-date".to_owned(), date));
    assert_eq!(exchange(&mns, &v1(request.clone()), "").expect("an answer").status, 200);
    request.headers.push(("Date".to_owned(), "Tue, 03 Jun 2025 11:23:48 GMT".to_owned()));
    assert_eq!(exchange(&mns, &v1(request), "").expect("an answer").status, 200);

    for (method, target, body, expected) in [
        ("GET", "/", "", "InvalidRequestURL"),
        ("GET", "/topics/t", "", "InvalidRequestURL"),
        ("PATCH", "/queues/wrong/messages", "", "InvalidRequestURL"),
        ("GET", "/queues/-wrong", "", "InvalidQueueName"),
        ("GET", "/queues/wr%20ong", "", "InvalidQueueName"),
        ("GET", "/queues/wrong/messages?numOfMessages=0", "", "InvalidArgument"),
        ("GET", "/queues/wrong/messages?numOfMessages=17", "", "InvalidArgument"),
        ("GET", "/queues/wrong/messages?waitseconds=31", "", "InvalidArgument"),
        ("GET", "/queues/wrong/messages?waitseconds=x", "", "InvalidQueryString"),
        ("DELETE", "/queues/wrong/messages", "", "MissingReceiptHandle"),
        ("DELETE", "/queues/wrong/messages?ReceiptHandle=x", "", "ReceiptHandleError"),
        ("PUT", "/queues/wrong/messages?ReceiptHandle=x", "", "MissingVisibilityTimeout"),
        ("PUT", "/queues/wrong/messages?ReceiptHandle=x&VisibilityTimeout=0", "", "InvalidArgument"),
        ("POST", "/queues/wrong/messages", "", "MalformedXML"),
        ("POST", "/queues/wrong/messages", "<Message><MessageBody>x</Message>", "MalformedXML"),
        ("POST", "/queues/wrong/messages", "<Message><Priority>8</Priority></Message>", "MalformedXML"),
        ("DELETE", "/queues/wrong/messages", "<ReceiptHandles></ReceiptHandles>", "InvalidArgument"),
    ] {
        assert_eq!(ask(&mns, method, target, body).code(), bad(expected), "{method} {target} {body}");
    }
    let long = "q".repeat(121);
    assert_eq!(ask(&mns, "GET", &format!("/queues/{long}"), "").code(), bad("QueueNameLengthError"));
    let message = |bytes: usize| format!("<Message><MessageBody>{}</MessageBody></Message>", "x".repeat(bytes));
    assert_eq!(ask(&mns, "POST", "/queues/wrong/messages", &message(65_537)).code(), bad("InvalidArgument"));
    assert_eq!(ask(&mns, "POST", "/queues/wrong/messages", &message(65_536)).status, 201);
    assert_eq!(mns.counts("wrong").active, 1);
}

// === time ===

#[test]
fn leases_end_by_themselves() {
    let mns = Mns::start(MnsOptions::default());
    let visibility_timeout = Duration::from_millis(500);
    mns.create_queue("lease", QueueAttributes { visibility_timeout, ..QueueAttributes::default() });
    mns.put("lease", "x");
    let started = Instant::now();
    let first = received_handle(&mns, "lease");
    // The poll gets it as soon as the lease ends.
    let answer = ask(&mns, "GET", "/queues/lease/messages?numOfMessages=16&waitseconds=30", "");
    assert!((visibility_timeout..SOON).contains(&started.elapsed()));
    assert_eq!(answer.xml().children[0].text_of("DequeueCount"), Some("2"));
    let target = format!("/queues/lease/messages?ReceiptHandle={}", encoded(&first));
    assert_eq!(ask(&mns, "DELETE", &target, "").code(), (404, "MessageNotExist".to_owned()));
}

#[test]
fn a_changed_lease_ends_when_it_should() {
    let mns = start("change");
    mns.put("change", "x");
    let first = received_handle(&mns, "change");
    let changed = ask(&mns, "PUT", &change_target("change", &first, 1), "");
    let started = Instant::now();
    let second = changed.xml().text_of("ReceiptHandle").expect("a new one").to_owned();
    assert_eq!(ask(&mns, "PUT", &change_target("change", &first, 9), "").code().1, "MessageNotExist");
    assert_eq!(ask(&mns, "GET", "/queues/change/messages?waitseconds=30", "").status, 200);
    assert!((Duration::from_millis(900)..SOON).contains(&started.elapsed()));
    assert_eq!(ask(&mns, "PUT", &change_target("change", &second, 9), "").code().1, "MessageNotExist");
}

#[test]
fn delay_retention_and_priority() {
    let mns = start("order");
    mns.put("order", "8a");
    mns.put("order", Put { delay: Some(Duration::from_secs(60)), ..Put::from("delayed") });
    mns.put("order", Put { priority: 16, ..Put::from("16") });
    mns.put("order", Put { priority: 1, ..Put::from("1") });
    mns.put("order", "8b");
    assert_eq!(mns.counts("order"), Counts { active: 4, inactive: 0, delayed: 1 });
    let bodies = || {
        let answer = ask(&mns, "GET", "/queues/order/messages?numOfMessages=16&waitseconds=0", "");
        let texts =
            answer.xml().children.into_iter().filter_map(|message| Some(message.child("MessageBody")?.text.clone()));
        texts.collect::<Vec<_>>()
    };
    assert_eq!(bodies(), ["1", "8a", "8b", "16"]);
    mns.advance(Duration::from_secs(60));
    assert_eq!(bodies(), ["1", "8a", "delayed", "8b", "16"]);
    let standings: Vec<Standing> = mns.left("order").iter().map(|left| left.standing).collect();
    assert_eq!(standings, [Standing::Inactive; 5]);
    mns.advance(Duration::from_secs(604_800));
    assert_eq!((receive(&mns, "order"), mns.left("order"), mns.lapsed("order").len()), (None, vec![], 5));
    assert!(mns.deleted("order").is_empty());
}

#[test]
fn a_receive_without_a_wait_uses_the_queues_own() {
    let mns = Mns::start(MnsOptions::default());
    let polling_wait = Duration::from_millis(700);
    mns.create_queue("wait", QueueAttributes { polling_wait, ..QueueAttributes::default() });
    let started = Instant::now();
    assert_eq!(ask(&mns, "GET", "/queues/wait/messages", "").code().1, "MessageNotExist");
    assert!(started.elapsed() >= polling_wait);
    assert_eq!(receive(&mns, "wait"), None);
    let requests = mns.requests();
    let waited: Vec<bool> =
        requests.iter().map(|request| request.answer.as_ref().expect("answered").after >= polling_wait).collect();
    assert_eq!(waited, [true, false]);
}

#[test]
fn polls_end_when_time_advances_or_the_queue_is_deleted() {
    let mns = start("polls");
    let poll = || ask(&mns, "GET", "/queues/polls/messages?waitseconds=30", "");
    let polling = || wait_for("two polls", SOON, || (mns.waiting() == 2).then_some(()));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let polls = [scope.spawn(poll), scope.spawn(poll)];
        polling();
        mns.advance(Duration::from_secs(29));
        assert_eq!(mns.waiting(), 2);
        mns.advance(Duration::from_secs(1));
        for poll in polls {
            assert_eq!(poll.join().expect("an answer").code().1, "MessageNotExist");
        }
        let polls = [scope.spawn(poll), scope.spawn(poll)];
        polling();
        mns.delete_queue("polls");
        for poll in polls {
            assert_eq!(poll.join().expect("an answer").code().1, "QueueNotExist");
        }
    });
    assert!(started.elapsed() < SOON);
    assert_eq!(mns.count(Operation::ReceiveMessage), 4);
}

#[test]
fn a_forgotten_request_ends_like_any_other() {
    let mns = start("forget");
    std::thread::scope(|scope| {
        let poll = scope.spawn(|| ask(&mns, "GET", "/queues/forget/messages?waitseconds=30", "").status);
        wait_for("the poll", SOON, || (mns.waiting() == 1).then_some(()));
        mns.forget_requests();
        assert_eq!(mns.count(Operation::ReceiveMessage), 0);
        ask(&mns, "GET", "/queues/forget", "");
        mns.put("forget", "x");
        assert_eq!(poll.join().expect("an answer"), 200);
    });
    let answers: Vec<_> = mns.requests().into_iter().map(|request| (request.operation, request.answer)).collect();
    let [(Operation::GetQueueAttributes, Some(answer))] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((answer.status, answer.messages), (200, 0));
}

#[test]
fn one_message_wakes_polls_but_only_one_gets_it() {
    let mns = start("race");
    std::thread::scope(|scope| {
        let poll = || ask(&mns, "GET", "/queues/race/messages?waitseconds=30", "").status;
        let polls = [scope.spawn(poll), scope.spawn(poll), scope.spawn(poll)];
        wait_for("three polls", SOON, || (mns.waiting() == 3).then_some(()));
        mns.put("race", "x");
        wait_for("one to get it", SOON, || (mns.waiting() == 2).then_some(()));
        mns.advance(Duration::from_secs(29)); // less than the lease
        mns.put("race", "y");
        wait_for("another", SOON, || (mns.waiting() == 1).then_some(()));
        mns.advance(Duration::from_secs(1));
        let mut statuses = polls.map(|poll| poll.join().expect("an answer"));
        statuses.sort_unstable();
        // The first lease ended at the same time as the last poll.
        assert_eq!(statuses, [200, 200, 200]);
    });
    assert_eq!(mns.counts("race").inactive, 2);
}

// === faults ===

#[test]
fn a_client_that_leaves_gets_no_message() {
    let mns = start("leave");
    let mut stream = connect(&mns);
    let request = unsigned(&mns, "GET", "/queues/leave/messages?waitseconds=30");
    write(&mut stream, &signed(request, &mns, SignatureVersion::V1), "");
    wait_for("the poll", SOON, || (mns.waiting() == 1).then_some(()));
    drop(stream);
    wait_for("its end", SOON, || (mns.waiting() == 0).then_some(()));
    mns.put("leave", "x");
    assert_eq!(mns.counts("leave").active, 1);
    assert_eq!(mns.requests()[0].answer, None);
}

#[test]
fn faults() {
    let mns = start("faults");
    let target = "/queues/faults/messages?waitseconds=0";
    let id = mns.put("faults", "x");
    let try_receive = || {
        let request = signed(unsigned(&mns, "GET", target), &mns, SignatureVersion::V1);
        exchange(&mns, &request, "").map_err(|error| error.kind())
    };
    let status = || try_receive().expect("an answer").status;
    mns.fail_next(Operation::RECEIVES, 2, Fault::Error { status: 500, code: "InternalError".to_owned() });
    mns.fail_next(&[Operation::DeleteMessage], 1, Fault::Reset);
    mns.fail_next(Operation::ALL, 1, Fault::bad_gateway());
    assert_eq!([status(), status()], [500, 500]);
    let gateway = try_receive().expect("an answer");
    assert_eq!((gateway.status, Element::parse(&gateway.body)), (502, None));
    mns.fail_next(Operation::RECEIVES, 1, Fault::Reset);
    assert_eq!(try_receive().expect_err("no answer"), std::io::ErrorKind::ConnectionReset);
    assert_eq!(mns.counts("faults").active, 1);
    mns.fail_next(Operation::RECEIVES, 1, Fault::LoseAnswer);
    assert_eq!(try_receive().expect_err("no answer"), std::io::ErrorKind::ConnectionReset);
    assert_eq!((mns.counts("faults").inactive, mns.received("faults")[&id]), (1, 1));
    mns.advance(Duration::from_secs(30));
    mns.fail_next(Operation::RECEIVES, 1, Fault::Delay(Duration::from_millis(300)));
    let started = Instant::now();
    assert_eq!(status(), 200);
    assert!(started.elapsed() >= Duration::from_millis(300));
    mns.fail_next(Operation::RECEIVES, usize::MAX, Fault::throttled());
    assert_eq!([status(), status(), status()], [403; 3]);
    mns.heal();
    assert_eq!(status(), 404);
    let codes: Vec<_> = mns.requests().into_iter().map(|request| request.answer.expect("ended").code).collect();
    let expected = [Some("InternalError"), Some("InternalError"), None, None, None, None, Some("QpsLimitExceeded")];
    assert_eq!(codes.iter().map(Option::as_deref).take(7).collect::<Vec<_>>(), expected);

    mns.set_wrong_md5("faults", &id, true);
    mns.advance(Duration::from_secs(30));
    let message = receive(&mns, "faults").expect("it is visible again");
    assert_ne!(message.text_of("MessageBodyMD5"), Some(&*md5("x")));
    mns.set_wrong_md5("faults", &id, false);
    mns.advance(Duration::from_secs(30));
    let message = receive(&mns, "faults").expect("it is visible again");
    assert_eq!(message.text_of("MessageBodyMD5"), Some(&*md5("x")));
    let target =
        format!("/queues/faults/messages?ReceiptHandle={}", encoded(message.text_of("ReceiptHandle").unwrap()));
    mns.fail_deletes("faults", &id, 1, "AccessDenied");
    assert_eq!(ask(&mns, "DELETE", &target, "").code(), (403, "AccessDenied".to_owned()));
    assert_eq!(ask(&mns, "DELETE", &target, "").status, 204);
}

#[test]
fn a_wrong_clock_is_visible() {
    let mns = start("clock");
    for seconds in [0, -120, 120] {
        mns.set_clock_offset(seconds);
        let answer = ask(&mns, "GET", "/queues/clock", "");
        let date = answer.header("date").and_then(parse_date).expect("a date");
        let off = date - OffsetDateTime::now_utc() - time::Duration::seconds(seconds);
        assert!(off.abs() < time::Duration::seconds(20), "{off}");
    }
}

#[test]
fn an_outage_and_its_end() {
    let mns = start("outage");
    mns.put("outage", "x");
    assert!(receive(&mns, "outage").is_some());
    let target = "/queues/outage/messages?waitseconds=30";
    let request = signed(unsigned(&mns, "GET", target), &mns, SignatureVersion::V1);
    std::thread::scope(|scope| {
        let poll = scope.spawn(|| exchange(&mns, &request, ""));
        wait_for("the poll", SOON, || (mns.waiting() == 1).then_some(()));
        mns.down();
        assert_eq!(mns.waiting(), 0);
        poll.join().expect("no panic").expect_err("its connection breaks");
    });
    let refused = TcpStream::connect(mns.endpoint().trim_start_matches("http://")).expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    mns.down();
    mns.up();
    mns.up();
    assert_eq!(mns.counts("outage").inactive, 1);
    mns.advance(Duration::from_secs(30));
    assert!(receive(&mns, "outage").is_some());
}

#[test]
fn connections_are_kept() {
    let mns = start("keep");
    let client = Sdk::Python.client(&mns, &default_key());
    for _ in 0..5 {
        client.ok("send", json!({ "queue": "keep", "body": "x" }));
    }
    assert_eq!((mns.connections(), mns.count(Operation::SendMessage)), (1, 5));
}
