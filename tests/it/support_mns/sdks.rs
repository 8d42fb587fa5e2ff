//! Alibaba's SDKs work with the server, and read the same from its answers as from those of the real service.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{SOON, default_key, start, text};
use crate::support::mns::queue::{Counts, QueueAttributes, md5};
use crate::support::mns::sdk::{Client, Sdk};
use crate::support::mns::signature::{Key, SignatureVersion};
use crate::support::mns::{Fault, Mns, MnsOptions, Operation};
use crate::support::wait_for;

/// A body that is difficult for XML and Base64. It has no carriage return, because the Python SDK does not escape one.
const BODY: &str = "{\"a\":\"<&>'\\\"]]> \u{6d4b}\u{8bd5} \u{1f600}\"}\n\t";

#[test]
fn python_sdk() {
    queue_calls(Sdk::Python);
}

#[test]
fn java_sdk_with_v1() {
    queue_calls(Sdk::Java(SignatureVersion::V1));
}

#[test]
fn java_sdk_with_v4() {
    queue_calls(Sdk::Java(SignatureVersion::V4));
}

fn queue_calls(sdk: Sdk) {
    let mns = Mns::start(MnsOptions::default());
    let client = sdk.client(&mns, &default_key());
    manage_queues(&mns, &client);
    send_and_receive(&mns, &client);
    leases(&mns, &client);
    batches(&mns, &client);
    long_poll(&mns, &client);
    let versions: Vec<_> = mns.requests().into_iter().map(|request| request.signed).collect();
    let expected = if sdk == Sdk::Java(SignatureVersion::V4) { SignatureVersion::V4 } else { SignatureVersion::V1 };
    assert!(versions.iter().all(|signed| *signed == Some((Mns::KEY_ID.to_owned(), expected))), "{versions:?}");
}

fn manage_queues(mns: &Mns, client: &Client) {
    let url = client.ok("create", json!({ "queue": "calls", "visibility_timeout": 50, "polling_wait": 0 }));
    assert_eq!(text(&url), format!("{}/queues/calls", mns.endpoint()));
    client.ok("create", json!({ "queue": "calls", "visibility_timeout": 50, "polling_wait": 0 }));
    assert_eq!(client.code("create", json!({ "queue": "calls", "visibility_timeout": 51 })), "QueueAlreadyExist");
    assert_eq!(client.code("create", json!({ "queue": "calls_", "visibility_timeout": 50 })), "InvalidQueueName");
    assert_eq!(client.code("create", json!({ "queue": "other", "visibility_timeout": 43_201 })), "InvalidArgument");
    client.ok("set_attributes", json!({ "queue": "calls", "visibility_timeout": 40 }));
    let attributes = client.ok("attributes", json!({ "queue": "calls" }));
    let expected = json!({
        "visibility_timeout": 40, "polling_wait": 0, "delay": 0, "retention": 604_800,
        "active": 0, "inactive": 0, "delayed": 0,
    });
    assert_eq!(attributes, expected);
    for queue in ["list-a", "list-b", "list-c"] {
        mns.create_queue(queue, QueueAttributes::default());
    }
    let first = client.ok("list", json!({ "prefix": "list-", "max": 2 }));
    let urls = |names: &[&str]| {
        names.iter().map(|name| json!(format!("{}/queues/{name}", mns.endpoint()))).collect::<Vec<_>>()
    };
    assert_eq!(first["urls"], json!(urls(&["list-a", "list-b"])));
    let second = client.ok("list", json!({ "prefix": "list-", "max": 2, "marker": first["marker"] }));
    assert_eq!(second, json!({ "urls": urls(&["list-c"]), "marker": null }));
    client.ok("delete_queue", json!({ "queue": "list-c" }));
    assert_eq!(client.code("attributes", json!({ "queue": "list-c" })), "QueueNotExist");
    assert_eq!(client.code("receive", json!({ "queue": "list-c" })), "QueueNotExist");
    assert_eq!(client.code("send", json!({ "queue": "list-c", "body": "x" })), "QueueNotExist");
}

fn send_and_receive(mns: &Mns, client: &Client) {
    assert_eq!(client.ok("receive", json!({ "queue": "calls" })), Value::Null);
    for plain in [true, false] {
        let sent = client.ok("send", json!({ "queue": "calls", "body": BODY, "plain": plain, "priority": 3 }));
        let left = mns.left("calls");
        assert_eq!((left.len(), left[0].body == BODY), (1, plain), "otherwise it is Base64");
        assert_eq!((&sent["id"], &sent["md5"]), (&json!(left[0].id), &json!(md5(&left[0].body))));
        assert_eq!(sent["handle"], Value::Null);
        let peeked = client.ok("peek", json!({ "queue": "calls", "plain": plain }));
        assert_eq!((&peeked["body"], &peeked["dequeue_count"]), (&json!(BODY), &json!(0)));
        let before = OffsetDateTime::now_utc();
        let received = client.ok("receive", json!({ "queue": "calls", "plain": plain }));
        assert_eq!(received["body"], json!(BODY));
        for (name, value) in [("id", &sent["id"]), ("md5", &sent["md5"]), ("priority", &json!(3))] {
            assert_eq!(received[name], *value, "{name}");
        }
        assert_eq!(received["dequeue_count"], json!(1));
        let millis = |name: &str| received[name].as_i64().expect("a number");
        let now = i64::try_from(before.unix_timestamp_nanos() / 1_000_000).expect("of our time");
        let visible = now + 40_000;
        assert!((now - 20_000..=now).contains(&millis("enqueued")), "{received}");
        assert!((now..now + 20_000).contains(&millis("first_dequeued")), "{received}");
        assert!((visible..visible + 20_000).contains(&millis("next_visible")), "{received}");
        assert_eq!(client.ok("receive", json!({ "queue": "calls" })), Value::Null);
        assert_eq!(client.ok("peek", json!({ "queue": "calls" })), Value::Null);
        client.ok("delete", json!({ "queue": "calls", "handle": received["handle"] }));
        assert_eq!(mns.deleted("calls").last().map(String::as_str), sent["id"].as_str());
        assert_eq!(mns.counts("calls"), Counts::default());
        let again = client.code("delete", json!({ "queue": "calls", "handle": received["handle"] }));
        assert_eq!(again, "MessageNotExist");
    }
    let delayed = client.ok("send", json!({ "queue": "calls", "body": "later", "delay": 3_600 }));
    assert_eq!(mns.counts("calls"), Counts { delayed: 1, ..Counts::default() });
    client.ok("delete", json!({ "queue": "calls", "handle": delayed["handle"] }));
    assert_eq!(mns.counts("calls"), Counts::default());
}

fn leases(mns: &Mns, client: &Client) {
    let id = mns.put("calls", "leased\r\n");
    let receive = || client.ok("receive", json!({ "queue": "calls", "plain": true }));
    let first = receive();
    let changed =
        client.ok("change_visibility", json!({ "queue": "calls", "handle": first["handle"], "seconds": 100 }));
    assert_ne!(changed["handle"], first["handle"]);
    assert!(changed["next_visible"].as_i64() > first["next_visible"].as_i64());
    assert_eq!(client.code("delete", json!({ "queue": "calls", "handle": first["handle"] })), "MessageNotExist");
    let dead = json!({ "queue": "calls", "handle": first["handle"], "seconds": 100 });
    assert_eq!(client.code("change_visibility", dead), "MessageNotExist");
    mns.advance(Duration::from_secs(60));
    assert_eq!(mns.counts("calls"), Counts { inactive: 1, ..Counts::default() });
    mns.advance(Duration::from_secs(40));
    assert_eq!(mns.counts("calls"), Counts { active: 1, ..Counts::default() });
    assert_eq!(client.code("delete", json!({ "queue": "calls", "handle": changed["handle"] })), "MessageNotExist");
    let second = receive();
    assert_eq!((&second["id"], &second["dequeue_count"]), (&json!(id), &json!(2)));
    assert_eq!(second["body"], json!("leased\r\n"));
    assert_eq!(second["first_dequeued"], first["first_dequeued"]);
    assert_eq!(client.code("delete", json!({ "queue": "calls", "handle": "1-never" })), "ReceiptHandleError");
    client.ok("delete", json!({ "queue": "calls", "handle": second["handle"] }));
    assert_eq!(mns.received("calls")[&id], 2);
}

fn batches(mns: &Mns, client: &Client) {
    let bodies: Vec<String> = (0..16).map(|number| format!("{BODY}{number}")).collect();
    let sent = client.ok("batch_send", json!({ "queue": "calls", "bodies": bodies }));
    assert_eq!(sent.as_array().map(Vec::len), Some(16));
    assert_eq!(client.ok("batch_peek", json!({ "queue": "calls", "max": 16 })).as_array().map(Vec::len), Some(16));
    let received = client.ok("batch_receive", json!({ "queue": "calls", "max": 15 }));
    let received = received.as_array().expect("a list");
    assert_eq!(received.iter().map(|message| text(&message["body"])).collect::<Vec<_>>(), bodies[..15]);
    assert_eq!(client.ok("batch_receive", json!({ "queue": "calls", "max": 16 })).as_array().map(Vec::len), Some(1));
    assert_eq!(client.ok("batch_receive", json!({ "queue": "calls", "max": 16, "wait": 0 })), json!([]));
    assert_eq!(client.code("batch_receive", json!({ "queue": "calls", "max": 17 })), "InvalidArgument");

    let handles: Vec<&Value> = received.iter().map(|message| &message["handle"]).collect();
    client.ok("batch_delete", json!({ "queue": "calls", "handles": handles[..10] }));
    assert_eq!(mns.deleted("calls").len(), 3 + 1 + 10);
    // Of the next five handles, one is already deleted, one is refused, one is unknown. The two others are deleted.
    mns.fail_deletes("calls", text(&received[10]["id"]), 1, "InternalError");
    let before = mns.connections();
    let some = json!([handles[9], handles[10], "1-never", handles[11], handles[12]]);
    let failure = client.call("batch_delete", json!({ "queue": "calls", "handles": some })).expect_err("three fail");
    assert_eq!(failure.failed.len(), 3);
    assert_eq!(failure.failed[text(handles[9])], json!("MessageNotExist"));
    assert_eq!(failure.failed[text(handles[10])], json!("InternalError"));
    assert_eq!(failure.failed["1-never"], json!("ReceiptHandleError"));
    assert_eq!(mns.deleted("calls").len(), 3 + 1 + 12);
    client.ok("batch_delete", json!({ "queue": "calls", "handles": [handles[10], handles[13], handles[14]] }));
    assert_eq!(mns.counts("calls"), Counts { inactive: 1, ..Counts::default() });
    assert_eq!(mns.connections(), before + 1, "only a partial failure closes the connection");
    let gone = client.call("batch_delete", json!({ "queue": "gone", "handles": handles })).expect_err("no queue");
    assert_eq!((gone.code.as_str(), gone.failed.len()), ("QueueNotExist", 0));
}

fn long_poll(mns: &Mns, client: &Client) {
    for (call, bodies) in [("receive", &["one"][..]), ("batch_receive", &["two", "three"])] {
        let started = Instant::now();
        let received = std::thread::scope(|scope| {
            let arguments = json!({ "queue": "calls", "plain": true, "max": 16, "wait": 30 });
            let poll = scope.spawn(|| client.ok(call, arguments));
            wait_for("the poll", SOON, || (mns.waiting() == 1).then_some(()));
            mns.put_all("calls", bodies.iter().copied());
            poll.join().expect("it succeeds")
        });
        assert!(started.elapsed() < SOON);
        let messages = if received.is_array() { received } else { json!([received]) };
        let messages = messages.as_array().expect("a list").iter();
        assert_eq!(messages.map(|message| text(&message["body"])).collect::<Vec<_>>(), bodies);
        assert_eq!(mns.waiting(), 0);
    }
    let started = Instant::now();
    assert_eq!(client.ok("batch_receive", json!({ "queue": "calls", "max": 16, "wait": 1 })), json!([]));
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(client.code("receive", json!({ "queue": "calls", "wait": 31 })), "InvalidArgument");
}

#[test]
fn temporary_credentials_are_accepted_and_wrong_ones_are_refused() {
    let mns = start("sts");
    let key = Key::with_token("STS.NUgYrLnoC37mZZCNnAbez", "secret", "CAIStokenA+/=");
    for sdk in Sdk::ALL {
        let client = sdk.client(&mns, &key);
        let send = || client.call("send", json!({ "queue": "sts", "body": "x" })).map_err(|failure| failure.code);
        let refused = |code: &str| assert_eq!(send(), Err(code.to_owned()), "{sdk:?}");
        mns.set_keys(std::slice::from_ref(&key));
        send().expect("the right token");
        mns.set_keys(&[Key { token: Some("another".to_owned()), ..key.clone() }]);
        refused("InvalidAccessKeyId");
        mns.set_keys(&[default_key()]);
        refused("InvalidAccessKeyId");
        mns.set_keys(&[Key { secret: "another".to_owned(), ..key.clone() }]);
        refused("SignatureDoesNotMatch");
        mns.set_keys(&[default_key(), key.clone()]);
        for seconds in [-16 * 60, 16 * 60] {
            mns.set_clock_offset(seconds);
            refused("TimeExpired");
        }
        mns.set_clock_offset(14 * 60);
        send().expect("the difference is allowed");
        mns.set_clock_offset(0);
        mns.fail_next(&[Operation::SendMessage], 1, Fault::throttled());
        refused("QpsLimitExceeded");
        mns.fail_next(&[Operation::SendMessage], 1, Fault::code("AccessDenied"));
        refused("AccessDenied");
    }
    let without = Sdk::Python.client(&mns, &Key { token: None, ..key });
    assert_eq!(without.code("send", json!({ "queue": "sts", "body": "x" })), "InvalidAccessKeyId");
}

#[test]
fn wrong_signatures_are_refused() {
    for (sdk, versions) in
        [(Sdk::Python, vec![SignatureVersion::V4]), (Sdk::Java(SignatureVersion::V4), vec![SignatureVersion::V1])]
    {
        let mns = Mns::start(MnsOptions { versions, ..MnsOptions::default() });
        let client = sdk.client(&mns, &default_key());
        assert_eq!(client.code("receive", json!({ "queue": "q" })), "InvalidAuthorizationHeader");
    }
    let mns = start("elsewhere");
    let client = Sdk::Java(SignatureVersion::V4).client_in(&mns, &default_key(), "ap-southeast-1");
    assert_eq!(client.code("receive", json!({ "queue": "elsewhere" })), "SignatureDoesNotMatch");
}
