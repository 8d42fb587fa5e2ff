//! The metrics, in one table: it registers them, and docs/metrics.md is generated from it.
//!
//! No label takes a value that a callback can invent: event types outside the catalogue are `other`.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector, process_collector::ProcessCollector,
};

/// What every metric's name starts with.
pub const PREFIX: &str = "apsara_bridge_";

/// Bounds of latencies in seconds: from a fast acknowledgement to the times that IMS (3 s) and VOD (5 s) wait.
const LATENCY: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 3.0, 5.0];

/// Bounds of the age of an event in seconds: from less than a second to a day in a queue.
const AGE: &[f64] = &[0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0];

/// One row of the table.
#[derive(Debug)]
pub struct Metric {
    /// The section of the documentation that it is in.
    pub section: &'static str,
    /// Name without [`PREFIX`].
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it counts, readable alone.
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
    ($($section:literal { $($name:ident: $kind:ident [$($label:literal),*] $(in $bounds:ident)? = $help:literal;)* })*) => {
        /// Every metric of the bridge, in addition to those of the process.
        pub const METRICS: &[Metric] = &[$($(Metric {
            section: $section,
            name: stringify!($name),
            kind: <$kind as Build>::KIND,
            labels: &[$($label),*],
            help: $help,
        },)*)*];

        /// The metrics of one running bridge.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help] pub $name: $kind,)*)*
        }

        impl Metrics {
            fn registered(registry: Registry) -> prometheus::Result<Metrics> {
                let mut rows = METRICS.iter();
                $($(
                    let $name = {
                        let bounds: &[f64] = [$($bounds)?].first().copied().unwrap_or(&[]);
                        let row = rows.next().ok_or(prometheus::Error::AlreadyReg)?;
                        let metric = $kind::build(row, bounds)?;
                        registry.register(Box::new(metric.clone()))?;
                        metric
                    };
                )*)*
                Ok(Metrics { registry, $($($name,)*)* })
            }
        }
    };
}

metrics! {
    "Callbacks and events" {
        callbacks_total: IntCounterVec ["input", "outcome"] = "Callbacks by outcome: published, spooled, duplicate, dropped, dead_lettered, refused, not_accepted. Each callback is counted once.";
        not_accepted_total: IntCounterVec ["input", "reason"] = "Requests, messages and lines that were not accepted as a callback, by reason. Bodies that are not callbacks are counted here as not_a_callback, also when they are kept as dead letters.";
        unauthorized_total: IntCounterVec ["endpoint", "reason"] = "Requests whose signature was missing, malformed, wrong or too old, by reason.";
        events_total: IntCounterVec ["dialect", "type", "status"] = "Events built from callbacks, including duplicates and refused ones. Types that the catalogue does not know are counted as other.";
        callback_duration_seconds: HistogramVec ["input"] in LATENCY = "Time from the arrival of a callback to its outcome.";
        event_age_seconds: HistogramVec ["dialect"] in AGE = "Time from Alibaba's EventTime to the last acknowledgement of a bus.";
        delivery_duration_seconds: Histogram [] in AGE = "Time from the arrival of a callback to the last acknowledgement of a bus. A record that was published from the spool counts alone.";
        last_event_timestamp_seconds: GaugeVec ["input"] = "Unix time of the last callback that became an event. A value that stays old may mean a wrong setting at Alibaba.";
        route_matches_total: IntCounterVec ["route"] = "Events that a route matched.";
        in_flight: IntGauge [] = "Callbacks between arrival and outcome.";
        dedupe_ids: IntGauge [] = "Ids of accepted events in the dedupe window.";
    }
    "Connections" {
        connections: IntGaugeVec ["listener"] = "Open connections of an HTTP input or of the admin listener.";
        connections_lost_total: IntCounterVec ["listener", "reason"] = "Connections that the bridge refused or ended, by reason: no_room, no_room_for_address, evicted (idle longest, when another one needed its place), head_late, handshake_failed, unreadable (not HTTP, or a head over 16 KiB), answer_not_read.";
    }
    "Outputs" {
        published_total: IntCounterVec ["output"] = "Records that the bus has acknowledged.";
        publish_failures_total: IntCounterVec ["output", "kind"] = "Attempts to publish a record that failed, by kind of error: unavailable, timed_out, queue_full, no_such_destination, unauthorized, misconfigured, too_large, rejected.";
        publish_duration_seconds: HistogramVec ["output"] in LATENCY = "Time from handing a record to the client library to the acknowledgement or the error.";
        output_up: GaugeVec ["output"] = "1 while the output is connected, 0 while it is not.";
    }
    "Spool" {
        spool_events: IntGauge [] = "Records in the spool. An event has one record for each destination that has not acknowledged it yet.";
        spool_lanes: IntGaugeVec ["output", "state"] = "Topics of an output that have records in the spool, by state: waiting, or failing if the last attempt failed.";
        spool_bytes: IntGauge [] = "Bytes of the records in the spool, counted against spool.max_bytes.";
        spool_max_bytes: IntGauge [] = "Limit of spool_bytes.";
        spool_oldest_seconds: Gauge [] = "Age of the oldest record in the spool, 0 if there is none.";
        spool_write_duration_seconds: Histogram [] in LATENCY = "Time of one durable write of the spool, which many callbacks can share.";
        spool_failures_total: IntCounterVec ["reason"] = "Writes of the spool that failed or found no room, by reason: spool_full, lane_full, dead_letters_full, not_a_callback_full, disk_full, read_only, sync_failed, io, damaged, foreign.";
    }
    "Dead letters" {
        dead_letters_total: IntCounterVec ["reason"] = "Callbacks that became dead letters, by reason.";
        dead_letters_not_kept_total: IntCounterVec ["reason"] = "Dead letters that were not stored, because storage was full or failed, by reason.";
        dead_letters_expired_total: IntCounter [] = "Dead letters deleted because they were older than dead_letters.max_age.";
        dead_letters_replayed_total: IntCounterVec ["result"] = "Replays of dead letters, by result: success, failure.";
        dead_letters_stored: IntGauge [] = "Dead letters in the database.";
        dead_letters_stored_bytes: IntGauge [] = "Bytes of the dead letters in the database, counted against dead_letters.max_bytes.";
        dead_letters_max_bytes: IntGauge [] = "Limit of dead_letters_stored_bytes.";
    }
    "MNS queues" {
        mns_receives_total: IntCounterVec ["queue", "result"] = "Requests for messages of a queue, by result: messages, empty, misconfigured, throttled, unavailable.";
        mns_messages: GaugeVec ["queue", "state"] = "Messages by the queue's own count, requested once a minute, by state: active, inactive, delayed.";
        mns_lease_extensions_total: IntCounter [] = "Leases of messages that were extended.";
        mns_late_deletes_total: IntCounter [] = "Messages that could not be deleted before their lease ended. They come again, as duplicates.";
        mns_clock_offset_seconds: GaugeVec ["queue"] = "How far Alibaba's clock is ahead of the clock of this machine. From 900 in either direction, Alibaba refuses requests.";
    }
    "Process" {
        config_reloads_total: IntCounterVec ["result"] = "Reloads of the configuration, of a secret or of a certificate, by result: success, failure.";
        certificate_expiry_timestamp_seconds: GaugeVec ["file"] = "Unix time at which the first certificate in a file of the configuration expires.";
        build_info: GaugeVec ["version"] = "Always 1. The label is the version.";
    }
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
    /// When a collector gave a family that cannot be written.
    pub fn text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// One series of a metric.
#[derive(Debug)]
pub struct Series<'m>(&'m prometheus::proto::Metric);

impl Series<'_> {
    /// The value of a label; empty if it does not have the label.
    pub fn label(&self, name: &str) -> &str {
        let label = self.0.get_label().iter().find(|label| label.name() == name);
        label.map_or("", |label| label.value())
    }

    /// The value of a counter.
    pub fn count(&self) -> u64 {
        // A counter of whole numbers is exact up to 2^53.
        self.0.get_counter().get_value() as u64
    }

    /// The value of a gauge.
    pub fn gauge(&self) -> f64 {
        self.0.get_gauge().get_value()
    }

    /// The number of observations of a histogram, and for each upper bound how many did not exceed it.
    pub fn histogram(&self) -> (u64, impl Iterator<Item = (f64, u64)>) {
        let histogram = self.0.get_histogram();
        let buckets = histogram.get_bucket().iter();
        (histogram.get_sample_count(), buckets.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())))
    }
}

/// Calls a function with each series of a metric that exists.
pub fn each_series(metric: &impl Collector, mut visit: impl FnMut(Series<'_>)) {
    for family in metric.collect() {
        family.get_metric().iter().for_each(|metric| visit(Series(metric)));
    }
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
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert_eq!(metric.kind == "counter", metric.name.ends_with("_total"), "{}", metric.name);
        }
    }
}
