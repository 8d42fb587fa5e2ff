//! The XML of MNS: read by local names, written as in the answers that were captured.
//!
//! Promises: [`Element::parse`] takes a document of any namespace, prefix and order of elements, and refuses what isn't
//! well-formed; what [`document`] writes has the namespace *without* a slash at its end, as the service's answers do
//! (the Java SDK can't read an error's code otherwise, though the documentation prints a slash).

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
    /// The document's root element; `None` if it isn't well-formed XML.
    pub fn parse(document: &str) -> Option<Self> {
        let mut reader = Reader::from_str(document);
        // The first stands for the document, the others for the elements that are open.
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

    /// The first child of that name.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text of the first child of that name.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }

    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

/// A document with the root element `root` around `content`, which is XML already.
pub fn document(root: &str, content: &str) -> String {
    format!("<?xml version=\"1.0\" ?>\n<{root} xmlns=\"{NAMESPACE}\">\n{content}</{root}>\n")
}

/// Appends an element with a text in it.
pub fn leaf(out: &mut String, name: &str, text: impl Display) {
    let text = text.to_string();
    // A reader makes a line feed of a bare carriage return, and the body would no longer fit its MD5.
    let text = partial_escape(text.as_str()).replace('\r', "&#13;");
    *out += &format!("  <{name}>{text}</{name}>\n");
}

/// Whether all of `text` can stand in a document, be it escaped.
pub fn is_writable(text: &str) -> bool {
    text.chars().all(|character| match character {
        '\t' | '\n' | '\r' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        other => other >= ' ',
    })
}
