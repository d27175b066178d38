//! A bundle as a service: a folder's files, or those in memory as if they lay in a folder.

use super::bundle::{Bundle, Files};
use super::server::give;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use doppler::formats::{InMemory, Local};
use flate2::read::GzDecoder;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::sync::Arc;
use tower_http::services::ServeDir;

/// Serves the files of `bundle` at their paths; a folder's index.html is its page.
pub fn serve(bundle: Bundle) -> Router {
    match bundle {
        Bundle::Folder(folder) => Router::new().fallback_service(ServeDir::new(folder).precompressed_gzip()),
        Bundle::Memory(files) => Router::new().fallback(get(file)).with_state(Arc::new(files)),
    }
}

/// One of the files. What is there only compressed goes out so, unless the client cannot have it: browsers can.
async fn file(State(files): State<Arc<Files>>, address: Uri, headers: HeaderMap) -> Response {
    let path = address.path().trim_start_matches('/');
    let name = if path.is_empty() || path.ends_with('/') { format!("{path}index.html") } else { path.to_string() };
    if let Some(bytes) = files.get(&name) {
        return tagged(give(in_memory(&name, bytes.clone()), kind(&name), &headers).await, bytes);
    }
    let Some(small) = files.get(&format!("{name}.gz")) else { return StatusCode::NOT_FOUND.into_response() };
    if takes_gzip(&headers) {
        let mut answer = tagged(give(in_memory(&name, small.clone()), kind(&name), &HeaderMap::new()).await, small);
        answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        return answer;
    }
    let mut bytes = Vec::new();
    match GzDecoder::new(&**small).read_to_end(&mut bytes) {
        Ok(_) => give(in_memory(&name, bytes.into()), kind(&name), &headers).await,
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{name}: {e}\n")).into_response(),
    }
}

fn in_memory(name: &str, bytes: Bytes) -> Local {
    Local::Memory(InMemory::new(name, bytes))
}

/// Whether the client says that it takes gzip.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|part| {
        let (name, weight) = part.split_once(';').unwrap_or((part, ""));
        name.trim().eq_ignore_ascii_case("gzip") && weight.trim().trim_start_matches("q=").parse::<f64>() != Ok(0.0)
    })
}

/// With a tag that changes with the content: browsers keep a model's files under it.
fn tagged(mut answer: Response, content: &Bytes) -> Response {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish())) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}

/// The media type of a file of the page.
fn kind(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "ts" | "txt" => "text/plain; charset=utf-8",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "wasm" => "application/wasm",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;
    use tower_service::Service;

    #[test]
    fn files_in_memory_are_served_as_a_folder_s() {
        let mut small = GzEncoder::new(Vec::new(), Compression::fast());
        small.write_all(b"\0asm").unwrap();
        let small = small.finish().unwrap();
        let files: Files = [("index.html", b"page".to_vec()), ("doppler/a.wasm.gz", small.clone()), ("models/w", b"0123456789".to_vec())]
            .map(|(name, bytes)| (name.to_string(), Bytes::from(bytes)))
            .into();
        let app = serve(Bundle::Memory(files));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let get = |path: &str, name: &str, value: &str| {
            let request = Request::get(path).header(name, value).body(Body::empty()).unwrap();
            let (about, body) = runtime.block_on(app.clone().call(request)).unwrap().into_parts();
            let body = runtime.block_on(axum::body::to_bytes(body, 1 << 20)).unwrap();
            let text = |name: &str| about.headers.get(name).map(|value| value.to_str().unwrap().to_string()).unwrap_or_default();
            (about.status.as_u16(), text("content-type"), text("content-encoding"), body.to_vec(), text("etag"))
        };
        let (status, kind, _, body, tag) = get("/?model=x", "accept", "*/*");
        assert_eq!((status, &*kind, &*body, tag.len()), (200, "text/html; charset=utf-8", &b"page"[..], 18));
        for (accepts, encoding, expected) in [
            ("br, gzip;q=0.5", "gzip", &small[..]),
            ("br", "", &b"\0asm"[..]),
            ("gzip;q=0", "", &b"\0asm"[..]),
            ("gzip2", "", &b"\0asm"[..]),
        ] {
            let (status, kind, found, body, _) = get("/doppler/a.wasm", "accept-encoding", accepts);
            assert_eq!((status, &*kind, &*found, &*body), (200, "application/wasm", encoding, expected), "{accepts}");
        }
        let (status, _, _, body, _) = get("/models/w", "range", "bytes=2-4");
        assert_eq!((status, &*body), (206, &b"234"[..]));
        for none in ["/doppler/", "/models", "/../index.html", "/nothing"] {
            assert_eq!(get(none, "accept", "*/*").0, 404, "{none}");
        }
    }
}
