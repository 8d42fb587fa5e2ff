//! A rendered pod on this machine: its volumes in a folder, its containers as commands.
//!
//! The paths of the mounts are rewritten to the folder everywhere: in arguments, variables and mounted files. A Secret
//! that the user must create has invented content.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tempfile::TempDir;

use crate::rendered::of_kind;
use crate::support::certificates::Certificates;
use crate::support::program;

/// The default content of a Secret that the user must create.
const SECRET: &str = "MadeUp4TheTests";

/// A pod's volumes in a folder.
pub struct Pod<'a> {
    objects: &'a [Value],
    /// The folder.
    pub root: TempDir,
    certificates: Certificates,
    /// Names of the volumes that outlive the pod.
    lasting: Vec<String>,
    /// Whether the webhook of RRSA would give the pod a role.
    has_role: bool,
}

impl<'a> Pod<'a> {
    /// Creates the folder for a template or an object, with the volume claims of a StatefulSet.
    pub fn lay_out(objects: &'a [Value], template: &'a Value, claims: &Value) -> Result<Self, String> {
        let spec = &template["spec"];
        let has_role = template["metadata"]["labels"]["pod-identity.alibabacloud.com/injection"] == "on";
        let root = tempfile::Builder::new().prefix("pod-").tempdir().expect("the temporary folder is writable");
        let certificates = Certificates::make(&root.path().join("certificates"));
        let mut pod = Self { objects, root, certificates, lasting: Vec::new(), has_role };
        for claim in list(claims) {
            pod.lasting.push(text(&claim["metadata"], "name")?.to_owned());
        }
        // Files refer to other files, with the paths of the mounts.
        let containers: Vec<_> = list(&spec["initContainers"]).chain(list(&spec["containers"])).collect();
        let texts = objects.iter().map(Value::to_string).collect::<String>();
        for volume in list(&spec["volumes"]) {
            let name = text(volume, "name")?;
            if !volume["persistentVolumeClaim"].is_null() {
                pod.lasting.push(name.to_owned());
                continue;
            }
            let folder = pod.folder(name);
            std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
            if !volume["emptyDir"].is_null() {
                continue;
            }
            let mut files = BTreeMap::new();
            let sources = [volume].into_iter().filter(|volume| volume["projected"].is_null());
            for source in sources.chain(list(&volume["projected"]["sources"])) {
                files.extend(pod.source(source)?);
            }
            if files.is_empty() {
                let mounts = containers.iter().flat_map(|container| list(&container["volumeMounts"]));
                for mount in mounts.filter(|mount| mount["name"] == name) {
                    let wanted = named_below(&texts, text(mount, "mountPath")?);
                    files.extend(wanted.into_iter().map(|name| (name.clone(), pod.made_up(&name))));
                }
            }
            for (path, content) in files {
                let rewritten = pod.rewrite(&String::from_utf8_lossy(&content), containers.iter().copied());
                let path = folder.join(path);
                std::fs::create_dir_all(path.parent().expect("below a folder")).expect("it is writable");
                std::fs::write(path, rewritten).expect("it is writable");
            }
        }
        for name in &pod.lasting {
            std::fs::create_dir_all(pod.folder(name)).expect("the temporary folder is writable");
        }
        Ok(pod)
    }

    fn folder(&self, volume: &str) -> PathBuf {
        self.root.path().join("volumes").join(volume)
    }

    /// The files of a ConfigMap or Secret, all of them or its `items`.
    fn source(&self, source: &Value) -> Result<BTreeMap<String, Vec<u8>>, String> {
        if let Some(path) = source["serviceAccountToken"]["path"].as_str() {
            return Ok(BTreeMap::from([(path.to_owned(), SECRET.into())]));
        }
        let (kind, source) = match (&source["configMap"], &source["secret"]) {
            (Value::Null, Value::Null) => return Err(format!("a volume that this test does not support: {source}")),
            (Value::Null, secret) => ("Secret", secret),
            (map, _) => ("ConfigMap", map),
        };
        let name = source["secretName"].as_str().or(source["name"].as_str()).unwrap_or_default();
        let content = self.content(kind, name);
        if source["items"].is_null() {
            return Ok(content.unwrap_or_default());
        }
        let item = |item: &Value| {
            let (key, path) = (text(item, "key")?, text(item, "path")?);
            let value = match &content {
                Some(content) => content.get(key).cloned().ok_or_else(|| format!("{kind} {name} has no {key}"))?,
                None => self.made_up(key),
            };
            Ok((path.to_owned(), value))
        };
        list(&source["items"]).map(item).collect()
    }

    /// The content of a rendered ConfigMap or Secret; none if the user creates it.
    fn content(&self, kind: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        let object = of_kind(self.objects, kind).into_iter().find(|object| object["metadata"]["name"] == name)?;
        let fields = |field: &str| object[field].as_object().into_iter().flatten();
        let decode = |value: &Value| match kind {
            "Secret" => STANDARD.decode(value.as_str().unwrap_or_default()).expect("a Secret's data is Base64"),
            _ => value.as_str().unwrap_or_default().into(),
        };
        let mut content: BTreeMap<_, _> = fields("data").map(|(key, value)| (key.clone(), decode(value))).collect();
        content
            .extend(fields("stringData").map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().into())));
        Some(content)
    }

    /// Content that a user could have stored under this name.
    fn made_up(&self, name: &str) -> Vec<u8> {
        let file = match name.rsplit_once('.') {
            Some((_, "key")) => &self.certificates.server_key,
            Some(("ca", "crt" | "pem")) => &self.certificates.authority,
            Some((_, "crt" | "pem")) => &self.certificates.server,
            _ => return SECRET.into(),
        };
        std::fs::read(file).expect("the certificates exist")
    }

    /// A text in which the paths of the mounts are replaced by the paths here.
    pub fn rewrite<'b>(&self, text: &str, containers: impl Iterator<Item = &'b Value>) -> String {
        let mut mounts: Vec<(&str, PathBuf)> = containers
            .flat_map(|container| list(&container["volumeMounts"]))
            .map(|mount| {
                let folder = self.folder(mount["name"].as_str().unwrap_or_default());
                let folder = mount["subPath"].as_str().map_or(folder.clone(), |path| folder.join(path));
                (mount["mountPath"].as_str().unwrap_or_default().trim_end_matches('/'), folder)
            })
            .collect();
        mounts.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        let is_part = |character: char| character.is_alphanumeric() || "._-".contains(character);
        let (mut rest, mut rewritten) = (text, String::new());
        'text: while let Some(character) = rest.chars().next() {
            if character == '/' && !rewritten.ends_with(|last| is_part(last) || last == '/') {
                for (path, folder) in &mounts {
                    if let Some(after) = rest.strip_prefix(path)
                        && !after.starts_with(is_part)
                    {
                        rewritten.push_str(folder.to_str().expect("UTF-8"));
                        rest = after;
                        continue 'text;
                    }
                }
            }
            rewritten.push(character);
            rest = &rest[character.len_utf8()..];
        }
        rewritten
    }

    /// The path here of a path in the container. A path from a file is already rewritten.
    pub fn path(&self, container: &Value, path: &str) -> String {
        if Path::new(path).starts_with(self.root.path()) {
            return path.to_owned();
        }
        self.rewrite(path, std::iter::once(container))
    }

    /// Whether a path here is on a volume that the container may write to and that outlives the pod.
    pub fn is_kept(&self, container: &Value, path: &str) -> bool {
        list(&container["volumeMounts"]).any(|mount| {
            let name = mount["name"].as_str().unwrap_or_default();
            mount["readOnly"] != true
                && self.lasting.iter().any(|lasting| lasting == name)
                && Path::new(path).starts_with(self.folder(name))
        })
    }

    /// A container's command.
    pub fn command(&self, container: &Value) -> Result<Command, String> {
        if let Some(program) = container["command"][0].as_str()
            && !program.ends_with("apsara-bridge")
        {
            return Err(format!("{program} is not in the image"));
        }
        let words = list(&container["command"]).skip(1).chain(list(&container["args"])).filter_map(Value::as_str);
        self.command_with(container, words.map(|word| self.rewrite(word, std::iter::once(container)).into()))
    }

    /// The program with other arguments in a container's environment.
    pub fn command_with(
        &self,
        container: &Value,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Command, String> {
        let mut command = program::command(&[]);
        command.args(arguments).current_dir(self.root.path());
        if self.has_role {
            // Instead of the variables of a role, with which the program would request a key from Alibaba.
            command.envs([("ALIBABA_CLOUD_ACCESS_KEY_ID", SECRET), ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", SECRET)]);
        }
        for source in list(&container["envFrom"]) {
            for (kind, reference) in [("Secret", "secretRef"), ("ConfigMap", "configMapRef")] {
                let name = source[reference]["name"].as_str().unwrap_or_default();
                for (key, value) in self.content(kind, name).into_iter().flatten() {
                    command.env(key, String::from_utf8_lossy(&value).into_owned());
                }
            }
        }
        for variable in list(&container["env"]) {
            let from = &variable["valueFrom"];
            let value = if from.is_null() {
                self.rewrite(variable["value"].as_str().unwrap_or_default(), std::iter::once(container))
            } else if !from["fieldRef"].is_null() || !from["resourceFieldRef"].is_null() {
                "1".to_owned()
            } else {
                let (kind, reference) = match &from["secretKeyRef"] {
                    Value::Null => ("ConfigMap", &from["configMapKeyRef"]),
                    reference => ("Secret", reference),
                };
                let (name, key) = (text(reference, "name")?, text(reference, "key")?);
                let value = match self.content(kind, name) {
                    Some(content) => content.get(key).cloned().ok_or_else(|| format!("{kind} {name} has no {key}"))?,
                    None => self.made_up(key),
                };
                String::from_utf8_lossy(&value).into_owned()
            };
            command.env(text(variable, "name")?, value);
        }
        Ok(command)
    }
}

/// The file names in a text below a path.
fn named_below(text: &str, path: &str) -> Vec<String> {
    let is_part = |character: char| character.is_alphanumeric() || "._-".contains(character);
    let path = format!("{}/", path.trim_end_matches('/'));
    text.split(&path).skip(1).map(|rest| rest.chars().take_while(|&c| is_part(c)).collect()).collect()
}

/// The items of a list; none if it is not a list.
pub fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A field that must be a text.
pub fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str, String> {
    value[key].as_str().ok_or_else(|| format!("no {key} in {value}"))
}
