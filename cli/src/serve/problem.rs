//! What a client is told that asked for something that cannot be: a status, and the error in the OpenAI API's form.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use doppler::{Error, Kind};
use serde_json::{Value, json};

/// A refusal, or a failure.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    pub status: StatusCode,
    message: String,
    /// The field of the request that it is about.
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which to try again.
    retry: Option<u32>,
}

impl Problem {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry: None }
    }
    /// A request that cannot be followed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
    /// The field `param` is wrong.
    pub fn field(param: &str, message: impl std::fmt::Display) -> Self {
        Self { param: Some(param.into()), ..Self::invalid(format!("{param}: {message}")) }
    }
    pub fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }
    pub fn about(self, param: &str) -> Self {
        Self { param: Some(param.into()), ..self }
    }
    pub fn retry(self, seconds: u32) -> Self {
        Self { retry: Some(seconds), ..self }
    }
    /// The error object.
    pub fn json(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 | 403 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error.kind {
            Kind::Invalid | Kind::Template | Kind::Tokenizer | Kind::Config | Kind::Unsupported => Self::invalid(error.message),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.message),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let mut response = (self.status, kind, self.json().to_string()).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_requests_are_not_those_of_the_server() {
        assert_eq!(Problem::from(Error::template("x")).status, 400);
        let broken = Problem::from(Error::device("lost"));
        assert_eq!((broken.status.as_u16(), &broken.json()["error"]["type"]), (500, &json!("server_error")));
        let field = Problem::field("n", "expected a whole number").code("x").json();
        assert_eq!(
            field["error"],
            json!({"message": "n: expected a whole number", "type": "invalid_request_error", "param": "n", "code": "x"})
        );
    }
}
