//! Chromium, driven by `driver.mjs`.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::wait::SOON;
use crate::support::{installed, repository, tool};

/// The colours that the reader prefers.
#[derive(Clone, Copy, Debug)]
pub enum Theme {
    Light,
    Dark,
}

/// The width of a small phone.
pub const PHONE: u32 = 360;
/// The width of a small screen.
pub const SCREEN: u32 = 1280;

/// A browser with one page. It ends with this process, because its standard input ends then.
pub struct Browser(Mutex<Driver>);

struct Driver {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Browser {
    /// Starts it.
    pub fn start() -> Browser {
        let packages = installed("page/node_modules/playwright-core", "page");
        let mut command = Command::new(tool("node", "page"));
        // The folder whose node_modules contains the packages is two levels up.
        let folder = packages.ancestors().nth(2).expect("a path with two parents");
        command.arg(repository("tests/page/driver.mjs")).arg(folder);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("node starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        Browser(Mutex::new(Driver { child, input, output }))
    }

    /// Does a step. Returns why it failed, if it did.
    fn attempt(&self, step: &Value) -> Result<Value, String> {
        let mut driver = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut line = String::new();
        let written = writeln!(driver.input.as_mut().expect("open until the end"), "{step}");
        let asked = written.and_then(|()| driver.output.read_line(&mut line));
        assert!(asked.is_ok_and(|length| length > 0), "the browser has ended; see standard error for the reason");
        let mut answer: Value = serde_json::from_str(&line).expect("the driver answers in JSON");
        match answer.get("error") {
            Some(error) => Err(error.as_str().expect("a text").to_owned()),
            None => Ok(answer["value"].take()),
        }
    }

    /// Does a step.
    ///
    /// # Panics
    /// It failed. The message says what the page shows.
    #[track_caller]
    fn step(&self, step: Value) -> Value {
        self.attempt(&step).unwrap_or_else(|error| {
            let shown = self.attempt(&json!({ "do": "text", "selector": "body" })).unwrap_or_default();
            panic!("{step}: {error}\nThe page shows:\n{}", shown.as_str().unwrap_or_default())
        })
    }

    #[track_caller]
    fn texts(&self, step: Value) -> Vec<String> {
        serde_json::from_value(self.step(step)).expect("a list of texts")
    }

    /// Opens the page of a bridge in a fresh profile. Returns the status and the text of the answer.
    pub fn open_as(&self, admin: SocketAddr, width: u32, theme: Theme) -> (u64, String) {
        let scheme = match theme {
            Theme::Light => "light",
            Theme::Dark => "dark",
        };
        let answer = self.step(json!({
            "do": "open", "url": format!("http://{admin}/"), "width": width, "height": 800, "scheme": scheme
        }));
        (answer["status"].as_u64().expect("a status"), answer["text"].as_str().expect("a text").to_owned())
    }

    /// Opens the page of a bridge, and waits until it is live.
    #[track_caller]
    pub fn open(&self, admin: SocketAddr) {
        assert_eq!(self.open_as(admin, SCREEN, Theme::Light).0, 200);
        self.live();
    }

    /// Waits until the page is connected and has drawn a state.
    #[track_caller]
    pub fn live(&self) {
        self.wait("#connection[data-state=live]", "Live");
        self.wait("#figures", "Callbacks now");
    }

    /// Waits until an element that can be seen has a text. Returns after what time.
    #[track_caller]
    pub fn wait(&self, selector: &str, text: &str) -> Duration {
        self.wait_within(SOON, selector, text)
    }

    /// The same with a limit.
    #[track_caller]
    pub fn wait_within(&self, limit: Duration, selector: &str, text: &str) -> Duration {
        let ms = u64::try_from(limit.as_millis()).expect("a short time");
        let took = self.step(json!({ "do": "wait", "selector": selector, "text": text, "ms": ms }));
        Duration::from_millis(took.as_u64().expect("milliseconds"))
    }

    /// Waits until no element that can be seen has a text.
    #[track_caller]
    pub fn wait_gone(&self, selector: &str, text: &str) {
        let ms = u64::try_from(SOON.as_millis()).expect("a short time");
        self.step(json!({ "do": "gone", "selector": selector, "text": text, "ms": ms }));
    }

    /// The number of elements.
    #[track_caller]
    pub fn count(&self, selector: &str) -> u64 {
        self.step(json!({ "do": "count", "selector": selector })).as_u64().expect("a number")
    }

    /// The text of the first element, as it is seen.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        self.step(json!({ "do": "text", "selector": selector })).as_str().expect("a text").to_owned()
    }

    /// The title of the page.
    #[track_caller]
    pub fn title(&self) -> String {
        self.step(json!({ "do": "title" })).as_str().expect("a text").to_owned()
    }

    /// Clicks on an element, and moves the pointer away.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        self.step(json!({ "do": "click", "selector": selector }));
        self.step(json!({ "do": "away" }));
    }

    /// Presses a key.
    #[track_caller]
    pub fn press(&self, key: &str) {
        self.step(json!({ "do": "press", "key": key }));
    }

    /// Types a text.
    #[track_caller]
    pub fn type_text(&self, text: &str) {
        self.step(json!({ "do": "type", "text": text }));
    }

    /// Replaces the filter.
    #[track_caller]
    pub fn filter(&self, text: &str) {
        self.click("#query");
        self.press("Control+a");
        self.press("Delete");
        self.type_text(text);
    }

    /// The id of the element that has the focus, otherwise its classes, otherwise its name.
    #[track_caller]
    pub fn focused(&self) -> String {
        self.step(json!({ "do": "focused" })).as_str().expect("a text").to_owned()
    }

    /// Whether the element with the focus has an outline.
    #[track_caller]
    pub fn is_focus_seen(&self) -> bool {
        self.step(json!({ "do": "outlined" })) == json!(true)
    }

    /// Whether the element with the focus is expanded.
    #[track_caller]
    pub fn is_expanded(&self) -> bool {
        self.step(json!({ "do": "expanded" })) == json!("true")
    }

    /// How many pixels the page is wider than the window.
    #[track_caller]
    pub fn overflow(&self) -> i64 {
        self.step(json!({ "do": "overflow" })).as_i64().expect("a number")
    }

    /// What a script of a sender has left behind.
    #[track_caller]
    pub fn marked(&self) -> Value {
        self.step(json!({ "do": "marked" }))
    }

    /// Answers the page's requests for events instead of the bridge.
    #[track_caller]
    pub fn answer(&self, status: u16, content_type: &str, body: &str) {
        self.step(json!({ "do": "answer", "status": status, "type": content_type, "body": body }));
    }

    /// Lets the bridge answer again.
    #[track_caller]
    pub fn answer_no_more(&self) {
        self.step(json!({ "do": "answer", "body": null }));
    }

    /// What axe says about the accessibility of the page.
    #[track_caller]
    pub fn axe(&self) -> Vec<String> {
        self.texts(json!({ "do": "axe" }))
    }

    /// The longest time since the last call in which the page could not react.
    #[track_caller]
    pub fn gap(&self) -> Duration {
        Duration::from_millis(self.step(json!({ "do": "gap" })).as_u64().expect("milliseconds"))
    }

    /// Checks that the page showed no dialog, threw no error, asked nobody else and violated no policy.
    #[track_caller]
    pub fn has_no_faults(&self) {
        assert_eq!(self.texts(json!({ "do": "faults" })), [""; 0]);
    }

    /// Writes what is seen to a PNG file.
    #[track_caller]
    pub fn screenshot(&self, path: &Path, is_full: bool) {
        self.step(json!({ "do": "screenshot", "path": path, "full": is_full }));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let driver = self.0.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The driver closes the browser when its input ends.
        drop(driver.input.take());
        let _ = driver.child.wait();
    }
}
