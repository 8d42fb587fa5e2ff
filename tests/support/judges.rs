//! Independent readers that decide whether a published message is a valid CloudEvent: the SDKs for Python and
//! JavaScript. And readers of the documents that describe them: Ajv for JSON Schema, and the official parser for AsyncAPI.
//!
//! Promises: a message that a judge accepts was read by its SDK, passed the validation of the SDK, and follows the
//! rules of the specification that the SDK does not check (listed in judges/judge.py). A refusal says why. A judge
//! never guesses: the mode follows only from the content type. One process of each judge serves all tests. It ends when
//! its standard input ends, and therefore with the test process.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::http_receiver::Request;
use super::kafka::Received;
use super::nats::Stored;
use super::{installed, tool};

/// What a judge reads: a message as it came from a broker, or an event in the JSON format.
#[derive(Debug, Clone, PartialEq)]
pub struct Message(Value);

impl Message {
    /// A record read from Kafka.
    pub fn kafka(record: &Received) -> Self {
        let headers = record.headers.iter().map(|(name, value)| json!([name, value.as_deref().map(text)]));
        Self(json!({
            "transport": "kafka",
            "headers": headers.collect::<Vec<_>>(),
            "key": record.key.as_deref().map(text),
            "body_base64": record.payload.as_deref().map(|body| STANDARD.encode(body)),
        }))
    }

    /// A message read from NATS.
    pub fn nats(message: &Stored) -> Self {
        Self(json!({
            "transport": "nats",
            "headers": message.headers,
            "key": null,
            "body_base64": STANDARD.encode(&message.payload),
        }))
    }

    /// A request that a server received.
    pub fn http(request: &Request) -> Self {
        Self(json!({
            "transport": "http",
            "headers": request.headers,
            "key": null,
            "body_base64": STANDARD.encode(&request.body),
        }))
    }

    /// An event in the JSON format, without any transport.
    pub fn json(event: &[u8]) -> Self {
        Self(json!({ "transport": "json", "headers": [], "key": null, "body_base64": STANDARD.encode(event) }))
    }
}

/// An event, as a judge read it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its mode.
    pub mode: Mode,
    /// All attributes with extensions. In headers, all values are strings.
    pub attributes: Map<String, Value>,
    /// The data, unless it is bytes: parsed if its content type is JSON, otherwise text. The JavaScript judge reads
    /// numbers as doubles, so beyond 2^53 only those of the Python judge are exact.
    pub data: Option<Value>,
    /// The data if it is bytes (not UTF-8, or given as `data_base64`).
    pub bytes: Option<Vec<u8>>,
}

impl Event {
    /// The value of an attribute, if it exists and is a string.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name)?.as_str()
    }
}

/// The content mode of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Binary: attributes in headers, the data as the body.
    Binary,
    /// Structured: everything in the body.
    Structured,
}

/// An SDK of another language.
#[derive(Debug)]
pub struct Judge {
    name: &'static str,
    process: Mutex<JudgeProcess>,
}

#[derive(Debug)]
struct JudgeProcess {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _child: Child,
}

impl Judge {
    /// The SDK for Python.
    pub fn python() -> &'static Self {
        static JUDGE: OnceLock<Judge> = OnceLock::new();
        JUDGE.get_or_init(|| {
            let mut command = Command::new(installed("judges-python/bin/python", "judges"));
            command.arg(script("judge.py"));
            Self::start("Python", command)
        })
    }

    /// The SDK for JavaScript.
    pub fn javascript() -> &'static Self {
        static JUDGE: OnceLock<Judge> = OnceLock::new();
        JUDGE.get_or_init(|| {
            let packages = installed("judges-js/node_modules/cloudevents", "judges");
            let mut command = Command::new(tool("node", "judges"));
            // The folder whose node_modules contains the SDK is two levels up.
            command.arg(script("judge.js")).arg(packages.ancestors().nth(2).expect("a path with two parents"));
            Self::start("JavaScript", command)
        })
    }

    /// All judges.
    pub fn all() -> [&'static Self; 2] {
        [Self::python(), Self::javascript()]
    }

    /// The event, or why the message is not one. Blocks the thread for about a millisecond.
    pub fn read(&self, message: &Message) -> Result<Event, String> {
        let mut process = self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut line = String::new();
        let asked = writeln!(process.input, "{}", message.0).and_then(|()| process.output.read_line(&mut line));
        let length = asked.unwrap_or_else(|error| panic!("the {} judge does not accept requests: {error}", self.name));
        assert!(length > 0, "the {} judge has ended; see standard error for the reason", self.name);
        let mut verdict: Value = serde_json::from_str(&line).expect("a judge answers in JSON");
        if verdict["ok"] != json!(true) {
            return Err(verdict["error"].as_str().expect("a refusal has a reason").to_owned());
        }
        let mode = match verdict["mode"].as_str() {
            Some("binary") => Mode::Binary,
            Some("structured") => Mode::Structured,
            _ => panic!("the {} judge returned an unknown mode: {verdict}", self.name),
        };
        let Value::Object(attributes) = verdict["attributes"].take() else {
            panic!("the {} judge returned no attributes: {verdict}", self.name)
        };
        let bytes = verdict["data_base64"].as_str().map(|text| STANDARD.decode(text).expect("a judge writes base64"));
        Ok(Event { mode, attributes, data: verdict.get_mut("data").map(Value::take), bytes })
    }

    fn start(name: &'static str, mut command: Command) -> Self {
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.unwrap_or_else(|error| panic!("the {name} judge does not start: {error}"));
        let input = child.stdin.take().expect("standard input is a pipe");
        let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        Self { name, process: Mutex::new(JudgeProcess { input, output, _child: child }) }
    }
}

/// What the crate `jsonschema`, a validator for Rust, says about documents: for each of them nothing if it is valid, or
/// its errors.
///
/// # Panics
/// The schema is not valid.
pub fn jsonschema_errors(schema: &Value, documents: &[Value]) -> Vec<Option<String>> {
    let options = jsonschema::draft202012::options().should_validate_formats(true);
    let validator = options.build(schema).expect("a valid schema");
    let errors = documents.iter().map(|document| {
        let errors: Vec<String> =
            validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect();
        (!errors.is_empty()).then(|| errors.join("\n"))
    });
    errors.collect()
}

/// What Ajv, a validator of JSON Schema for JavaScript, says about documents: for each of them nothing if it is valid, or
/// its errors.
///
/// # Panics
/// The schema is not valid.
pub fn ajv(schema: &Value, documents: &[Value]) -> Vec<Option<String>> {
    let packages = installed("judges-js/node_modules/ajv", "judges");
    let mut child = Command::new(tool("node", "judges"))
        .arg(script("schema.js"))
        // The folder whose node_modules contains Ajv is two levels up.
        .arg(packages.ancestors().nth(2).expect("a path with two parents"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node starts");
    let request = json!({ "schema": schema, "documents": documents }).to_string();
    child.stdin.take().expect("standard input is a pipe").write_all(request.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "Ajv refuses the schema; see standard error for the reason");
    serde_json::from_slice(&output.stdout).expect("a list of verdicts")
}

/// What the official parser of AsyncAPI documents reports about each of them: objects with `severity`, `code`, `message`
/// and `path`.
pub fn asyncapi(documents: &[Value]) -> Vec<Vec<Value>> {
    let packages = installed("judges-asyncapi/node_modules/@asyncapi", "judges");
    let mut child = Command::new(tool("node", "judges"))
        .arg(script("asyncapi.js"))
        // The folder whose node_modules contains the parser is two levels up.
        .arg(packages.ancestors().nth(2).expect("a path with two parents"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node starts");
    let request = json!(documents).to_string();
    child.stdin.take().expect("standard input is a pipe").write_all(request.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "the parser of AsyncAPI fails; see standard error for the reason");
    serde_json::from_slice(&output.stdout).expect("a list of reports")
}

/// The event in `message`, on which all judges agree; its data is the Python judge's.
///
/// # Panics
/// A judge refuses it, or the judges read it differently.
pub fn accepted(message: &Message) -> Event {
    let [first, second] = Judge::all().map(|judge| {
        judge.read(message).unwrap_or_else(|error| panic!("the {} judge refuses {}: {error}", judge.name, message.0))
    });
    let alike = first.mode == second.mode
        && first.attributes == second.attributes
        && first.bytes == second.bytes
        && match (&first.data, &second.data) {
            (Some(first), Some(second)) => is_alike(first, second),
            (first, second) => first == second,
        };
    assert!(alike, "the judges read {} differently: {first:?} and {second:?}", message.0);
    first
}

/// Why each judge refuses `message`.
///
/// # Panics
/// A judge accepts it.
pub fn refused(message: &Message) -> [String; 2] {
    Judge::all().map(|judge| match judge.read(message) {
        Ok(event) => panic!("the {} judge accepts {}: as {event:?}", judge.name, message.0),
        Err(error) => error,
    })
}

/// Whether two judges read the same JSON. JavaScript has only doubles, and writes 1.0 as 1.
fn is_alike(first: &Value, second: &Value) -> bool {
    match (first, second) {
        (Value::Number(first), Value::Number(second)) => first.as_f64() == second.as_f64(),
        (Value::Array(first), Value::Array(second)) => {
            first.len() == second.len() && first.iter().zip(second).all(|(first, second)| is_alike(first, second))
        }
        (Value::Object(first), Value::Object(second)) => {
            first.len() == second.len()
                && first.iter().all(|(key, first)| second.get(key).is_some_and(|second| is_alike(first, second)))
        }
        _ => first == second,
    }
}

/// Bytes in the form that a judge returns: a string if they are UTF-8.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/judges").join(name)
}
