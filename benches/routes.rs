//! Routing: what `Router::decide` costs with a thousand routes, compared with ten.
//!
//! Goal: at most 1.2 times. If BENCH_ROWS is set, only the row of [`goals`] is measured. In every style only the last route matches the event, so the search never ends early. The
//! routes are loaded from a configuration, as a user would write them.

// Benchmarks fail with a panic and print their figures; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod compare;
mod goals;

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use apsara_bridge::config::{self, Layer};
use apsara_bridge::dialect::{Catalogue, Normalizer, Origin};
use apsara_bridge::event::{DEFAULT_TYPE_PREFIX, Event};
use apsara_bridge::route::Router;
use criterion::Criterion;
use time::OffsetDateTime;

use compare::compare;

/// What a thousand routes may cost, as a multiple of ten routes.
const GOAL: f64 = 1.2;

const FEW: usize = 10;
const MANY: usize = 1000;

/// A way to write routes: the conditions of those that do not match the event, by number, and of the last, which does.
struct Style {
    name: &'static str,
    other: fn(usize) -> String,
    last: &'static str,
}

const STYLES: &[Style] = &[
    Style {
        name: "exact types",
        other: |n| format!("match = {{ type = 'Type{n}Complete' }}"),
        last: "match = { type = 'TranscodeComplete' }",
    },
    Style {
        name: "lists of types, and dialect",
        other: |n| format!("match = {{ dialect = 'vod', type = ['Type{n}Complete', 'Type{n}Start', 'Type{n}End'] }}"),
        last: "match = { dialect = 'vod', type = ['FileUploadComplete', 'TranscodeComplete'] }",
    },
    Style {
        name: "lists of statuses, and type",
        other: |n| format!("match = {{ status = ['failure', 'partial', 'success'], type = 'Type{n}Complete' }}"),
        last: "match = { status = ['failure', 'partial', 'success'], type = 'TranscodeComplete' }",
    },
    Style {
        name: "globs, the start fixed",
        other: |n| format!("match = {{ type = 'Type{n}*' }}"),
        last: "match = { type = 'Transcode*' }",
    },
    Style {
        name: "globs, the end fixed",
        other: |n| format!("match = {{ type = '*Upload{n}Complete' }}"),
        last: "match = { type = '*codeComplete' }",
    },
    Style {
        name: "globs, the middle fixed",
        other: |n| format!("match = {{ type = '*Upload{n}*' }}"),
        last: "match = { type = '*code*' }",
    },
    Style {
        name: "media ids",
        other: |n| format!("match = {{ mediaid = 'video-{n}' }}"),
        last: "match = { mediaid = '43q9fjsh73f****' }",
    },
    Style {
        name: "filters: exact",
        other: |n| format!("filter = {{ exact = {{ mediaid = 'video-{n}' }} }}"),
        last: "filter = { exact = { type = 'com.aliyun.media.TranscodeComplete' } }",
    },
    Style {
        name: "filters: prefix",
        other: |n| format!("filter = {{ prefix = {{ mediaid = 'tenant-{n}-' }} }}"),
        last: "filter = { prefix = { mediaid = '43q9' } }",
    },
    Style {
        name: "filters: all of exact, suffix, not",
        other: |n| {
            format!(
                "filter = {{ all = [{{ exact = {{ mediaid = 'video-{n}' }} }}, {{ suffix = {{ type = 'Complete' }} }}, \
                 {{ not = {{ exact = {{ status = 'failure' }} }} }}] }}"
            )
        },
        last: "filter = { all = [{ suffix = { type = 'Complete' } }, { not = { exact = { status = 'failure' } } }] }",
    },
    Style {
        name: "type, and filters: any",
        other: |n| {
            format!(
                "match = {{ type = 'Type{n}Complete' }}\n\
                 filter = {{ any = [{{ exact = {{ mediaid = 'a-{n}' }} }}, {{ prefix = {{ subject = 'b-{n}' }} }}] }}"
            )
        },
        last: "filter = { any = [{ exact = { mediaid = 'a' } }, { prefix = { subject = '43q9' } }] }",
    },
    Style {
        name: "filters: any, of one attribute",
        other: |n| {
            format!(
                "filter = {{ any = [{{ exact = {{ mediaid = 'a-{n}' }} }}, {{ prefix = {{ mediaid = 'b-{n}' }} }}] }}"
            )
        },
        last: "filter = { any = [{ exact = { mediaid = 'a' } }, { prefix = { mediaid = '43q9' } }] }",
    },
    Style {
        name: "filters: any, of several attributes",
        other: |n| {
            format!(
                "filter = {{ any = [{{ exact = {{ mediaid = 'a-{n}' }} }}, {{ prefix = {{ subject = 'b-{n}' }} }}] }}"
            )
        },
        last: "filter = { any = [{ exact = { mediaid = 'a' } }, { prefix = { subject = '43q9' } }] }",
    },
    Style {
        name: "mixed, a route without conditions last",
        other: |n| match n % 4 {
            0 => format!("match = {{ type = 'Type{n}Complete', status = ['failure', 'partial'] }}"),
            1 => format!("match = {{ type = 'Type{n}*' }}"),
            2 => format!("match = {{ mediaid = 'video-{n}', dialect = 'vod' }}"),
            _ => format!("filter = {{ prefix = {{ subject = 'tenant-{n}-' }} }}"),
        },
        last: "",
    },
];

/// The style that has a row in the table of goals, and how often it is measured for that.
const ROW: (&str, usize) = ("filters: any, of several attributes", 5);

fn main() {
    let event = event();
    if compare::is_asked_for() {
        let style = STYLES.iter().find(|style| style.name == ROW.0).expect("a style");
        let [few, many] = [FEW, MANY].map(|count| router(style, count));
        let once = || compare(|| decide(&many, &event), || decide(&few, &event)).ratio();
        goals::report("1,000 routes with a filter `any` against 10", &(0..ROW.1).map(|_| once()).collect::<Vec<_>>());
        if std::env::var_os("BENCH_ROWS").is_some() {
            return;
        }
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(30)
        .configure_from_args();
    let mut group = criterion.benchmark_group("routes");
    let mut rows = String::new();
    for style in STYLES {
        let [few, many] = [FEW, MANY].map(|count| router(style, count));
        for router in [&few, &many] {
            let count = router.routes().len();
            assert_eq!(router.decide(&event).matched, [count - 1], "{}: the last route matches", style.name);
            let name = format!("{}, {count}", style.name);
            group.bench_function(name, |bencher| bencher.iter(|| decide(router, &event)));
        }
        if compare::is_asked_for() {
            let compared = compare(|| decide(&many, &event), || decide(&few, &event));
            let verdict = if compared.ratio() > GOAL { "over" } else { "" };
            let _ = writeln!(
                rows,
                "{:<44}{:>10.0}{:>10.0}{:>9.2}{GOAL:>8.2} {verdict}",
                style.name,
                compared.baseline.as_secs_f64() * 1e9,
                compared.subject.as_secs_f64() * 1e9,
                compared.ratio(),
            );
        }
    }
    group.finish();
    criterion.final_summary();
    if !rows.is_empty() {
        println!("\nRouter::decide, in turns; times in ns\n");
        println!("{:<44}{FEW:>10}{MANY:>10}{:>9}{:>8}\n{rows}", "routes", "ratio", "goal");
    }
}

fn decide(router: &Router, event: &Event) {
    black_box(router.decide(black_box(event)));
}

fn event() -> Event {
    let body = include_bytes!("../src/dialect/samples/vod-TranscodeComplete.json");
    let normalizer = Normalizer::new(Catalogue::built_in().expect("valid"), DEFAULT_TYPE_PREFIX);
    normalizer.normalize(body, &Origin::at(OffsetDateTime::now_utc())).expect("a callback").event
}

fn router(style: &Style, count: usize) -> Router {
    let mut text =
        String::from("[inputs.http]\nkind = 'http'\n[[inputs.http.endpoints]]\n[outputs.out]\nkind = 'console'\n");
    for number in 1..=count {
        let conditions = if number == count { style.last.to_owned() } else { (style.other)(number) };
        let _ = write!(text, "[[routes]]\nname = 'r{number}'\nto = {{ output = 'out', topic = 't' }}\n{conditions}\n");
    }
    match config::load(&[Layer::Text(style.name.to_owned(), text)]) {
        Ok(loaded) => loaded.settings.router,
        Err(errors) => panic!("{}: {errors:?}", style.name),
    }
}
