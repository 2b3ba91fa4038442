//! How long a turn on the processor a thread asks the kernel for.
//!
//! Linux 6.12 and later (EEVDF) let a thread ask for short turns. It gets as much of the processor as before, but sooner: whoever asks
//! for less is due earlier, so it takes the processor from one that asked for more, and waits less for it when it wakes.

use std::io;
use std::time::Duration;

/// Asks that turns of the calling thread be about this long; the kernel keeps it between 0.1 and 100 ms. Returns what it
/// made of that: none where it knows no such wish, or where the thread is scheduled by rules of their own (real time, batch).
///
/// Takes no privilege, and changes nothing else about the thread.
///
/// # Errors
/// A sandbox forbids it. The thread runs as before.
pub fn ask_for_turns_of(length: Duration) -> io::Result<Option<Duration>> {
    let before = attributes()?;
    if before.sched_policy != libc::SCHED_OTHER as u32 || before.sched_runtime == 0 {
        return Ok(None);
    }
    let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
    set_attributes(&libc::sched_attr { sched_runtime: length, ..before })?;
    Ok(Some(Duration::from_nanos(attributes()?.sched_runtime)))
}

/// Size of the first version of the structure, which every kernel understands that has the calls.
const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
/// The calling thread.
const THIS: libc::pid_t = 0;
const NO_FLAGS: libc::c_uint = 0;

/// As `sched_getattr(2)` tells them. Kernels without turns to ask for say 0 for their length.
#[expect(unsafe_code, reason = "rustix has no sched_getattr, and no other crate in the tree has")]
fn attributes() -> io::Result<libc::sched_attr> {
    let mut attributes = libc::sched_attr {
        size: SIZE,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most `SIZE` bytes to the structure, which is as large and lives until the call returns; all
    // of its fields are plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, THIS, &raw mut attributes, SIZE, NO_FLAGS) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

#[expect(unsafe_code, reason = "rustix has no sched_setattr, and no other crate in the tree has")]
fn set_attributes(attributes: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the structure says that it has, and keeps no pointer to it.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, THIS, &raw const *attributes, NO_FLAGS) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_the_turns_that_it_asked_for_and_keeps_the_rest() {
        let on_a_thread_of_its_own = std::thread::spawn(|| {
            let before = attributes().unwrap();
            let Some(length) = ask_for_turns_of(Duration::from_micros(300)).unwrap() else {
                assert!(std::env::var_os("CI").is_none(), "this kernel knows no turns to ask for (Linux 6.12)");
                eprintln!("SKIPPED: this kernel knows no turns to ask for (Linux 6.12)");
                return;
            };
            assert_eq!(length, Duration::from_micros(300));
            let after = attributes().unwrap();
            assert_eq!(after.sched_runtime, 300_000, "{}", before.sched_runtime);
            assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, before.sched_nice));
            // The kernel's own bounds.
            assert_eq!(ask_for_turns_of(Duration::from_nanos(1)).unwrap(), Some(Duration::from_micros(100)));
        });
        on_a_thread_of_its_own.join().unwrap();
    }
}
