//! The judges accept what the specification allows and refuse what it forbids, especially what their SDKs accept.

use serde_json::{Value, json};

use crate::support::http_receiver::Request;
use crate::support::judges::{Event, Message, Mode, accepted, refused};
use crate::support::kafka::Received;
use crate::support::nats::Stored;

const STRUCTURED: &str = "application/cloudevents+json; charset=UTF-8";

/// Attributes with difficult values: percent signs, spaces, quotes, characters beyond ASCII and the BMP.
fn attributes() -> Vec<(&'static str, &'static str)> {
    vec![
        ("specversion", "1.0"),
        ("id", "1%20"),
        ("source", "/vod/cn-shanghai"),
        ("type", "com.example.FileUploadComplete"),
        ("subject", "Euro \u{20ac} \"\u{1f600}\""),
        ("time", "2026-11-23T04:05:06.7Z"),
        ("partitionkey", "k"),
    ]
}

fn kafka(headers: &[(&str, &str)], payload: Option<&str>) -> Message {
    Message::kafka(&Received {
        partition: 0,
        offset: 0,
        key: Some(b"a key that is not part of the event".to_vec()),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), Some(value.as_bytes().to_vec()))).collect(),
        payload: payload.map(|payload| payload.as_bytes().to_vec()),
    })
}

fn kafka_binary(attributes: &[(&str, &str)], payload: Option<&str>) -> Message {
    let names: Vec<String> = attributes.iter().map(|(name, _)| format!("ce_{name}")).collect();
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(names.iter().zip(attributes).map(|(name, (_, value))| (name.as_str(), *value)));
    kafka(&headers, payload)
}

fn nats(headers: &[(&str, &str)], payload: &str) -> Message {
    Message::nats(&Stored {
        sequence: 1,
        subject: "subject".to_owned(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        payload: payload.as_bytes().to_vec(),
    })
}

fn http(headers: &[(&str, &str)], body: &str) -> Message {
    Message::http(&Request {
        target: "/".to_owned(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        body: body.to_owned().into(),
    })
}

fn body() -> Value {
    let mut body: Value = attributes().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    body["datacontenttype"] = json!("application/json");
    body["data"] = json!({ "Size": 1.0 });
    body
}

fn expect(event: &Event, mode: Mode) {
    assert_eq!(event.mode, mode);
    for (name, value) in attributes() {
        assert_eq!(event.attribute(name), Some(value));
    }
    assert_eq!(event.attribute("datacontenttype"), Some("application/json"));
    assert_eq!(event.attributes.len(), attributes().len() + 1);
    assert_eq!(event.data, Some(json!({ "Size": 1.0 })));
    assert_eq!(event.bytes, None);
}

#[test]
fn good_events_of_each_mode() {
    expect(&accepted(&kafka_binary(&attributes(), Some(r#"{"Size":1.0}"#))), Mode::Binary);
    let body = body().to_string();
    expect(&accepted(&kafka(&[("content-type", STRUCTURED), ("ce_id", "1%20")], Some(&body))), Mode::Structured);
    expect(&accepted(&nats(&[("Content-Type", STRUCTURED)], &body)), Mode::Structured);
    expect(&accepted(&Message::json(body.as_bytes())), Mode::Structured);
    expect(
        &accepted(&http(&[("content-type", "application/cloudevents+json; charset=utf-8")], &body)),
        Mode::Structured,
    );
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1%2520"),
        ("ce-source", "/vod/cn-shanghai"),
        ("ce-type", "com.example.FileUploadComplete"),
        ("ce-subject", "Euro%20%E2%82%AC%20%22%f0%9f%98%80%22"),
        ("ce-time", "2026-11-23T04:05:06.7Z"),
        ("ce-partitionkey", "k"),
        ("ce-datacontenttype", "application/json"),
        ("Nats-Msg-Id", "not an attribute"),
    ];
    expect(&accepted(&nats(&headers, r#"{"Size":1.0}"#)), Mode::Binary);
    let over_http =
        headers.map(|(name, value)| (if name == "ce-datacontenttype" { "content-type" } else { name }, value));
    expect(&accepted(&http(&over_http, r#"{"Size":1.0}"#)), Mode::Binary);
}

#[test]
fn optional_parts_may_be_missing() {
    let required = &attributes()[..4];
    for message in [
        kafka_binary(required, None),
        Message::json(br#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#),
        kafka(&[("content-type", STRUCTURED)], Some(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#)),
        nats(&[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")], ""),
        http(&[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")], ""),
    ] {
        let event = accepted(&message);
        assert_eq!((event.data, event.bytes), (None, None));
        assert_eq!(event.attributes.get("time"), None);
    }
}

#[test]
fn bad_attributes() {
    type Change = fn(&mut Vec<(&'static str, &'static str)>);
    let cases: [(Change, &str); 8] = [
        (|all| all.retain(|(name, _)| *name != "id"), "attribute id is missing"),
        (|all| all.retain(|(name, _)| *name != "specversion"), "attribute specversion is missing"),
        (|all| all.push(("jobId", "1")), "attribute name 'jobId'"),
        (|all| all.push(("job_id", "1")), "attribute name 'job_id'"),
        (|all| all[0].1 = "0.3", "specversion is '0.3'"),
        (|all| all[2].1 = "not a uri", "attribute source contains a character that is not allowed in a URI"),
        (|all| all[4].1 = "", "attribute subject is empty"),
        (|all| all[5].1 = "2026-11-23 04:05:06", "isn't an RFC 3339 timestamp"),
    ];
    for (change, reason) in cases {
        let mut attributes = attributes();
        change(&mut attributes);
        let body: Value = attributes.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        for message in [kafka_binary(&attributes, Some("{}")), Message::json(body.to_string().as_bytes())] {
            for error in refused(&message) {
                assert!(error.contains(reason), "{error:?} does not contain {reason:?}");
            }
        }
    }
}

#[test]
fn bad_packing() {
    let structured = body().to_string();
    let with = |name: &str, value: Value| {
        let mut body = body();
        body[name] = value;
        Message::json(body.to_string().as_bytes())
    };
    let nats_with = |name, value| {
        nats(&[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t"), (name, value)], "")
    };
    let http_with = |name, value| {
        http(&[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t"), (name, value)], "")
    };
    for (message, reason) in [
        (http_with("ce-datacontenttype", "application/json"), "header ce-datacontenttype"),
        (http_with("ce-subject", "100%"), "bare percent sign"),
        (kafka_binary(&[&attributes()[..], &[("datacontenttype", "a/b")]].concat(), None), "header ce_datacontenttype"),
        (kafka_binary(&[&attributes()[..], &[("id", "2")]].concat(), None), "two headers ce_id"),
        (kafka_binary(&attributes(), Some("{")), "JSON"),
        (kafka(&[("content-type", STRUCTURED), ("ce_id", "other")], Some(&structured)), "header of attribute id"),
        (kafka(&[("content-type", "application/cloudevents-batch+json")], Some("[]")), "the format read here"),
        (kafka(&[], Some(&structured)), "attribute specversion is missing"),
        (with("data_base64", json!("AA==")), "both data and data_base64"),
        (with("ext", json!({ "a": 1 })), "neither a string"),
        (with("ext", json!(4_294_967_296_u64)), "beyond 32 bits"),
        (nats_with("Content-Type", "application/json"), "header Content-Type"),
        (nats_with("ce-subject", "a b"), "isn't percent-encoded"),
        (nats_with("ce-subject", "100%"), "bare percent sign"),
        (nats_with("ce-subject", "%C0%A0"), "is not UTF-8 after percent-decoding"),
    ] {
        for error in refused(&message) {
            assert!(error.contains(reason), "{error:?} does not contain {reason:?}");
        }
    }
}
