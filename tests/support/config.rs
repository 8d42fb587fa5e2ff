//! A configuration of the bridge, built by calls that say what a test needs. Its text is TOML.
//!
//! Promises: only this file knows the shape of a configuration, so a change of the shape is made in one place. Text
//! that is not TOML fails where it is written. By default, listeners are on ports of the system's choice, and there is
//! no spool.
//!
//! Tests whose subject is the text of a configuration write it themselves.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use toml::{Table, Value};

use super::bridge::{KEY, URL};
use super::mns::Mns;

/// A configuration.
#[derive(Clone, Debug)]
pub struct Config(Table);

impl Config {
    /// A configuration without inputs, outputs and routes.
    pub fn new() -> Config {
        Config(Table::new()).set("admin.listen = '127.0.0.1:0'\nspool.enabled = false")
    }

    /// A configuration with an HTTP input named `http` that accepts callbacks on `/callbacks`, signed with [`KEY`] for
    /// [`URL`].
    pub fn http() -> Config {
        let input = format!(
            "[inputs.http]\nkind = 'http'\nlisten = '127.0.0.1:0'\n\
             [[inputs.http.endpoints]]\npath = '/callbacks'\nurls = ['{URL}']\nkeys = ['{KEY}']"
        );
        Config::new().set(&input)
    }

    /// Changes the keys of the HTTP input: a list in TOML.
    pub fn keys(mut self, keys: &str) -> Config {
        let keys = table(&format!("keys = {keys}"));
        let endpoint = self.0["inputs"]["http"]["endpoints"][0].as_table_mut().expect("a table");
        merge(endpoint, keys);
        self
    }

    /// Sets where the HTTP input, if there is one, and the admin listener listen.
    pub fn listen(self, input: SocketAddr, admin: SocketAddr) -> Config {
        let has_http = self.0.get("inputs").is_some_and(|inputs| inputs.get("http").is_some());
        let config = self.set(&format!("admin.listen = '{admin}'"));
        if has_http { config.set(&format!("inputs.http.listen = '{input}'")) } else { config }
    }

    /// Adds an MNS input named `queue`, with the server's default key.
    pub fn mns(self, mns: &Mns, queue: &str) -> Config {
        let (endpoint, id, secret) = (mns.endpoint(), Mns::KEY_ID, Mns::KEY_SECRET);
        self.set(&format!(
            "[inputs.queue]\nkind = 'mns'\nendpoint = '{endpoint}'\nqueue = '{queue}'\n\
             credentials = {{ access_key_id = '{id}', access_key_secret = '{secret}' }}"
        ))
    }

    /// Adds an output named `kafka`.
    pub fn kafka(self, brokers: &str) -> Config {
        self.output("kafka", "kafka", &[brokers])
    }

    /// Adds an output named `nats`.
    pub fn nats(self, url: &str) -> Config {
        self.output("nats", "nats", &[url])
    }

    /// Adds an output that posts to a URL.
    pub fn http_output(self, name: &str, url: &str) -> Config {
        self.set(&format!("[outputs.{name}]\nkind = 'http'\nurl = '{url}'"))
    }

    /// Adds an output of any kind. The console has no addresses.
    pub fn output(self, name: &str, kind: &str, addresses: &[impl AsRef<str>]) -> Config {
        let addresses: Vec<&str> = addresses.iter().map(AsRef::as_ref).collect();
        let addresses = match kind {
            "kafka" => format!("brokers = {addresses:?}"),
            "nats" => format!("servers = {addresses:?}"),
            _ => String::new(),
        };
        self.set(&format!("[outputs.{name}]\nkind = '{kind}'\n{addresses}"))
    }

    /// Adds a stream to the output `nats`; the bridge creates it.
    pub fn stream(self, name: &str, subjects: &str) -> Config {
        self.set(&format!("outputs.nats.stream = {{ name = '{name}', subjects = ['{subjects}'], create = true }}"))
    }

    /// Adds a route named `all` to one destination.
    pub fn to(self, output: &str, topic: &str) -> Config {
        self.route(Route::new("all").to(output, topic))
    }

    /// Adds a route after the others.
    pub fn route(mut self, route: Route) -> Config {
        let routes = self.0.entry("routes").or_insert_with(|| Value::Array(Vec::new()));
        routes.as_array_mut().expect("an array").push(Value::Table(route.0));
        self
    }

    /// Replaces the routes.
    pub fn routes(self, routes: impl IntoIterator<Item = Route>) -> Config {
        routes.into_iter().fold(self.without("routes"), Config::route)
    }

    /// Publishes dead letters to a destination.
    pub fn dead_letters_to(self, output: &str, topic: &str) -> Config {
        self.set(&format!("dead_letters.to = {{ output = '{output}', topic = '{topic}' }}"))
    }

    /// Adds a spool in this folder.
    pub fn spool(self, folder: impl AsRef<Path>) -> Config {
        self.without("spool.enabled").set(&format!("spool.path = {:?}", folder.as_ref()))
    }

    /// Sets the keys of a text in TOML; other keys stay unchanged.
    pub fn set(mut self, text: &str) -> Config {
        merge(&mut self.0, table(text));
        self
    }

    /// Removes a key, given with its sections.
    pub fn without(mut self, key: &str) -> Config {
        let mut names: Vec<&str> = key.split('.').collect();
        let last = names.pop().expect("a name");
        let section = names.into_iter().try_fold(&mut self.0, |section, name| section.get_mut(name)?.as_table_mut());
        if let Some(section) = section {
            section.remove(last);
        }
        self
    }

    /// Writes it to a file.
    pub fn write(&self, file: &Path) {
        std::fs::write(file, self.to_string()).expect("the temporary folder is writable");
    }
}

impl fmt::Display for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for Config {
    type Err = toml::de::Error;

    fn from_str(text: &str) -> Result<Config, toml::de::Error> {
        text.parse().map(Config)
    }
}

/// A route.
#[derive(Clone, Debug)]
pub struct Route(Table);

impl Route {
    /// A route that matches every event and does nothing with it yet.
    pub fn new(name: &str) -> Route {
        Route(Table::new()).set(&format!("name = '{name}'"))
    }

    /// Matches only events with these attributes: a text in TOML, for example `status = 'failure'`.
    pub fn when(self, attributes: &str) -> Route {
        self.set(&format!("match = {{ {attributes} }}"))
    }

    /// Adds a destination.
    pub fn to(self, output: &str, topic: &str) -> Route {
        self.destination(output, topic, "")
    }

    /// Adds a destination with further keys, in TOML.
    pub fn destination(mut self, output: &str, topic: &str, more: &str) -> Route {
        let destination = table(&format!("output = '{output}'\ntopic = '{topic}'\n{more}"));
        let to = self.0.entry("to").or_insert_with(|| Value::Array(Vec::new()));
        to.as_array_mut().expect("an array").push(Value::Table(destination));
        self
    }

    /// Sets the keys of a text in TOML, for example `drop = true`.
    pub fn set(mut self, text: &str) -> Route {
        merge(&mut self.0, table(text));
        self
    }
}

fn table(text: &str) -> Table {
    text.parse().unwrap_or_else(|error| panic!("{text}\nis not TOML: {error}"))
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}
