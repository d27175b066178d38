//! How much memory this process can still get: what the system has available, and what the control groups that it is in
//! leave of their limits (Linux).

use std::path::{Path, PathBuf};

/// Bytes of memory that this process can still get, where the system tells.
pub fn available() -> Option<u64> {
    within(Path::new("/"))
}

/// As [`available`], of the system whose files are below `root`.
fn within(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let system = kibibytes.checked_mul(1024)?;
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let groups = groups.lines().filter_map(|line| {
        // `0::/path` is version 2, `4:memory:/path` version 1.
        let (_, rest) = line.split_once(':')?;
        match rest.split_once(':')? {
            ("", path) => Some((root.join("sys/fs/cgroup"), path, ["memory.max", "memory.current"])),
            (names, path) if names.split(',').any(|name| name == "memory") => {
                Some((root.join("sys/fs/cgroup/memory"), path, ["memory.limit_in_bytes", "memory.usage_in_bytes"]))
            }
            _ => None,
        }
    });
    let left = groups.flat_map(|(mount, path, files)| folders(&mount, path).into_iter().filter_map(move |folder| left(&folder, files)));
    Some(left.fold(system, u64::min))
}

/// The folders of a group and of those that it is in. In a container the group's own path may not be there, but `mount` is.
fn folders(mount: &Path, path: &str) -> Vec<PathBuf> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != "..").collect();
    (0..=parts.len()).map(|n| mount.join(parts[..n].join("/"))).collect()
}

/// What a group leaves of its limit: memory that holds files' contents can be had back.
fn left(folder: &Path, [limit, used]: [&str; 2]) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number(limit)?;
    let files = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let files = files.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok()).unwrap_or(0);
    Some(limit.saturating_sub(number(used)?.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_control_groups_count() {
        let root = std::env::temp_dir().join(format!("doppler-memory-{}", std::process::id()));
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(within(&root), None);
        put("proc/meminfo", "MemTotal: 900 kB\nMemAvailable:     100 kB\n");
        assert_eq!(within(&root), Some(102_400));
        // Version 2: the group's own limit, less what it uses, plus what it can give back; `max` is none.
        put("proc/self/cgroup", "0::/a/b\n");
        put("sys/fs/cgroup/a/b/memory.max", "max\n");
        put("sys/fs/cgroup/a/b/memory.current", "5000\n");
        assert_eq!(within(&root), Some(102_400));
        put("sys/fs/cgroup/a/memory.max", "9000\n");
        put("sys/fs/cgroup/a/memory.current", "7000\n");
        put("sys/fs/cgroup/a/memory.stat", "anon 6000\ninactive_file 500\n");
        assert_eq!(within(&root), Some(2_500));
        // Version 1, where the group's path is not there but the mount is.
        put("proc/self/cgroup", "5:cpu:/x\n4:memory,hugetlb:/docker/1234\n");
        put("sys/fs/cgroup/memory/memory.limit_in_bytes", "8000\n");
        put("sys/fs/cgroup/memory/memory.usage_in_bytes", "9000\n");
        assert_eq!(within(&root), Some(0));
        std::fs::remove_dir_all(root).unwrap();
    }
}
