//! Hand-written requests, without a client library between the test and the bytes.

use std::io::{Read, Write};
use std::net::TcpStream;

use time::OffsetDateTime;

use super::{SOON, default_key};
use crate::support::mns::Mns;
use crate::support::mns::signature::{Signable, SignatureVersion, authorization, http_date};
use crate::support::mns::xml::Element;

/// An answer without interpretation.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn xml(&self) -> Element {
        Element::parse(&self.body).unwrap_or_else(|| panic!("this is not XML: {self:?}"))
    }

    /// The status, and the code in the body.
    pub fn code(&self) -> (u16, String) {
        (self.status, self.xml().text_of("Code").unwrap_or_else(|| panic!("no code: {self:?}")).to_owned())
    }
}

pub fn unsigned(mns: &Mns, method: &str, target: &str) -> Signable {
    let headers = [
        ("Host", mns.endpoint().trim_start_matches("http://").to_owned()),
        ("Date", http_date(OffsetDateTime::now_utc())),
        ("x-mns-version", "2015-06-06".to_owned()),
        ("Content-Type", "text/xml;charset=UTF-8".to_owned()),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
    Signable { method: method.to_owned(), target: target.to_owned(), headers }
}

pub fn signed(mut request: Signable, mns: &Mns, version: SignatureVersion) -> Signable {
    let authorization = authorization(&request, &default_key(), &mns.region(), version);
    request.headers.push(("Authorization".to_owned(), authorization));
    request
}

pub fn connect(mns: &Mns) -> TcpStream {
    let stream = TcpStream::connect(mns.endpoint().trim_start_matches("http://")).expect("it listens");
    stream.set_read_timeout(Some(SOON)).expect("a socket accepts a timeout");
    stream
}

pub fn write(stream: &mut TcpStream, request: &Signable, body: &str) {
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
    for (name, value) in &request.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).expect("it reads");
}

pub fn exchange(mns: &Mns, request: &Signable, body: &str) -> std::io::Result<Answer> {
    let mut stream = connect(mns);
    write(&mut stream, request, body);
    let mut answer = String::new();
    if stream.read_to_string(&mut answer)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(": "));
    Ok(Answer {
        status: status.unwrap_or_else(|| panic!("no status: {answer:?}")),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        body: body.to_owned(),
    })
}

pub fn ask_as(mns: &Mns, version: SignatureVersion, method: &str, target: &str, body: &str) -> Answer {
    exchange(mns, &signed(unsigned(mns, method, target), mns, version), body).expect("an answer")
}

pub fn ask(mns: &Mns, method: &str, target: &str, body: &str) -> Answer {
    ask_as(mns, SignatureVersion::V1, method, target, body)
}

pub fn encoded(handle: &str) -> String {
    percent_encoding::utf8_percent_encode(handle, percent_encoding::NON_ALPHANUMERIC).to_string()
}

pub fn change_target(queue: &str, handle: &str, seconds: u32) -> String {
    format!("/queues/{queue}/messages?ReceiptHandle={}&VisibilityTimeout={seconds}", encoded(handle))
}

pub fn receive(mns: &Mns, queue: &str) -> Option<Element> {
    let answer = ask(mns, "GET", &format!("/queues/{queue}/messages?waitseconds=0"), "");
    match answer.status {
        200 => Some(answer.xml()),
        _ => {
            assert_eq!(answer.code(), (404, "MessageNotExist".to_owned()));
            None
        }
    }
}

pub fn received_handle(mns: &Mns, queue: &str) -> String {
    let message = receive(mns, queue).expect("a message is there");
    message.text_of("ReceiptHandle").expect("a receive leases").to_owned()
}
