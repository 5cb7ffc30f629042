//! Which threads give way where there are fewer processors than threads with work.

/// How much less than the others a thread gets that works in the background: about a tenth of a processor that a lane wants too.
const BACKGROUND_NICENESS: i32 = 10;

/// Has the calling thread give way to those that requests wait for. It keeps what nobody else wants, so that it is not starved, and
/// where clients leave it too little, writes wait for it as for a slow disk.
pub(crate) fn work_in_background() {
    // On Linux this is a property of the thread, whatever POSIX says of processes.
    if let Err(error) = rustix::process::nice(BACKGROUND_NICENESS) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_asks_for_it_gives_way() {
        let own = rustix::process::getpriority_process(None).expect("there is one");
        let other = std::thread::spawn(|| {
            work_in_background();
            rustix::process::getpriority_process(None).expect("there is one")
        });
        let other = other.join().expect("it ends");
        assert_eq!(other, (own + BACKGROUND_NICENESS).min(19));
        assert_eq!(rustix::process::getpriority_process(None).expect("there is one"), own);
    }
}
