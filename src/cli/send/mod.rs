//! `send`: posts signed callbacks as Alibaba does: one, a series of tries, or a load. It can also put them into a queue,
//! and check that they were counted.

mod counted;
mod latency;
mod load;
pub(super) mod target;

use std::borrow::Cow;
use std::path::PathBuf;
use std::process::ExitCode;

use time::OffsetDateTime;

use super::USAGE;
use super::callbacks::{Choice, Copies, normalizer};
use super::terminal::{fail, print, read, shown};
use crate::common::descriptors;
use crate::common::http::HttpClient;
use crate::common::secret::{Secret, SecretSource};
use crate::common::visible;
use counted::{Counts, Metrics};
use load::{Load, Totals};
use target::{Answer, Target};

/// How many requests wait for their answers at the same time, at most, unless something else is said: one after the other
/// without `--rate`, and enough for an answer that takes a second with most rates.
const CONCURRENCY: (usize, usize) = (1, 64);

/// File descriptors for everything but the connections of a load.
const OTHER_DESCRIPTORS: usize = 32;

/// The exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exits with 0 if every answer is 200, which is success for Alibaba, with 1 if not, with
2 for wrong usage, and with 130 after Ctrl-C. Without FILE it posts an upload event.
Each callback has an id and a time of its own, so that the bridge takes none for a
repeat. FILE alone is posted as it is.

mns://HOST/QUEUE puts callbacks into an MNS queue. The access key is found as that of an
MNS input: in ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or from a
role. The queue is asked over HTTPS, on this machine over HTTP.

Examples:
  CALLBACK_KEY=… apsara-bridge send https://media.example.com/callbacks --key-env CALLBACK_KEY
  apsara-bridge send http://127.0.0.1:8080/callbacks --url https://media.example.com/callbacks --key-file key
  apsara-bridge send http://127.0.0.1:8080/callbacks callback.json --metrics http://127.0.0.1:9464/metrics
  apsara-bridge send http://127.0.0.1:8080/callbacks --type ProduceMediaComplete --status failure --retry
  apsara-bridge send http://127.0.0.1:8080/callbacks --rate 200 --count 10000
  apsara-bridge send mns://1833220977560000.mns.cn-shanghai.aliyuncs.com/ice-callback-media
")]
pub(super) struct Send {
    /// URL to post the callback to, or mns://HOST/QUEUE.
    #[arg(value_name = "TARGET")]
    target: String,
    /// File with the callback. `-` is standard input.
    #[arg(conflicts_with_all = ["event_type", "dialect", "status", "fixture"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    choice: Choice,
    /// URL to sign, exactly as it was entered at Alibaba. Default: the URL to post to.
    #[arg(long)]
    url: Option<String>,
    /// File with the authentication key. Without a key the callback is not signed.
    #[arg(long, value_name = "FILE", conflicts_with = "key_env")]
    key_file: Option<PathBuf>,
    /// Environment variable with the authentication key.
    #[arg(long, value_name = "NAME")]
    key_env: Option<String>,
    /// Also check that the callbacks were counted, by the metrics of the bridge at this http:// URL. If the host name stands
    /// for several replicas, all of them are asked.
    #[arg(long, value_name = "URL")]
    metrics: Option<String>,
    /// Try each callback as Alibaba does: three tries, one second apart.
    #[arg(long)]
    retry: bool,
    /// How many callbacks to post. With --rate alone, until Ctrl-C.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How many callbacks to post per second. The latency then counts from the moment at which a callback was due.
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// How many requests wait for their answers at the same time, at most. Default: 1, with --rate 64.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: Option<u16>,
    /// Allow --count and --rate for a host that is not this machine.
    #[arg(long)]
    allow_remote: bool,
}

/// Reads a number of callbacks per second.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=1_000_000.0).contains(rate));
    rate.ok_or_else(|| "expected a number from 0.001 to 1000000".to_owned())
}

/// What to post.
enum Callbacks {
    /// One callback as it is, each time.
    Same(Vec<u8>),
    /// Different copies of one.
    Different(Copies),
}

impl Callbacks {
    fn body(&self, number: u64) -> Vec<u8> {
        match self {
            Callbacks::Same(body) => body.clone(),
            Callbacks::Different(copies) => copies.copy(number, OffsetDateTime::now_utc()),
        }
    }
}

impl Send {
    pub(super) fn run(self) -> ExitCode {
        let wrong = |error: String| {
            let _ = fail(error);
            ExitCode::from(USAGE)
        };
        let chosen = match self.choice.body() {
            Ok(chosen) => chosen,
            Err(error) => return wrong(error),
        };
        let http = match HttpClient::new() {
            Ok(http) => http,
            Err(error) => return fail(error),
        };
        let mut target = match Target::parse(&self.target, http.clone()) {
            Ok(target) => target,
            Err(error) => return wrong(error),
        };
        if let Err(error) = self.check(&target) {
            return wrong(error);
        }
        let metrics = match self.metrics.as_deref().map(Metrics::parse).transpose() {
            Ok(metrics) => metrics,
            Err(error) => return wrong(error),
        };
        let callbacks = match self.callbacks(chosen) {
            Ok(callbacks) => callbacks,
            Err(error) => return wrong(error),
        };
        let source = match (&self.key_file, &self.key_env) {
            (Some(file), _) => Some(SecretSource::File(file.clone())),
            (None, Some(name)) => Some(SecretSource::Env(name.clone())),
            (None, None) => None,
        };
        match source.as_ref().map(Secret::read).transpose() {
            Ok(key) => target.sign(self.url.clone(), key),
            Err(error) => return wrong(error.to_string()),
        }
        let sending = async {
            let before = match &metrics {
                Some(metrics) => Some((metrics, metrics.counts(&http).await?)),
                None => None,
            };
            if self.is_load() {
                self.post_load(&http, &target, &callbacks, before).await
            } else {
                self.post_one(&http, &target, &callbacks, before).await
            }
        };
        match super::block_on(sending) {
            Ok(Ok(code)) => code,
            Ok(Err(error)) => fail(error),
            Err(error) => fail(error),
        }
    }

    fn is_load(&self) -> bool {
        self.rate.is_some() || self.count.is_some()
    }

    /// What does not fit together.
    fn check(&self, target: &Target) -> Result<(), String> {
        if target.is_queue() {
            let given = [
                ("--url", self.url.is_some()),
                ("--key-file", self.key_file.is_some()),
                ("--key-env", self.key_env.is_some()),
                ("--metrics", self.metrics.is_some()),
            ];
            if let Some((option, _)) = given.iter().find(|(_, is_given)| *is_given) {
                return Err(format!("{option} is for targets with http:// or https://, not for a queue; leave it out"));
            }
        }
        if self.is_load() && !target.is_loopback() && !self.allow_remote {
            return Err(format!(
                "{} is not this machine: add --allow-remote to post there with --count or --rate",
                target.host()
            ));
        }
        if self.concurrency.is_some() && !self.is_load() {
            return Err("--concurrency needs --count or --rate".to_owned());
        }
        if self.is_load() {
            let most = descriptors::raise().saturating_sub(OTHER_DESCRIPTORS);
            if self.concurrency() > most {
                return Err(format!(
                    "--concurrency {} needs more file descriptors than this process may open: expected at most {most} \
                     (see `ulimit -n`)",
                    self.concurrency()
                ));
            }
        }
        Ok(())
    }

    fn concurrency(&self) -> usize {
        let default = if self.rate.is_some() { CONCURRENCY.1 } else { CONCURRENCY.0 };
        self.concurrency.map_or(default, usize::from)
    }

    fn tries(&self) -> u32 {
        if self.retry { target::TRIES } else { 1 }
    }

    fn callbacks(&self, chosen: Cow<'_, [u8]>) -> Result<Callbacks, String> {
        let body = match &self.file {
            Some(file) => read(file).map_err(|error| format!("{} cannot be read: {error}", shown(file)))?,
            None => chosen.into_owned(),
        };
        if self.file.is_some() && !self.is_load() {
            return Ok(Callbacks::Same(body));
        }
        if let Some(copies) = Copies::of(&body, &normalizer()?, OffsetDateTime::now_utc()) {
            return Ok(Callbacks::Different(copies));
        }
        if let Some(file) = &self.file {
            let name = shown(file);
            let name = visible::line(&name);
            eprintln!("{name} has no time or id that can be changed: the same bytes are posted each time");
        }
        Ok(Callbacks::Same(body))
    }

    /// Posts one callback.
    async fn post_one(
        &self,
        http: &HttpClient,
        target: &Target,
        callbacks: &Callbacks,
        before: Option<(&Metrics, Counts)>,
    ) -> Result<ExitCode, String> {
        let report = |number, answer: &Answer| {
            if self.retry {
                eprintln!("try {number}: {}", visible::text(&answer.words));
            }
        };
        let answer = target.post(&callbacks.body(0), self.tries(), report).await;
        if !answer.is_success {
            return Err(answer.words);
        }
        let mut report = visible::text(&answer.words).into_owned();
        if let Some((metrics, before)) = before {
            let counted = counted(http, metrics, &before, 1).await.map_err(|error| format!("{report}, but {error}"))?;
            report = format!("{report}, {counted}");
        }
        print(format!("{report}\n"));
        Ok(ExitCode::SUCCESS)
    }

    /// Posts many callbacks. The report is printed whatever comes after it.
    async fn post_load(
        &self,
        http: &HttpClient,
        target: &Target,
        callbacks: &Callbacks,
        before: Option<(&Metrics, Counts)>,
    ) -> Result<ExitCode, String> {
        let load =
            Load { count: self.count, rate: self.rate, concurrency: self.concurrency(), retries: self.tries() > 1 };
        let post = async |number, report: &dyn Fn(u32, &Answer)| {
            target.post(&callbacks.body(number), self.tries(), report).await.is_success
        };
        let totals = load.run(post).await;
        print(format!("{}\n", totals.report()));
        if let Some((metrics, before)) = before {
            let counted = counted(http, metrics, &before, totals.accepted()).await?;
            print(format!("{}\n", visible::text(&counted)));
        }
        finished(&totals)
    }
}

/// What the metrics have counted. It is an error if that is less than what was accepted, or if it cannot be compared.
async fn counted(http: &HttpClient, metrics: &Metrics, before: &Counts, accepted: u64) -> Result<String, String> {
    let after = metrics.counts(http).await?;
    let (url, sums) = (metrics.url(), (before.sum(), after.sum()));
    if after.began_again(before) {
        return Err(format!(
            "the counts of {url} cannot be compared: {} before, {} after, and a bridge has restarted in between or is \
             another one",
            sums.0, sums.1
        ));
    }
    match sums.1 - sums.0.min(sums.1) {
        counted if counted >= accepted => Ok(format!("and counted: {} before, {} after", sums.0, sums.1)),
        0 if accepted == 1 => Err(format!("{url} did not count it: {} before and after", sums.0)),
        counted => Err(format!("{accepted} were accepted, but {url} counted {counted}")),
    }
}

/// The exit code of a load. It is an error if a callback was not accepted.
fn finished(totals: &Totals) -> Result<ExitCode, String> {
    let (posted, refused) = (totals.posted(), totals.posted() - totals.accepted());
    if totals.is_interrupted() {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if refused > 0 {
        return Err(format!("{refused} of {posted} callbacks were not accepted"));
    }
    Ok(ExitCode::SUCCESS)
}
