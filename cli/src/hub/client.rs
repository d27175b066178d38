//! Requests to the Hub: redirects followed by hand, so that the token goes to the Hub alone, and refusals put into words.

use super::id::HubId;
use super::settings::Settings;
use crate::terminal::tell;
use doppler::{Error, Result};
use std::io::Read;
use std::time::Duration;
use ureq::config::Config;
use ureq::http::header::{AUTHORIZATION, LOCATION, RANGE};
use ureq::http::{HeaderMap, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, BodyReader};

/// Answers that only name another place, one after the other.
const REDIRECTS: usize = 8;
/// How often one request may fail without bringing a byte, and the first wait after that; it doubles.
pub const TRIES: u32 = 5;
const WAIT: Duration = Duration::from_millis(100);
/// How long to wait where a server has too many requests and does not say.
const BUSY: Duration = Duration::from_secs(2);
/// The longest that one request may wait in all where servers ask for it: the Hub counts requests by five minutes.
const LONGEST: Duration = Duration::from_secs(300);
/// Waits from which on they are reported.
const REPORTED: Duration = Duration::from_secs(5);
/// How long a connection may take to be made, and how long a server may say nothing.
const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(30);

/// Why a request gave nothing.
#[derive(Debug)]
pub enum Failure {
    /// It may succeed later: no server answered, or none that works, or the connection broke. A server may ask to `wait`.
    Passing { why: String, wait: Option<Duration> },
    /// It will not.
    Final(Error),
}

impl Failure {
    /// What may succeed at once.
    pub fn passing(why: impl Into<String>) -> Self {
        Failure::Passing { why: why.into(), wait: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Final(error)
    }
}

/// Asks the Hub for one model.
pub struct Client {
    agent: Agent,
    endpoint: Uri,
    settings: Settings,
    id: HubId,
}

/// What the Hub says of a file, in the answers on the way to it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Version {
    /// What tells its content from others: a SHA-256 for large files, what Git calls a blob for small ones.
    pub etag: Option<String>,
    /// The commit of the model.
    pub commit: Option<String>,
    /// Bytes of the whole file.
    pub size: Option<u64>,
}

/// An answer whose body is to be read.
pub struct Answer {
    pub version: Version,
    /// Where in the file the body begins.
    pub from: u64,
    pub body: BodyReader<'static>,
}

impl Client {
    /// A client for the model `id`. It connects to nobody yet.
    ///
    /// # Errors
    /// `Kind::Invalid` for an endpoint that is no address; `Kind::Io` for certificates that cannot be read.
    pub fn new(settings: Settings, id: HubId) -> Result<Self> {
        let endpoint = settings.endpoint.parse().map_err(|e| Error::invalid("HF_ENDPOINT", format!("`{}`: {e}", settings.endpoint)))?;
        let config = Config::builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("doppler/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .tls_config(trust(&settings)?)
            .build();
        Ok(Self { agent: config.new_agent(), endpoint, settings, id })
    }
    /// The model's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
    /// The list of the model's files, as the Hub gives it.
    ///
    /// # Errors
    /// `Failure`; refusals in words.
    pub fn list(&self, most: u64) -> Result<String, Failure> {
        let revision = encoded(&self.id.revision, false);
        let address = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.settings.endpoint, self.id.repo);
        let answer = self.get(&address, 0, None)?;
        let mut text = String::new();
        // One byte more, so that a longer list is noticed.
        answer.body.take(most + 1).read_to_string(&mut text).map_err(|e| broken(&e))?;
        if text.len() as u64 > most {
            return Err(Error::format(&self.id, format!("the list of its files has more than {most} bytes")).into());
        }
        Ok(text)
    }
    /// The bytes of the file `name` of a commit, from `from` on.
    ///
    /// # Errors
    /// `Failure`; refusals in words.
    pub fn file(&self, commit: &str, name: &str, from: u64) -> Result<Answer, Failure> {
        let address = format!("{}/{}/resolve/{}/{}", self.settings.endpoint, self.id.repo, encoded(commit, false), encoded(name, true));
        self.get(&address, from, Some(name))
    }
    /// `work`, again where it fails in a way that may pass, `tries` times at most, after as long as the server asks for.
    ///
    /// # Errors
    /// The last failure.
    pub fn retried<T>(&self, tries: u32, mut work: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let (mut count, mut left) = (1, LONGEST);
        loop {
            match work() {
                Err(Failure::Passing { why, wait: Some(wait) }) if wait > left => {
                    return Err(Failure::passing(format!("{why}, and the server asks to wait {} s", wait.as_secs())));
                }
                Err(Failure::Passing { why, wait: Some(wait) }) if count < tries => {
                    left -= wait;
                    if wait >= REPORTED {
                        tell(&format!("{}: {why}: waiting {} s, as the server asks", self.id.model(), wait.as_secs()));
                    }
                    std::thread::sleep(wait);
                }
                Err(Failure::Passing { wait: None, .. }) if count < tries => std::thread::sleep(WAIT * 2u32.pow(count - 1)),
                done => return done,
            }
            count += 1;
        }
    }
    fn get(&self, address: &str, from: u64, name: Option<&str>) -> Result<Answer, Failure> {
        let mut uri: Uri = address.parse().map_err(|e| Error::invalid(address, e))?;
        let mut version = Version::default();
        for _ in 0..=REDIRECTS {
            let own = origin(&uri) == origin(&self.endpoint);
            let mut request = self.agent.get(uri.clone());
            if let Some(token) = self.settings.token.as_ref().filter(|_| own) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(|e| Failure::passing(unanswered(&e.to_string())))?;
            let (status, headers) = (response.status().as_u16(), response.headers());
            if own {
                version.note(headers, status);
            }
            match status {
                301 | 302 | 303 | 307 | 308 => uri = self.next(&uri, headers)?,
                200 | 206 => {
                    let from = if status == 206 { first_byte(headers).unwrap_or(from) } else { 0 };
                    version.size = total(headers, status).or(version.size);
                    return Ok(Answer { version, from, body: response.into_body().into_reader() });
                }
                408 | 429 | 500.. => {
                    let wait = asked_wait(headers).or((status == 429).then_some(BUSY));
                    return Err(Failure::Passing { why: format!("HTTP status {status}"), wait });
                }
                _ => return Err(self.refusal(status, text(headers, "x-error-code"), own, name).into()),
            }
        }
        Err(Error::io(address, format!("more than {REDIRECTS} redirects")).into())
    }
    /// Where an answer leads.
    fn next(&self, from: &Uri, headers: &HeaderMap) -> Result<Uri> {
        let refused = |to: &str, why: &str| Error::io(from, format!("the server sends this request to `{to}`: {why}"));
        let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
        let whole = match to.strip_prefix('/') {
            Some(rest) if !rest.starts_with('/') => format!("{}{to}", origin(from)),
            _ => to.to_string(),
        };
        let uri: Uri = whole.parse().map_err(|_| refused(to, "expected an address"))?;
        match uri.scheme_str() {
            Some("https") => Ok(uri),
            Some("http") if self.endpoint.scheme_str() == Some("http") => Ok(uri),
            _ => Err(refused(to, "expected one that begins with https://")),
        }
    }
    /// Why the Hub does not give the model, or its file `name`.
    fn refusal(&self, status: u16, code: Option<String>, own: bool, name: Option<&str>) -> Error {
        let Settings { endpoint, token, .. } = &self.settings;
        let (page, code) = (format!("{endpoint}/{}", self.id.repo), code.unwrap_or_default());
        let about = format!("HTTP status {status}{}{code}", if code.is_empty() { "" } else { ", " });
        let text = match (status, code.as_str(), token) {
            _ if !own => format!("`{}`: the server that stores it refuses it ({about}); try again", name.unwrap_or("its list of files")),
            (403, _, None) | (_, "GatedRepo", None) => format!(
                "this model is gated ({about}): accept its licence at {page}, and set HF_TOKEN to a token of your account ({endpoint}/settings/tokens)"
            ),
            (403, _, Some(_)) | (_, "GatedRepo", Some(_)) => {
                format!("this model is gated ({about}): ask for access at {page} with the account of the token (HF_TOKEN)")
            }
            (_, "RevisionNotFound", _) => format!("there is no revision `{}` at {page}: look at its branches and tags", self.id.revision),
            (401, _, None) => format!(
                "there is no such model at {endpoint}, or it is private or gated ({about}): look at {page}; for a private one, set HF_TOKEN"
            ),
            (401, _, Some(_)) => format!(
                "there is no such model at {endpoint}, or the token (HF_TOKEN) is not valid, or its account may not see the model ({about}): look at {page}"
            ),
            (404, ..) if name.is_none() => format!("there is no such model at {endpoint} ({about}): look at {page}"),
            _ => format!("{}{page}: {about}", name.map(|name| format!("`{name}` of ")).unwrap_or_default()),
        };
        Error::io(&self.id, text)
    }
}

impl Version {
    /// Takes what an answer of the Hub says.
    fn note(&mut self, headers: &HeaderMap, status: u16) {
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        if let Some(etag) = etag {
            let plain = etag.trim_start_matches("W/").trim_matches('"');
            // It becomes the name of a file.
            let fits = !plain.is_empty() && plain.len() <= 128 && plain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            self.etag = self.etag.take().or_else(|| fits.then(|| plain.to_string()));
        }
        self.commit = self.commit.take().or_else(|| text(headers, "x-repo-commit"));
        let linked = text(headers, "x-linked-size").and_then(|size| size.parse().ok());
        self.size = linked.or(self.size).or_else(|| total(headers, status));
    }
}

/// The connection broke within a body.
pub fn broken(error: &std::io::Error) -> Failure {
    Failure::passing(format!("the connection broke ({error})"))
}

/// Why there is no answer, and what helps where the server's certificate is not trusted.
fn unanswered(why: &str) -> String {
    let hint =
        "; where a proxy reads what is sent, or for a server of your own, set SSL_CERT_FILE to a PEM file of the certificates to trust";
    format!("{why}{}", if why.contains("certificate") { hint } else { "" })
}

/// Which certificates are trusted.
fn trust(settings: &Settings) -> Result<TlsConfig> {
    let Some(path) = &settings.certificates else { return Ok(TlsConfig::default()) };
    let failed = |e: &dyn std::fmt::Display| Error::io(path.display(), format!("certificates (SSL_CERT_FILE): {e}"));
    let text = std::fs::read(path).map_err(|e| failed(&e))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| failed(&e))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(failed(&"expected certificates in PEM form, found none"));
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates)).build())
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string)
}

/// How long a server asks to wait: `Retry-After: 30`, or as the Hub says it, `RateLimit: "api";r=0;t=30`. A date is not read.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let limit = || text(headers, "ratelimit")?.split(';').find_map(|part| part.trim().strip_prefix("t=").map(str::to_string));
    let seconds = text(headers, "retry-after").or_else(limit)?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

/// Bytes of the whole file, where an answer says so.
fn total(headers: &HeaderMap, status: u16) -> Option<u64> {
    match status {
        206 => text(headers, "content-range")?.rsplit_once('/')?.1.parse().ok(),
        200 => text(headers, "content-length")?.parse().ok(),
        _ => None,
    }
}

/// The first byte of a part: `bytes 5-9/10`.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    text(headers, "content-range")?.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// Scheme, host and port of an address.
fn origin(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or_default().to_lowercase();
    let host = uri.host().unwrap_or_default().to_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    format!("{scheme}://{host}:{port}")
}

/// `text` as a part of an address; `slashes` stay where it is a path.
pub fn encoded(text: &str, slashes: bool) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || (slashes && b == b'/');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_not_trusted_is_an_error_with_a_hint() {
        let error = |text: &str| unanswered(&ureq::Error::Io(std::io::Error::other(text.to_string())).to_string());
        assert!(error("invalid peer certificate: UnknownIssuer").contains("SSL_CERT_FILE"));
        assert!(!error("connection refused").contains("SSL_CERT_FILE"));
    }

    #[test]
    fn origins_are_compared_whole() {
        let origin = |text: &str| origin(&text.parse().unwrap());
        assert_eq!(origin("https://Huggingface.co/a/b"), origin("https://huggingface.co:443/c"));
        for other in
            ["http://huggingface.co", "https://huggingface.co:8443", "https://huggingface.co.evil.org", "https://cdn.huggingface.co"]
        {
            assert_ne!(origin("https://huggingface.co"), origin(other));
        }
    }

    #[test]
    fn servers_say_how_long_to_wait() {
        let wait = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            asked_wait(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!((wait("retry-after", " 30 "), wait("ratelimit", "\"api\";r=0; t=55")), (Some(30), Some(55)));
        for (name, value) in [("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), ("retry-after", "-1"), ("ratelimit", "r=0"), ("date", "3")]
        {
            assert_eq!(wait(name, value), None, "{name}: {value}");
        }
    }

    #[test]
    fn paths_are_encoded() {
        assert_eq!(encoded("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encoded("a b/c#ü.gguf", true), "a%20b/c%23%C3%BC.gguf");
    }

    #[test]
    fn redirects_lead_to_the_web_alone() {
        let settings =
            |endpoint: &str| Settings { endpoint: endpoint.into(), cache: "c".into(), token: None, offline: None, certificates: None };
        let next = |endpoint: &str, to: &str| {
            let client = Client::new(settings(endpoint), HubId::parse("a/b").unwrap().unwrap()).unwrap();
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, to.parse().unwrap());
            client.next(&format!("{endpoint}/a/b/resolve/c/f").parse().unwrap(), &headers).map(|uri| uri.to_string())
        };
        assert_eq!(next("https://h", "/other/name?x=1").unwrap(), "https://h:443/other/name?x=1");
        assert_eq!(next("https://h", "https://cdn/x").unwrap(), "https://cdn/x");
        assert_eq!(next("http://h:1", "http://cdn/x").unwrap(), "http://cdn/x");
        for bad in ["http://cdn/x", "file:///etc/passwd", "//cdn/x", "x", ""] {
            assert!(next("https://h", bad).unwrap_err().message.contains("https://"), "{bad}");
        }
    }
}
