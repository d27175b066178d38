//! The browser as a process: its switches, its profile, its end.

use crate::devtools::{DevTools, Page};
use crate::{Result, find};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// WebGPU without a question, and quiet: no sync, no updates, no first-run questions; nothing slows down because nobody
/// looks at it. The port is of DevTools, and any free one.
const SWITCHES: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--remote-debugging-port=0",
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

/// How long a browser may take until it listens.
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

/// A browser and its profile, both gone when this is dropped.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    profile: PathBuf,
    port: u16,
    devtools: DevTools,
}

impl Browser {
    /// Starts the browser that [`find`] finds, without a page. Switches in `$DOPPLER_BROWSER_SWITCHES`, apart by spaces,
    /// are added.
    ///
    /// # Errors
    /// When there is none, or it does not come up; with what it said.
    pub fn start(adapter: Adapter) -> Result<Self> {
        let program = find()?;
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let profile = std::env::temp_dir().join(format!("doppler-browser-{}-{number}", std::process::id()));
        let failed = |e: std::io::Error| format!("{}: {e}", profile.display());
        std::fs::create_dir_all(&profile).map_err(failed)?;
        let log = std::fs::File::create(profile.join("stderr.log")).map_err(failed)?;
        let mut command = watched(&program, &profile);
        command.args(SWITCHES).args(if adapter == Adapter::Hardware { HARDWARE } else { SOFTWARE });
        command.args(std::env::var("DOPPLER_BROWSER_SWITCHES").unwrap_or_default().split_whitespace());
        command.arg(format!("--user-data-dir={}", profile.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(|e| format!("{}: {e}", program.display()));
        let mut child = child.inspect_err(|_| remove(&profile))?;
        match listening(&mut child, &profile).and_then(|(port, path)| Ok((port, DevTools::connect(port, &path)?))) {
            Ok((port, devtools)) => Ok(Self { child, profile, port, devtools }),
            Err(why) => {
                let said = messages(&profile);
                end(&mut child, &profile);
                Err(format!("{}: {why}; it said:\n{said}", program.display()))
            }
        }
    }
    /// Its name and version, like `Chrome/150.0.1.2`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn version(&mut self) -> Result<String> {
        let answer = self.devtools.call("Browser.getVersion", json!({}))?;
        Ok(answer["product"].as_str().unwrap_or("a browser").into())
    }
    /// A tab at `address`. It may still be loading.
    ///
    /// # Errors
    /// When there is no tab.
    pub fn open(&mut self, address: &str) -> Result<Page> {
        let target = self.devtools.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let id = target["targetId"].as_str().ok_or("the browser made no tab")?;
        let mut page = Page::new(DevTools::connect(self.port, &format!("/devtools/page/{id}"))?)?;
        page.navigate(address)?;
        Ok(page)
    }
    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
    /// The last lines that it wrote.
    pub fn messages(&self) -> String {
        messages(&self.profile)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        end(&mut self.child, &self.profile);
    }
}

/// A command that runs `program` and ends it, with all that it started, when this process is gone, however it went: a
/// shell in a process group of its own waits for the end of its stdin.
#[cfg(unix)]
fn watched(program: &Path, profile: &Path) -> Command {
    let script = "exec 3<&0; profile=$1; shift; \"$@\" 3<&- & browser=$!
        (cat <&3 >/dev/null; kill -KILL $browser
         for _ in 1 2 3 4 5 6; do rm -rf \"$profile\" 2>/dev/null && sleep 0.3 && [ ! -e \"$profile\" ] && break; sleep 0.2; done
         kill -KILL 0) & wait $browser";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(profile).arg(program);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
}

#[cfg(not(unix))]
fn watched(program: &Path, _profile: &Path) -> Command {
    Command::new(program)
}

/// Port and path of the DevTools of a browser that is coming up.
fn listening(child: &mut Child, profile: &Path) -> Result<(u16, String)> {
    let since = Instant::now();
    loop {
        let text = std::fs::read_to_string(profile.join("DevToolsActivePort")).unwrap_or_default();
        if let Some((port, path)) = text.split_once('\n')
            && let Ok(port) = port.trim().parse()
        {
            return Ok((port, path.trim().to_string()));
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("it ended at once ({status})"));
        }
        if since.elapsed() > START {
            return Err(format!("it did not come up within {} s", START.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn messages(profile: &Path) -> String {
    let log = std::fs::read(profile.join("stderr.log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn end(child: &mut Child, profile: &Path) {
    #[cfg(unix)]
    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).stderr(Stdio::null()).status();
    let _ = child.kill();
    let _ = child.wait();
    remove(profile);
}

fn remove(profile: &Path) {
    // Its processes may still be writing for a moment.
    for _ in 0..20 {
        if std::fs::remove_dir_all(profile).is_ok() || !profile.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
