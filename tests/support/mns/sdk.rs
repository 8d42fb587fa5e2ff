//! Alibaba's own SDKs, used from a test. They check that the server behaves like MNS.
//!
//! Promises: a call uses only the public interface of the SDK (driver.py, Driver.java). It blocks the thread. Its error
//! is the code that the SDK read. Each client is its own process, which ends with it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use serde_json::{Map, Value, json};

use super::super::{installed, tool};
use super::Mns;
use super::signature::{Key, SignatureVersion};

/// The SDK, and how it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    /// The SDK for Python: V1.
    Python,
    /// The SDK for Java, with V1 or V4.
    Java(SignatureVersion),
}

impl Sdk {
    /// All SDKs.
    pub const ALL: [Self; 3] = [Self::Python, Self::Java(SignatureVersion::V1), Self::Java(SignatureVersion::V4)];

    /// A client of `mns`.
    pub fn client(self, mns: &Mns, key: &Key) -> Client {
        self.client_in(mns, key, &mns.region())
    }

    /// A client of `mns` that assumes another region.
    pub fn client_in(self, mns: &Mns, key: &Key, region: &str) -> Client {
        let mut command = match self {
            Self::Python => {
                let mut command = Command::new(installed("mns-python/bin/python", "mns"));
                // The SDK warns about attributes that the service will remove later.
                command.args(["-W", "ignore::DeprecationWarning"]).arg(program("driver.py"));
                command
            }
            Self::Java(_) => {
                let mut command = Command::new(tool("java", "mns"));
                // It runs for seconds, so optimizing compilation is not worth its time.
                command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"]);
                command.arg(installed("mns-java/libs", "mns").join("*")).arg(program("Driver.java"));
                command
            }
        };
        command.args([&mns.endpoint(), &key.id, &key.secret, key.token.as_deref().unwrap_or_default()]);
        if let Self::Java(version) = self {
            command.args([region, if version == SignatureVersion::V1 { "V2" } else { "V4" }]);
        }
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.unwrap_or_else(|error| panic!("the driver of {self:?} does not start: {error}"));
        let input = child.stdin.take().expect("standard input is a pipe");
        let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        Client { sdk: self, driver: Mutex::new(Driver { input, output, child }) }
    }
}

/// A client of an SDK.
#[derive(Debug)]
pub struct Client {
    sdk: Sdk,
    driver: Mutex<Driver>,
}

#[derive(Debug)]
struct Driver {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    child: Child,
}

/// The error of an SDK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The service's code, or a word of the SDK.
    pub code: String,
    /// After a batch delete: the code of each handle that failed.
    pub failed: Map<String, Value>,
}

impl Client {
    /// Makes the call `name` with `arguments`, a JSON object: driver.py lists them.
    pub fn call(&self, name: &str, mut arguments: Value) -> Result<Value, Failure> {
        arguments["call"] = json!(name);
        let mut driver = self.driver.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut line = String::new();
        let asked = writeln!(driver.input, "{arguments}").and_then(|()| driver.output.read_line(&mut line));
        let length =
            asked.unwrap_or_else(|error| panic!("the driver of {:?} does not accept requests: {error}", self.sdk));
        assert!(length > 0, "the driver of {:?} has ended; see standard error for the reason", self.sdk);
        let mut verdict: Value = serde_json::from_str(&line).expect("a driver answers in JSON");
        if verdict["ok"] == json!(true) {
            return Ok(verdict["value"].take());
        }
        let code = verdict["code"].as_str().unwrap_or_else(|| panic!("a failure without a code: {verdict}")).to_owned();
        let Value::Object(failed) = verdict["failed"].take() else { panic!("a failure without parts: {line}") };
        Err(Failure { code, failed })
    }

    /// [`call`](Self::call), which must succeed.
    pub fn ok(&self, name: &str, arguments: Value) -> Value {
        self.call(name, arguments).unwrap_or_else(|error| panic!("{name} with {:?} fails: {error:?}", self.sdk))
    }

    /// The code of a [`call`](Self::call) that must fail.
    pub fn code(&self, name: &str, arguments: Value) -> String {
        match self.call(name, arguments) {
            Ok(value) => panic!("{name} with {:?} succeeds: {value}", self.sdk),
            Err(failure) => failure.code,
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It would also end with its input, but later. If this fails, it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/mns").join(name)
}
