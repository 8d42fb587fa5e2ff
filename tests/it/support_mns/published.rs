//! The server agrees with what is published: signatures from SDKs and pages are accepted, captured documents are read,
//! and the documents of the server have the same shape.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::wire::{ask, change_target};
use super::{start, text};
use crate::support::mns::queue::{Put, QueueAttributes};
use crate::support::mns::signature::{
    Key, Rules, Signable, SignatureVersion, authorization, http_date, parse_date, verify,
};
use crate::support::mns::xml::Element;
use crate::support::mns::{Fault, Operation};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn signable(vector: &Value, target: &str, date: String, authorization: String) -> Signable {
    let headers = vector["headers"].as_object().expect("headers").iter();
    let mut headers: Vec<_> = headers.map(|(name, value)| (name.clone(), text(value).to_owned())).collect();
    headers.extend([("Date".to_owned(), date), ("Authorization".to_owned(), authorization)]);
    Signable { method: text(&vector["method"]).to_owned(), target: target.to_owned(), headers }
}

/// Checks that `request` is accepted, and refused if any signed part is different.
fn holds(request: &Signable, key: &Key, region: &str, version: SignatureVersion) {
    let rules = Rules { keys: vec![key.clone()], region: region.to_owned(), versions: vec![version] };
    let now = parse_date(request.header("date").expect("given")).expect("a date");
    assert_eq!(verify(request, &rules, now), Ok((key.id.clone(), version)), "{request:?}");
    assert_eq!(request.header("authorization"), Some(&*authorization(request, key, region, version)));
    let wrong = Err("SignatureDoesNotMatch");
    let mut changed = request.clone();
    changed.method = "PATCH".to_owned();
    assert_eq!(verify(&changed, &rules, now), wrong);
    let mut changed = request.clone();
    changed.target += "x";
    assert_eq!(verify(&changed, &rules, now), wrong);
    let mut changed = request.clone();
    changed.headers.push(("X-Mns-More".to_owned(), "1".to_owned()));
    assert_eq!(verify(&changed, &rules, now), wrong);
    for name in ["date", "content-type", "content-md5"] {
        let mut changed = request.clone();
        match changed.headers.iter_mut().find(|(header, _)| header.eq_ignore_ascii_case(name)) {
            Some((_, value)) if name == "date" => *value = http_date(now + time::Duration::SECOND),
            Some((_, value)) => value.push('x'),
            None => changed.headers.push((name.to_owned(), "x".to_owned())),
        }
        assert_eq!(verify(&changed, &rules, now), wrong, "{name}");
    }
    let other = Rules { keys: vec![Key { secret: "other".to_owned(), ..key.clone() }], ..rules.clone() };
    assert_eq!(verify(request, &other, now), wrong);
    let other = Rules { keys: Vec::new(), ..rules.clone() };
    assert_eq!(verify(request, &other, now), Err("InvalidAccessKeyId"));
    assert_eq!(verify(request, &rules, now + time::Duration::minutes(15)).map(|(id, _)| id), Ok(key.id.clone()));
    assert_eq!(verify(request, &rules, now + time::Duration::seconds(901)), Err("TimeExpired"));
    assert_eq!(verify(request, &rules, now - time::Duration::seconds(901)), Err("TimeExpired"));
}

#[test]
fn published_signatures_are_accepted() {
    let vectors: Value = serde_json::from_str(&read("signature-vectors.json")).expect("JSON");
    let all = |name: &str| vectors[name].as_array().expect("a list").clone();
    let v1 = all("mns_v1_hmac_sha1");
    assert_eq!(v1.len(), 5);
    for vector in &v1 {
        let key = Key::new(text(&vector["ak"]), text(&vector["sk"]));
        let authorization = vector["authorization"]
            .as_str()
            .map_or_else(|| format!("MNS {}:{}", key.id, text(&vector["signature"])), str::to_owned);
        let date = text(&vector["date"]).to_owned();
        holds(&signable(vector, text(&vector["resource"]), date, authorization), &key, "any", SignatureVersion::V1);
    }
    let v4 = all("mns_v4");
    assert_eq!(v4.len(), 6);
    for vector in &v4 {
        let (key, region) = (Key::new(text(&vector["ak"]), text(&vector["sk"])), text(&vector["region"]));
        let mut target = text(&vector["path"]).to_owned();
        for (name, value) in vector["params"].as_object().into_iter().flatten() {
            target.push(if target.contains('?') { '&' } else { '?' });
            let value = percent_encoding::utf8_percent_encode(text(value), percent_encoding::NON_ALPHANUMERIC);
            target += &format!("{name}={value}");
        }
        let datetime = text(&vector["datetime"]);
        let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
        let date = time::PrimitiveDateTime::parse(datetime, format).expect("a date").assume_utc();
        let authorization = format!(
            "MNS4-HMAC-SHA256 Credential={}/{}/{region}/mns/aliyun_v4_request,Signature={}",
            key.id,
            &datetime[..8],
            text(&vector["signature"])
        );
        let request = signable(vector, &target, http_date(date), authorization);
        holds(&request, &key, region, SignatureVersion::V4);
        let rules = Rules { keys: vec![key], region: "other".to_owned(), versions: vec![SignatureVersion::V4] };
        assert_eq!(verify(&request, &rules, date), Err("SignatureDoesNotMatch"));
    }
}

/// The names in a document in their order, without the texts.
fn shape(element: &Element) -> String {
    let children: Vec<String> = element.children.iter().map(shape).collect();
    if children.is_empty() { element.name.clone() } else { format!("{}({})", element.name, children.join(" ")) }
}

/// Like [`shape`], without optional elements, and in any order.
fn loose_shape(element: &Element) -> String {
    let mut children: Vec<String> = element.children.iter().map(loose_shape).collect();
    children.sort();
    children.dedup();
    if children.is_empty() { element.name.clone() } else { format!("{}({})", element.name, children.join(" ")) }
}

fn sample(name: &str) -> Element {
    Element::parse(&read(&format!("mns/{name}"))).unwrap_or_else(|| panic!("{name} cannot be read"))
}

#[test]
fn captured_documents_are_read_and_written() {
    let mns = start("wire");
    let mut samples = 0;
    for entry in std::fs::read_dir(fixture("mns")).expect("the fixtures are there") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("a text");
        if path.extension().is_some_and(|extension| extension == "xml") {
            assert!(Element::parse(&text).is_some(), "{}", path.display());
        }
        mns.put("wire", text);
        samples += 1;
    }
    assert_eq!(samples, 16);
    for (captured, name) in [("receive-raw.real.xml", "wire-raw"), ("receive-base64.real.xml", "wire-base64")] {
        mns.create_queue(name, QueueAttributes { visibility_timeout: Duration::from_secs(50), ..Default::default() });
        let captured = sample(captured);
        let body = captured.text_of("MessageBody").expect("a body");
        mns.put(name, Put { priority: 10, ..body.into() });
        let answer = ask(&mns, "GET", &format!("/queues/{name}/messages?waitseconds=0"), "");
        let received = answer.xml();
        assert_eq!((answer.status, shape(&received)), (200, shape(&captured)));
        for same in ["MessageBody", "MessageBodyMD5", "DequeueCount", "Priority"] {
            assert_eq!(received.text_of(same), captured.text_of(same));
        }
        assert!(answer.body.contains(" xmlns=\"http://mns.aliyuncs.com/doc/v1\">"), "{}", answer.body);
        // Captured answers show the length of the lease, because both times are from one clock.
        let millis = |name| received.text_of(name).and_then(|text| text.parse::<i64>().ok()).expect("a number");
        assert_eq!(millis("NextVisibleTime") - millis("FirstDequeueTime"), 50_000);
        let changed = ask(&mns, "PUT", &change_target(name, received.text_of("ReceiptHandle").expect("one"), 60), "");
        assert_eq!(shape(&changed.xml()), shape(&sample("change-visibility-response.built.xml")));
    }
    mns.create_queue("wire-both", QueueAttributes::default());
    let sent = ask(&mns, "POST", "/queues/wire-both/messages", &read("mns/send-message-request.built.xml"));
    assert_eq!((sent.status, shape(&sent.xml())), (201, shape(&sample("send-message-response.built.xml"))));
    let expected = sample("send-message-response.built.xml");
    assert_eq!(sent.xml().text_of("MessageBodyMD5"), expected.text_of("MessageBodyMD5"));
    let received = ask(&mns, "GET", "/queues/wire-both/messages?numOfMessages=16", "");
    assert_eq!(loose_shape(&received.xml()), loose_shape(&sample("batch-receive-vod-ims.built.xml")));
    let deleted = ask(&mns, "DELETE", "/queues/wire-both/messages", &read("mns/batch-delete-request.built.xml"));
    let expected = loose_shape(&sample("batch-delete-partial-failure.built.xml"));
    assert_eq!((deleted.status, loose_shape(&deleted.xml())), (404, expected));
    for (status, code) in [
        (400, "ReceiptHandleError"),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (404, "MessageNotExist"),
        (404, "QueueNotExist"),
        (408, "TimeExpired"),
    ] {
        let expected = sample(&format!("error-{status}-{code}.built.xml"));
        mns.fail_next(Operation::ALL, 1, Fault::code(code));
        let answer = ask(&mns, "GET", "/queues/wire", "");
        assert_eq!((answer.status, shape(&answer.xml())), (status, shape(&expected)));
        assert_eq!((answer.xml().text_of("Code"), expected.text_of("Code")), (Some(code), Some(code)));
        assert_eq!(answer.xml().text_of("RequestId"), answer.header("x-mns-request-id"));
    }
}
