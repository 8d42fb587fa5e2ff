//! Answers of MNS. XML is read by local names, in any order, and unknown elements are skipped. Answers that are not
//! XML, for example those of a proxy, become errors.

use std::time::Duration;

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;

/// Most levels of nested elements. The answers of MNS have five.
const MAX_DEPTH: usize = 32;

/// What is wrong with an answer that [`Element::parse`] does not read.
pub(super) const NOT_READ: &str = "the answer is not XML, or its elements nest deeper than 32 levels";

/// An element, without its attributes. Its children nest less than [`MAX_DEPTH`] levels, so that it can be dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) children: Vec<Element>,
}

impl Element {
    /// The root of a document; none if the text is not well-formed XML, or nests deeper than [`MAX_DEPTH`] levels.
    pub(super) fn parse(text: &str) -> Option<Element> {
        let mut reader = Reader::from_str(text);
        // The first is the document, the others are the open elements.
        let mut open = vec![Element::default()];
        loop {
            match reader.read_event().ok()? {
                Event::Start(_) if open.len() > MAX_DEPTH => return None,
                Event::Start(start) => open.push(Element::named(start.local_name().as_ref())),
                Event::Empty(_) if open.len() > MAX_DEPTH => return None,
                Event::Empty(empty) => open.last_mut()?.children.push(Element::named(empty.local_name().as_ref())),
                Event::End(_) => {
                    let element = open.pop()?;
                    open.last_mut()?.children.push(element);
                }
                Event::Text(text) => open.last_mut()?.text.push_str(&text.xml10_content()),
                Event::CData(text) => open.last_mut()?.text.push_str(&text.xml10_content()),
                Event::GeneralRef(reference) => match reference.resolve_char_ref().ok()? {
                    Some(character) => open.last_mut()?.text.push(character),
                    None => open.last_mut()?.text.push_str(resolve_predefined_entity(reference.as_ref())?),
                },
                Event::Decl(_) | Event::PI(_) | Event::DocType(_) | Event::Comment(_) => {}
                Event::Eof => break,
            }
        }
        let [document] = <[Element; 1]>::try_from(open).ok()?;
        let [root] = <[Element; 1]>::try_from(document.children).ok()?;
        Some(root)
    }

    fn named(name: &str) -> Element {
        Element { name: name.to_owned(), ..Element::default() }
    }

    /// The first child of a name.
    pub(super) fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text of the first child of a name.
    pub(super) fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }

    fn number_of<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text_of(name)?.trim().parse().ok()
    }
}

/// A message as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) id: String,
    pub(super) receipt_handle: String,
    pub(super) body: String,
    pub(super) body_md5: String,
    /// End of the lease, in Unix milliseconds of the server's clock.
    pub(super) next_visible: Option<i64>,
    /// How often it was received, this time included.
    pub(super) dequeue_count: u32,
    /// W3C trace context of its sender.
    pub(super) traceparent: Option<String>,
}

impl Message {
    /// Reads a message; none if it has no receipt handle, without which it cannot be deleted.
    pub(super) fn read(element: &Element) -> Option<Message> {
        let property = |name: &str| {
            let properties = element.child("SystemProperties")?.children.iter();
            properties
                .filter(|property| property.text_of("Name") == Some(name))
                .find_map(|found| found.text_of("Value"))
        };
        Some(Message {
            id: element.text_of("MessageId").unwrap_or_default().trim().to_owned(),
            receipt_handle: element.text_of("ReceiptHandle").filter(|handle| !handle.is_empty())?.trim().to_owned(),
            body: element.text_of("MessageBody").unwrap_or_default().to_owned(),
            body_md5: element.text_of("MessageBodyMD5").unwrap_or_default().trim().to_owned(),
            next_visible: element.number_of("NextVisibleTime"),
            dequeue_count: element.number_of("DequeueCount").unwrap_or(1),
            traceparent: property("traceparent").map(str::to_owned),
        })
    }

    /// Whether the body is the one that was sent. `MessageBodyMD5` is computed over the body as it is transferred.
    pub(super) fn is_sound(&self) -> bool {
        use md5::{Digest, Md5};
        let hex: String = Md5::digest(self.body.as_bytes()).iter().map(|byte| format!("{byte:02X}")).collect();
        self.body_md5.is_empty() || self.body_md5.eq_ignore_ascii_case(&hex)
    }
}

/// How many messages a queue has, and its settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) active: u64,
    pub(super) inactive: u64,
    pub(super) delayed: u64,
    /// How long it keeps a message.
    pub(super) retention: Option<Duration>,
    /// Bytes of the largest message.
    pub(super) max_message: Option<u64>,
}

impl Attributes {
    /// Reads the attributes of a queue; none if the document is another one, for example a page of a web server.
    pub(super) fn read(element: &Element) -> Option<Attributes> {
        if element.name != "Queue" {
            return None;
        }
        let count = |name| element.number_of(name).unwrap_or(0);
        Some(Attributes {
            active: element.number_of("ActiveMessages")?,
            inactive: count("InactiveMessages"),
            delayed: count("DelayMessages"),
            retention: element.number_of("MessageRetentionPeriod").map(Duration::from_secs),
            max_message: element.number_of("MaximumMessageSize"),
        })
    }
}

/// What an error means for the caller, in a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MnsErrorKind {
    /// A person must change something: no such queue, key unknown, signature refused, access denied.
    Misconfigured,
    /// Too many requests.
    Throttled,
    /// The service cannot be reached, did not answer in time, or says that it is unavailable.
    Unavailable,
    /// The message was deleted, or its lease has ended.
    Gone,
}

impl MnsErrorKind {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            MnsErrorKind::Misconfigured => "misconfigured",
            MnsErrorKind::Throttled => "throttled",
            MnsErrorKind::Unavailable => "unavailable",
            MnsErrorKind::Gone => "gone",
        }
    }

    fn of(code: &str, status: u16) -> MnsErrorKind {
        match code {
            "MessageNotExist" | "ReceiptHandleError" => MnsErrorKind::Gone,
            "QpsLimitExceeded" | "Throttling" => MnsErrorKind::Throttled,
            // The clock may be corrected at any moment.
            "TimeExpired" => MnsErrorKind::Unavailable,
            _ if status == 429 => MnsErrorKind::Throttled,
            _ if status >= 500 || status == 408 => MnsErrorKind::Unavailable,
            // An answer without XML comes from a proxy or load balancer. It says nothing about the queue.
            "" => MnsErrorKind::Unavailable,
            _ => MnsErrorKind::Misconfigured,
        }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MnsError {
    /// What to do about it.
    pub kind: MnsErrorKind,
    /// The service's code; empty where there is none.
    pub code: String,
    /// The message of the service, or why there is no answer.
    pub message: String,
}

impl MnsError {
    /// Whether the same request would fail again soon.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.kind, MnsErrorKind::Gone | MnsErrorKind::Misconfigured)
    }

    /// A request that was not answered.
    pub(super) fn unavailable(message: impl std::fmt::Display) -> MnsError {
        MnsError { kind: MnsErrorKind::Unavailable, code: String::new(), message: message.to_string() }
    }

    /// Reads an answer that is not a success.
    pub(super) fn read(status: u16, body: &str) -> MnsError {
        let Some(error) = Element::parse(body).filter(|root| root.name == "Error") else {
            let start: String = body.chars().filter(|c| !c.is_control()).take(100).collect();
            return MnsError {
                kind: MnsErrorKind::of("", status),
                code: String::new(),
                message: format!("the answer has status {status} and is not XML: {start}"),
            };
        };
        let text = |name| error.text_of(name).unwrap_or_default().trim().to_owned();
        let (code, words) = (text("Code"), text("Message"));
        MnsError { kind: MnsErrorKind::of(&code, status), message: format!("{code} ({status}): {words}"), code }
    }
}

/// The handles that a batch delete could not delete, each with its code; none for an error of the whole request.
pub(super) fn failed_deletes(body: &str) -> Option<Vec<(String, String)>> {
    let root = Element::parse(body).filter(|root| root.name == "Errors")?;
    let failed = root.children.iter().filter(|child| child.name == "Error").map(|error| {
        let text = |name| error.text_of(name).unwrap_or_default().trim().to_owned();
        (text("ReceiptHandle"), text("ErrorCode"))
    });
    Some(failed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! fixture {
        ($name:literal) => {
            include_str!(concat!("../../../tests/fixtures/mns/", $name))
        };
    }

    #[test]
    fn captured_answers_are_read() {
        let root = Element::parse(fixture!("receive-raw.real.xml")).expect("XML");
        let message = Message::read(&root).expect("a message");
        assert_eq!(message.body, "I am 测试字符串.");
        assert_eq!((message.dequeue_count, message.next_visible), (1, Some(1_716_809_470_986)));
        assert!(message.is_sound());
        let root = Element::parse(fixture!("receive-base64.real.xml")).expect("XML");
        assert!(Message::read(&root).expect("a message").is_sound());
        let batch = Element::parse(fixture!("batch-receive-vod-ims.built.xml")).expect("XML");
        let messages: Vec<Message> = batch.children.iter().filter_map(Message::read).collect();
        assert!(messages.len() >= 2 && messages.iter().all(Message::is_sound));
        let failed = failed_deletes(fixture!("batch-delete-partial-failure.built.xml")).expect("a partial failure");
        assert!(failed.iter().all(|(handle, code)| !handle.is_empty() && code == "MessageNotExist"), "{failed:?}");
        assert_eq!(failed_deletes(fixture!("error-404-QueueNotExist.built.xml")), None);
    }

    #[test]
    fn each_code_gets_the_kind_that_says_what_helps() {
        let kind = |status, body| MnsError::read(status, body).kind;
        assert_eq!(kind(404, fixture!("error-404-QueueNotExist.built.xml")), MnsErrorKind::Misconfigured);
        assert_eq!(kind(403, fixture!("error-403-InvalidAccessKeyId.built.xml")), MnsErrorKind::Misconfigured);
        assert_eq!(kind(403, fixture!("error-403-SignatureDoesNotMatch.built.xml")), MnsErrorKind::Misconfigured);
        assert_eq!(kind(404, fixture!("error-404-MessageNotExist.built.xml")), MnsErrorKind::Gone);
        assert_eq!(kind(400, fixture!("error-400-ReceiptHandleError.built.xml")), MnsErrorKind::Gone);
        assert_eq!(kind(408, fixture!("error-408-TimeExpired.built.xml")), MnsErrorKind::Unavailable);
        assert_eq!(kind(502, "<html><body><h1>Bad Gateway"), MnsErrorKind::Unavailable);
        assert_eq!(kind(302, "moved"), MnsErrorKind::Unavailable);
        let throttled = "<Error><Message>slow down</Message><Code>QpsLimitExceeded</Code></Error>";
        assert_eq!(kind(403, throttled), MnsErrorKind::Throttled);
        assert_eq!(MnsError::read(403, throttled).to_string(), "QpsLimitExceeded (403): slow down");
    }

    /// Dropping a tree of 50,000 levels overflows the stack.
    #[test]
    fn an_answer_that_nests_too_deep_is_refused() {
        let nested = |levels: usize| format!("{}{}", "<a>".repeat(levels), "</a>".repeat(levels));
        assert!(Element::parse(&nested(MAX_DEPTH)).is_some());
        let inner = format!("{}<a/>{}", "<a>".repeat(MAX_DEPTH), "</a>".repeat(MAX_DEPTH));
        for text in [nested(MAX_DEPTH + 1), nested(50_000), "<a>".repeat(50_000), inner] {
            assert_eq!(Element::parse(&text), None);
        }
        assert!(NOT_READ.contains(&MAX_DEPTH.to_string()));
    }

    #[test]
    fn only_a_queue_has_attributes() {
        let attributes = |text| Attributes::read(&Element::parse(text).expect("XML"));
        let found = attributes("<Queue xmlns='u'><ActiveMessages>3</ActiveMessages></Queue>").expect("a queue");
        assert_eq!((found.active, found.inactive, found.retention), (3, 0, None));
        for other in [
            "<html><body><h1>It works!</h1></body></html>",
            "<Queue/>",
            "<Queues><ActiveMessages>3</ActiveMessages></Queues>",
            "<html><ActiveMessages>3</ActiveMessages></html>",
        ] {
            assert_eq!(attributes(other), None, "{other}");
        }
    }

    #[test]
    fn text_that_is_not_a_document_gives_none() {
        for text in ["", "text", "<a>", "<a></b>", "<a/><b/>", "<a>&nothing;</a>"] {
            assert_eq!(Element::parse(text), None, "{text}");
        }
        let odd = "<x:a xmlns:x='u' ><b>1&lt;2&#13;</b ><c/></x:a>";
        let root = Element::parse(odd).expect("XML");
        assert_eq!((root.name.as_str(), root.text_of("b"), root.text_of("c")), ("a", Some("1<2\r"), Some("")));
    }
}
