//! What the environment says of the Hub, by the names that its own client reads: where it is, where its cache is, who asks.

use doppler::{Error, Result};
use std::path::PathBuf;

/// The Hub itself.
const ENDPOINT: &str = "https://huggingface.co";

/// Where models come from and where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The Hub's address, without a slash at the end.
    pub endpoint: String,
    /// The folder of the caches of all models.
    pub cache: PathBuf,
    /// Sent to the Hub and to nobody else.
    pub token: Option<String>,
    /// The variable that forbids the network.
    pub offline: Option<&'static str>,
    /// A file of certificates to trust in place of those that are built in.
    pub certificates: Option<PathBuf>,
}

impl Settings {
    /// Those of this process.
    ///
    /// # Errors
    /// `Kind::Invalid` for a token or an address that cannot be one; `Kind::Io` where no folder is known.
    pub fn of_process() -> Result<Self> {
        let home = std::env::home_dir();
        Self::read(&|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()), home)
    }
    fn read(variable: &dyn Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Result<Self> {
        let given = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| given(name).map(|value| expanded(&value, home.as_ref()));
        let on = |name: &str| given(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.trim().to_uppercase().as_str()));
        let data = path("XDG_CACHE_HOME").or_else(|| Some(home.as_ref()?.join(".cache")));
        let hub_home = path("HF_HOME").or_else(|| Some(data?.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).or_else(|| Some(hub_home.as_ref()?.join("hub")));
        let hint = "this user has no home folder; set HF_HOME to the folder where models of the Hub are to be kept";
        let cache = cache.ok_or_else(|| Error::io("cache of the Hub", hint))?;
        let endpoint = given("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim().trim_end_matches('/').to_string();
        if !["https://", "http://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(Error::invalid("HF_ENDPOINT", format!("expected an address like {ENDPOINT}, found `{endpoint}`")));
        }
        let file = || {
            let file = path("HF_TOKEN_PATH").or_else(|| Some(hub_home.as_ref()?.join("token")))?;
            std::fs::read_to_string(file).ok()
        };
        let implicit = || if on("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { file() };
        let token = given("HF_TOKEN").or_else(|| given("HUGGING_FACE_HUB_TOKEN")).or_else(implicit);
        let token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::invalid(
                "HF_TOKEN",
                "expected a token of plain characters (hf_…); see its value, or the file that holds it",
            ));
        }
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| on(name));
        let certificates = path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")).or_else(|| path("CURL_CA_BUNDLE"));
        Ok(Self { endpoint, cache, token, offline, certificates })
    }
}

/// `~` at the beginning is the home folder, as Python's client has it.
fn expanded(value: &str, home: Option<&PathBuf>) -> PathBuf {
    match (value.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with(['/', '\\']) => home.join(rest.trim_start_matches(['/', '\\'])),
        _ => PathBuf::from(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        let variables: HashMap<String, String> = variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Settings::read(&|name| variables.get(name).cloned(), Some(PathBuf::from("/h")))
    }

    #[test]
    fn variables_count_in_the_order_of_the_hubs_client() {
        let plain = settings(&[]).unwrap();
        assert_eq!(
            (plain.endpoint.as_str(), plain.cache, plain.token, plain.offline),
            (ENDPOINT, "/h/.cache/huggingface/hub".into(), None, None)
        );
        let cache = |variables: &[(&str, &str)]| settings(variables).unwrap().cache.display().to_string();
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/y")]), "/h/y/hub");
        assert_eq!(cache(&[("HF_HOME", "/y"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/old");
        assert_eq!(cache(&[("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/new");
        let token = |variables: &[(&str, &str)]| settings(variables).unwrap().token;
        assert_eq!(token(&[("HF_TOKEN", " a\n"), ("HUGGING_FACE_HUB_TOKEN", "b")]).as_deref(), Some("a"));
        assert_eq!(token(&[("HF_TOKEN", ""), ("HUGGING_FACE_HUB_TOKEN", "b")]).as_deref(), Some("b"));
        assert_eq!(settings(&[("HF_HUB_OFFLINE", "true")]).unwrap().offline, Some("HF_HUB_OFFLINE"));
        assert_eq!(settings(&[("HF_HUB_OFFLINE", "0")]).unwrap().offline, None);
        assert_eq!(settings(&[("HF_ENDPOINT", "http://h:1/hub/")]).unwrap().endpoint, "http://h:1/hub");
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        assert!(settings(&[("HF_TOKEN", "a\r\nX: y")]).unwrap_err().message.contains("HF_TOKEN"));
        assert!(settings(&[("HF_ENDPOINT", "file:///etc")]).unwrap_err().message.contains("HF_ENDPOINT"));
    }
}
