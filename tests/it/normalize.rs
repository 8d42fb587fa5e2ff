//! From the bytes of a callback to its event: the reviewed envelope of every sample, the properties of every payload,
//! and the defined results of unusual input.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use apsara_bridge::dialect::{Catalogue, Dialect, Normalized, Normalizer, NotACallback, Origin, Sender};
use apsara_bridge::event::json::Json;
use apsara_bridge::event::{Attribute, DEFAULT_TYPE_PREFIX, Event, MAX_ATTRIBUTE_BYTES};
use bumpalo::Bump;
use proptest::collection::{hash_map, vec};
use proptest::prelude::*;
use time::macros::datetime;

use crate::support::leaves::lost;

fn normalizer() -> &'static Normalizer {
    static NORMALIZER: LazyLock<Normalizer> =
        LazyLock::new(|| Normalizer::new(Catalogue::built_in().expect("valid"), DEFAULT_TYPE_PREFIX));
    &NORMALIZER
}

fn try_normalize(body: &[u8]) -> Result<Normalized, NotACallback> {
    normalizer().normalize(body, &Origin::at(datetime!(2026-01-02 03:04:05.678 UTC)))
}

fn normalize(body: impl AsRef<[u8]>) -> Event {
    try_normalize(body.as_ref()).expect("must be a callback").event
}

fn refusal(body: impl AsRef<[u8]>) -> String {
    try_normalize(body.as_ref()).expect_err("must be refused").to_string()
}

fn data(event: &Event) -> &str {
    std::str::from_utf8(event.data()).expect("data is UTF-8")
}

/// A member of the data, as JSON.
fn member(event: &Event, name: &str) -> Option<String> {
    let arena = Bump::new();
    let data = Json::parse_within(event.data(), usize::MAX, &arena).expect("data is JSON");
    data.get(name).map(|value| value.to_string())
}

fn envelope(event: &Event) -> String {
    let json = event.to_json();
    let mut text = Vec::new();
    Json::parse_within(&json, usize::MAX, &Bump::new()).expect("the envelope is JSON").write_pretty(0, &mut text);
    String::from_utf8(text).expect("the envelope is UTF-8")
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("the folder").map(|file| file.expect("a file").path()).collect();
    files.sort();
    files
}

fn vod(event_type: &str, members: &str) -> String {
    let separator = if members.is_empty() { "" } else { "," };
    format!(r#"{{"EventType":"{event_type}","EventTime":"2026-01-01T00:00:00Z"{separator}{members}}}"#)
}

fn ims(event_type: &str, members: &str) -> String {
    format!(
        r#"{{"EventType":"{event_type}","UserId":1833220977560000,"EventTime":"2026-01-01T00:00:00Z","MessageBody":{{{members}}}}}"#
    )
}

fn status(body: &str) -> String {
    normalize(body).get(Attribute::Status).expect("every event has a status").to_owned()
}

#[test]
fn every_sample_becomes_its_reviewed_envelope() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../fixtures/envelopes");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for file in files("src/dialect/samples") {
            let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
            insta::assert_snapshot!(name, envelope(&normalize(fs::read(&file).expect("readable"))));
        }
    });
}

#[test]
fn every_event_of_the_catalogue_is_recognized_by_its_shape() {
    for entry in normalizer().catalogue().events() {
        let id = r#""MediaId":"m-1","JobId":"j-1","TaskId":"t-1""#;
        let body = match entry.dialect.as_str() {
            "vod" => vod(&entry.name, id),
            _ => ims(&entry.name, id),
        };
        let normalized = try_normalize(body.as_bytes()).expect("must be a callback");
        assert!(normalized.event_type.is_some(), "{}", entry.name);
        let event = &normalized.event;
        assert_eq!(event.get(Attribute::Dialect), Some(entry.dialect.as_str()));
        assert_eq!(event.get(Attribute::Type), Some(format!("{DEFAULT_TYPE_PREFIX}{}", entry.name).as_str()));
        assert!(event.get(Attribute::Subject).is_some(), "{}", entry.name);
        assert_eq!(event.get(Attribute::AccountId).is_some(), entry.dialect.as_str() == "ims");
    }
}

#[test]
fn events_with_the_same_name_are_normalized_by_their_dialect() {
    let both = [
        "FileUploadComplete",
        "UploadByURLComplete",
        "ImageUploadComplete",
        "AttachedMediaUploadComplete",
        "CreateAuditComplete",
        "DeleteMediaComplete",
        "MediaBaseChangeComplete",
        "VideoAnalysisComplete",
        "SnapshotComplete",
        "DynamicImageComplete",
        "TranscodeComplete",
        "AIMediaAuditComplete",
        "ProduceMediaComplete",
        "WorkflowTaskComplete",
    ];
    for name in both {
        let flat = normalize(vod(name, r#""Status":"fail","MediaId":"m","Size":"12""#));
        let nested = normalize(ims(name, r#""Status":"Fail","MediaId":"m","Size":12"#));
        assert_eq!(
            (flat.get(Attribute::Source), nested.get(Attribute::Source)),
            (Some("acs:vod"), Some("acs:ims")),
            "{name}"
        );
        assert_ne!(flat.id(), nested.id());
        for event in [&flat, &nested] {
            assert_eq!(event.get(Attribute::Status), Some("failure"), "{name}");
            assert_eq!(event.get(Attribute::MediaId), Some("m"), "{name}");
            assert_eq!(member(event, "size").as_deref(), Some("12"), "{name}");
        }
        let schema = |dialect: &str| format!("urn:apsara-bridge:schema:{dialect}:{name}:1");
        assert_eq!(flat.get(Attribute::DataSchema), Some(schema("vod").as_str()));
        assert_eq!(nested.get(Attribute::DataSchema), Some(schema("ims").as_str()));
    }
}

#[test]
fn the_status_is_found_in_every_place() {
    let streams = |words: &[&str]| {
        let streams: Vec<String> = words.iter().map(|word| format!(r#"{{"Status":"{word}"}}"#)).collect();
        vod("TranscodeComplete", &format!(r#""Status":"success","VideoId":"v","StreamInfos":[{}]"#, streams.join(",")))
    };
    assert_eq!(status(&streams(&["success", "success"])), "success");
    assert_eq!(status(&streams(&["success", "fail"])), "partial");
    assert_eq!(status(&streams(&["fail", "fail"])), "failure");
    let encoded = r#""Status":"success","StreamInfos":"[{\"Status\":\"success\"},{\"Status\":\"fail\"}]""#;
    assert_eq!(status(&vod("TranscodeComplete", encoded)), "partial", "also where the parts are JSON in a string");
    let jobs =
        |word: &str, parts: &str| ims("TranscodeParentComplete", &format!(r#""Status":"{word}","Jobs":[{parts}]"#));
    assert_eq!(status(&jobs("Success", r#"{"Status":"Success"},{"Status":"Fail"}"#)), "partial");
    assert_eq!(status(&jobs("Fail", r#"{"Status":"Fail"}"#)), "failure");
    let batch = |parts: &str| ims("BatchProduceMediaComplete", &format!(r#""Status":"Finished","JobId":"j"{parts}"#));
    assert_eq!(status(&batch("")), "success");
    assert_eq!(status(&batch(r#","SubJobList":[{"Status":"Success"},{"Status":"Failed"}]"#)), "partial");
    assert_eq!(status(&batch(r#","SubJobList":"[{\"Status\":\"Failed\"}]""#)), "failure");
    let analysis = |stored: &str, job: &str| {
        status(&ims("MediaAiAnalysisComplete", &format!(r#""Status":"{stored}","JobStatus":"{job}""#)))
    };
    assert_eq!(analysis("Success", "AnalyzeSuccess"), "success");
    assert_eq!(analysis("Success", "AnalyzeFailed"), "failure");
    assert_eq!(analysis("Failed", "AnalyzeSuccess"), "failure");
    let record = |members: &str| status(&ims("LiveRecordTaskStatus", members));
    assert_eq!(record(r#""event":"record_started""#), "progress");
    assert_eq!(record(r#""event":"record_error","error_info":{"code":"1","message":"m"}"#), "failure");
    assert_eq!(record(r#""event":"record_broke","error_info":{"code":"1","message":"m"}"#), "failure");
    assert_eq!(record(r#""event":"something_new""#), "unknown");
    assert_eq!(status(&ims("LiveRecordFileCreated", r#""jobId":"j""#)), "success");
    assert_eq!(status(&ims("LiveSnapshotFileCreated", r#""JobId":"j""#)), "success");
    let audit = r#""MediaId":"m","Status":"success","AuditStatus":"Blocked""#;
    assert_eq!(status(&vod("CreateAuditComplete", audit)), "success", "a verdict is not a failure of the job");
    assert_eq!(status(&vod("FileUploadComplete", r#""VideoId":"v""#)), "success", "no failure event exists");
    assert_eq!(status(&ims("MediaConvertComplete", r#""Status":"Cancelled""#)), "canceled");
    assert_eq!(status(&ims("MediaConvertOutputComplete", r#""Status":"Skipped""#)), "skipped");
    assert_eq!(status(&ims("WorkflowTaskComplete", r#""Status":"Succeed""#)), "success");
    assert_eq!(status(&ims("SmartJobComplete", r#""Status":"Executing""#)), "progress");
    assert_eq!(status(&vod("ProduceMediaComplete", r#""Status":"whatever""#)), "unknown");
    assert_eq!(status(&vod("BrandNewComplete", r#""Status":"fail""#)), "failure");
}

#[test]
fn the_customers_own_data_does_not_affect_the_status() {
    let streams = r#""VideoId":"v","Status":"success","StreamInfos":[{"Status":"success"}]"#;
    assert_eq!(
        status(&vod("TranscodeComplete", &format!(r#"{streams},"Extend":"{{\"status\":\"failed\"}}""#))),
        "success"
    );
    let batch = r#""Status":"Finished","JobId":"j","UserData":"{\"status\":\"failed\"}""#;
    assert_eq!(status(&ims("BatchProduceMediaComplete", batch)), "success");
}

#[test]
fn the_subject_is_the_media_if_there_is_one() {
    let subject = |body: String| normalize(body).get(Attribute::Subject).map(str::to_owned);
    for name in
        ["WorkflowTaskComplete", "SnapshotComplete", "MediaConvertOutputGroupComplete", "LiveSnapshotFileCreated"]
    {
        let ids = r#""TaskId":"t","JobId":"j","MediaId":"m""#;
        assert_eq!(subject(ims(name, ids)).as_deref(), Some("m"), "{name}");
    }
    assert_eq!(subject(ims("WorkflowTaskComplete", r#""TaskId":"t""#)).as_deref(), Some("t"));
    assert_eq!(subject(vod("TranscodeComplete", r#""VideoId":" ","JobId":" j ""#)).as_deref(), Some("j"));
}

#[test]
fn an_account_that_is_not_a_valid_attribute_stays_in_the_data() {
    let with = |user_id: &str| {
        let body = r#"{"EventType":"X","UserId":"#.to_owned()
            + user_id
            + r#","EventTime":"2026-01-01T00:00:00Z","MessageBody":{}}"#;
        let event = normalize(body);
        (event.get(Attribute::AccountId).map(str::to_owned), data(&event).to_owned())
    };
    assert_eq!(with("1833220977560000"), (Some("1833220977560000".to_owned()), "{}".to_owned()));
    let long = "1".repeat(2000);
    assert_eq!(with(&long).1, format!(r#"{{"userId":"{long}"}}"#));
    assert_eq!(with(r#"" 42 ""#), (Some("42".to_owned()), r#"{"userId":" 42 "}"#.to_owned()));
}

/// Many spellings of `mediaId`, each with an id inside, must not need time or space that grows with the cube of their
/// number.
#[test]
fn many_ids_in_one_object_cost_no_more_than_their_size() {
    let ids: Vec<String> = (0..2000)
        .map(|n| format!(r#""{}videoId":{{"media":{n}}}"#, "_".repeat(n % 50) + &"-".repeat(n / 50)))
        .collect();
    let body = vod("X", &ids.join(","));
    let event = normalize(&body);
    assert!(event.data().len() < 2 * body.len(), "{} of {}", event.data().len(), body.len());
    // Every member of MetaInfo is compared with the top level. With the square of their number this would take a minute.
    let top: Vec<String> = (0..100_000).map(|n| format!(r#""a{n}":0"#)).collect();
    let inner: Vec<String> = (0..100_000).map(|n| format!(r#""b{n}":0"#)).collect();
    let body = ims("VideoAnalysisComplete", &format!(r#"{},"MetaInfo":{{{}}}"#, top.join(","), inner.join(",")));
    assert!(normalize(&body).data().len() < 2 * body.len());
    let siblings: Vec<String> = (0..2000).map(|n| format!(r#""A{}":{n}"#, "_".repeat(n))).collect();
    let body = format!(
        r#"{{"EventType":"X","EventTime":"2026-01-01T00:00:00Z","A":0,"MessageBody":{{{}}}}}"#,
        siblings.join(",")
    );
    assert!(normalize(&body).data().len() < 2 * body.len());
}

#[test]
fn an_error_is_set_only_for_failures() {
    let error = |body: String| member(&normalize(body), "error");
    let empty = ims("ProduceMediaComplete", r#""Status":"Success","ErrorCode":"","ErrorMessage":"""#);
    assert_eq!(error(empty), None);
    let failed = vod("AIMediaDNAComplete", r#""Status":"fail","Code":"Bad","Message":"no""#);
    assert_eq!(error(failed).as_deref(), Some(r#"{"code":"Bad","message":"no"}"#));
    let fine = normalize(vod("AIMediaDNAComplete", r#""Status":"success","Code":"0","Message":"OK""#));
    assert_eq!(data(&fine), r#"{"status":"success","code":"0","message":"OK"}"#);
    let stream = r#""Status":"success","StreamInfos":[{"Status":"fail","ErrorCode":"E","ErrorMessage":"m"}]"#;
    let event = normalize(vod("TranscodeComplete", stream));
    assert!(data(&event).contains(r#""error":{"code":"E","message":"m"}"#));
    let number = vod("ProduceMediaComplete", r#""Status":"fail","ErrorCode":404"#);
    assert_eq!(error(number).as_deref(), Some(r#"{"code":"404"}"#));
    let blank = vod("UploadByURLComplete", r#""Status":"fail","ErrorCode":"URLInvalidError ","ErrorMessage":"""#);
    assert_eq!(error(blank).as_deref(), Some(r#"{"code":"URLInvalidError"}"#));
    let converted = ims("MediaConvertComplete", r#""Status":"Error","Code":"Bad","Message":"no""#);
    assert_eq!(error(converted).as_deref(), Some(r#"{"code":"Bad","message":"no"}"#));
    let unknown = vod("BrandNewComplete", r#""Status":"fail","Code":"Bad""#);
    assert_eq!(error(unknown).as_deref(), Some(r#"{"code":"Bad"}"#));
    let info = ims("LiveRecordTaskStatus", r#""event":"record_error","error_info":{"code":"1 ","message":""}"#);
    assert_eq!(error(info).as_deref(), Some(r#"{"code":"1"}"#));
    let told = vod("UploadByURLComplete", r#""Status":"fail","ErrorCode":"0","ErrorMessage":"Timeout""#);
    assert_eq!(error(told).as_deref(), Some(r#"{"message":"Timeout"}"#));
    for event in ["record_stopped", "record_paused"] {
        let broken = ims("LiveRecordTaskStatus", &format!(r#""event":"{event}","error_info":{{"code":"1"}}"#));
        assert_eq!(status(&broken), "failure", "an error is a failure, whatever the word is");
    }
    let contradiction = ims("SnapshotComplete", r#""Status":"Success","ErrorCode":"NotFound""#);
    assert_eq!(status(&contradiction), "success", "the status decides");
    assert_eq!(error(contradiction).as_deref(), Some(r#"{"code":"NotFound"}"#));
}

#[test]
fn codes_that_say_no_error_are_not_errors() {
    for silent in [
        r#""ErrorCode":"0""#,
        r#""ErrorCode":0,"ErrorMessage":"success""#,
        r#""ErrorCode":"Success","ErrorMessage":"OK""#,
        r#""ErrorCode":null,"ErrorMessage":null"#,
        r#""ErrorMessage":"ok""#,
        r#""ErrorCode":" ""#,
    ] {
        let event = normalize(vod("FileUploadComplete", &format!(r#""VideoId":"v",{silent}"#)));
        assert_eq!(event.get(Attribute::Status), Some("success"), "{silent}");
        assert_eq!(data(&event), r#"{"mediaId":"v"}"#, "{silent}");
    }
    let told = normalize(vod("FileUploadComplete", r#""VideoId":"v","ErrorCode":"0","ErrorMessage":"took 3 s""#));
    assert_eq!(told.get(Attribute::Status), Some("success"));
    assert_eq!(data(&told), r#"{"mediaId":"v","errorMessage":"took 3 s"}"#);
    let failed = normalize(vod("AIMediaDNAComplete", r#""Status":"fail","Code":"0","Message":"OK""#));
    assert_eq!(data(&failed), r#"{"status":"fail","code":"0","message":"OK"}"#);
}

#[test]
fn a_verdict_is_an_attribute_of_its_own() {
    let verdict = |body: String| {
        let event = normalize(&body);
        assert_eq!(event.get(Attribute::Status), Some("success"), "a verdict is not an outcome: {body}");
        event.get(Attribute::Verdict).map(str::to_owned)
    };
    let of = |verdict: &str| Some(verdict.to_owned());
    let audit = |word: &str| format!(r#""MediaId":"m","Status":"success","AuditStatus":"{word}""#);
    assert_eq!(verdict(vod("CreateAuditComplete", &audit("Normal"))), of("pass"));
    assert_eq!(verdict(vod("CreateAuditComplete", &audit(" blocked "))), of("block"));
    assert_eq!(verdict(ims("CreateAuditComplete", &audit("Blocked"))), of("block"));
    assert_eq!(verdict(vod("CreateAuditComplete", &audit("Reviewing"))), None);
    let review = |data: &str| vod("AIMediaAuditComplete", &format!(r#""JobId":"j","Status":"success","Data":{data}"#));
    assert_eq!(verdict(review(r#"{"Suggestion":"review"}"#)), of("review"));
    assert_eq!(verdict(review(r#""{\"Suggestion\":\"Block\"}""#)), of("block"), "also as JSON in a string");
    let parts = r#"{"Suggestion":"pass","ImageResult":[{"Suggestion":"pass"},{"Suggestion":"review"}]}"#;
    assert_eq!(verdict(review(parts)), of("review"), "the worst of the overall fields");
    let scene = r#"{"Suggestion":"pass","VideoResult":{"Suggestion":"pass","PornResult":{"Suggestion":"block"}}}"#;
    assert_eq!(verdict(review(scene)), of("pass"), "a scene is not an overall field");
    assert_eq!(verdict(ims("AIMediaAuditComplete", r#""JobId":"j","Status":"Success""#)), None);
    let tags = vod("AIVideoTagComplete", r#""JobId":"j","Status":"success","Data":{"Suggestion":"block"}"#);
    assert_eq!(verdict(tags), None, "only events whose entry says so have a verdict");
    let unknown = vod("NewAuditComplete", r#""JobId":"j","Status":"success","Data":{"Suggestion":"block"}"#);
    assert_eq!(verdict(unknown), of("block"));
}

#[test]
fn the_media_is_found_wherever_it_is() {
    let ids = |body: String| {
        let event = normalize(body);
        let id = |attribute| event.get(attribute).map(str::to_owned).unwrap_or_default();
        [id(Attribute::MediaId), id(Attribute::Subject), id(Attribute::JobId)]
    };
    let media = r#""TaskId":"t","TaskInput":"{\"Type\":\"Media\",\"Media\":\"m\"}""#;
    assert_eq!(ids(ims("WorkflowTaskComplete", media)), ["m", "m", ""]);
    assert_eq!(ids(vod("WorkflowTaskComplete", media)), ["m", "m", ""]);
    let file = r#""TaskId":"t","TaskInput":"{\"Type\":\"OSS\",\"Media\":\"oss://b/o.mp4\"}""#;
    assert_eq!(ids(ims("WorkflowTaskComplete", file)), ["", "t", ""]);
    for name in ["SnapshotComplete", "DynamicImageComplete"] {
        assert_eq!(ids(ims(name, r#""JobId":"j","Input":"{\"type\":\"Media\",\"media\":\"m\"}""#)), ["m", "m", "j"]);
        assert_eq!(ids(ims(name, r#""JobId":"j","Input":{"type":"OSS","media":"http://b/o.mp4"}"#)), ["", "j", "j"]);
    }
    let output = r#""JobId":"j","OutFileMeta":{"fileBasicInfo":{"mediaId":"m"}}"#;
    assert_eq!(ids(ims("TranscodeComplete", output)), ["m", "m", "j"]);
    let snapshots = r#""SnapshotInfos":[{"JobId":"j1"},{"JobId":"j2"}]"#;
    assert_eq!(ids(vod("SnapshotComplete", snapshots)), ["", "j1", "j1"]);
}

/// The address of a file must not become the key of its events.
#[test]
fn the_address_of_a_file_is_not_the_id_of_a_media() {
    let body = r#""JobId":"j","MediaId":"{\"media\":\"oss://bucket/object.mp4\",\"type\":\"OSS\"}""#;
    let event = normalize(ims("AIMediaAuditComplete", body));
    assert_eq!((event.get(Attribute::MediaId), event.get(Attribute::Subject)), (None, Some("j")));
    assert_eq!(data(&event), r#"{"jobId":"j","input":{"media":"oss://bucket/object.mp4","type":"OSS"}}"#);
    for address in ["oss://bucket/object.mp4", "http://bucket/object.mp4", "bucket/object.mp4"] {
        let objects = [format!(r#"{{"media":"{address}"}}"#), format!(r#"{{"media":"{address}","type":"URL"}}"#)];
        for value in [format!("\"{address}\""), objects[0].clone(), objects[1].clone()] {
            let event = normalize(ims("AIMediaAuditComplete", &format!(r#""JobId":"j","MediaId":{value}"#)));
            assert_eq!((event.get(Attribute::MediaId), event.get(Attribute::Subject)), (None, Some("j")), "{value}");
        }
    }
    let unknown = r#""JobId":"j","TaskInput":{"Type":"Media","Media":"m"}"#;
    assert_eq!(normalize(ims("BrandNewComplete", unknown)).get(Attribute::MediaId), Some("m"));
    let body = r#""JobId":"j","MediaId":"{\"media\":\"m\",\"type\":\"Media\"}""#;
    let event = normalize(ims("AIMediaAuditComplete", body));
    assert_eq!((event.get(Attribute::MediaId), event.get(Attribute::Subject)), (Some("m"), Some("m")));
    assert_eq!(data(&event), r#"{"jobId":"j","mediaId":"m","input":{"media":"m","type":"Media"}}"#);
}

#[test]
fn a_workflow_of_vod_keeps_the_names_of_its_nodes() {
    let body = |status: &str, node: &str| {
        let results = format!(
            r#"{{"Video_Translation-1":{{"Status":"{node}","EndTime":"2026-01-01T00:00:01Z","Result":{{"Status":"Finished","UserData":"{{\"VodSrc\":\"Workflow\"}}"}}}},"act ID":{{"Status":"Succeed"}}}}"#
        );
        vod(
            "WorkflowTaskComplete",
            &format!(
                r#""UserId":"1833220977560000","TaskId":"t","Status":"{status}","ActivityResults":{}"#,
                serde_json::to_string(&results).expect("JSON")
            ),
        )
    };
    let event = normalize(body("Succeed", "Succeed"));
    assert_eq!(
        member(&event, "activityResults").as_deref(),
        Some(
            r#"{"Video_Translation-1":{"status":"Succeed","finishTime":"2026-01-01T00:00:01Z","result":{"status":"Finished","userData":{"VodSrc":"Workflow"}}},"act ID":{"status":"Succeed"}}"#
        )
    );
    assert_eq!((event.get(Attribute::Dialect), event.get(Attribute::Status)), (Some("vod"), Some("success")));
    assert_eq!(status(&body("Succeed", "Failed")), "partial");
    assert_eq!(status(&body("Failed", "Failed")), "failure", "nodes that succeeded do not make a failure better");
    assert_eq!(status(&body("Failed", "Succeed")), "failure");
    let single = r#""TaskId":"t","Status":"Succeed","ActivityResults":{"A":{"Status":"Failed"}}"#;
    assert_eq!(status(&vod("WorkflowTaskComplete", single)), "partial");
    let inner = body("Succeed", "Succeed").replace("Finished", "Failed");
    assert_eq!(status(&inner), "partial", "a node whose own result failed");
}

#[test]
fn the_same_fact_has_the_same_name_in_both_dialects() {
    let fact = |body: String, path: &[&str]| {
        let event = normalize(body);
        let arena = Bump::new();
        let mut json = Json::parse(event.data(), &arena).expect("data is JSON");
        for name in path {
            json = match json {
                Json::Array(items) => items[0].get(name),
                object => object.get(name),
            }
            .unwrap_or_else(|| panic!("{name} of {path:?} in {}", data(&event)));
        }
        json.to_string()
    };
    assert_eq!(fact(vod("X", r#""Extend":"{\"a\":1}""#), &["userData", "a"]), "1");
    assert_eq!(fact(ims("X", r#""UserData":"{\"a\":1}""#), &["userData", "a"]), "1");
    let meta = r#""Duration":"12.5","Size":"7","Width":"3""#;
    assert_eq!(fact(vod("VideoAnalysisComplete", meta), &["duration"]), "12.5");
    assert_eq!(fact(ims("VideoAnalysisComplete", &format!(r#""MetaInfo":{{{meta}}}"#)), &["duration"]), "12.5");
    let url = r#""http://o/1""#;
    assert_eq!(
        fact(vod("TranscodeComplete", &format!(r#""StreamInfos":[{{"FileUrl":{url}}}]"#)), &["streamInfos", "fileUrl"]),
        url
    );
    for name in ["TranscodeComplete", "MediaConvertOutputComplete"] {
        assert_eq!(fact(ims(name, &format!(r#""OutputUrl":{url}"#)), &["fileUrl"]), url);
        let meta = r#""OutFileMeta":{"fileBasicInfo":{"fileSize":"9"}}"#;
        assert_eq!(fact(ims(name, meta), &["outFileMeta", "fileBasicInfo", "size"]), "9");
    }
    assert_eq!(fact(ims("ProduceMediaComplete", &format!(r#""MediaURL":{url}"#)), &["fileUrl"]), url);
    assert_eq!(
        fact(vod("SnapshotComplete", r#""SnapshotInfos":[{"SnapshotCount":"5"}]"#), &["snapshotInfos", "count"]),
        "5"
    );
    assert_eq!(fact(ims("SnapshotComplete", r#""Count":5"#), &["count"]), "5");
    let moment = r#""2026-01-01T00:00:00Z""#;
    assert_eq!(fact(vod("AIMediaDNAComplete", &format!(r#""CompleteTime":{moment}"#)), &["finishTime"]), moment);
    assert_eq!(
        fact(vod("AddLiveRecordVideoComplete", &format!(r#""RecordEndTime":{moment}"#)), &["finishTime"]),
        moment
    );
    assert_eq!(fact(ims("LiveRecordFileCreated", r#""stop_time":1767225600"#), &["finishTime"]), moment);
    assert_eq!(fact(ims("SnapshotComplete", &format!(r#""SubmitTime":{moment}"#)), &["createTime"]), moment);
    assert_eq!(fact(ims("SmartJobComplete", &format!(r#""CreateTime":{moment}"#)), &["createTime"]), moment);
    for (body, path) in [
        (vod("StreamTranscodeComplete", r#""WatermarkId":"w1,w2""#), &["watermarkIds"][..]),
        (vod("TranscodeComplete", r#""StreamInfos":[{"WatermarkId":"w1,w2"}]"#), &["streamInfos", "watermarkIds"][..]),
    ] {
        assert_eq!(fact(body, path), r#"["w1","w2"]"#);
    }
    let position = r#""TemplateConfig":"{\"Time\":\"1966.6666666666665\"}""#;
    assert_eq!(fact(ims("SnapshotComplete", position), &["templateConfig", "time"]), "1.9666666666666665");
    for name in ["DynamicImageComplete", "BrandNewComplete"] {
        let time = fact(ims(name, position), &["templateConfig", "time"]);
        assert_eq!(time.trim_matches('"'), "1966.6666666666665", "{name}: no page states the unit");
    }
}

#[test]
fn values_of_other_forms_are_kept_and_encoded_ones_decoded() {
    let produced = |result: &str| {
        let event = normalize(ims("AIProduceComplete", &format!(r#""JobId":"j","Result":{result}"#)));
        member(&event, "result").expect("a result")
    };
    assert_eq!(produced(r#""{\"Code\":0,\"Data\":\"{\\\"X_Y\\\":1}\"}""#), r#"{"code":"0","data":{"xY":1}}"#);
    assert_eq!(produced(r#""plain text""#), r#""plain text""#);
    let ids = normalize(vod("DeleteMediaComplete", r#""MediaId":"m","JobIds":[1,"2"]"#));
    assert!(data(&ids).contains(r#""jobIds":["1","2"]"#), "{}", data(&ids));
    let urls = normalize(ims("MediaConvertComplete", r#""OutputUrls":"http://a/1,2,http://b/3""#));
    assert!(data(&urls).contains(r#"["http://a/1,2","http://b/3"]"#), "{}", data(&urls));
    let content = r#"{"UserData":"{\"OldValue\":\"{\\\"K_1\\\":1}\",\"NewValue\":\"text\"}","Tags":"{\"NewValue\":\"a,b\"}","CateId":"{\"NewValue\":10000}","StorageLocation":"{\"NewValue\":\"x\"}"}"#;
    let event = normalize(vod("MediaBaseChangeComplete", &format!(r#""MediaId":"m","MediaContent":{content}"#)));
    assert_eq!(
        member(&event, "mediaContent").as_deref(),
        Some(
            r#"{"userData":{"oldValue":{"K_1":1},"newValue":"text"},"tags":{"newValue":["a","b"]},"cateId":{"newValue":"10000"},"storageLocation":{"newValue":"x"}}"#
        )
    );
}

#[test]
fn a_number_that_is_too_small_is_not_a_unix_time() {
    let event = normalize(vod("BrandNewComplete", r#""StartTime":12.5"#));
    assert_eq!(data(&event), r#"{"startTime":12.5}"#);
}

#[test]
fn the_customers_own_data_is_not_changed() {
    let user_data =
        r#"{\"Order_ID\":\"0012\",\"MessageCallback\":\"{\\\"CallbackURL\\\":\\\"http://x\\\"}\",\"n\":1.10}"#;
    let event = normalize(ims("FileUploadComplete", &format!(r#""MediaId":"m","UserData":"{user_data}""#)));
    assert_eq!(
        member(&event, "userData").as_deref(),
        Some(r#"{"Order_ID":"0012","MessageCallback":{"CallbackURL":"http://x"},"n":1.10}"#)
    );
    let extend = |value: &str| {
        let event = normalize(vod("FileUploadComplete", &format!(r#""VideoId":"v","Extend":{value}"#)));
        member(&event, "userData").expect("Extend is kept")
    };
    assert_eq!(extend(r#""test data""#), r#""test data""#);
    assert_eq!(extend(r#""42""#), r#""42""#, "a scalar in a string is the customer's string");
    assert_eq!(extend(r#"{"Some_Key":{"URL":"1"}}"#), r#"{"Some_Key":{"URL":"1"}}"#);
    let texts = r#"{"title":"[2024]","note":"{}","TaskInput":"[1]"}"#;
    assert_eq!(extend(&serde_json::to_string(texts).expect("JSON")), texts, "texts inside stay texts");
}

/// The id does not depend on the order of members, so neither may the data.
#[test]
fn the_order_of_members_does_not_decide_who_gets_a_name() {
    for (name, one, other, expected) in [
        ("TranscodeComplete", r#""OutputUrl":"o""#, r#""FileUrl":"f""#, [r#""fileUrl":"o""#, r#""FileUrl":"f""#]),
        (
            "SnapshotComplete",
            r#""SubmitTime":"s""#,
            r#""CreateTime":"c""#,
            [r#""createTime":"s""#, r#""CreateTime":"c""#],
        ),
        ("DeleteMediaComplete", r#""VideoId":"v""#, r#""MediaId":"m""#, [r#""mediaId":"m""#, r#""videoId":"v""#]),
        ("X", r#""Extend":"e""#, r#""UserData":"u""#, [r#""userData":"u""#, r#""extend":"e""#]),
        ("ProduceMediaComplete", r#""MediaURL":"m""#, r#""FileURL":"f""#, [r#""fileUrl":"m""#, r#""FileURL":"f""#]),
    ] {
        for members in [format!("{one},{other}"), format!("{other},{one}")] {
            let event = normalize(ims(name, &members));
            let text = data(&event);
            assert!(expected.iter().all(|member| text.contains(member)), "{name} {members}: {text}");
        }
    }
    let json = [r#""VideoId":{"media":"v","n":1}"#, r#""MediaId":"{\"media\":\"m\",\"n\":2}""#];
    for members in [json.join(","), [json[1], json[0]].join(",")] {
        let event = normalize(vod("DeleteMediaComplete", &members));
        assert_eq!(event.get(Attribute::Subject), Some("m"), "{members}");
        let text = data(&event);
        for member in [r#""mediaId":"m""#, r#""videoId":{"media":"v","n":1}"#, r#""input":{"media":"m","n":2}"#] {
            assert!(text.contains(member), "{member} in {text}");
        }
    }
    // A further id, which a new version of the callback may have, does not take the subject over.
    for other in ["ImageId", "AttachedMediaId", "MediaId"] {
        for members in [format!(r#""VideoId":"v","{other}":"o""#), format!(r#""{other}":"o","VideoId":"v""#)] {
            let subject = normalize(vod("FileUploadComplete", &members)).get(Attribute::Subject).map(str::to_owned);
            assert_eq!(subject.as_deref(), Some("v"), "{members}");
        }
    }
    let both = [r#""VideoId":"v","MediaId":"m""#, r#""MediaId":"m","VideoId":"v""#];
    let subjects =
        both.map(|ids| normalize(vod("DeleteMediaComplete", ids)).get(Attribute::Subject).map(str::to_owned));
    assert_eq!(subjects, [Some("m".to_owned()), Some("m".to_owned())]);
}

#[test]
fn an_entry_renames_and_converts_only_its_own_fields() {
    let entry = r#"
        [[events]]
        dialect = "vod"
        type = "Foo"
        description = "A test."
        [events.fields]
        length = { type = "number", unit = "seconds", sent_unit = "milliseconds" }
        fileUrl = { type = "string", from = ["Location"] }
        parts = { type = "[Part]" }
        [objects.Part]
        at = { type = "number", unit = "seconds", sent_unit = "milliseconds" }
    "#;
    let catalogue = Catalogue::load(&[("mine.toml".to_owned(), entry.to_owned())]).expect("valid");
    let normalizer = Normalizer::new(catalogue, DEFAULT_TYPE_PREFIX);
    let data_of = |name: &str| {
        let body = vod(name, r#""Length":"5","Location":"l","FileUrl":"f","Parts":"[{\"At\":5}]""#);
        let origin = Origin::at(datetime!(2026-01-02 03:04:05.678 UTC));
        let event = normalizer.normalize(body.as_bytes(), &origin).expect("a callback").event;
        data(&event).to_owned()
    };
    assert_eq!(data_of("Foo"), r#"{"length":0.005,"fileUrl":"l","FileUrl":"f","parts":[{"at":0.005}]}"#);
    for other in ["StreamTranscodeComplete", "BrandNewComplete"] {
        assert_eq!(data_of(other), r#"{"length":5,"location":"l","fileUrl":"f","parts":[{"at":5}]}"#, "{other}");
    }
}

#[test]
fn keys_that_would_collide_keep_their_own_spelling() {
    let event = normalize(vod("NewComplete", r#""JobId":"a","jobId":"b","VideoId":"v","MediaId":"m""#));
    assert_eq!(data(&event), r#"{"JobId":"a","jobId":"b","videoId":"v","mediaId":"m"}"#);
    let body = r#"{"EventType":"X","EventTime":"2026-01-01T00:00:00Z","Status":"top","MessageBody":{"Status":"body"}}"#;
    assert_eq!(data(&normalize(body)), r#"{"status":"body","Status":"top"}"#);
    let body =
        r#"{"EventType":"X","EventTime":"now","EventTime ":"soon","MessageBody":{"A":1},"MessageBody ":{"B":2}}"#;
    assert_eq!(data(&normalize(body)), r#"{"a":1,"eventTime":"soon","messageBody":{"b":2},"eventTime_":"now"}"#);
    let body = r#"{"EventType":"X","EventTime":"2026-01-01T00:00:00Z","event":"top","MessageBody":{"event":"body"}}"#;
    assert_eq!(data(&normalize(body)), r#"{"event":"body","event_":"top"}"#);
}

#[test]
fn an_unknown_event_type_follows_the_general_rules() {
    let event =
        normalize(vod("BrandNewComplete", r#""Status":"success","VideoId":"v","NewURL":"u","Odd_Field":"007""#));
    assert_eq!(event.get(Attribute::Type), Some("com.aliyun.media.BrandNewComplete"));
    assert_eq!((event.get(Attribute::Subject), event.get(Attribute::Status)), (Some("v"), Some("success")));
    assert_eq!(data(&event), r#"{"status":"success","mediaId":"v","newUrl":"u","oddField":"007"}"#);
    let hostile = normalize(vod("../../x y", ""));
    assert_eq!(hostile.get(Attribute::Type), Some("com.aliyun.media.../../x y"));
    assert_eq!(hostile.get(Attribute::DataSchema), Some("urn:apsara-bridge:schema:vod:..%2F..%2Fx%20y:1"));
    let long = normalize(vod(&"N".repeat(10_000), ""));
    assert_eq!(long.get(Attribute::Type).map(str::len), Some(MAX_ATTRIBUTE_BYTES));
    assert!(data(&long).contains(&"N".repeat(10_000)), "a value that is too long for an attribute stays in the data");
}

#[test]
fn bodies_that_are_not_callbacks_get_a_specific_error() {
    for file in files("tests/fixtures/not-callbacks") {
        let error = refusal(fs::read(&file).expect("readable"));
        assert!(error.contains("`EventType` is missing"), "{}: {error}", file.display());
    }
    for (body, expected) in [
        ("", "not valid JSON at byte 0: a value was expected, but the text is empty"),
        ("hello", "not valid JSON at byte 0: a value was expected"),
        ("[]", "the body is an array; expected a JSON object with `EventType`"),
        ("\"text\"", "the body is a string; expected a JSON object with `EventType`"),
        ("{}", "neither a VOD nor an IMS callback: `EventType` is missing"),
        (r#"{"EventType":7}"#, "neither a VOD nor an IMS callback: `EventType` is a number; expected a string"),
        (r#"{"EventType":" "}"#, "neither a VOD nor an IMS callback: `EventType` is empty"),
        (r#"{"EventType":"X"}"#, "neither a VOD nor an IMS callback: `EventTime` is missing"),
        (r#"{"EventType":"X","EventTime":null}"#, "neither a VOD nor an IMS callback: `EventTime` is missing"),
        (r#"{"EventType":"X","EventTime":" "}"#, "neither a VOD nor an IMS callback: `EventTime` is empty"),
        (
            r#"{"EventType":"X","EventTime":"2026-01-01T00:00:00Z","MessageBody":[]}"#,
            "neither a VOD nor an IMS callback: `MessageBody` is an array; expected an object",
        ),
        (
            r#"{"EventType":"NewFileUpload","FileUploadEvent":{"FileId":"1"}}"#,
            "neither a VOD nor an IMS callback: `EventTime` is missing; the body looks like a callback of Tencent Cloud VOD",
        ),
    ] {
        assert_eq!(refusal(body), expected);
    }
    let volcengine = r#"{"RequestId":"r","Version":"2021-01-01","EventTime":"2026-01-01T00:00:00Z","EventType":"TranscodeComplete","Data":{"Vid":"v"}}"#;
    let tencent = r#"{"EventType":"X","EventTime":"2026-01-01T00:00:00Z","FileUploadEvent":{"FileId":"1"}}"#;
    assert!(refusal(tencent).ends_with("looks like a callback of Tencent Cloud VOD"), "{}", refusal(tencent));
    let without_version = volcengine.replace(r#""Version":"2021-01-01","#, "");
    for body in [volcengine, &without_version] {
        assert!(refusal(body).ends_with("the shape of Volcengine's callbacks"), "{}", refusal(body));
    }
    let review = r#""RequestId":"r","JobId":"j","Status":"success","Data":{"Suggestion":"pass"}"#;
    assert_eq!(normalize(vod("AIMediaAuditComplete", review)).get(Attribute::Verdict), Some("pass"));
    let mut origin = Origin::at(datetime!(2026-01-01 00:00 UTC));
    let only_ims = Sender { dialects: vec![Dialect::Ims], ..Sender::default() };
    origin.sender = &only_ims;
    let error = normalizer().normalize(vod("FileUploadComplete", "").as_bytes(), &origin).expect_err("not accepted");
    assert_eq!(error.to_string(), "a callback of dialect vod; the `dialects` of this input do not include it");
}

#[test]
fn unusual_input_has_a_defined_result() {
    let with_bom = format!("\u{feff}{}", vod("FileUploadComplete", r#""VideoId":"v""#));
    assert_eq!(normalize(&with_bom).id(), normalize(vod("FileUploadComplete", r#""VideoId":"v""#)).id());

    let blanks = normalize(
        r#"{"EventType ":"UploadByURLComplete","EventTime":"2026-01-01T00:00:00Z","Status ":"fail ","JobId":"j","SourceURL ":"u","ErrorCode ":"E "}"#,
    );
    assert_eq!((blanks.get(Attribute::Status), blanks.get(Attribute::Subject)), (Some("failure"), Some("j")));
    assert_eq!(data(&blanks), r#"{"status":"fail ","jobId":"j","sourceUrl":"u","error":{"code":"E"}}"#);

    let millis =
        normalize(r#"{"EventType":"AIMediaDNAComplete","EventTime":"2017-03-20T07:49:17:025Z","MediaId":"m"}"#);
    assert_eq!(millis.get(Attribute::Time), Some("2017-03-20T07:49:17.025Z"));
    let no_time = normalize(r#"{"EventType":"X","EventTime":"yesterday","MediaId":"m"}"#);
    assert_eq!(no_time.get(Attribute::Time), None);
    assert_eq!(data(&no_time), r#"{"mediaId":"m","eventTime":"yesterday"}"#);

    let numbers =
        normalize(vod("X", r#""MediaId":1833220977560785,"Big":123456789012345678901234567890,"E":1e400,"F":1.10"#));
    assert_eq!(
        data(&numbers),
        r#"{"mediaId":"1833220977560785","big":123456789012345678901234567890,"e":1e400,"f":1.10}"#
    );

    let control = normalize(vod("FileUploadComplete", r#""VideoId":"a\u0000b\u001f\ufffe""#));
    assert_eq!(control.get(Attribute::Subject), Some("a\u{fffd}b\u{fffd}\u{fffd}"));
    assert!(data(&control).contains(r#""mediaId":"a\u0000b\u001f"#), "the data is not changed");

    assert!(refusal(vod("X", r#""A":"\ud800""#)).starts_with("not valid JSON at byte"));
    assert!(refusal(vod("X", r#""A":"\udc00\ud800""#)).starts_with("not valid JSON at byte"));
    assert!(refusal(b"{\"EventType\":\"\xff\"}").starts_with("not valid JSON at byte"));
    let deep = vod("X", &format!(r#""A":{}{}"#, "[".repeat(10_000), "]".repeat(10_000)));
    assert!(refusal(deep).starts_with("nested deeper than 64 levels at byte"));
    assert!(refusal(vod("X", r#""A":1,"A":2"#)).starts_with("key `A` occurs twice with different values"));
    assert!(data(&normalize(vod("X", r#""A":1,"A":1"#))).contains(r#"{"a":1}"#));

    let mut nested = "1".to_owned();
    for _ in 0..12 {
        nested = format!("[{}]", serde_json::to_string(&nested).expect("JSON"));
    }
    let body = vod("X", &format!(r#""Extend":{}"#, serde_json::to_string(&nested).expect("JSON")));
    serde_json::from_slice::<serde_json::Value>(&normalize(body).to_json()).expect("readable by others");

    let large = vod("FileUploadComplete", &format!(r#""VideoId":"v","Title":"{}""#, "x".repeat(10 << 20)));
    assert!(normalize(large).data().len() > 10 << 20);
}

/// A generated JSON value.
#[derive(Clone, Debug)]
enum Tree {
    /// The JSON text of a scalar.
    Scalar(String),
    Array(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl fmt::Display for Tree {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tree::Scalar(text) => formatter.write_str(text),
            Tree::Array(items) => write!(formatter, "[{}]", join(items.iter())),
            Tree::Object(members) => {
                write!(formatter, "{{{}}}", join(members.iter().map(|(key, value)| format!("{}:{value}", quoted(key)))))
            }
        }
    }
}

fn join(parts: impl Iterator<Item = impl ToString>) -> String {
    parts.map(|part| part.to_string()).collect::<Vec<_>>().join(",")
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("JSON")
}

fn string(text: impl AsRef<str>) -> Tree {
    Tree::Scalar(quoted(text.as_ref()))
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        Just(Tree::Scalar("null".to_owned())),
        any::<bool>().prop_map(|value| Tree::Scalar(value.to_string())),
        "(0|-?[1-9][0-9]{0,24})(\\.[0-9]{1,12})?".prop_map(Tree::Scalar),
        ".{0,12}".prop_map(string),
        "[a-z]{1,4}(,[a-z]{1,4}){0,2}".prop_map(string),
        "[0-9]{1,6}".prop_map(string),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Tree::Array),
            object(inner.clone()).prop_map(Tree::Object),
            object(inner).prop_map(|members| string(Tree::Object(members).to_string())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(
            [
                "Status",
                "status",
                "VideoId",
                "MediaId",
                "mediaId",
                "JobId",
                "jobId",
                "ErrorCode",
                "ErrorMessage",
                "error",
                "error_info",
                "Extend",
                "UserData",
                "StreamInfos",
                "MediaContent",
                "CoverURL",
                "CoverUrl",
                "Input",
                "Data",
                "TaskIds",
                "Size",
                "FileURLs",
                "OutFileMeta",
                "record_id",
                "Code",
                "Message",
                "SourceURL ",
                "event",
            ]
            .map(str::to_owned)
            .to_vec()
        ),
        "[A-Za-z_ ]{1,8}",
        ".{0,6}",
    ]
}

fn object(inner: impl Strategy<Value = Tree>) -> impl Strategy<Value = Vec<(String, Tree)>> {
    hash_map(key(), inner, 0..6).prop_map(|members| members.into_iter().collect())
}

/// A callback of any dialect with any payload.
fn callback() -> impl Strategy<Value = Tree> {
    let event_type = prop_oneof![
        proptest::sample::select(
            normalizer().catalogue().events().iter().map(|event| event.name.clone()).collect::<Vec<_>>()
        ),
        "[A-Za-z./ ]{1,20}".prop_filter("not blank", |text| !text.trim().is_empty()),
    ];
    (any::<bool>(), event_type, object(tree())).prop_map(|(nested, event_type, payload)| {
        let mut members = vec![("EventType", string(event_type)), ("EventTime", string("2026-01-01T00:00:00Z"))];
        if nested {
            members.push(("UserId", Tree::Scalar("1833220977560785".to_owned())));
            members.push(("MessageBody", Tree::Object(payload.clone())));
        }
        let mut members: Vec<(String, Tree)> =
            members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        if !nested {
            let is_own = |key: &str| ["EventType", "EventTime", "MessageBody"].contains(&key.trim());
            members.extend(payload.into_iter().filter(|(key, _)| !is_own(key)));
        }
        Tree::Object(members)
    })
}

fn change_one_leaf(tree: &mut Tree, nth: &mut usize) -> bool {
    match tree {
        Tree::Array(items) => items.iter_mut().any(|item| change_one_leaf(item, nth)),
        Tree::Object(members) => members.iter_mut().any(|(_, value)| change_one_leaf(value, nth)),
        leaf if *nth == 0 => {
            *leaf = string(format!("changed {leaf}"));
            true
        }
        _ => {
            *nth -= 1;
            false
        }
    }
}

fn reordered(tree: &Tree) -> String {
    match tree {
        Tree::Array(items) => format!("[ {} ]", items.iter().map(reordered).collect::<Vec<_>>().join(" ,\n")),
        Tree::Object(members) => {
            let member = |(key, value): &(String, Tree)| format!("{}\t:\r\n{}", quoted(key), reordered(value));
            format!(" {{ {} }}", members.iter().rev().map(member).collect::<Vec<_>>().join(" , "))
        }
        scalar => scalar.to_string(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_leaf_is_in_the_envelope_and_the_envelope_is_valid(callback in callback()) {
        let body = callback.to_string();
        let event = normalize(&body);
        let json = event.to_json();
        serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&json)
            .or_else(|error| if error.to_string().contains("out of range") { Ok(Default::default()) } else { Err(error) })
            .expect("others can read it");
        let arena = Bump::new();
        let lost = lost(&Json::parse(body.as_bytes(), &arena).expect("JSON"), &event, DEFAULT_TYPE_PREFIX);
        prop_assert_eq!(lost, None, "{} became {}", body, String::from_utf8_lossy(&json));
        for (attribute, value) in event.attributes() {
            prop_assert!(!value.is_empty() && !value.chars().any(char::is_control), "{}: {value:?}", attribute.name());
        }
        for required in [Attribute::Id, Attribute::Source, Attribute::Type, Attribute::Status, Attribute::Dialect] {
            prop_assert!(event.get(required).is_some());
        }
    }

    #[test]
    fn the_id_depends_only_on_the_content(callback in callback(), nth in 0usize..40) {
        let event = normalize(callback.to_string());
        let again = normalize(reordered(&callback));
        prop_assert_eq!(again.id(), event.id());
        let sorted = |event: &Event| {
            let mut out = Vec::new();
            let arena = Bump::new();
            Json::parse_within(event.data(), usize::MAX, &arena).expect("JSON").write_canonical(&[], &mut out);
            out
        };
        prop_assert_eq!(sorted(&again), sorted(&event), "the order of members changes the data of {}", callback);
        let mut changed = callback.clone();
        let mut nth = nth;
        // The first two leaves are EventType and EventTime. Every change of them is another callback.
        if change_one_leaf(&mut changed, &mut nth) {
            let other = normalize(changed.to_string());
            prop_assert_ne!(other.id(), event.id());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200), text in r#"[\[\]{}:,"\\a-zEV0-9 ]{0,60}"#) {
        let _ = try_normalize(&bytes);
        let _ = try_normalize(text.as_bytes());
        let _ = try_normalize(format!(r#"{{"EventType":"X","EventTime":{text}}}"#).as_bytes());
        let _ = try_normalize(format!(r#"{{"EventType":"X","EventTime":"{text}"}}"#).as_bytes());
    }
}
