//! The objects that helm renders from a values file.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::support::kubernetes::{Kubernetes, Ran, helm};

/// The chart's folder.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/apsara-bridge");

/// Name of every release.
pub const RELEASE: &str = "media";

/// The namespace of objects that are only rendered, without a server.
pub const NAMESPACE: &str = "media-events";

/// Without the Job that checks the configuration, for which helm would wait: no controller runs it.
pub const NO_HOOKS: &str = "--no-hooks";

/// A file of values, one for each feature of the chart.
#[derive(Debug, Clone)]
pub struct Values {
    /// Its name without the ending `-values.yaml`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Values {
    /// All files, by name.
    pub fn all() -> Vec<Self> {
        let folder = Path::new(CHART).join("ci");
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let paths = entries.map(|entry| entry.expect("a folder can be read").path());
        let mut all: Vec<_> = paths.filter_map(Self::of).collect();
        assert!(all.len() > 10, "too few files of values: {all:?}");
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The file with that name.
    pub fn named(name: &str) -> Self {
        Self::all().into_iter().find(|values| values.name == name).unwrap_or_else(|| panic!("no file for {name}"))
    }

    /// The file as an argument.
    pub fn file(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }

    fn of(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix("-values.yaml")?.to_owned();
        Some(Self { name, path })
    }

    /// The result of `helm template` for a namespace.
    pub fn template(&self, namespace: &str, more: &[&str]) -> Ran {
        helm(&[&["template", RELEASE, CHART, "--namespace", namespace, "--values", self.file()], more].concat())
    }

    /// The objects that are rendered for a namespace, including hooks, for example the tests of the release.
    pub fn objects(&self, kubernetes: &Kubernetes, namespace: &str) -> Result<Vec<Value>, String> {
        kubernetes.objects(&self.template(namespace, &[]).quietly()?.out)
    }
}

/// Does the same with every file, two at a time.
///
/// # Panics
/// At the end, with the errors of all files.
pub fn for_all(work: impl Fn(&Values) -> Result<(), String> + Sync) {
    for_several(2, work);
}

/// [`for_all`] with more files at a time, for work that mostly waits.
pub fn for_several(workers: usize, work: impl Fn(&Values) -> Result<(), String> + Sync) {
    let (all, next, wrong) = (Values::all(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || {
        while let Some(values) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            // A panic in one file must not hide the others.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(values)));
            let said = match done {
                Ok(Ok(())) => continue,
                Ok(Err(said)) => said,
                Err(panic) => text(&*panic),
            };
            wrong.lock().expect("no panic while it is locked").push(format!("== {}\n{said}", values.name));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(worker);
        }
    });
    let wrong = wrong.into_inner().expect("no panic while it was locked");
    assert!(wrong.is_empty(), "{} of {} files:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}

fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Kind and name, which identify an object.
pub fn identity(object: &Value) -> String {
    let field = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("(none)").to_owned();
    format!("{}/{}", field("/kind"), field("/metadata/name"))
}

/// The objects of a kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// The workload that runs the bridge.
pub fn workload(objects: &[Value]) -> &Value {
    let found: Vec<_> = ["StatefulSet", "Deployment"].iter().flat_map(|kind| of_kind(objects, kind)).collect();
    assert_eq!(found.len(), 1, "one workload: {:?}", objects.iter().map(identity).collect::<Vec<_>>());
    found[0]
}
