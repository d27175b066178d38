//! Who may ask: the names by which the server is known, pages of other origins, the key. What is refused here reaches no model.

use super::problem::Problem;
use crate::http::Names;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ring::digest::{SHA256, digest};
use std::sync::Arc;

/// What is checked of every request.
pub struct Guard {
    /// None where no page can reach the server: at a socket in the file system.
    names: Option<Names>,
    /// Digest of the key.
    key: Option<[u8; 32]>,
    /// Origins whose pages may ask.
    origins: Vec<String>,
}

impl Guard {
    pub fn new(names: Option<Names>, key: Option<&str>, origins: Vec<String>) -> Self {
        Self { names, key: key.map(hashed), origins }
    }
    /// The origin of a page that may read answers, if the request comes from one.
    fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        self.origins.iter().any(|known| known == "*" || known == text).then(|| origin.clone())
    }
    fn check(&self, path: &str, headers: &HeaderMap, origin: Option<&HeaderValue>) -> Result<(), Problem> {
        if let Some(names) = self.names.as_ref().filter(|names| !names.has_host(headers)) {
            let text = format!(
                "this server answers to http://localhost:{} and its address; another name is allowed by --allow-host NAME",
                names.port
            );
            return Err(Problem::new(StatusCode::FORBIDDEN, text).code("unknown_host"));
        }
        if origin.is_none() && self.names.as_ref().is_some_and(|names| !names.is_of_ours(headers)) {
            let text = "pages of this origin may not ask; --cors ORIGIN allows one";
            return Err(Problem::new(StatusCode::FORBIDDEN, text).code("unknown_origin"));
        }
        // Whoever watches over the server needs no key to see that it lives.
        if path != "/health" && self.key.is_some_and(|key| !has_key(headers, &key)) {
            let text = "expected the header `Authorization: Bearer KEY` with the key of --api-key";
            return Err(Problem::new(StatusCode::UNAUTHORIZED, text).code("invalid_api_key"));
        }
        Ok(())
    }
}

fn hashed(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(digest(&SHA256, text.as_bytes()).as_ref()).for_each(|(to, from)| *to = *from);
    bytes
}

/// Whether a request has the key. Digests are compared, each to its end, so that the time says nothing of the key.
fn has_key(headers: &HeaderMap, key: &[u8; 32]) -> bool {
    let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = match text.split_once(' ') {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case("bearer") => given.trim(),
        _ => return false,
    };
    hashed(given).iter().zip(key).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// Refuses who may not ask; tells browsers which pages may.
pub async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let origin = guard.origin(request.headers());
    let asks_first = request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let wanted = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut response = match (&origin, asks_first) {
        // A browser asks without the key whether its page may ask with it.
        (Some(_), true) if guard.names.as_ref().is_none_or(|names| names.has_host(request.headers())) => {
            StatusCode::NO_CONTENT.into_response()
        }
        _ => match guard.check(request.uri().path(), request.headers(), origin.as_ref()) {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        },
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        if asks_first {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
            headers.extend(wanted.map(|wanted| (header::ACCESS_CONTROL_ALLOW_HEADERS, wanted)));
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared() {
        let headers = |value: &'static str| HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
        let key = hashed("secret");
        assert!(has_key(&headers("Bearer secret"), &key) && has_key(&headers("bearer  secret"), &key));
        for wrong in ["Bearer secre", "Bearer secrets", "secret", "Basic secret", "Bearer ", ""] {
            assert!(!has_key(&headers(wrong), &key), "{wrong}");
        }
        assert!(!has_key(&HeaderMap::new(), &key));
    }
}
