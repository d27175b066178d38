//! The browser as a process: its switches, its sandbox, its end. Whoever can talk to its DevTools can read what its user
//! can, so they are reached through pipes that only this process has, never through a port.

use crate::devtools::{BROWSER, DevTools, Page, Shared, lock};
use crate::profile::Profile;
use crate::{Result, find};
use serde_json::json;
use std::io::PipeWriter;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// WebGPU without a question, and quiet: no sync, no updates, no first-run questions; nothing slows down because nobody
/// looks at it. DevTools are on file descriptors 3 and 4.
const SWITCHES: &[&str] = &[
    "--headless=new",
    "--remote-debugging-pipe",
    "--enable-unsafe-webgpu",
    "--enable-logging=stderr",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu-watchdog",
    "--disable-hang-monitor",
    "--disable-renderer-backgrounding",
    "--disable-sync",
    "--metrics-recording-only",
    "--mute-audio",
    "--no-default-browser-check",
    "--no-first-run",
    "--password-store=basic",
    "--use-mock-keychain",
];

/// The browser's software adapter. With that extension it zeroes workgroup memory by a store for each word, which takes
/// it a second to compile where a kernel has 16 KiB; without, by a loop.
const SOFTWARE: &[&str] =
    &["--use-webgpu-adapter=swiftshader", "--disable-dawn-features=use_vulkan_zero_initialize_workgroup_memory_extension"];

/// A real GPU with its true name and limits. On Linux Chromium wants to be asked for Vulkan, and hides f16 on NVIDIA.
const HARDWARE: &[&str] = &[
    "--ignore-gpu-blocklist",
    "--enable-webgpu-developer-features",
    "--enable-dawn-features=vulkan_enable_f16_on_nvidia",
    "--disable-dawn-features=tiered_adapter_limits,timestamp_quantization",
    #[cfg(target_os = "linux")]
    "--enable-features=Vulkan",
    #[cfg(target_os = "linux")]
    "--use-vulkan=native",
    #[cfg(target_os = "linux")]
    "--disable-vulkan-surface",
    #[cfg(target_os = "linux")]
    "--use-angle=vulkan",
];

/// Runs pages without the protection that keeps a page which broke out of its script from the user's files.
const NO_SANDBOX: &str = "--no-sandbox";

/// How long a browser may take until it answers.
const START: Duration = Duration::from_secs(60);

/// What pages compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adapter {
    /// A GPU.
    Hardware,
    /// The browser's own software.
    Software,
}

impl Adapter {
    /// A GPU where this machine has one that a browser could use. On Linux that is a device file; elsewhere there is one.
    pub fn present() -> Self {
        let drawing = std::fs::read_dir("/dev/dri").is_ok_and(|mut files| files.next().is_some());
        let there = !cfg!(target_os = "linux") || drawing || ["/dev/nvidiactl", "/dev/dxg"].iter().any(|file| Path::new(file).exists());
        if there { Self::Hardware } else { Self::Software }
    }
}

/// A browser and its profile, both gone when this is dropped, and when this process ends in any other way.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    profile: Profile,
    devtools: Shared,
    /// Closed when this process ends, however it does; that ends the browser.
    _alive: PipeWriter,
    /// Why it has no sandbox.
    unsandboxed: Option<String>,
}

impl Browser {
    /// Starts the browser that [`find`] finds, without a page. Switches in `$DOPPLER_BROWSER_SWITCHES`, separated by
    /// spaces, are added. It runs in its sandbox, but as root, or where the system lets it have none: see
    /// [`Self::unsandboxed`].
    ///
    /// # Errors
    /// When there is none, or it does not come up; with what it said.
    pub fn start(adapter: Adapter) -> Result<Self> {
        if is_root() {
            return Self::start_in(adapter, Some("root may not use it".into())).map_err(|(why, said)| told(&why, &said));
        }
        Self::start_in(adapter, None).or_else(|(why, said)| {
            // "No usable sandbox!", "Failed to move to new namespace", …
            let line = said.lines().find(|line| ["sandbox", "namespace"].iter().any(|word| line.to_lowercase().contains(word)));
            let Some(line) = line else { return Err(told(&why, &said)) };
            Self::start_in(adapter, Some(line.trim().into())).map_err(|(why, said)| told(&why, &said))
        })
    }
    /// Starts it with a sandbox, or without one for a reason. The error is what went wrong, and what the browser said.
    fn start_in(adapter: Adapter, unsandboxed: Option<String>) -> std::result::Result<Self, (String, String)> {
        let quiet = |why: String| (why, String::new());
        let program = find().map_err(quiet)?;
        let at = |e: &dyn std::fmt::Display| quiet(format!("{}: {e}", program.display()));
        let profile = Profile::new().map_err(quiet)?;
        let mut command = steered(&program, profile.path()).map_err(quiet)?;
        command.args(SWITCHES).args(if adapter == Adapter::Hardware { HARDWARE } else { SOFTWARE });
        if unsandboxed.is_some() {
            command.arg(NO_SANDBOX);
        }
        command.args(std::env::var("DOPPLER_BROWSER_SWITCHES").unwrap_or_default().split_whitespace());
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        let (alive, _alive) = std::io::pipe().map_err(|e| at(&e))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(alive);
        let mut child = command.spawn().map_err(|e| at(&e))?;
        // The command has the read end of `alive` until it is dropped.
        drop(command);
        let (Some(pipe), Some(answers)) = (child.stdin.take(), child.stdout.take()) else { return Err(at(&"it has no pipes")) };
        let devtools = Arc::new(Mutex::new(DevTools::new(pipe, answers)));
        let mut browser = Self { child, profile, devtools, _alive, unsandboxed };
        let answered = lock(&browser.devtools).call_within(START, BROWSER, "Browser.getVersion", json!({}));
        match answered {
            Ok(_) => Ok(browser),
            Err(why) => {
                let why = match browser.ended_within(Duration::from_secs(1)) {
                    Some(status) => format!("it ended at once ({status})"),
                    None => why,
                };
                Err((format!("{}: {why}", program.display()), browser.messages()))
            }
        }
    }
    /// Why it runs without its sandbox; `None` when it has one.
    pub fn unsandboxed(&self) -> Option<&str> {
        self.unsandboxed.as_deref()
    }
    /// Its name and version, like `Chrome/150.0.1.2`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn version(&mut self) -> Result<String> {
        let answer = lock(&self.devtools).call(BROWSER, "Browser.getVersion", json!({}))?;
        Ok(answer["product"].as_str().unwrap_or("a browser").into())
    }
    /// A tab at `address`. It may still be loading.
    ///
    /// # Errors
    /// When there is no tab.
    pub fn open(&mut self, address: &str) -> Result<Page> {
        let mut page = Page::new(self.devtools.clone())?;
        page.navigate(address)?;
        Ok(page)
    }
    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
    /// How it ended, if it does so in time.
    fn ended_within(&mut self, time: Duration) -> Option<std::process::ExitStatus> {
        let since = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(None) if since.elapsed() < time => std::thread::sleep(Duration::from_millis(10)),
                ended => return ended.ok().flatten(),
            }
        }
    }
    /// The last lines that it wrote.
    pub fn messages(&self) -> String {
        messages(self.profile.path())
    }
    /// The folder of its profile, which is private and goes with it.
    pub fn profile(&self) -> &Path {
        self.profile.path()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        #[cfg(unix)]
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.child.id())]).stderr(Stdio::null()).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An error with what the browser said.
fn told(why: &str, said: &str) -> String {
    if said.is_empty() { why.to_string() } else { format!("{why}; it said:\n{said}") }
}

#[cfg(unix)]
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}

/// A command that runs `program` with its stdin and stdout as the descriptors 3 and 4 of DevTools, and its messages in
/// the profile's log. When its stderr, the read end of a pipe, comes to an end, this process is gone, however it went:
/// the browser then ends with all that it started, and its profile goes. For that it is a shell in a process group of
/// its own.
#[cfg(unix)]
fn steered(program: &Path, profile: &Path) -> Result<Command> {
    let script = "profile=$1; shift; exec 3<&0 4>&1 5<&2 </dev/null >/dev/null 2>\"$profile/stderr.log\"
        \"$@\" 5<&- & browser=$!; exec 3<&- 4>&-
        (cat <&5 >/dev/null; kill -KILL $browser
         for _ in 1 2 3 4 5 6; do rm -rf \"$profile\" 2>/dev/null && sleep 0.3 && [ ! -e \"$profile\" ] && break; sleep 0.2; done
         kill -KILL 0) & exec 5<&-; wait $browser";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(profile).arg(program);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    Ok(command)
}

#[cfg(not(unix))]
fn steered(_program: &Path, _profile: &Path) -> Result<Command> {
    Err("a browser is steered through file descriptors 3 and 4, which programs on this system have no way to be given".into())
}

fn messages(profile: &Path) -> String {
    let log = std::fs::read(profile.join("stderr.log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
