//! The XML of MNS: read by local names, written like the captured answers of the service.
//!
//! Promises: [`Element::parse`] accepts any namespace, prefix and order of elements, and refuses documents that are not
//! well-formed. [`document`] writes the namespace *without* a slash at its end, like the answers of the service. (The
//! Java SDK cannot read the code of an error otherwise, although the documentation has a slash.)

use std::fmt::Display;

use quick_xml::Reader;
use quick_xml::escape::{partial_escape, resolve_predefined_entity};
use quick_xml::events::Event;

/// The namespace of every answer.
pub const NAMESPACE: &str = "http://mns.aliyuncs.com/doc/v1";

/// An element, without its attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    /// Its name, without a prefix.
    pub name: String,
    /// The text directly in it.
    pub text: String,
    /// The elements directly in it.
    pub children: Vec<Element>,
}

impl Element {
    /// The root element of a document; `None` if the document is not well-formed XML.
    pub fn parse(document: &str) -> Option<Self> {
        let mut reader = Reader::from_str(document);
        // The first is the document, the others are the open elements.
        let mut open = vec![Self::default()];
        loop {
            match reader.read_event().ok()? {
                Event::Start(start) => open.push(Self::named(start.local_name().as_ref())),
                Event::Empty(empty) => open.last_mut()?.children.push(Self::named(empty.local_name().as_ref())),
                Event::End(_) => {
                    let element = open.pop()?;
                    open.last_mut()?.children.push(element);
                }
                Event::Text(text) => open.last_mut()?.text += &text.xml10_content(),
                Event::CData(text) => open.last_mut()?.text += &text.xml10_content(),
                Event::GeneralRef(reference) => match reference.resolve_char_ref().ok()? {
                    Some(character) => open.last_mut()?.text.push(character),
                    None => open.last_mut()?.text += resolve_predefined_entity(reference.as_ref())?,
                },
                Event::Decl(_) | Event::PI(_) | Event::DocType(_) | Event::Comment(_) => {}
                Event::Eof => break,
            }
        }
        let [document] = open.try_into().ok()?;
        let [root] = document.children.try_into().ok()?;
        document.text.trim().is_empty().then_some(root)
    }

    /// The first child with that name.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text of the first child with that name.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }

    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

/// A document with the root element `root` around `content`, which is XML.
pub fn document(root: &str, content: &str) -> String {
    format!("<?xml version=\"1.0\" ?>\n<{root} xmlns=\"{NAMESPACE}\">\n{content}</{root}>\n")
}

/// Appends an element with a text in it.
pub fn leaf(out: &mut String, name: &str, text: impl Display) {
    let text = text.to_string();
    // A reader turns a bare carriage return into a line feed. The body would then no longer match its MD5.
    let text = partial_escape(text.as_str()).replace('\r', "&#13;");
    *out += &format!("  <{name}>{text}</{name}>\n");
}

/// Whether a document can contain all of `text`, possibly escaped.
pub fn is_writable(text: &str) -> bool {
    text.chars().all(|character| match character {
        '\t' | '\n' | '\r' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        other => other >= ' ',
    })
}
