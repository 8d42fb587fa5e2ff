//! Normalizing: from the bytes of a callback to the bytes of its envelope. It is compared with the minimum that any
//! JSON service does: parsing the same bytes into `serde_json::Value` and serializing that.
//!
//! [`goals`] has the goals. The time per byte should be the same for small and large bodies. If BENCH_ROWS is set, only
//! their rows are measured.
//!
//! The bodies are Alibaba's samples without white space, which is the harder form (more work per byte). Their lists of
//! streams are extended to the wanted size.

// Benchmarks fail with a panic and print their figures; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod compare;
mod goals;

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use apsara_bridge::dialect::{Catalogue, Normalizer, Origin};
use apsara_bridge::event::DEFAULT_TYPE_PREFIX;
use criterion::{Criterion, Throughput};
use time::OffsetDateTime;

use compare::compare;

/// How often a row of the table of goals is measured.
const REPEATS: usize = 5;

/// The sizes wanted, in bytes.
const SIZES: [usize; 6] = [512, 1024, 2048, 4096, 16_384, 65_536];

/// How many samples are shown individually, worst ratio first.
const WORST: usize = 8;

/// One or several bodies measured together.
struct Case {
    name: String,
    /// Its row in the table of goals.
    row: Option<String>,
    bodies: Vec<Vec<u8>>,
}

impl Case {
    fn bytes(&self) -> usize {
        self.bodies.iter().map(Vec::len).sum()
    }
}

fn main() {
    let normalizer = Normalizer::new(Catalogue::built_in().expect("valid"), DEFAULT_TYPE_PREFIX);
    let origin = Origin::at(OffsetDateTime::now_utc());
    let normalize = |case: &Case| {
        for body in &case.bodies {
            let normalized = normalizer.normalize(black_box(body), &origin).expect("a callback");
            black_box(normalized.event.to_json());
        }
    };
    let baseline = |case: &Case| {
        for body in &case.bodies {
            let value: serde_json::Value = serde_json::from_slice(black_box(body)).expect("JSON");
            black_box(serde_json::to_vec(&value).expect("a tree can be written"));
        }
    };
    let samples = samples();
    let cases = cases(&samples);
    if compare::is_asked_for() {
        for case in cases.iter().filter(|case| case.row.is_some()) {
            let ratios: Vec<f64> =
                (0..REPEATS).map(|_| compare(|| normalize(case), || baseline(case)).ratio()).collect();
            goals::report(case.row.as_deref().unwrap_or_default(), &ratios);
        }
        if std::env::var_os("BENCH_ROWS").is_some() {
            return;
        }
    }

    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30)
        .configure_from_args();
    let mut group = criterion.benchmark_group("normalize");
    for case in &cases {
        group.throughput(Throughput::Bytes(case.bytes() as u64));
        group.bench_function(&case.name, |bencher| bencher.iter(|| normalize(case)));
        group.bench_function(format!("{}, serde_json::Value", case.name), |bencher| bencher.iter(|| baseline(case)));
    }
    group.finish();
    criterion.final_summary();
    if !compare::is_asked_for() {
        return;
    }

    let mut table = String::from("\nNormalizing compared with serde_json::Value, in turns\n\n");
    let _ = writeln!(table, "{:<52}{:>8}{:>12}{:>12}{:>9}", "body", "bytes", "ns/byte", "MiB/s", "ratio");
    for case in &cases {
        table.push_str(&row(case, compare(|| normalize(case), || baseline(case))));
    }
    let mut alone: Vec<_> = samples
        .into_iter()
        .map(|(name, body)| Case { name, row: None, bodies: vec![body] })
        .map(|case| {
            let compared = compare(|| normalize(&case), || baseline(&case));
            (case, compared)
        })
        .collect();
    alone.sort_by(|(_, a), (_, b)| b.ratio().total_cmp(&a.ratio()));
    let _ = writeln!(table, "\nThe samples with the worst ratios, individually");
    for (case, compared) in alone.iter().take(WORST) {
        table.push_str(&row(case, *compared));
    }
    println!("{table}");
}

fn row(case: &Case, compared: compare::Compared) -> String {
    let seconds = compared.subject.as_secs_f64();
    let bytes = case.bytes();
    format!(
        "{:<52}{bytes:>8}{:>12.2}{:>12.0}{:>9.2}\n",
        case.name,
        seconds * 1e9 / bytes as f64,
        bytes as f64 / seconds / f64::from(1 << 20),
        compared.ratio(),
    )
}

/// Alibaba's samples by name, without white space.
fn samples() -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/dialect/samples");
    let mut samples: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .expect("the folder of samples")
        .map(|entry| {
            let path = entry.expect("a file").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, compact(&std::fs::read_to_string(&path).expect("a sample")).into_bytes())
        })
        .collect();
    samples.sort();
    samples
}

fn cases(samples: &[(String, Vec<u8>)]) -> Vec<Case> {
    let sample = |name: &str| {
        let (_, body) = samples.iter().find(|(known, _)| known == name).expect("a sample of that name");
        String::from_utf8(body.clone()).expect("UTF-8")
    };
    let row = |dialect: &str, size: usize| {
        let row = format!("normalizing {} against serde_json::Value, {dialect}", kilobytes(size));
        goals::GOALS.iter().any(|goal| goal.name == row).then_some(row)
    };
    let mut cases = Vec::new();
    for size in SIZES {
        let body = fill(&sample("vod-TranscodeComplete"), "StreamInfos", size);
        let name = format!("vod TranscodeComplete {}", kilobytes(size));
        cases.push(Case { name, row: row("VOD", size), bodies: vec![body] });
    }
    for size in SIZES {
        // The sample of MediaConvertOutputComplete is larger than the small sizes.
        let (name, body) = match size {
            512 => ("VideoAnalysisComplete", sample("ims-VideoAnalysisComplete").into_bytes()),
            1024 => ("TranscodeComplete", fill(&sample("ims-TranscodeComplete"), "videoStreamInfoList", size)),
            _ => (
                "MediaConvertOutputComplete",
                fill(&sample("ims-MediaConvertOutputComplete"), "videoStreamInfoList", size),
            ),
        };
        let name = format!("ims {name} {}", kilobytes(size));
        cases.push(Case { name, row: row("IMS", size), bodies: vec![body] });
    }
    for dialect in ["vod", "ims"] {
        let bodies: Vec<Vec<u8>> =
            samples.iter().filter(|(name, _)| name.starts_with(dialect)).map(|(_, body)| body.clone()).collect();
        cases.push(Case { name: format!("{dialect}, all {} samples", bodies.len()), row: None, bodies });
    }
    cases
}

fn kilobytes(size: usize) -> String {
    if size < 1024 { "0.5 KB".to_owned() } else { format!("{} KB", size / 1024) }
}

/// The JSON text without the white space between its tokens. (Parsing it into a tree would sort the members, and sorted
/// keys would make the canonical form cheaper than it is.)
fn compact(text: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    text.chars()
        .filter(|&c| {
            let keep = in_string || !c.is_ascii_whitespace();
            if c == '"' && !escaped {
                in_string = !in_string;
            }
            escaped = c == '\\' && !escaped;
            keep
        })
        .collect()
}

/// The callback with as many items in the list as bring it nearest to the size, at least one. Each item is a copy of
/// the first with its own job id.
fn fill(callback: &str, list: &str, size: usize) -> Vec<u8> {
    let start = callback.find(&format!("\"{list}\":[")).expect("the list") + list.len() + 4;
    let item = &callback[start..start + length_of_object(&callback[start..])];
    let end = start + callback[start..].find(']').expect("the end of the list");
    let (head, tail) = (&callback[..start], &callback[end..]);
    let count = (size.saturating_sub(head.len() + tail.len()) + item.len() / 2) / (item.len() + 1);
    let items: Vec<String> = (0..count.max(1)).map(|number| with_job_id(item, number)).collect();
    let body = format!("{head}{}{tail}", items.join(","));
    serde_json::from_str::<serde::de::IgnoredAny>(&body).expect("still JSON");
    body.into_bytes()
}

/// Length of the object at the start of the text. No string in it may contain a brace.
fn length_of_object(text: &str) -> usize {
    let mut depth = 0;
    let closed = text.char_indices().find(|&(_, c)| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth == 0
    });
    closed.expect("an object").0 + 1
}

fn with_job_id(item: &str, number: usize) -> String {
    let lower = item.to_ascii_lowercase();
    let Some(start) = lower.find("\"jobid\":\"").map(|key| key + "\"jobid\":\"".len()) else { return item.to_owned() };
    let end = start + item[start..].find('"').expect("the end of the string");
    let width = end - start;
    format!("{}{number:0width$x}{}", &item[..start], &item[end..])
}
