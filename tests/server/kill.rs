//! `kill -9` again and again, under writes whose content is known: no acknowledged write may be lost.
//!
//! `ROK_SEED=7` replays a seed's choices (the moments of kills are as exact as a clock), `ROK_KILL_CYCLES=1000` kills
//! more often, `ROK_DISK_KILL_CYCLES` on each other kind of disk.

use std::ops::Range;
use std::os::unix::fs::symlink;
use std::time::Duration;
use std::{env, fs};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::devices::LoopDevice;
use crate::full_file_system::SmallFileSystem;
use crate::load::{Load, Pattern, Plan, Scope, Shared, compare};
use crate::support::{Home, WAIT_MAX, request, skip};
use crate::victim::{CHECKPOINT_BEGINS, Obituary, Victim};

/// Kills in a run.
const CYCLES: u64 = 100;
/// Kills in a run on each other kind of disk.
const OTHER_DISK_CYCLES: u64 = 7;
/// Holds the blocks of a full log twice: those that live and those in quarantine.
const POOL_SIZE: &str = "2G";
/// Holds those of a mixed load, and has place in a small file system.
const SMALL_POOL_SIZE: &str = "160M";
const LOOP_BYTES: u64 = 160 << 20;
const VOLUME: &str = "vol1";
const VOLUME_SIZE: &str = "1G";
/// 32 MiB that the mixed load writes: small, so that writes overlap.
const MIXED_BLOCKS: Range<u64> = 0..8192;
/// 464 MiB that fill the log: more blocks than the changes that start a checkpoint.
const FULL_BLOCKS: Range<u64> = 8192..126_976;
/// Changes that start a checkpoint: the longest log there is.
const FULL_LOG_CHANGES: u64 = 100_000;
/// Checkpoints that may begin before one does because of a full log.
const FULL_LOG_TRIES: u32 = 60;
/// Every so many cycles the log is filled up; twelve in a hundred would not fit into CI's time.
const FULL_LOG_PERIOD: u64 = 20;
/// Every so many cycles everything ever written is compared, not only what was written since the last time.
const COMPARE_ALL_PERIOD: u64 = 25;
/// What is promised is 2 s, of an idle machine; here others have it too, so this only ends what never would.
const OPEN_TIME_MAX: Duration = Duration::from_secs(60);
/// A load gets this long at most before it is killed.
const LOAD_MS_MAX: u64 = 250;
/// Covers a checkpoint's duration, mostly.
const CHECKPOINT_MS_MAX: u64 = 25;
/// The same of the checkpoint that ends an opening.
const OPENING_CHECKPOINT_MS_MAX: u64 = 10;

/// Where a kill comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moment {
    /// Somewhere in a mixed load.
    Load,
    /// Before the daemon is ready.
    Opening,
    /// In the checkpoint at a daemon's end.
    Closing,
    /// In the checkpoint that a full log starts, while writes go on.
    FullLog(u64),
}

/// Where the pool's data are. Its `meta/` is with them, but not on a block device.
enum Disk {
    /// Files in the file system of the test.
    Files,
    /// Files in one that is mounted.
    Mounted(SmallFileSystem),
    /// A block device.
    Loop(LoopDevice),
}

/// What really happened.
#[derive(Default, Debug)]
struct Counts {
    under_load: u64,
    inside_opening: u64,
    inside_checkpoint_of_opening: u64,
    inside_checkpoint_under_load: u64,
    with_full_log: u64,
    ended_first: u64,
    compared_blocks: u64,
}

struct Run {
    /// Before the home, in which it is mounted: fields are dropped in their order.
    _disk: Disk,
    home: Home,
    shared: Shared,
    random: SmallRng,
    counts: Counts,
    /// How long each daemon took to get ready, and how many changes the one before had had at its end, if known.
    open_times: Vec<(Duration, u64)>,
    /// Changes of the killed daemon, where they were looked up.
    last_changes: u64,
}

#[test]
fn no_acknowledged_write_is_lost_by_kills() {
    let setting = |name: &str| env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let seed = setting("ROK_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    let cycles = setting("ROK_KILL_CYCLES").unwrap_or(CYCLES);
    let replay = format!(
        "replay: ROK_SEED={seed} ROK_KILL_CYCLES={cycles} cargo test --test server \
         no_acknowledged_write_is_lost_by_kills -- --nocapture"
    );
    println!("{replay}");
    let home = Home::new();
    let mut run = Run::new(seed, home, Disk::Files);
    run.cycles(cycles, &replay);
    let counts = run.counts;
    assert!(counts.under_load > 0, "{counts:?}\n{replay}");
    assert!(counts.inside_opening > 0 && counts.inside_checkpoint_of_opening > 0, "{counts:?}\n{replay}");
    assert!(counts.inside_checkpoint_under_load > 0 && counts.with_full_log > 0, "{counts:?}\n{replay}");
    let slowest = run.open_times.iter().map(|(time, _)| *time).max().expect("it was opened");
    assert!(slowest <= OPEN_TIME_MAX, "opening took {slowest:?}\n{replay}");
}

#[test]
fn kills_lose_nothing_on_ext4_xfs_and_a_loop_device() {
    let cycles = env::var("ROK_DISK_KILL_CYCLES").map_or(OTHER_DISK_CYCLES, |value| value.parse().expect("a number"));
    for (seed, name) in (0..).zip(["ext4", "xfs", "loop device"]) {
        let home = Home::new();
        let disk = match name {
            "ext4" => SmallFileSystem::mount(&home).map(Disk::Mounted),
            "xfs" => SmallFileSystem::mount_xfs(&home).map(Disk::Mounted),
            _ => LoopDevice::attach(&home, "disk", LOOP_BYTES).map(Disk::Loop),
        };
        let Some(disk) = disk else { return skip(&format!("no {name} can be had here")) };
        println!("{name}");
        let mut run = Run::new(seed, home, disk);
        run.cycles(cycles, name);
        assert!(run.counts.under_load + run.counts.inside_opening > 0, "{name}: {:?}", run.counts);
    }
}

impl Run {
    fn new(seed: u64, home: Home, disk: Disk) -> Self {
        let (pool, key) = (home.text("pool"), home.text("pool.key"));
        let device = match &disk {
            Disk::Files => ["--size", POOL_SIZE],
            Disk::Mounted(small) => {
                let place = small.path().join("pool");
                fs::create_dir(&place).and_then(|()| symlink(&place, &pool)).expect("both are free");
                ["--size", SMALL_POOL_SIZE]
            }
            Disk::Loop(device) => ["--device", device.text()],
        };
        home.run(["pool", "create", &pool, "--key-file", &key, "--generate-key"].iter().chain(&device)).success();
        let serving = home.serve(&[]);
        home.run(["create", VOLUME, "--size", VOLUME_SIZE]).success();
        serving.kill();
        Self {
            _disk: disk,
            home,
            shared: Shared::default(),
            random: SmallRng::seed_from_u64(seed),
            counts: Counts::default(),
            open_times: Vec::new(),
            last_changes: 0,
        }
    }

    /// Kills so many daemons, and compares everything at last.
    fn cycles(&mut self, cycles: u64, replay: &str) {
        for cycle in 0..cycles {
            if let Err(failure) = self.cycle(cycle) {
                panic!("cycle {cycle}: {failure}\n{:?}\n{replay}", self.counts);
            }
            self.home.check();
        }
        let last = self.open(cycles).unwrap_or_else(|failure| panic!("the last opening: {failure}\n{replay}"));
        self.compare(Scope::All).unwrap_or_else(|failure| panic!("at last: {failure}\n{replay}"));
        last.finish();
        self.report();
    }

    /// Starts a daemon, compares what it holds, and kills it.
    fn cycle(&mut self, cycle: u64) -> Result<(), String> {
        let moment = self.choose(cycle);
        if moment == Moment::Opening {
            self.kill_opening();
            return Ok(());
        }
        let mut victim = self.open(cycle)?;
        let scope = if cycle % COMPARE_ALL_PERIOD == COMPARE_ALL_PERIOD - 1 { Scope::All } else { Scope::New };
        self.compare(scope)?;
        let (blocks, pattern) = match moment {
            Moment::FullLog(count) => (FULL_BLOCKS, Pattern::Fill(count)),
            _ => (MIXED_BLOCKS, Pattern::Mixed),
        };
        let seed = self.random.random();
        let plan = Plan { socket: self.nbd_socket(), export: VOLUME.to_owned(), blocks, pattern, seed };
        let load = Load::start(&plan, &self.shared);
        let obituary = match moment {
            Moment::FullLog(_) => self.kill_in_full_checkpoint(victim),
            Moment::Closing => {
                self.pause(LOAD_MS_MAX);
                victim.terminate();
                // False if it was done before it could be told; then it ended first.
                let _has_begun = victim.wait_for(CHECKPOINT_BEGINS, WAIT_MAX);
                self.pause(CHECKPOINT_MS_MAX);
                victim.kill()
            }
            Moment::Load | Moment::Opening => {
                self.pause(LOAD_MS_MAX);
                victim.kill()
            }
        };
        load.finish();
        self.count(&obituary);
        Ok(())
    }

    fn choose(&mut self, cycle: u64) -> Moment {
        if cycle % FULL_LOG_PERIOD == FULL_LOG_PERIOD / 2 {
            // Long writes make few records, short ones many. Of single blocks a slow disk does not take so many in the time
            // after which changes are stored although they are few.
            return Moment::FullLog(if (cycle / FULL_LOG_PERIOD).is_multiple_of(2) { 16 } else { 4 });
        }
        // After a full log, so that recovery has much to do; else now and then.
        let is_after_full_log = cycle % FULL_LOG_PERIOD == FULL_LOG_PERIOD / 2 + 1;
        match self.random.random_range(0..100) {
            0..25 => Moment::Opening,
            _ if is_after_full_log && cycle / FULL_LOG_PERIOD % 2 == 1 => Moment::Opening,
            25..40 => Moment::Closing,
            _ => Moment::Load,
        }
    }

    /// Kills a daemon within about the time that the last one took to get ready.
    fn kill_opening(&mut self) {
        let usual = self.open_times.last().map_or(Duration::from_millis(100), |(time, _)| *time);
        let mut victim = Victim::spawn(self.command());
        if self.random.random_bool(0.5) && victim.wait_for(CHECKPOINT_BEGINS, WAIT_MAX) {
            self.pause(OPENING_CHECKPOINT_MS_MAX);
        } else {
            self.pause(u64::try_from(usual.as_millis()).expect("openings are short").max(1));
        }
        let obituary = victim.kill();
        if obituary.was_ready() {
            self.counts.ended_first += 1;
            return;
        }
        self.counts.inside_opening += 1;
        self.counts.inside_checkpoint_of_opening += u64::from(obituary.was_inside_checkpoint());
    }

    /// Fills the log until that starts a checkpoint, and kills the daemon therein.
    fn kill_in_full_checkpoint(&mut self, mut victim: Victim) -> Obituary {
        let mut tries = 0..FULL_LOG_TRIES;
        while self.last_changes < FULL_LOG_CHANGES {
            assert!(
                tries.next().is_some(),
                "{FULL_LOG_TRIES} checkpoints began before the log was full: too slow a disk"
            );
            assert!(victim.wait_for(CHECKPOINT_BEGINS, WAIT_MAX), "a load makes checkpoints");
            let status = request(&self.home.socket(), "GET", "/v1/status", "").body;
            self.last_changes = status["pool"]["changes"].as_u64().expect("a number");
        }
        self.counts.with_full_log += 1;
        self.pause(CHECKPOINT_MS_MAX);
        victim.kill()
    }

    /// Starts a daemon and waits until it is ready.
    #[expect(clippy::print_stdout, reason = "the figures belong to what a run shows")]
    fn open(&mut self, cycle: u64) -> Result<Victim, String> {
        let mut victim = Victim::spawn(self.command());
        let time = victim.wait_until_ready();
        let status = request(&self.home.socket(), "GET", "/v1/status", "").body;
        self.open_times.push((time, std::mem::take(&mut self.last_changes)));
        let lost = status["pool"]["lost_blocks"].as_u64();
        // The system lives on, so that nothing of an acknowledged batch may be missing; only the last ones may.
        println!(
            "cycle {cycle}: ready after {time:?}, {} records, {lost:?} blocks lost",
            status["pool"]["recovered_records"]
        );
        match status["pool"]["failure"].as_str() {
            Some(failure) => Err(format!("the pool has failed: {failure}")),
            None => Ok(victim),
        }
    }

    fn compare(&mut self, scope: Scope) -> Result<(), String> {
        self.counts.compared_blocks += compare(&self.nbd_socket(), VOLUME, &mut self.shared.history(), scope)?;
        Ok(())
    }

    fn count(&mut self, obituary: &Obituary) {
        if obituary.said.iter().any(|line| line.contains("The pool is closed.")) {
            self.counts.ended_first += 1;
            return;
        }
        self.counts.under_load += 1;
        self.counts.inside_checkpoint_under_load += u64::from(obituary.was_inside_checkpoint());
    }

    fn command(&self) -> std::process::Command {
        self.home.command(["serve", "--pool", &self.home.text("pool"), "--key-file", &self.home.text("pool.key")])
    }

    fn nbd_socket(&self) -> std::path::PathBuf {
        self.home.path("run/rok-blk/nbd.sock")
    }

    /// A random moment has to be a moment of the clock: whatever can be awaited comes at the same place each time.
    fn pause(&mut self, ms_max: u64) {
        let time = Duration::from_micros(self.random.random_range(0..ms_max * 1000));
        std::thread::sleep(time);
    }

    #[expect(clippy::print_stdout, reason = "the figures belong to what a run shows")]
    fn report(&self) {
        let mut times: Vec<Duration> = self.open_times.iter().map(|(time, _)| *time).collect();
        times.sort();
        let full = self.open_times.iter().filter(|(_, changes)| *changes >= FULL_LOG_CHANGES);
        println!(
            "{:?}, {} requests acknowledged; ready after {:?} (median), {:?} (longest); after a full log {:?}",
            self.counts,
            self.shared.acknowledged_count(),
            times[times.len() / 2],
            times[times.len() - 1],
            full.collect::<Vec<_>>()
        );
    }
}
