//! Answers other than 200: RFC 9457 problem details, in one table.
//!
//! Alibaba looks only at the status; the document is for a person with curl. It says what was wrong with the request.
//! It never contains internals such as a key, the expected signature or a topic.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Response, StatusCode, header::HeaderValue};

use crate::event::json::Json;

/// Seconds that a refused sender should wait. Alibaba retries after one second anyway.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

macro_rules! problems {
    ($($variant:ident = $status:ident, $slug:literal, $title:literal;)*) => {
        /// A kind of answer that is not a success.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Problem {
            $(#[doc = $title] $variant,)*
        }

        impl Problem {
            /// Every kind, in the order of the documentation.
            pub const ALL: &[Problem] = &[$(Problem::$variant,)*];

            /// The HTTP status.
            pub fn status(self) -> StatusCode {
                match self {
                    $(Problem::$variant => StatusCode::$status,)*
                }
            }

            /// The word in `type`, and with `_` for `-` the label `reason` of metrics.
            pub fn slug(self) -> &'static str {
                match self {
                    $(Problem::$variant => $slug,)*
                }
            }

            /// The sentence in `title`.
            pub fn title(self) -> &'static str {
                match self {
                    $(Problem::$variant => $title,)*
                }
            }
        }
    };
}

problems! {
    NotACallback = BAD_REQUEST, "not-a-callback", "the body is not a valid callback";
    BodyUnreadable = BAD_REQUEST, "body-unreadable", "the body could not be read";
    HostInvalid = BAD_REQUEST, "host-invalid", "the host header is missing or repeated";
    NotSigned = UNAUTHORIZED, "not-signed", "the request is not signed";
    SignatureMalformed = UNAUTHORIZED, "signature-malformed", "the signature headers are malformed";
    SignatureWrong = UNAUTHORIZED, "signature-wrong", "the signature is wrong";
    SignedForAnotherUrl = UNAUTHORIZED, "signed-for-another-url", "the request is signed for another url";
    SignatureStale = UNAUTHORIZED, "signature-stale", "the signature is too old";
    SignatureFromFuture = UNAUTHORIZED, "signature-from-future", "the signature is from the future";
    NoSuchPath = NOT_FOUND, "no-such-path", "there is no endpoint at this path";
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method-not-allowed", "the method must be POST";
    RequestTimeout = REQUEST_TIMEOUT, "request-timeout", "the request arrived too slowly";
    BodyTooLarge = PAYLOAD_TOO_LARGE, "body-too-large", "the body is too large";
    EncodingNotSupported = UNSUPPORTED_MEDIA_TYPE, "encoding-not-supported", "compressed bodies are not supported";
    Refused = SERVICE_UNAVAILABLE, "refused", "the callback was not accepted; try again";
    TooManyRequests = SERVICE_UNAVAILABLE, "too-many-requests", "too many requests at once; try again";
    Stopping = SERVICE_UNAVAILABLE, "stopping", "the service is stopping; try again";
}

/// The document of RFC 9457.
impl Problem {
    /// The label `reason` of metrics.
    pub fn label(self) -> String {
        self.slug().replace('-', "_")
    }

    /// The `type`.
    pub fn urn(self) -> String {
        format!("urn:apsara-bridge:problem:{}", self.slug())
    }

    fn document(self, detail: &str) -> String {
        let (urn, status) = (self.urn(), self.status());
        let members = [
            ("type", Json::String(&urn)),
            ("title", Json::String(self.title())),
            ("status", Json::Number(status.as_str())),
            ("detail", Json::String(detail)),
        ];
        Json::Object(&members).to_string()
    }

    /// The answer.
    pub fn response(self, detail: &str) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.document(detail))));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        if self == Problem::MethodNotAllowed {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        // A connection is kept only for those whose requests are accepted.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }

    /// The answer as bytes, for a connection on which no request was read.
    pub fn raw_response(self, detail: &str) -> String {
        let document = self.document(detail);
        format!(
            "HTTP/1.1 {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nretry-after: 1\r\n\
             connection: close\r\n\r\n{document}",
            self.status(),
            document.len(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_its_own_type() {
        let slugs: std::collections::HashSet<_> = Problem::ALL.iter().map(|problem| problem.slug()).collect();
        assert_eq!(slugs.len(), Problem::ALL.len());
        assert_eq!(
            Problem::BodyTooLarge.document("more than 1KiB"),
            r#"{"type":"urn:apsara-bridge:problem:body-too-large","title":"the body is too large","status":413,"detail":"more than 1KiB"}"#
        );
    }
}
