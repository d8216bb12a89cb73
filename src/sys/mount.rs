//! A directory of this process alone (mount_namespaces(7)).

use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::UnshareFlags;

use super::netns::unshare;

/// Puts an empty directory in memory in the place of `directory`, for the calling thread and those it starts from now on. It is gone with the
/// last of them, however that ends. Nobody else meets it there; who may look at the process finds it under `/proc/PID/root`.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `ENOENT` if there is no such directory.
pub fn cover(directory: &Path) -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    // What is mounted here is not to be passed on to the namespace that this one is a copy of.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(mount("tmpfs", directory, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0700"))?)
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    #[test]
    fn a_covered_directory_is_empty_and_as_it_was_for_everybody_else() {
        let directory = std::env::temp_dir().join(format!("adit-mount-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("theirs"), "").unwrap();
        let names = || -> Vec<_> {
            let entries = fs::read_dir(&directory).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let inside = || {
            cover(&directory)?;
            let before = names();
            fs::write(directory.join("ours"), "")?;
            Ok((before, thread::scope(|scope| scope.spawn(names).join().unwrap())))
        };
        let outside = || -> io::Result<_> {
            unshare(UnshareFlags::NEWNS)?;
            // Mounts are passed on to copies and from there, as on most machines.
            mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
            let seen: io::Result<_> = thread::scope(|scope| scope.spawn(inside).join().unwrap());
            Ok((seen?, names()))
        };
        let seen = thread::scope(|scope| scope.spawn(outside).join().unwrap());
        let left = names();
        fs::remove_dir_all(&directory).unwrap();
        if seen.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)) {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        }
        let ((before, after), outside) = seen.unwrap();
        assert_eq!((before.len(), after), (0, vec!["ours".to_owned()]));
        assert_eq!((outside, left), (vec!["theirs".to_owned()], vec!["theirs".to_owned()]));
    }
}
