//! The metrics, in one table that registers them and that docs and tests read.
//!
//! No label takes a value that a callback can invent: event types outside the catalogue are `other`.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, process_collector::ProcessCollector,
};

/// What every metric's name starts with.
pub const PREFIX: &str = "apsara_bridge_";

/// Bounds of latencies, in seconds: from a fast broker's ack to past the time IMS waits.
const LATENCY: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Bounds of an event's age, in seconds: from at once to a day in a queue.
const AGE: &[f64] = &[0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0];

/// One row of the table.
#[derive(Debug)]
pub struct Metric {
    /// Name without [`PREFIX`].
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

trait Build: Sized {
    const KIND: &'static str;
    fn build(metric: &Metric, bounds: &[f64]) -> prometheus::Result<Self>;
}

fn opts(metric: &Metric) -> Opts {
    Opts::new(format!("{PREFIX}{}", metric.name), metric.help)
}

impl Build for IntCounterVec {
    const KIND: &'static str = "counter";
    fn build(metric: &Metric, _: &[f64]) -> prometheus::Result<Self> {
        IntCounterVec::new(opts(metric), metric.labels)
    }
}

impl Build for IntCounter {
    const KIND: &'static str = "counter";
    fn build(metric: &Metric, _: &[f64]) -> prometheus::Result<Self> {
        IntCounter::with_opts(opts(metric))
    }
}

impl Build for GaugeVec {
    const KIND: &'static str = "gauge";
    fn build(metric: &Metric, _: &[f64]) -> prometheus::Result<Self> {
        GaugeVec::new(opts(metric), metric.labels)
    }
}

impl Build for IntGaugeVec {
    const KIND: &'static str = "gauge";
    fn build(metric: &Metric, _: &[f64]) -> prometheus::Result<Self> {
        IntGaugeVec::new(opts(metric), metric.labels)
    }
}

impl Build for IntGauge {
    const KIND: &'static str = "gauge";
    fn build(metric: &Metric, _: &[f64]) -> prometheus::Result<Self> {
        IntGauge::with_opts(opts(metric))
    }
}

impl Build for Gauge {
    const KIND: &'static str = "gauge";
    fn build(metric: &Metric, _: &[f64]) -> prometheus::Result<Self> {
        Gauge::with_opts(opts(metric))
    }
}

impl Build for Histogram {
    const KIND: &'static str = "histogram";
    fn build(metric: &Metric, bounds: &[f64]) -> prometheus::Result<Self> {
        Histogram::with_opts(HistogramOpts::from(opts(metric)).buckets(bounds.to_vec()))
    }
}

impl Build for HistogramVec {
    const KIND: &'static str = "histogram";
    fn build(metric: &Metric, bounds: &[f64]) -> prometheus::Result<Self> {
        HistogramVec::new(HistogramOpts::from(opts(metric)).buckets(bounds.to_vec()), metric.labels)
    }
}

macro_rules! metrics {
    ($($name:ident: $kind:ident [$($label:literal),*] $(in $bounds:ident)? = $help:literal;)*) => {
        /// Every metric of the bridge, beside the process's own.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: stringify!($name),
            kind: <$kind as Build>::KIND,
            labels: &[$($label),*],
            help: $help,
        },)*];

        /// The metrics of one running bridge.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $name: $kind,)*
        }

        impl Metrics {
            fn registered(registry: Registry) -> prometheus::Result<Metrics> {
                let mut rows = METRICS.iter();
                $(
                    let $name = {
                        let bounds: &[f64] = [$($bounds)?].first().copied().unwrap_or(&[]);
                        let row = rows.next().ok_or(prometheus::Error::AlreadyReg)?;
                        let metric = $kind::build(row, bounds)?;
                        registry.register(Box::new(metric.clone()))?;
                        metric
                    };
                )*
                Ok(Metrics { registry, $($name,)* })
            }
        }
    };
}

metrics! {
    callbacks_total: IntCounterVec ["input", "outcome"] = "Callbacks by what became of them; each is counted once.";
    not_accepted_total: IntCounterVec ["input", "reason"] = "Requests answered without being taken as a callback, by reason.";
    events_total: IntCounterVec ["dialect", "type", "status"] = "Events made of callbacks.";
    callback_duration_seconds: HistogramVec ["input"] in LATENCY = "Time from a callback's receipt to its outcome.";
    event_age_seconds: HistogramVec ["dialect"] in AGE = "Time from Alibaba's EventTime to the last bus acknowledgement.";
    last_event_timestamp_seconds: GaugeVec ["input"] = "Unix time of the last callback taken: silence shows a broken input.";
    unauthorized_total: IntCounterVec ["endpoint", "reason"] = "Requests whose signature was missing or wrong.";
    route_matches_total: IntCounterVec ["route"] = "Events a route took.";
    published_total: IntCounterVec ["output"] = "Records the bus has acknowledged.";
    publish_failures_total: IntCounterVec ["output", "kind"] = "Records that could not be published, by kind of error.";
    publish_duration_seconds: HistogramVec ["output"] in LATENCY = "Time from handing a record to the client to the bus's answer.";
    output_up: GaugeVec ["output"] = "1 while the output is connected, 0 while it is not.";
    in_flight: IntGauge [] = "Callbacks between receipt and outcome.";
    spool_events: IntGauge [] = "Records in the spool: events, once for each destination that has yet to take them.";
    spool_lanes: IntGaugeVec ["output", "state"] = "Topics of an output that have records in the spool: waiting, or failing.";
    spool_bytes: IntGauge [] = "What they count against spool.max_bytes.";
    spool_max_bytes: IntGauge [] = "The bound of spool_bytes.";
    spool_oldest_seconds: Gauge [] = "How long the oldest record has been in the spool; 0 without any.";
    spool_write_duration_seconds: Histogram [] in LATENCY = "Time of one durable write, which many callbacks may share.";
    spool_failures_total: IntCounterVec ["reason"] = "Writes to the spool's database that failed or found no room.";
    dead_letters_total: IntCounterVec ["reason"] = "Callbacks that could not be published as they are and were kept, by reason.";
    dead_letters_not_kept_total: IntCounterVec ["reason"] = "Dead letters that were not stored, because there was no room or the disk failed, by reason.";
    dead_letters_expired_total: IntCounter [] = "Dead letters deleted because they were older than dead_letters.max_age.";
    dead_letters_replayed_total: IntCounterVec ["result"] = "Dead letters replayed, by whether that succeeded.";
    dead_letters_stored: IntGauge [] = "Dead letters in the database.";
    dead_letters_stored_bytes: IntGauge [] = "What they count against dead_letters.max_bytes.";
    dead_letters_max_bytes: IntGauge [] = "The bound of dead_letters_stored_bytes.";
    dedupe_ids: IntGauge [] = "Ids of accepted events that are remembered.";
    mns_receives_total: IntCounterVec ["queue", "result"] = "Requests for messages of a queue, by what came.";
    mns_messages: GaugeVec ["queue", "state"] = "Messages of a queue by its own count, asked once a minute.";
    mns_lease_extensions_total: IntCounter [] = "Leases of messages that were extended.";
    mns_late_deletes_total: IntCounter [] = "Messages that could not be deleted before their lease ended: they come again.";
    mns_clock_offset_seconds: GaugeVec ["queue"] = "How far Alibaba's clock is ahead of the one here.";
    config_reloads_total: IntCounterVec ["result"] = "Reloads of the configuration, by result.";
    build_info: GaugeVec ["version"] = "Always 1; the label tells the version.";
}

impl Metrics {
    /// Metrics in a registry of their own, so that several bridges can run in one process.
    ///
    /// # Errors
    /// None in a build whose tests pass: only a name or a label in the table can be invalid.
    pub fn new() -> prometheus::Result<Metrics> {
        let metrics = Metrics::registered(Registry::new())?;
        let _ = metrics.registry.register(Box::new(ProcessCollector::for_self()));
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        Ok(metrics)
    }

    /// The text that Prometheus reads (exposition format 0.0.4).
    ///
    /// # Errors
    /// When a collector gave a family that can't be written.
    pub fn text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Sets a gauge to the present Unix time.
pub fn set_to_now(gauge: &Gauge) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    gauge.set(now.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_and_what_is_exported_are_one() {
        let metrics = Metrics::new().expect("a valid table");
        metrics.in_flight.set(3);
        let text = metrics.text().expect("can be written");
        assert!(text.contains("# TYPE apsara_bridge_in_flight gauge\napsara_bridge_in_flight 3\n"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
        for metric in METRICS {
            assert!(!metric.help.is_empty() && metric.kind != "counter" || metric.name.ends_with("_total"));
        }
    }
}
