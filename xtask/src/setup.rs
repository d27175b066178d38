//! What the check needs of the system: a Vulkan driver, a browser. Installed where apt-get may be used without a
//! question; elsewhere it says what is missing. Tests that need what is missing then say that they skip. The parts of the
//! toolchain are in `rust-toolchain.toml`.

use crate::{Result, run, succeeds, web};
use std::process::Command;

/// Brings what is missing, or says it.
pub fn setup() -> Result {
    web::need_target()?;
    let missing = missing();
    if !missing.is_empty()
        && let Some(mut apt) = apt_get()
    {
        let packages: Vec<&str> = missing.iter().flat_map(|m| m.packages).copied().collect();
        println!("installing {}", packages.join(" "));
        // An error is not the end: what is still missing is told below.
        let installed =
            apt(&["update", "-qq"]).and_then(|()| apt(&[&["install", "-y", "-qq", "--no-install-recommends"], &packages[..]].concat()));
        if let Err(error) = installed {
            println!("installing failed: {error}");
        }
    }
    for missing in self::missing() {
        println!("missing: {}", missing.advice);
    }
    Ok(())
}

/// A need that is not met.
struct Missing {
    /// What to do.
    advice: String,
    /// Debian's packages.
    packages: &'static [&'static str],
}

fn missing() -> Vec<Missing> {
    let mut missing = Vec::new();
    if cfg!(target_os = "linux") && !has_vulkan() {
        missing.push(Missing {
            advice: "a Vulkan driver; a software one will do (Debian, Ubuntu: mesa-vulkan-drivers libvulkan1; Fedora: mesa-vulkan-drivers vulkan-loader; Arch: vulkan-swrast)".into(),
            packages: &["mesa-vulkan-drivers", "libvulkan1"],
        });
    }
    if let Err(advice) = doppler_browser::find() {
        missing.push(Missing { advice, packages: if is_ubuntu() { &[] } else { &["chromium"] } });
    }
    missing
}

/// A driver's manifest and the loader that reads it.
fn has_vulkan() -> bool {
    let manifests = ["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"];
    let listed = |folder: &&str| std::fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some());
    let named = ["VK_ICD_FILENAMES", "VK_DRIVER_FILES"].iter().any(|v| std::env::var_os(v).is_some());
    let loader = Command::new("ldconfig").arg("-p").output().or_else(|_| Command::new("/sbin/ldconfig").arg("-p").output());
    let loader = loader.map_or(true, |o| String::from_utf8_lossy(&o.stdout).contains("libvulkan.so.1"));
    loader && (named || manifests.iter().any(listed))
}

/// Ubuntu's `chromium` is a snap, which needs more than apt-get.
fn is_ubuntu() -> bool {
    std::fs::read_to_string("/etc/os-release").is_ok_and(|text| text.lines().any(|line| line == "ID=ubuntu"))
}

/// apt-get with the rights to install, if this user has them without a password.
fn apt_get() -> Option<impl FnMut(&[&str]) -> Result> {
    if !succeeds("apt-get", &["--version"]) {
        return None;
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n"));
    if !root && !succeeds("sudo", &["-n", "true"]) {
        return None;
    }
    Some(move |arguments: &[&str]| {
        let mut command = Command::new(if root { "env" } else { "sudo" });
        if !root {
            command.args(["-n", "env"]);
        }
        run(command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(arguments))
    })
}
