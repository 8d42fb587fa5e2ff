//! The configuration: all errors are reported at once, with file and key; every key is documented.

use apsara_bridge::config::{self, Layer};
use apsara_bridge::service::is_reloadable;

use crate::support::{repository, repository_text};

fn errors(text: &str) -> Vec<String> {
    let layer = Layer::Text("bridge.toml".to_owned(), text.to_owned());
    let errors = config::load(&[layer]).expect_err("must be refused");
    let mut told: Vec<String> = errors
        .iter()
        .map(
            |error| {
                if error.key.is_empty() { error.message.clone() } else { format!("{}: {}", error.key, error.message) }
            },
        )
        .collect();
    told.sort();
    told
}

const GOOD: &str = "
[inputs.http]
kind = 'http'
listen = '127.0.0.1:0'
[[inputs.http.endpoints]]
[outputs.kafka]
kind = 'kafka'
[outputs.nats]
kind = 'nats'
[[routes]]
name = 'all'
to = { output = 'kafka', topic = 'media.{status}' }
";

/// Listeners that exclude each other would stop the bridge only when it starts.
#[test]
fn two_listeners_cannot_have_one_address() {
    let listen = |admin: &str, first: &str, second: &str| {
        let config = format!(
            "{GOOD}[admin]\nlisten = '{admin}'\n\
             [inputs.a]\nkind = 'http'\nlisten = '{first}'\n[[inputs.a.endpoints]]\nallow_unsigned = true\n\
             [inputs.b]\nkind = 'http'\nlisten = '{second}'\n[[inputs.b.endpoints]]\nallow_unsigned = true\n"
        );
        match config::load(&[Layer::Text("bridge.toml".to_owned(), config)]) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(|error| format!("{}: {}", error.key, error.message)).collect::<Vec<_>>(),
        }
    };
    let too = ["is the address of", "too: expected another port or address"];
    assert_eq!(
        listen("127.0.0.1:9464", "0.0.0.0:9464", "[::]:9464"),
        [
            format!("inputs.a.listen: 0.0.0.0:9464 {} admin.listen {}", too[0], too[1]),
            format!("inputs.b.listen: [::]:9464 {} admin.listen {}", too[0], too[1]),
        ]
    );
    assert_eq!(
        listen("127.0.0.1:9464", "127.0.0.1:8080", "127.0.0.1:8080"),
        [format!("inputs.b.listen: 127.0.0.1:8080 {} inputs.a.listen {}", too[0], too[1])]
    );
    assert_eq!(listen("127.0.0.1:0", "127.0.0.1:0", "0.0.0.0:0"), [""; 0]);
    assert_eq!(listen("127.0.0.1:1", "127.0.0.1:2", "127.0.0.2:1"), [""; 0]);
}

#[test]
fn every_kind_of_mistake_is_reported_at_once() {
    let told = errors(
        r#"
        colour = "blue"
        [inputs.http]
        kind = "http"
        listen = "0.0.0.0:8080"
        max_bdy = "1KiB"
        max_body = "1 parsec"
        body_timeout = 5
        tls = { cert_file = "/nonexistent.pem", key_file = "/nonexistent.key" }
        [[inputs.http.endpoints]]
        path = "callbacks"
        [[inputs.http.endpoints]]
        path = "/b"
        urls = ["media.example.com"]
        keys = [{ file = "/nonexistent/key" }, { env = "APSARA_TEST_UNSET" }]
        dialects = ["vod", "mps"]
        [inputs.queue]
        kind = "htp"
        [inputs.nothing]
        [outputs.kafka]
        kind = "kafka"
        brokers = []
        client = { acks = 1, "no.such" = true }
        [outputs.nats]
        kind = "nats"
        delivry = "core"
        [[routes]]
        name = "one"
        match = { stauts = "x", type = "[" }
        to = { output = "kafkaa", topic = "media" }
        [[routes]]
        name = "one"
        to = { output = "kafka", topic = "{status}", key = "{nokey}" }
        filter = { exact = { typ = "x" } }
        [[routes]]
        name = "three"
        drop = true
        dead_letter = true
        [[routes]]
        to = [{ output = "nats", topic = "a b", key = "x" }, { output = "kafka" }]
        [delivery]
        deadline = "3s"
        max_in_flight = "many"
        [catalogue]
        files = ["/nonexistent.toml"]
        [event]
        type_prefix = "with blank "
        [log]
        filter = "nonsense=="
        format = "xml"
        "#,
    );
    let expected = [
        "catalogue.files: /nonexistent.toml cannot be read: No such file or directory (os error 2)",
        "colour: unknown key; expected one of inputs, outputs, routes, event, catalogue, delivery, spool, dead_letters, dedupe, admin, log, shutdown, tests",
        "delivery.deadline: 3s is out of range: expected more than 0s and at most 2s 900ms, because IMS waits 3s for an answer",
        "delivery.max_in_flight: found a string; expected a whole number",
        "event.type_prefix: invalid prefix `with blank `: expected one like com.example.media.",
        "inputs.http.body_timeout: found the number `5`; expected a duration with its unit, for example \"5s\" or \"250ms\"",
        "inputs.http.endpoints[0].keys: 0.0.0.0:8080 is reachable from other machines: set keys, or allow_unsigned = true to accept callbacks from anyone",
        "inputs.http.endpoints[0].path: invalid path `callbacks`: expected one that starts with `/`, for example /callbacks",
        "inputs.http.endpoints[1].dialects[1]: unknown value `mps`; expected one of vod, ims",
        "inputs.http.endpoints[1].keys[0]: secret file /nonexistent/key cannot be read: No such file or directory (os error 2)",
        "inputs.http.endpoints[1].keys[1]: environment variable APSARA_TEST_UNSET of a secret is not set",
        "inputs.http.endpoints[1].urls: invalid url `media.example.com`: expected http:// or https://",
        "inputs.http.max_bdy: unknown key; did you mean `max_body`?",
        "inputs.http.max_body: invalid size `1 parsec`: expected a number with its unit, for example \"256KiB\" or \"1GiB\"",
        "inputs.http.tls: /nonexistent.pem cannot be read: ",
        "inputs.nothing.kind: missing; expected one of http, mns, stdin",
        "inputs.queue.kind: unknown kind `htp`; did you mean `http`?; expected one of http, mns, stdin",
        "log.filter: invalid filter `nonsense==`: ",
        "log.format: unknown value `xml`; expected one of auto, text, json",
        "outputs.kafka.brokers: expected at least one host:port",
        "outputs.kafka.client.\"acks\": must stay `all`: otherwise losing one broker could lose events that were answered with 200",
        "outputs.kafka.client.\"no.such\": librdkafka has no such property",
        "outputs.nats.delivry: unknown key; did you mean `delivery`?",
        "routes[0].match.stauts: unknown attribute; did you mean `status`?",
        "routes[0].match.type: invalid pattern `[`: ",
        "routes[0].to[0].output: there is no output `kafkaa`; did you mean `kafka`?",
        "routes[1].filter: `exact.typ`: unknown attribute; did you mean `type`?",
        "routes[1].name: two routes are named `one`",
        "routes[1].to[0].topic: `{status}` starts with an attribute; a topic needs a literal prefix, for example `media.{status}`",
        "routes[2]: expected one of `to` with at least one destination, `drop = true`, `dead_letter = true` in route `three`",
        "routes[3].name: missing; metrics and logs name a route by it",
        "routes[3].to[0].key: an output of kind nats has no keys; leave it out",
        "routes[3].to[0].topic: invalid characters in `a b`: expected printable ASCII characters except `*` and `>`",
        "routes[3].to[1].topic: missing; it names where on the output the event goes",
    ];
    for expected in expected {
        assert!(told.iter().any(|told| told.starts_with(expected)), "{expected}\nis not in\n{}", told.join("\n"));
    }
    assert_eq!(told.len(), expected.len(), "{}", told.join("\n"));
}

#[test]
fn an_empty_configuration_is_refused_with_what_is_missing() {
    assert_eq!(
        errors(""),
        [
            "inputs: expected at least one, for example [inputs.http] with kind = \"http\"",
            "outputs: expected at least one, for example [outputs.kafka] with kind = \"kafka\"",
            "routes: expected at least one, for example [[routes]] with name and to",
        ]
    );
    assert!(errors("inputs = 5").iter().any(|told| told == "inputs: found the number `5`; expected a table"));
    assert!(errors("[routes\n")[0].contains("TOML parse error at line 1"));
}

#[test]
fn dangerous_settings_cause_warnings() {
    let text = GOOD.replace("kind = 'nats'", "kind = 'nats'\ndelivery = 'core'")
        + "[[routes]]\nname = 'late'\ndead_letter = true\n[spool]\nenabled = false\n";
    let loaded = config::load(&[Layer::Text("bridge.toml".to_owned(), text)]).expect("valid");
    assert_eq!(
        loaded.warnings,
        [
            "route `late` can never match: the earlier route `all` matches all of its events and does not continue",
            "route `late` makes dead letters, but there is no place for them (a spool, or dead_letters.to): its events are answered with 503",
            "output `nats` delivers by core NATS, at most once: events that were answered with 200 can be lost",
        ]
    );
}

/// The warnings about a configuration, without those about the folder of the spool on this machine.
fn warnings(text: &str) -> Vec<String> {
    let text = format!("{text}\n[spool]\npath = '/nonexistent/spool'\n");
    let loaded = config::load(&[Layer::Text("bridge.toml".to_owned(), text)])
        .unwrap_or_else(|errors| panic!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")));
    loaded.warnings.into_iter().filter(|warning| !warning.starts_with("spool.path")).collect()
}

const NOWHERE: &str = "[[routes]]\nname = 'all'\ndrop = true\n";
const CONSOLE: &str = "[outputs.console]\nkind = 'console'\n";

#[test]
fn weak_inputs_cause_warnings_except_on_this_machine() {
    let http = |listen: &str, url: &str, key: &str, max_age: &str| {
        warnings(&format!(
            "[inputs.http]\nkind = 'http'\nlisten = '{listen}'\n[[inputs.http.endpoints]]\nurls = ['{url}']\n\
             keys = ['{key}']\nmax_age = '{max_age}'\n{CONSOLE}{NOWHERE}"
        ))
    };
    let weak = [
        "input `http`: endpoints[0].keys[0]: the key has fewer than 8 characters, and one captured signature is enough to \
         find it by trying; set a random key of 32 characters here and at Alibaba",
        "input `http`: endpoints[0].max_age: for 2h, who has seen one signature can post any body with it; set at most 1h",
    ];
    assert_eq!(http("0.0.0.0:8080", "https://media.example.com/", "Test123", "2h"), weak);
    // A proxy can be on the same machine.
    assert_eq!(http("127.0.0.1:8080", "https://media.example.com/", "Test123", "2h"), weak);
    assert_eq!(http("127.0.0.1:8080", "http://localhost:8080/", "Test123", "2h"), Vec::<String>::new());
    assert_eq!(http("0.0.0.0:8080", "https://media.example.com/", "Test1234", "1h"), Vec::<String>::new());

    let queue = |endpoint: &str| {
        warnings(&format!("[inputs.q]\nkind = 'mns'\nqueue = 'q'\nendpoint = '{endpoint}'\n{CONSOLE}{NOWHERE}"))
    };
    assert_eq!(
        queue("HTTP://1.mns.cn-shanghai.aliyuncs.com"),
        [
            "input `q`: endpoint: over http://, others can read messages, signatures of the access key and security tokens, \
          and change answers; set the endpoint with https://"
        ]
    );
    assert_eq!(queue("https://1.mns.cn-shanghai.aliyuncs.com"), Vec::<String>::new());
    assert_eq!(queue("http://127.0.0.1:8000"), Vec::<String>::new());
}

#[test]
fn a_weak_admin_address_causes_warnings_except_on_this_machine() {
    let admin = |text: &str| warnings(&format!("[inputs.i]\nkind = 'stdin'\n[admin]\n{text}\n{CONSOLE}{NOWHERE}"));
    let none = Vec::<String>::new();
    let all = "admin.page: \"all\" shows the page and all events to everybody who can reach 0.0.0.0:9464, and to web \
               sites that they have open (DNS rebinding); use \"local\" with `kubectl port-forward` or an SSH tunnel";
    let payloads =
        |who: &str| format!("admin.show_payloads: the page and the event stream show the data of all events to {who}");
    assert_eq!(admin("listen = '0.0.0.0:9464'\npage = 'all'"), [all]);
    assert_eq!(admin("listen = '0.0.0.0:9464'\npage = 'local'"), none);
    assert_eq!(admin("listen = '[::1]:9464'\npage = 'all'"), none);
    assert_eq!(admin("show_payloads = true"), [payloads("every user of this machine")]);
    let open = "listen = '0.0.0.0:9464'\npage = 'all'\nshow_payloads = true";
    assert_eq!(admin(open), [all.to_owned(), payloads("everybody who can reach the address")]);
    assert_eq!(admin("page = 'off'\nshow_payloads = true"), none);
}

#[test]
fn weak_outputs_cause_warnings_except_on_this_machine() {
    let output = |text: &str| warnings(&format!("[inputs.i]\nkind = 'stdin'\n[outputs.o]\n{text}\n{NOWHERE}"));
    let none = Vec::<String>::new();
    let kafka = |broker: &str, client: &str| {
        output(&format!("kind = 'kafka'\nbrokers = ['127.0.0.1:9092', '{broker}']\n[outputs.o.client]\n{client}"))
    };
    let login = "'sasl.username' = 'u'\n'sasl.password' = 'p'\n";
    let plain = format!("{login}'security.protocol' = 'SASL_PLAINTEXT'\n'sasl.mechanism' = 'PLAIN'");
    assert_eq!(
        kafka("kafka:9092", &plain),
        ["output `o`: client.\"sasl.password\": with SASL_PLAINTEXT and PLAIN, others can read it on its way; set \
          security.protocol = \"SASL_SSL\", or sasl.mechanism = \"SCRAM-SHA-512\""]
    );
    assert_eq!(kafka("[::1]:9092", &plain), none);
    assert_eq!(kafka("kafka:9092", &plain.replace("'PLAIN'", "'SCRAM-SHA-256'")), none);
    assert_eq!(kafka("kafka:9092", &plain.replace("SASL_PLAINTEXT", "SASL_SSL")), none);
    let unverified = "'security.protocol' = 'ssl'\n'enable.ssl.certificate.verification' = false";
    assert_eq!(
        kafka("kafka:9092", unverified),
        [
            "output `o`: client.\"enable.ssl.certificate.verification\" = false: anyone between the bridge and the brokers \
          can play the brokers; remove it, and name your authority in ssl.ca.location"
        ]
    );
    assert_eq!(kafka("127.0.0.1:9093", unverified), none);

    let nats = |text: &str| output(&format!("kind = 'nats'\n{text}"));
    for (login, word) in [("user = 'u'\npassword = 'p'", "password"), ("token = 't'", "token")] {
        assert_eq!(
            nats(&format!("servers = ['nats://127.0.0.1:4222', 'nats://nats:4222']\n{login}")),
            [format!(
                "output `o`: {word}: over nats://, others can read it, because TLS is not required; write the servers as \
                 tls://host:port"
            )]
        );
        for strong in ["'tls://nats:4222'", "'nats://localhost:4222'"] {
            assert_eq!(nats(&format!("servers = [{strong}]\n{login}")), none);
        }
        assert_eq!(nats(&format!("servers = ['nats://nats:4222']\ntls = {{}}\n{login}")), none);
    }
    assert_eq!(nats("servers = ['nats://nats:4222']"), none);

    let webhook = |url: &str, headers: &str| output(&format!("kind = 'http'\nurl = '{url}'\n{headers}"));
    let headers = "request_headers = { authorization = 'Bearer t' }";
    assert_eq!(
        webhook("http://events.example.com/", headers),
        ["output `o`: request_headers: over http://, others can read their values; set a url with https://"]
    );
    assert_eq!(webhook("http://events.example.com/", ""), none);
    assert_eq!(webhook("https://events.example.com/", headers), none);
    assert_eq!(webhook("http://[::1]:8080/", headers), none);
}

#[test]
fn a_file_with_a_secret_that_everyone_can_read_causes_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    // Not in the usual folder for temporary files, which may be in memory.
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("set");
    let file = folder.path().join("key");
    std::fs::write(&file, "ExampleKey1").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("set");
    let shown = file.display();
    let exposed = format!("every user of this machine can read the secret in {shown}: run `chmod o-r {shown}`");
    let found = warnings(&format!(
        "[inputs.http]\nkind = 'http'\n[[inputs.http.endpoints]]\nurls = ['https://media.example.com/']\n\
         keys = [{{ file = '{shown}' }}]\n\
         [outputs.nats]\nkind = 'nats'\ntls = {{ cert_file = '{shown}', key_file = '{shown}' }}\n{NOWHERE}"
    ));
    assert_eq!(
        found,
        [format!("output `nats`: tls.key_file: {exposed}"), format!("inputs.http.endpoints[0].keys[0]: {exposed}"),]
    );
}

#[test]
fn topics_that_senders_choose_cause_warnings() {
    let found = warnings(
        "[inputs.i]\nkind = 'stdin'\n[outputs.kafka]\nkind = 'kafka'\n[outputs.nats]\nkind = 'nats'\n\
         [outputs.console]\nkind = 'console'\n\
         [[routes]]\nname = 'closed'\ncontinue = true\nmatch = { status = 'success' }\n\
         to = { output = 'kafka', topic = 'm.{dialect}.{status}', key = '{mediaid}' }\n\
         [[routes]]\nname = 'listed'\ncontinue = true\nmatch = { type = ['TranscodeComplete', 'FileUploadComplete'] }\n\
         to = { output = 'nats', topic = 'm.{type}' }\n\
         [[routes]]\nname = 'filtered'\ncontinue = true\n\
         filter = { any = [{ exact = { appid = 'a' } }, { exact = { appid = 'b' } }] }\n\
         to = { output = 'nats', topic = 'm.{appid}' }\n\
         [[routes]]\nname = 'open'\nmatch = { type = 'Transcode*', mediaid = '*' }\n\
         to = [{ output = 'kafka', topic = 'm.{status}.{mediaid}' }, { output = 'nats', topic = 'm.{type}' },\n\
         { output = 'console', topic = 'm.{mediaid}' }]\n\
         [dead_letters]\nto = { output = 'kafka', topic = 'd.{dlqreason}.{subject}' }\n",
    );
    let warning = |place: &str, topic: &str, chosen: &str, output: &str| {
        format!(
            "{place}: topic `{topic}` contains {{{chosen}}}, which senders choose: they can make any number of topics if \
             `{output}` creates missing ones; use {{dialect}} or {{status}}, or list the values of {chosen} in `match`"
        )
    };
    assert_eq!(
        found,
        [
            warning("route `open`", "m.{status}.{mediaid}", "mediaid", "kafka"),
            warning("route `open`", "m.{type}", "type", "nats"),
            warning("dead_letters.to", "d.{dlqreason}.{subject}", "subject", "kafka"),
        ]
    );
}

#[test]
fn types_that_may_contain_secrets_do_not_show_them() {
    let shown = format!(
        "{:?} {:?}",
        [
            Layer::Set("a.password=hunter2".to_owned()),
            Layer::Text("file".to_owned(), "password = 'hunter2'".to_owned())
        ],
        toml::from_str::<config::raw::Raw>("[outputs.nats]\nkind = 'nats'\npassword = 'hunter2'").expect("valid")
    );
    assert!(shown.contains("a.password") && shown.contains("nats") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn later_layers_win_and_errors_name_their_source() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (folder.path().join("first.toml"), folder.path().join("second.yaml"));
    std::fs::write(&first, format!("{GOOD}\n[delivery]\ndeadline = '2s'\nmax_in_flight = 5\n")).expect("written");
    std::fs::write(&second, "delivery: { deadline: 500ms }\nlog: { filter: debug }\n").expect("written");
    let layers = |more: &[&str]| -> Vec<Layer> {
        let files = [Layer::File(first.clone()), Layer::File(second.clone())];
        files.into_iter().chain(more.iter().map(|set| Layer::Set((*set).to_owned()))).collect()
    };
    let effective = config::load(&layers(&["log.filter=warn"])).expect("valid").effective.to_toml();
    assert!(effective.contains("deadline = \"500ms\"") && effective.contains("max_in_flight = 5"));
    assert!(effective.contains("filter = \"warn\""));
    let errors = config::load(&layers(&["delivery.deadlin=1s", "admin.listen=nowhere"])).expect_err("must be refused");
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(told.contains(&"--set: delivery.deadlin: unknown key; did you mean `deadline`?".to_owned()), "{told:?}");
    assert!(
        told.iter().any(|told| told.starts_with("--set: admin.listen: invalid address `nowhere`: expected host:port")),
        "{told:?}"
    );
    let missing = config::load(&[Layer::File(folder.path().join("none.toml"))]).expect_err("must be refused");
    assert!(missing[0].to_string().ends_with("none.toml: cannot be read: No such file or directory (os error 2)"));
    std::fs::write(&second, "delivery: { max_in_flight: none }\n").expect("written");
    let errors = config::load(&layers(&[])).expect_err("must be refused");
    assert!(errors[0].to_string().contains("second.yaml: delivery.max_in_flight: found a string"), "{}", errors[0]);
}

#[test]
fn secrets_are_hidden_in_errors_and_in_the_effective_configuration() {
    let text = format!(
        "{GOOD}\n[outputs.third]\nkind = 'nats'\nuser = 'me'\npassword = 'hunter2'\n\
         [outputs.fourth]\nkind = 'kafka'\nclient = {{ \"sasl.password\" = 'hunter2' }}\n"
    )
    .replace("[[inputs.http.endpoints]]", "[[inputs.http.endpoints]]\nurls = ['http://x/']\nkeys = ['hunter2']");
    for wrong in [
        "[outputs.kafka]\nkind = 'kafka'\nbrokers = { hunter2 = 'hunter2' }\nclient = 'sasl.password=hunter2'",
        "[outputs.nats]\nkind = 'nats'\nservers = ['nats://me:hunter2@127.0.0.1']",
        "[outputs.nats]\nkind = 'nats'\npassword = [\n'hunter2'",
        "[inputs.http]\nkind = 'http'\nendpoints = 'hunter2'",
    ] {
        let told = errors(wrong).join("\n");
        assert!(!told.contains("hunter2\"") && !told.contains("=hunter2") && !told.contains(":hunter2"), "{told}");
        assert!(!told.contains("'hunter2'"), "{told}");
    }
    let effective = config::load(&[Layer::Text("bridge.toml".to_owned(), text)]).expect("valid").effective.to_toml();
    assert!(effective.contains("<hidden>") && !effective.contains("hunter2"), "{effective}");
}

/// The documented file, and the same with every `#key = value` line turned into a key.
pub(crate) fn documented() -> (String, String) {
    let text = repository_text("config/apsara-bridge.toml");
    let all = text
        .lines()
        .map(|line| match line.trim_start().strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '[' || c == '"') => key,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n");
    (text, all)
}

fn keys(value: &toml::Value, path: &str, out: &mut Vec<(String, toml::Value)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                keys(value, &below, out);
            }
        }
        toml::Value::Array(items) if items.iter().all(toml::Value::is_table) && !items.is_empty() => {
            items.iter().for_each(|item| keys(item, path, out));
        }
        leaf => out.push((path.to_owned(), leaf.clone())),
    }
}

#[test]
fn the_documented_file_is_valid_and_shows_every_key_with_its_default() {
    let (text, all) = documented();
    let loaded = config::load(&[Layer::Text("documented".to_owned(), text)])
        .unwrap_or_else(|errors| panic!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")));
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let mut shown = Vec::new();
    keys(&toml::from_str(&all).expect("TOML with all keys"), "", &mut shown);

    // Every documented key exists.
    if let Err(errors) = config::load(&[Layer::Text("documented".to_owned(), all.clone())]) {
        let unknown: Vec<String> =
            errors.iter().filter(|error| error.message.contains("unknown key")).map(ToString::to_string).collect();
        assert_eq!(unknown, Vec::<String>::new());
    }

    // Every key is documented: the keys of a minimal configuration with its defaults, and the keys without a default.
    let minimal = "
        [inputs.http]
        kind = 'http'
        [[inputs.http.endpoints]]
        [inputs.backfill]
        kind = 'stdin'
        [outputs.kafka]
        kind = 'kafka'
        [outputs.nats]
        kind = 'nats'
        [outputs.webhook]
        kind = 'http'
        url = 'https://events.example.com/'
        [outputs.console]
        kind = 'console'
        [[routes]]
        name = 'all'
        drop = true
    ";
    let minimal = config::load(&[Layer::Text("minimal".to_owned(), minimal.to_owned())]).expect("valid");
    let mut defaults = Vec::new();
    keys(&toml::from_str(&minimal.effective.to_toml()).expect("TOML"), "", &mut defaults);
    let without_default = [
        "inputs.http.tls.cert_file",
        "inputs.http.tls.key_file",
        "inputs.http.endpoints.region",
        "inputs.http.endpoints.account_id",
        "inputs.backfill.region",
        "inputs.backfill.account_id",
        "outputs.nats.user",
        "outputs.nats.token",
        "outputs.nats.credentials_file",
        "outputs.nats.tls.ca_file",
        "outputs.nats.tls.cert_file",
        "outputs.nats.tls.key_file",
        "outputs.webhook.tls.ca_file",
        "outputs.webhook.tls.cert_file",
        "outputs.webhook.tls.key_file",
        "outputs.nats.stream.name",
        "outputs.nats.stream.subjects",
        "outputs.nats.stream.create",
        "outputs.nats.stream.replicas",
        "outputs.nats.stream.storage",
        "outputs.nats.stream.duplicate_window",
        "outputs.nats.stream.max_age",
        "outputs.nats.stream.max_bytes",
        "routes.to.output",
        "routes.to.topic",
        "routes.to.key",
        "routes.to.mode",
        "routes.continue",
        "routes.dead_letter",
        "dead_letters.to.output",
        "dead_letters.to.topic",
    ];
    let is_shown = |key: &str| shown.iter().any(|(shown, _)| shown == key || shown.starts_with(&format!("{key}.")));
    for key in defaults.iter().map(|(key, _)| key.as_str()).chain(without_default) {
        assert!(is_shown(key), "{key} is not documented");
    }
    for prefix in [
        "outputs.nats.password",
        "outputs.nats.nkey",
        "outputs.kafka.client",
        "outputs.webhook.request_headers",
        "routes.match",
        "routes.filter",
    ] {
        assert!(is_shown(prefix), "{prefix} is not documented");
    }
    // Every default that is shown is the real one.
    let lists_of_examples = ["routes", "inputs.http.endpoints.urls", "inputs.http.endpoints.keys"];
    for (key, default) in &defaults {
        if lists_of_examples.iter().any(|example| key.starts_with(example)) {
            continue;
        }
        let values: Vec<&toml::Value> =
            shown.iter().filter(|(shown, _)| shown == key).map(|(_, value)| value).collect();
        let empty = default.as_array().is_some_and(Vec::is_empty);
        assert!(empty || values.contains(&default), "{key} is shown as {values:?}, its default is {default}");
    }
}

#[test]
fn the_examples_are_valid() {
    let folder = repository("config/examples");
    let mut count = 0;
    for file in std::fs::read_dir(folder).expect("the examples") {
        let path = file.expect("a file").path();
        // The keys of the examples come from files and variables that the reader creates.
        let text = std::fs::read_to_string(&path).expect("readable");
        let text: String = text
            .lines()
            .map(|line| if line.trim_start().starts_with("keys =") { "keys = ['ExampleKey1']" } else { line })
            .collect::<Vec<_>>()
            .join("\n");
        let loaded = config::load(&[Layer::Text(path.display().to_string(), text)]).unwrap_or_else(|errors| {
            panic!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        });
        assert_eq!(loaded.warnings, Vec::<String>::new(), "{}", path.display());
        count += 1;
    }
    assert!(count >= 3);
}

#[test]
fn the_documented_file_marks_the_keys_that_a_reload_applies() {
    const MARK: &str = "(reload)";
    let (text, _) = documented();
    let table: toml::Value = toml::from_str(&text).expect("TOML");
    let kind_of = |name: &str| table["inputs"].get(name)?.get("kind")?.as_str();
    let (mut section, mut comment, mut is_after_key) = (Vec::new(), String::new(), false);
    let (mut marked, mut wrong) = (0, Vec::new());
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with("# ----") {
            comment.clear();
        } else if let Some(words) = line.strip_prefix("# ") {
            // A comment is about all keys that follow it.
            if is_after_key {
                comment.clear();
            }
            comment.push_str(words);
            is_after_key = false;
        } else if line.starts_with('[') {
            let name = line.trim_matches(['[', ']']);
            section = name.split('.').map(str::to_owned).collect();
            comment.clear();
        } else if let Some((key, _)) = line.trim_start_matches('#').split_once(" = ") {
            is_after_key = true;
            let path: Vec<String> = section.iter().cloned().chain(key.split('.').map(str::to_owned)).collect();
            // The comments above all routes and above all tests are about every key of them.
            if section == ["routes"] || section == ["tests"] || key == "kind" || line.starts_with(['{', '"']) {
                continue;
            }
            let is_marked = comment.contains(MARK);
            marked += usize::from(is_marked);
            if is_marked != is_reloadable(&path, kind_of) {
                wrong.push(path.join("."));
            }
        }
    }
    assert!(wrong.is_empty(), "wrongly marked, or not marked: {}", wrong.join(", "));
    assert!(marked > 20, "only {marked} keys are marked");
}
