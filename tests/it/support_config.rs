//! Tests of the builder of configurations.

use apsara_bridge::config::{self, Layer};

use crate::support::config::{Config, Route};

/// The configuration that the bridge reads from it.
fn effective(config: &Config) -> toml::Value {
    let loaded = config::load(&[Layer::Text("test".to_owned(), config.to_string())]);
    toml::from_str(&loaded.expect("valid").effective.to_toml()).expect("TOML")
}

#[test]
fn a_text_changes_only_the_keys_that_it_names() {
    let config = Config::http().kafka("one:9092").to("kafka", "topic");
    assert_eq!(effective(&config)["spool"]["enabled"], false.into());
    let config = config.set("delivery.deadline = '2s'").spool("/spool").set("spool.max_bytes = '1GiB'");
    let config = config.set("[outputs.kafka.client]\n'linger.ms' = 50");
    let changed = effective(&config);
    assert_eq!(changed["delivery"]["deadline"].as_str(), Some("2s"));
    let (spool, kafka) = (&changed["spool"], &changed["outputs"]["kafka"]);
    assert_eq!((spool["enabled"].as_bool(), spool["path"].as_str()), (Some(true), Some("/spool")));
    assert_eq!((&spool["max_bytes"], &kafka["brokers"][0]), (&"1GiB".into(), &"one:9092".into()));
    let read: Config = config.to_string().parse().expect("TOML");
    let read = read.without("delivery.deadline").routes([Route::new("other").to("kafka", "topic")]);
    let removed = effective(&read);
    assert_eq!(removed["delivery"]["deadline"].as_str(), Some("1s"), "the default");
    assert_eq!(removed["routes"].as_array().map(Vec::len), Some(1));
    assert_eq!(removed["routes"][0]["name"].as_str(), Some("other"));
}
